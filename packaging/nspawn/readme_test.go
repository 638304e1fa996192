package nspawn

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
)

// A block of the README's page about a fleet says in its first line where it is typed.
var readmeBlock = regexp.MustCompile("(?ms)^```sh\n# on ([a-z0-9 ]+)\n(.*?)^```$")

// readmeInstall is what makes a runtime in the README. It would fetch 5 GB for each
// host from where hosts of a test cannot go, so it is the one command that is
// replaced: the same runtime, as `make runtimes` installed it, is adopted.
const readmeInstall = "warmd runtime add " + vllmRuntime + " --vllm 0.32.0"

// TestReadmesPageTypedAsPrintedMakesThreeHostsThatAnswer types every block of the
// page in the order of print, on one host after the other.
func TestReadmesPageTypedAsPrintedMakesThreeHostsThatAnswer(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	blocks := readmeBlock.FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, blocks)
	require.Len(t, blocks, strings.Count(string(text), "```sh\n"), "a block does not say where it is typed")

	runtime := filepath.Join(runtimesDir(), vllmRuntime)
	binds, err := host.RuntimeBinds(runtime)
	require.NoError(t, err)
	all, err := bootAll(host.Spec{Bind: binds}, "desk", "gpu1", "gpu2", "gpu3")
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, h := range all {
			_ = h.Kill()
		}
	})
	lab.Explain(t)
	desk, gpus := all[0], all[1:]
	presuppose(t, desk, gpus)

	begin := time.Now()
	said, adopted := "", 0
	for _, b := range blocks {
		for name := range strings.FieldsSeq(b[1]) {
			h := lab.Host(name)
			require.NotNil(t, h, "the page names host %q", name)
			script := b[2]
			if rest, ok := strings.CutPrefix(script, readmeInstall+"\n"); ok {
				h.AdoptRuntime(t, runtime)
				script = rest
				adopted++
			}
			said = h.Run(t, typed("cd ~/warmd 2>/dev/null || cd; bash -e", script))
		}
	}
	figure("readme_page_seconds", seconds(time.Since(begin)))
	require.Equal(t, len(gpus), adopted, "the page installs a runtime on each host with %q", readmeInstall)

	// What was seen last is the desk's: three nodes, and a model that answers.
	for _, h := range gpus {
		assert.Regexp(t, `(?m)^`+h.Name+` +alive .* `+regexp.QuoteMeta(vllmRuntime)+` `, said)
	}
	assert.Regexp(t, `(?m)^tiny \(p-\w+\) answers on gpu[123]/cpu-0$`, said)
	assert.Regexp(t, `(?m)^  start +warm, first token after`, said)
	try := regexp.MustCompile(`(?m)^  try +(curl .*)$`).FindStringSubmatch(said)
	require.NotNil(t, try, said)
	assert.Contains(t, desk.Run(t, try[1]), `"text"`)
	t.Log(said)

	// What the page says in passing.
	desk.Run(t, "WARMD_SERVER=gpu2:7711 warmctl drain gpu2")
	assert.Contains(t, gpus[1].Run(t, "journalctl -q WARMD_AUDIT=true"), "drain")
	desk.Run(t, "WARMD_SERVER=gpu3:7711 warmctl release tiny")
	figure("readme_test_seconds", seconds(time.Since(begin)))
}

// The lines of the README that install warmd on one host are typed by a user who may
// use sudo, each after a new login. `make packages` has been done.
func TestReadmesLinesOfOneHostTypedAsPrintedInstallIt(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, part, _ := strings.Cut(string(text), "\n## Install it\n\n    make packages ")
	lines, _, _ := strings.Cut(part, "\n\n")

	runtime := filepath.Join(runtimesDir(), vllmRuntime)
	binds, err := host.RuntimeBinds(runtime)
	require.NoError(t, err)
	h, err := lab.Boot(t.Context(), "alone", host.Spec{Bind: binds})
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Kill() })
	lab.Explain(t)
	h.Run(t, "useradd -m -s /bin/bash ann && echo 'ann ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ann")
	for _, deb := range debs(t) {
		h.Copy(t, deb, "/home/ann/dist/"+filepath.Base(deb), 0o644)
	}

	said, adopted := "", false
	for _, line := range strings.Split(lines, "\n    ")[1:] {
		if strings.HasPrefix(line, "sudo "+readmeInstall) {
			h.AdoptRuntime(t, runtime)
			adopted = true
			continue
		}
		said = h.Run(t, typed("runuser -l ann", "set -e\n"+line+"\n"))
	}
	require.True(t, adopted, "the lines have %q", readmeInstall)
	assert.Contains(t, said, "0 broken")
	assert.Contains(t, said, "Active: active (running)")
	assert.Contains(t, said, vllmRuntime+" up")
}

// typed gives a shell what is typed into it: a command that reads its input takes
// what follows, as it does on a terminal.
func typed(shell, script string) string {
	return shell + " 2>&1 <<'TYPED'\n" + script + "TYPED\n"
}

// presuppose makes what the page takes for granted: a desk with the packages in dist
// and a way by ssh to hosts that are those of Debian. Of etcd ours differ, which
// keep it from starting.
func presuppose(t *testing.T, desk *host.Host, gpus []*host.Host) {
	t.Helper()
	for _, deb := range debs(t) {
		desk.Copy(t, deb, "/root/warmd/dist/"+filepath.Base(deb), 0o644)
	}
	desk.Write(t, "/root/.ssh/config", "StrictHostKeyChecking accept-new\nLogLevel ERROR\n", 0o600) // somebody says yes
	key := desk.Run(t, "ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519 && cat ~/.ssh/id_ed25519.pub")
	each(t, gpus, func(h *host.Host) {
		h.Write(t, "/root/.ssh/authorized_keys", key+"\n", 0o600)
		h.Run(t, "systemctl unmask -q etcd ssh && systemctl start ssh etcd")
	})
}
