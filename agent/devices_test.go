package agent

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/api"
	"warmd/agent/internal/gpu"
	"warmd/placement"
)

// twoGPUs is a host with two GPUs of one slot each.
type twoGPUs struct {
	mu     sync.Mutex
	lost   string
	faults chan gpu.Fault
}

func (g *twoGPUs) Devices() ([]gpu.Device, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := []gpu.Device{{ID: "GPU-a", Kind: gpu.KindCUDA, TotalBytes: 80 << 30}, {ID: "GPU-b", Kind: gpu.KindCUDA, Index: 1, TotalBytes: 80 << 30}}
	for i := range out {
		if out[i].ID == g.lost {
			out[i].Problem = "GPU is lost"
		}
	}
	return out, nil
}

func (*twoGPUs) Memory(string) (gpu.Memory, error) {
	return gpu.Memory{Free: 79 << 30, Total: 80 << 30}, nil
}
func (*twoGPUs) Processes(string) ([]gpu.Process, error) { return nil, nil }
func (*twoGPUs) Close() error                            { return nil }
func (g *twoGPUs) Watch(ctx context.Context, report func(gpu.Fault)) error {
	for {
		select {
		case f := <-g.faults:
			report(f)
		case <-ctx.Done():
			return nil
		}
	}
}

func TestEveryDeviceHasItsOwnLoop(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	gpus := &twoGPUs{faults: make(chan gpu.Fault)}
	n.opt.Inventory = gpus
	n.start()
	used := map[string]bool{}
	for _, id := range []string{"a", "b"} {
		last, err := n.place(id, 1, placement.Request{Model: "tiny"})
		require.NoError(t, err)
		require.Equal(t, placement.EventReady, last.Event, "%+v", last.Error)
		used[last.Placement.Device] = true
		pid := n.agent.Workers()[len(used)-1].EnginePID
		env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
		require.NoError(t, err)
		require.Contains(t, string(env), "CUDA_VISIBLE_DEVICES="+last.Placement.Device, "a worker sees its own device only")
	}
	require.Len(t, used, 2)
	_, err := n.place("c", 1, placement.Request{Model: "tiny"})
	require.Equal(t, placement.CodeNoCapacity, placement.AsError(err).Code)

	_, err = n.client.Release(t.Context(), "b", 0)
	require.NoError(t, err)
	free := n.agent.book.Get("b").Placement().Device
	err = n.client.Place(t.Context(), "d", api.Claim{Attempt: 1, Device: n.agent.book.Get("a").Placement().Device, Request: placement.Request{Model: "tiny"}},
		func(placement.Progress) bool { return true })
	require.Equal(t, placement.CodeNoCapacity, placement.AsError(err).Code, "pinned to the device that is taken")

	gpus.mu.Lock()
	gpus.lost = free
	gpus.mu.Unlock()
	gpus.faults <- gpu.Fault{Device: free, Xid: 79, Fatal: true, Message: "GPU has fallen off the bus"}
	require.Eventually(t, func() bool {
		_, err := n.place("e", 1, placement.Request{Model: "tiny"})
		return placement.AsError(err).Code == placement.CodeNoCapacity && strings.Contains(err.Error(), "GPU is lost")
	}, 20*time.Second, 20*time.Millisecond)
	p, err := n.client.Placement(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, placement.Ready, p.State, "the other device goes on")
}

// told is a gossip that remembers what it was told.
type told struct {
	mu   sync.Mutex
	last placement.Capacity
}

func (g *told) SetCapacity(c placement.Capacity) { g.mu.Lock(); defer g.mu.Unlock(); g.last = c }
func (g *told) Fleet() placement.Fleet {
	g.mu.Lock()
	defer g.mu.Unlock()
	return placement.Fleet{From: "n1", Nodes: []placement.NodeView{{Capacity: g.last, Alive: true, AgeSeconds: 3}}}
}

func TestTheFleetHearsOfEveryChange(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	g := &told{}
	n.opt.Gossip = g
	n.start()
	busy := func(want int) func() bool {
		return func() bool {
			f := g.Fleet().Nodes[0]
			return len(f.Devices) == 1 && f.Devices[0].Busy == want
		}
	}
	require.Eventually(t, busy(0), 10*time.Second, time.Millisecond)
	_, err := n.place("p", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Eventually(t, busy(1), 10*time.Second, time.Millisecond)
	_, err = n.client.Release(t.Context(), "p", 0)
	require.NoError(t, err)
	require.Eventually(t, busy(0), 10*time.Second, time.Millisecond)
	f, err := n.client.Fleet(t.Context())
	require.NoError(t, err)
	require.InDelta(t, 3, f.Nodes[0].AgeSeconds, 0, "the view is the fleet's, with its age")
	resp, err := n.client.Open(t.Context(), "GET", "/healthz", nil, nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "ok\n", string(text))
}
