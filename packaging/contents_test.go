package packaging

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// installed is a file of a package: "-rw-r--r-- root/root".
type installed map[string]string

func contents(t *testing.T, pkg string) installed {
	t.Helper()
	files := installed{}
	if strings.HasSuffix(pkg, "-rpm") {
		for line := range strings.Lines(output(t, "rpm", "-qp", "--qf", "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]", dist[pkg])) {
			f := strings.Fields(line)
			files[f[2]] = f[0] + " " + f[1]
		}
		return files
	}
	for line := range strings.Lines(output(t, "dpkg-deb", "-c", dist[pkg])) {
		f := strings.Fields(line)
		files[strings.TrimSuffix(strings.TrimPrefix(f[5], "."), "/")] = f[0] + " " + f[1]
	}
	return files
}

// sources lists what must be in the packages because it is in the tree.
func sources(t *testing.T, pattern, to, suffix string) (want []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join("..", pattern))
	require.NoError(t, err)
	require.NotEmpty(t, found, pattern)
	for _, f := range found {
		want = append(want, to+"/"+filepath.Base(f)+suffix)
	}
	return want
}

// TestPackagesHoldWhatTheyShouldAndNothingElse: all of it root's, nothing writable by
// others, in the folders of a distribution.
func TestPackagesHoldWhatTheyShouldAndNothingElse(t *testing.T) {
	zsh := map[string]string{"deb": "/usr/share/zsh/vendor-completions/_", "rpm": "/usr/share/zsh/site-functions/_"}
	doc := map[string][]string{"deb": {"copyright", "changelog.gz"}, "rpm": {"changelog"}}
	for _, format := range []string{"deb", "rpm"} {
		for _, pkg := range []string{"warmd", "warmctl"} {
			want := []string{
				"/usr/bin/" + pkg, "/usr/share/bash-completion/completions/" + pkg, zsh[format] + pkg, "/usr/share/fish/vendor_completions.d/" + pkg + ".fish",
			}
			for _, d := range doc[format] {
				want = append(want, "/usr/share/doc/"+pkg+"/"+d)
			}
			if format == "rpm" {
				want = append(want, "/usr/share/licenses/"+pkg+"/LICENSES")
			} else {
				want = append(want, "/usr/share/lintian/overrides/"+pkg)
			}
			if pkg == "warmctl" {
				want = append(want, sources(t, "packaging/man/*.1", "/usr/share/man/man1", ".gz")...)
			} else {
				want = slices.Concat(want, []string{"/usr/share/doc/warmd/README"},
					sources(t, "packaging/man/*.8", "/usr/share/man/man8", ".gz"), sources(t, "packaging/man/*.5", "/usr/share/man/man5", ".gz"),
					sources(t, "packaging/config/*", "/etc/warmd", ""), sources(t, "systemd/units/*", "/usr/lib/systemd/system", ""),
					sources(t, "packaging/preset/*", "/usr/lib/systemd/system-preset", ""), sources(t, "packaging/sysusers/*", "/usr/lib/sysusers.d", ""),
					sources(t, "packaging/tmpfiles/*", "/usr/lib/tmpfiles.d", ""), sources(t, "packaging/polkit/*", "/usr/share/polkit-1/rules.d", ""),
					sources(t, "agent/runtime/vllm/*.py", "/usr/lib/warmd/python", ""))
			}
			var have []string
			for path, mode := range contents(t, pkg+"-"+format) {
				wantMode := "-rw-r--r-- root/root"
				switch {
				case mode[0] == 'd':
					wantMode = "drwxr-xr-x root/root"
				case strings.HasPrefix(path, "/usr/bin/"):
					wantMode = "-rwxr-xr-x root/root"
				}
				assert.Equal(t, wantMode, mode, "%s %s: %s", pkg, format, path)
				if mode[0] != 'd' {
					have = append(have, path)
				}
			}
			slices.Sort(want)
			slices.Sort(have)
			assert.Equal(t, want, have, "%s as .%s", pkg, format)
		}
	}
}

