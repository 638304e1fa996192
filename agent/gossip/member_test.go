package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"warmd/agent/gossip/gossiptest"
	"warmd/placement"
)

// fleetMember is what the agent and the coordinator use.
type fleetMember interface {
	Run(context.Context) error
	SetCapacity(placement.Capacity)
	Fleet() placement.Fleet
	Apply(placement.Capacity)
	MarkUnreachable(string)
	Changed() <-chan struct{}
}

var (
	_ fleetMember = (*Member)(nil)
	_ fleetMember = (*Solo)(nil)
)

// noGoroutineStays waits, too, for the last probe of memberlist, which outlives its
// Shutdown until the probe's own deadline.
func noGoroutineStays(t *testing.T) {
	t.Helper()
	var err error
	for limit := time.Now().Add(15 * time.Second); time.Now().Before(limit); {
		if err = goleak.Find(); err == nil {
			return
		}
	}
	t.Error(err)
}

// The one test over real UDP and TCP: three members, encrypted, on free ports.
func TestRealNetworkCarriesAFleet(t *testing.T) {
	defer noGoroutineStays(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 3)
	var members []*Member
	for i, name := range []string{"a", "b", "coordinator"} {
		cfg := Config{Name: name, BindAddr: "127.0.0.1", Keys: [][]byte{bytes.Repeat([]byte{7}, 32)}, Coordinator: i == 2}
		if i > 0 {
			cfg.Join = []string{members[0].Addr()}
		}
		m, err := New(cfg)
		require.NoError(t, err)
		assert.Empty(t, m.Addr())
		if i < 2 {
			m.SetCapacity(capacityOf(name, 1))
		}
		go func() { done <- m.Run(ctx) }()
		select {
		case <-m.Up():
		case err := <-done:
			t.Fatal(err)
		}
		members = append(members, m)
	}
	f := &fleet{t: t}
	for _, m := range members {
		f.await(m, 20*time.Second, "everybody", alive(3))
	}
	f.await(members[2], 20*time.Second, "b exactly", exact("b", 1))
	members[1].SetCapacity(claimed(members[1].latest()))
	f.await(members[2], 10*time.Second, "b's change", exact("b", 2))
	f.await(members[0], 10*time.Second, "b's change", generation("b", 2))

	cancel()
	for range members {
		select {
		case err := <-done:
			assert.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("a member does not end")
		}
	}
}

func TestPortTakenSaysWhatToDo(t *testing.T) {
	defer noGoroutineStays(t)
	ctx, cancel := context.WithCancel(t.Context())
	first, err := New(Config{Name: "a", BindAddr: "127.0.0.1"})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	<-first.Up()
	_, port, err := splitSeed(first.Addr())
	require.NoError(t, err)
	second, err := New(Config{Name: "b", BindAddr: "127.0.0.1", BindPort: port})
	require.NoError(t, err)
	err = second.Run(ctx)
	assert.ErrorContains(t, err, fmt.Sprintf("listen for gossip on 127.0.0.1 port %d", port))
	assert.ErrorContains(t, err, "choose another gossip port")
	cancel()
	assert.NoError(t, <-done)
	assert.ErrorContains(t, first.Run(t.Context()), "runs once")
}

func TestConfigNamesTheBadField(t *testing.T) {
	for field, c := range map[string]Config{
		"name":      {},
		"bind_port": {Name: "a", BindPort: 70000},
		"bind_addr": {Name: "a", BindAddr: "localhost"},
		"advertise": {Name: "a", Advertise: "host:1"},
		"label":     {Name: "a", Label: string(make([]byte, 256))},
		"keys[1]":   {Name: "a", Keys: [][]byte{make([]byte, 32), make([]byte, 5)}},
		"join[0]":   {Name: "a", Join: []string{"host:notaport"}},
		"join[1]":   {Name: "a", Join: []string{"10.0.0.1", ""}},
	} {
		_, err := New(c)
		var bad *placement.FieldError
		if assert.ErrorAs(t, err, &bad, field) {
			assert.Equal(t, field, bad.Field)
		}
	}
}

func TestSeedsHaveADefaultPort(t *testing.T) {
	for in, want := range map[string]string{
		"host": "host 7946", "host:1": "host 1", "10.0.0.1": "10.0.0.1 7946", "10.0.0.1:2": "10.0.0.1 2",
		"::1": "::1 7946", "[::1]:3": "::1 3",
	} {
		host, port, err := splitSeed(in)
		assert.NoError(t, err, in)
		assert.Equal(t, want, fmt.Sprint(host, " ", port))
	}
}

