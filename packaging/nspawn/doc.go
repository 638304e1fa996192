// Package nspawn tests warmd on booted Debian hosts: real packages, real units under
// a real systemd, real users, several hosts with an etcd cluster and certificates.
// `make test-hosts` runs it, as root; [warmd/packaging/nspawn/host] boots the hosts.
// Its tests print the figures that they measure, one a line: `figure: NAME VALUE`.
package nspawn