// TestConfigurationIsTheOperators: what is below /etc, and only that, is kept when it
// was changed.
func TestConfigurationIsTheOperators(t *testing.T) {
	want := "/etc/warmd/agent.toml\n/etc/warmd/coordinator.toml\n"
	assert.Equal(t, want, output(t, "dpkg-deb", "-I", dist["warmd-deb"], "conffiles"))
	assert.Equal(t, want, output(t, "rpm", "-qp", "--configfiles", dist["warmd-rpm"]))
	flags := output(t, "rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", dist["warmd-rpm"])
	assert.Contains(t, flags, "/etc/warmd/agent.toml cn\n", "config, noreplace")
	assert.Equal(t, "", output(t, "rpm", "-qp", "--configfiles", dist["warmctl-rpm"]))
}

// TestProgramsRunOnTheDistributionsThatArePromised: Ubuntu 22.04 and RHEL 9 have glibc
// 2.34 or later; warmctl needs nothing at all.
func TestProgramsRunOnTheDistributionsThatArePromised(t *testing.T) {
	for _, pkg := range []string{"warmd", "warmctl"} {
		dir := t.TempDir()
		output(t, "dpkg-deb", "-x", dist[pkg+"-deb"], dir)
		path := filepath.Join(dir, "usr/bin", pkg)
		assert.Contains(t, output(t, path, "--version"), version)
		f, err := elf.Open(path)
		require.NoError(t, err)
		defer f.Close()
		if pkg == "warmctl" {
			assert.Nil(t, f.Section(".interp"), "warmctl is static")
			continue
		}
		symbols, err := f.ImportedSymbols()
		require.NoError(t, err)
		for _, s := range symbols {
			var minor int
			if _, err := fmt.Sscanf(s.Version, "GLIBC_2.%d", &minor); err == nil {
				assert.LessOrEqual(t, minor, 34, "%s needs %s", s.Name, s.Version)
			}
		}
		libs, err := f.ImportedLibraries()
		require.NoError(t, err)
		assert.Equal(t, []string{"libc.so.6"}, libs, "say what else it needs in nfpm-warmd.yaml")
	}
}

// TestLintianHasNothingToSay but what packaging/lintian explains.
func TestLintianHasNothingToSay(t *testing.T) {
	for _, pkg := range []string{"warmd-deb", "warmctl-deb"} {
		out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", dist[pkg]).CombinedOutput()
		assert.NoError(t, err, "%s", out)
		assert.Empty(t, string(out))
	}
}

func TestScriptsAreSound(t *testing.T) {
	scripts, err := filepath.Glob("scripts/*")
	require.NoError(t, err)
	require.Len(t, scripts, 3)
	for _, s := range scripts {
		output(t, "dash", "-n", s)
		text, err := os.ReadFile(s)
		require.NoError(t, err)
		assert.Contains(t, string(text), "\nset -e\n", s)
	}
	output(t, "shellcheck", append(scripts, "build.sh", "version.sh")...)
	// The same script serves both: no flag of dpkg's is taken for one of rpm's.
	for _, phase := range []string{"postinst", "prerm", "postrm"} {
		deb := output(t, "dpkg-deb", "-I", dist["warmd-deb"], phase)
		assert.Contains(t, output(t, "rpm", "-qp", "--scripts", dist["warmd-rpm"]), strings.TrimSpace(deb))
	}
}

// TestUnitsNameManPagesThatArePackaged: `systemctl help` shows them.
func TestUnitsNameManPagesThatArePackaged(t *testing.T) {
	units, err := filepath.Glob("../systemd/units/*")
	require.NoError(t, err)
	have := contents(t, "warmd-deb")
	for _, u := range units {
		text, err := os.ReadFile(u)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`man:(\S+)\(([0-9])\)`).FindAllStringSubmatch(string(text), -1) {
			assert.Contains(t, have, "/usr/share/man/man"+m[2]+"/"+m[1]+"."+m[2]+".gz", "%s", u)
		}
	}
}
