// Package worker keeps the zygotes of one runtime up and turns them into
// workers: a worker is a parked engine + API server pair, or one cold process.
// It is the agent's only way to touch an engine's process.
//
// # What survives what
//
//	the agent goes away   nothing happens to any process; a new Runtime on the same
//	                      run dir connects again and adopts by pid + start time
//	a zygote dies         its workers live on; the next generation is started for new
//	                      ones, and ends the old ones when asked (by pid + start time)
//	half of a pair dies   its zygote kills the other half; failing that the halves watch
//	                      each other, and failing that the agent does it
//	Runtime.Run ends      the same as the agent going away
//	Runtime.Shutdown      everything ends, and is proven gone
//
// A pid alone never names a process here: see [Proc]. On cgroup v2 a worker is also
// what is in its cgroup, so that no grandchild outlives it in a session of its own.
//
// Zygotes are started by a [Launcher]: as units of systemd, of another user, or as
// plain processes where the agent is no service.
//
// # On disk
//
//	RUN/NAME.GEN/zygote.sock        control socket of generation GEN of runtime NAME
//	RUN/NAME.GEN/unit.json          what systemd's unit is to run; `warmd zygote` checks it
//	RUN/NAME.GEN/end.json           how that unit ended, by its ExecStopPost=
//	RUN/NAME.GEN/zygote.json        what was started, so that an agent knows if it is current
//	RUN/NAME.GEN/ID/engine.sock     control sockets of worker ID (a pair)
//	RUN/NAME.GEN/ID/api.sock
//	RUN/NAME.GEN/ID/worker.json     its Record
//	RUN/NAME.GEN/ID/journal.offset  how much of its log is in the journal
//	LOG/NAME/ID.log                 what the worker prints
//	LOG/NAME/zygote.GEN.log         what the zygote prints; the newest keptLogs are kept
//
// # Who writes what
//
// A worker's state has one writer, its loop (loop.go); every method is a request
// to it. A generation's state is written by its own goroutine, under the
// runtime's lock. Runtime.Run owns all of these goroutines.
//
// Reading order: state.go, worker.go, loop.go, sleep.go, reap.go, runtime.go, generation.go.
package worker
