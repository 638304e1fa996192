package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"warmd/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAskKeepsItsRateWhileTheServerStalls(t *testing.T) {
	stall := make(chan struct{})
	var asked atomic.Int32
	l := Ask(t.Context(), 200, func(ctx context.Context) error {
		asked.Add(1)
		<-stall
		return nil
	})
	require.Eventually(t, func() bool { return asked.Load() >= 40 }, 10*time.Second, 5*time.Millisecond)
	close(stall)
	got := l.Stop()
	assert.Equal(t, int(asked.Load()), got.OK(), "every call is in the books")
}

func TestFailuresAreSortedByWhatTheyMean(t *testing.T) {
	var tally Tally
	for _, err := range []error{
		fmt.Errorf("dial: %w", syscall.ECONNREFUSED), placement.Errorf(placement.CodeUnavailable, "reach server: connect: connection refused"),
		io.ErrUnexpectedEOF, syscall.ECONNRESET, context.DeadlineExceeded, errors.New("no"),
	} {
		tally.Count(0, err)
	}
	assert.Equal(t, []int{2, 2, 1, 1}, []int{tally.FailedBy("refused"), tally.FailedBy("reset"), tally.FailedBy("timeout"), tally.FailedBy("other")})
	assert.Equal(t, 6, tally.Failed())
}

func TestCompletionThatIsCutOffFails(t *testing.T) {
	const chunk = `data: {"choices":[{"text":" a","finish_reason":null}]}` + "\n\n"
	const last = `data: {"choices":[{"text":" a","finish_reason":"length"}]}` + "\n\n"
	for name, c := range map[string]struct {
		body string
		ok   bool
	}{
		"whole":             {chunk + last + "data: [DONE]\n\n", true},
		"no end":            {chunk + last, false},
		"no reason":         {chunk + "data: [DONE]\n\n", false},
		"nothing":           {"data: [DONE]\n\n", false},
		"error in a stream": {chunk + "data: {\"error\":{\"message\":\"dead\"}}\n\ndata: [DONE]\n\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.body) }))
			defer srv.Close()
			err := Complete(t.Context(), srv.Client(), srv.URL, "m", 2)
			assert.Equal(t, c.ok, err == nil, "%v", err)
		})
	}
}

// flaky is a coordinator that forgets to answer every other call.
type flaky struct {
	mu    sync.Mutex
	calls int
	by    map[string]placement.Placement
}

func (f *flaky) Place(_ context.Context, r placement.Request) (placement.Placement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.by[r.ID]
	if !ok {
		p = placement.Placement{ID: "p-" + r.ID, Request: r, State: placement.Ready, Node: "n"}
		f.by[r.ID] = p
	}
	if f.calls++; f.calls%2 == 0 {
		return placement.Placement{}, io.ErrUnexpectedEOF
	}
	return p, nil
}

func (f *flaky) Release(_ context.Context, id string) (placement.Placement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, p := range f.by {
		if p.ID == id {
			p.State = placement.Released
			f.by[k] = p
		}
	}
	return placement.Placement{}, nil
}

func TestClientsTryAgainAndTheProofFindsNothing(t *testing.T) {
	f := &flaky{by: map[string]placement.Placement{}}
	p := Place(t.Context(), f, Stream{Base: placement.Request{ID: "r", Model: "m"}, PerSecond: 100, Keep: 3, Patience: 10 * time.Second})
	require.Eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.by) >= 12 }, 10*time.Second, time.Millisecond)
	b := Books{Told: p.Stop(), Held: map[string][]placement.Placement{}, Engines: map[string][]string{}}
	for _, r := range f.by {
		b.Records = append(b.Records, r)
		if r.State == placement.Ready {
			b.Held["n"] = append(b.Held["n"], r)
			b.Engines["n"] = append(b.Engines["n"], r.Request.Name)
		}
	}
	assert.True(t, Proof(b).OK(), "%+v", Proof(b))
	assert.NotEmpty(t, b.Held["n"])
}

func TestProofFindsWhatIsLostDoubledAndWrong(t *testing.T) {
	ready := placement.Placement{ID: "p-1", Request: placement.Request{ID: "r-1"}, State: placement.Ready, Node: "a"}
	twin := ready
	twin.ID = "p-2"
	with := func(s placement.State) []placement.Placement {
		p := ready
		p.State = s
		return []placement.Placement{p}
	}
	told := func(edit func(*Told)) []*Told {
		x := &Told{Request: "r-1", ID: "p-1", Ready: true}
		if edit != nil {
			edit(x)
		}
		return []*Told{x}
	}
	on := func(nodes ...string) map[string][]string {
		m := map[string][]string{}
		for _, n := range nodes {
			m[n] = append(m[n], "r-1")
		}
		return m
	}
	held := map[string][]placement.Placement{"a": with(placement.Ready)}
	for name, c := range map[string]struct {
		books                Books
		lost, doubled, wrong int
	}{
		"nothing":            {Books{Told: told(nil), Records: with(placement.Ready), Held: held, Engines: on("a")}, 0, 0, 0},
		"no record":          {Books{Told: told(nil), Held: held}, 1, 0, 0},
		"no engine":          {Books{Told: told(nil), Records: with(placement.Ready), Held: held}, 1, 0, 0},
		"agent forgot":       {Books{Told: told(nil), Records: with(placement.Ready), Engines: on("a")}, 1, 0, 0},
		"failed":             {Books{Told: told(nil), Records: with(placement.Failed)}, 1, 0, 0},
		"unfinished":         {Books{Told: told(func(x *Told) { x.Ready = false }), Records: with(placement.Assigned)}, 1, 0, 0},
		"never placed":       {Books{Told: []*Told{{Request: "r-1", Err: errors.New("no")}}}, 1, 0, 0},
		"release failed":     {Books{Told: told(func(x *Told) { x.Err = errors.New("no") }), Records: with(placement.Released)}, 1, 0, 0},
		"two records":        {Books{Told: told(nil), Records: append(with(placement.Ready), twin)}, 0, 1, 0},
		"two engines":        {Books{Told: told(nil), Records: with(placement.Ready), Held: held, Engines: on("a", "b")}, 0, 1, 0},
		"two on one node":    {Books{Told: told(nil), Records: with(placement.Ready), Held: held, Engines: on("a", "a")}, 0, 1, 0},
		"elsewhere":          {Books{Told: told(nil), Records: with(placement.Ready), Held: held, Engines: on("b")}, 0, 1, 0},
		"engine outlived":    {Books{Told: told(func(x *Told) { x.Released = true }), Records: with(placement.Released), Engines: on("a")}, 0, 0, 1},
		"engine from nobody": {Books{Engines: on("a")}, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			v := Proof(c.books)
			assert.Equal(t, []int{c.lost, c.doubled, c.wrong}, []int{len(v.Lost), len(v.Doubled), len(v.Wrong)}, "%+v", v)
		})
	}
}
