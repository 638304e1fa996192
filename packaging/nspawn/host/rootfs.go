package host

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Suite is the Debian that hosts run: bookworm has systemd 252, the oldest that warmd
// supports, and etcd 3.4; WARMD_TEST_SUITE=trixie has systemd 257 and etcd 3.5.
func Suite() string { return cmp.Or(os.Getenv("WARMD_TEST_SUITE"), "bookworm") }

// packages are those of a GPU host that somebody administers, and an etcd for those
// that run one. What a package of warmd depends on is here, too: hosts have no
// network but their own. libnuma1 is what vLLM for CPU wants of the system.
var packages = []string{
	"ca-certificates", "curl", "dbus", "etcd-client", "etcd-server", "iproute2", "iptables", "jq", "libnuma1", "openssh-client",
	"openssh-server", "openssl", "polkitd", "procps", "python3", "rpm", "sudo", "systemd", "systemd-sysv", "util-linux",
}

// setUpScript runs in the new root. Nothing starts at boot but what a test asks
// for; timers that would do work in the middle of a measurement are off.
const setUpScript = `
systemctl mask etcd.service ssh.service ssh.socket apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer dpkg-db-backup.timer man-db.timer getty.target console-getty.service
mkdir -p /var/log/journal
rm -rf /var/lib/etcd/default /var/cache/apt/*.bin /etc/hostname
`

// makeRootfs returns a folder with a root file system, made once per list of
// packages. Concurrent runs wait for the one that makes it.
func makeRootfs(ctx context.Context, cache string) (string, error) {
	sum := sha256.Sum256([]byte(Suite() + strings.Join(packages, ",") + setUpScript))
	dir := filepath.Join(cache, "rootfs-"+hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock root file system: %w", err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp := dir + ".tmp" // left by a run that was killed, perhaps
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--mode=root", "--quiet", "--variant=minbase", "--include="+strings.Join(packages, ","),
		"--customize-hook=chroot \"$1\" sh -ec '"+strings.TrimSpace(setUpScript)+"'", Suite(), tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make root file system: %w (`make host-tools` installs mmdebstrap): %s", err, tail(string(out), 2000))
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	return dir, os.Rename(tmp, dir)
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}