func TestBurstsAndDriftsDoNotFloodTheFleet(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(4)
		f.awaitAll(time.Minute, "all nodes", alive(4))
		m, seen := f.members["node-1"], f.members["node-2"]
		time.Sleep(2 * updateEvery)
		heard := map[uint64]bool{}
		for i := range 200 { // 10 s of changes that matter
			c := clone(m.latest())
			c.Generation++
			c.Devices[0].Free, c.Devices[0].Busy = i%2, 2-i%2
			m.SetCapacity(c)
			time.Sleep(50 * time.Millisecond)
			heard[node(seen.Members(), "node-1").Generation] = true
		}
		assert.LessOrEqual(t, len(heard), 12, "at most one update a second")
		assert.GreaterOrEqual(t, len(heard), 6)
		m.SetCapacity(capacityOf("node-1", 201))
		f.await(seen, 5*time.Second, "the last one", generation("node-1", 201))
		time.Sleep(2 * updateEvery) // it may have come with a push/pull, ahead of its update

		before := node(seen.Members(), "node-1").Generation
		for i := range 40 { // drifts of free memory that nobody would place by
			c := clone(m.latest())
			c.Generation++
			c.Devices[0].FreeBytes += int64(i%3-1) << 30
			m.SetCapacity(c)
			time.Sleep(500 * time.Millisecond)
		}
		assert.Equal(t, before, node(seen.Members(), "node-1").Generation)
		f.await(seen, heartbeat*6/5, "the drift, by the heartbeat", generation("node-1", m.latest().Generation))
	})
}

func TestAgeOfAnIdleNodeStaysSmall(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(8)
		f.awaitAll(time.Minute, "all nodes", alive(8))
		time.Sleep(10 * time.Minute)
		for _, m := range f.members {
			for _, n := range m.Members().Nodes {
				assert.Less(t, n.AgeSeconds, 30.0, "%s as %s sees it: probes confirm words", n.Node, m.cfg.Name)
			}
		}
	})
}

func TestSetCapacityCopies(t *testing.T) {
	s := NewSolo("a")
	c := capacityOf("other", 1)
	s.SetCapacity(c)
	c.Devices[0].Warm["vllm"] = 99
	c.Devices[0].Free = 99
	got := s.Members().Nodes[0]
	assert.Equal(t, "a", got.Node)
	assert.Equal(t, 1, got.Devices[0].Warm["vllm"])
	assert.Equal(t, 2, got.Devices[0].Free)
}

func TestSoloIsAFleetOfOne(t *testing.T) {
	s := NewSolo("a")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.SetCapacity(capacityOf("a", 3))
	<-s.Changed()
	f := s.Members()
	require.Len(t, f.Nodes, 1)
	assert.True(t, f.Nodes[0].Alive)
	assert.EqualValues(t, 3, f.Nodes[0].Generation)
	cancel()
	assert.NoError(t, <-done)
}

// memberlist panics on a meta over its limit: the delegate must not hand it one.
func TestMetaOverTheLimitIsNotGiven(t *testing.T) {
	m, err := New(Config{Name: "a", Transport: gossiptest.NewNetwork(1).Transport("a")})
	require.NoError(t, err)
	d := &delegate{m}
	assert.Nil(t, d.NodeMeta(512), "nothing announced yet")
	assert.Nil(t, d.AckPayload())
	m.announce(capacityOf("a", 1))
	assert.NotEmpty(t, d.NodeMeta(512))
	assert.Nil(t, d.NodeMeta(10))
	m.published.Store(&summary{meta: make([]byte, 600)})
	assert.Nil(t, d.NodeMeta(512))
}

func TestNonsenseMessagesAreDroppedAndSaidOnce(t *testing.T) {
	var out bytes.Buffer
	m, err := New(Config{Name: "a", Log: slog.New(slog.NewTextHandler(&out, nil))})
	require.NoError(t, err)
	d := &delegate{m}
	for range 100 {
		d.NotifyMsg([]byte("nonsense"))
	}
	d.NotifyMsg(nil)
	d.NotifyPingComplete(nil, 0, []byte("short"))
	assert.Len(t, m.Members().Nodes, 1)
	assert.Equal(t, 1, bytes.Count(out.Bytes(), []byte("\n")))
	assert.Contains(t, out.String(), "does a member run another version?")
}

func TestLibraryLogBecomesRecords(t *testing.T) {
	for in, want := range map[string]string{
		"[ERR] memberlist: Failed to x":  `level=WARN msg="Failed to x"`,
		"[WARN] memberlist: Refuting":    `level=INFO msg=Refuting`,
		"[DEBUG] memberlist: Stream":     `level=DEBUG msg=Stream`,
		"[ODD] text":                     `level=INFO msg="[ODD] text"`,
		"no level at all":                `level=INFO msg="no level at all"`,
		"[ERROR] memberlist: two\nlines": `level=WARN msg="two\nlines"`,
	} {
		var out bytes.Buffer
		bridge(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))).Print(in)
		assert.Contains(t, out.String(), want)
	}
}
