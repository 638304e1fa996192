// Package host boots real Debian hosts for tests: systemd 252 as PID 1, one
// systemd-nspawn container and one network namespace each, all on one bridge. Root
// is needed, and nothing else: no machined, no network of the machine's own (the
// bridge lives in a namespace, so two runs at once never meet), pure cgroup v2
// inside whatever the machine has.
//
//	Lab         one run: a folder, a cgroup, a bridge; Open sweeps what dead runs left
//	Host        one booted host: Run, Copy, Install, Stop, Kill, Start, Pause, Resume
//	Network     Dial from any host's namespace, Partition, Drop, Heal, Scan
//	Standstill  how long the machine beneath all hosts did nothing
//
// A janitor process waits for the end of the test binary, however it ends, and
// sweeps the run; if it is killed, too, the next Open does it.
package host
