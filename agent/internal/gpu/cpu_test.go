package gpu

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const meminfo = "MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:   12000000 kB\n"

// host makes a made-up file system root.
func host(t *testing.T, files map[string]string) string {
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return root
}

func TestMemoryOfTheCPUIsTheHostsOrLessByACgroup(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		files map[string]string
		group string
		want  Memory
	}{
		"no cgroup at all": {want: Memory{12000000 << 10, 16000000 << 10}},
		"version 2, no limit": {
			files: map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "77\n"},
			want:  Memory{12000000 << 10, 16000000 << 10},
		},
		"version 2, a limit two groups up, cache counts as free": {
			files: map[string]string{
				"proc/self/cgroup": "0::/a/b/c\n", "sys/fs/cgroup/a/b/c/memory.max": "max\n",
				"sys/fs/cgroup/a/memory.max": "4294967296\n", "sys/fs/cgroup/a/memory.current": "3221225472\n",
				"sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 1073741824\n",
			},
			want: Memory{2 * gib, 4 * gib},
		},
		"version 2, a container sees its own root": {
			files: map[string]string{"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": "4294967296\n", "sys/fs/cgroup/memory.current": "0\n", "sys/fs/cgroup/memory.stat": "inactive_file 0\n"},
			want:  Memory{4 * gib, 4 * gib},
		},
		"version 1": {
			files: map[string]string{
				"proc/self/cgroup": "9:cpu,memory:/m\n1:name=systemd:/s\n0::/s\n", "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "2147483648\n",
				"sys/fs/cgroup/memory/m/memory.usage_in_bytes": "1073741824\n", "sys/fs/cgroup/memory/m/memory.stat": "total_inactive_file 0\n",
				"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
			},
			want: Memory{1 * gib, 2 * gib},
		},
		"the group of the engines, not the agent's": {
			files: map[string]string{
				"proc/self/cgroup": "0::/agent\n", "sys/fs/cgroup/agent/memory.max": "1000\n", "sys/fs/cgroup/agent/memory.current": "1\n", "sys/fs/cgroup/agent/memory.stat": "inactive_file 0\n",
				"sys/fs/cgroup/warmd.slice/memory.max": "4294967296\n", "sys/fs/cgroup/warmd.slice/memory.current": "0\n", "sys/fs/cgroup/warmd.slice/memory.stat": "inactive_file 0\n",
			},
			group: "/warmd.slice", want: Memory{4 * gib, 4 * gib},
		},
		"over the limit is nothing free, not less": {
			files: map[string]string{"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1000\n", "sys/fs/cgroup/a/memory.current": "5000\n"},
			want:  Memory{0, 1000},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := host(t, map[string]string{"proc/meminfo": meminfo, "proc/cpuinfo": "model name\t: Test CPU\n"})
			for f, text := range c.files {
				path := filepath.Join(root, f)
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
			}
			inv, err := openCPU(root, c.group)
			require.NoError(t, err)
			m, err := inv.Memory(CPUDevice)
			require.NoError(t, err)
			assert.Equal(t, c.want, m)
			devices, _ := inv.Devices()
			assert.Equal(t, []Device{{ID: CPUDevice, Kind: KindCPU, Name: "Test CPU", TotalBytes: c.want.Total}}, devices)
		})
	}
}

func TestHostWithoutMeminfoSaysWhatIsMissing(t *testing.T) {
	_, err := openCPU(host(t, nil), "")
	require.ErrorContains(t, err, "measure host memory")
	_, err = openCPU(host(t, map[string]string{"proc/meminfo": "MemTotal: 5 kB\n"}), "")
	require.ErrorContains(t, err, `no usable line "MemAvailable:"`)
}

func TestThisHostHasACPU(t *testing.T) {
	inv, err := Open(Options{CPU: true})
	require.NoError(t, err)
	m, err := inv.Memory(CPUDevice)
	require.NoError(t, err)
	assert.Positive(t, m.Free)
	assert.LessOrEqual(t, m.Free, m.Total)
	_, err = inv.Memory("GPU-1")
	require.ErrorIs(t, err, ErrUnknownDevice)
	_, err = inv.Processes("GPU-1")
	require.ErrorIs(t, err, ErrUnknownDevice)
	ps, err := inv.Processes(CPUDevice)
	require.NoError(t, err)
	assert.Empty(t, ps)
	require.NoError(t, inv.Close())
}

func TestWatchOfTheCPUEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- (&cpu{}).Watch(ctx, nil) }()
		synctest.Wait()
		assert.Empty(t, done)
		cancel()
		assert.NoError(t, <-done)
	})
}

func TestXidsOfProgramsAreNotFatal(t *testing.T) {
	for _, x := range []uint64{13, 31, 43, 45, 68, 109} {
		assert.False(t, xidFault("d", x).Fatal, "Xid %d", x)
	}
	for _, x := range []uint64{0, 14, 48, 62, 64, 74, 79, 94, 95, 119, 120, 140, 999, 1 << 63} {
		f := xidFault("d", x)
		assert.True(t, f.Fatal, "Xid %d", x)
		assert.GreaterOrEqual(t, f.Xid, 0)
		assert.Contains(t, f.Message, "reset the GPU")
	}
}
