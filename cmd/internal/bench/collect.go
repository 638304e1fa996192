package bench

import (
	"context"
	"sync"
	"time"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

// spanTime bounds the wait for spans that are still under way: exporters send in
// batches.
const spanTime = 10 * time.Second

// collector records the start of an engine that no agent records, with the receiver
// that agents use.
type collector struct {
	receiver *otlp.Receiver
	mu       sync.Mutex
	spans    []otlp.Span
	births   map[int]time.Time
	came     chan struct{}
}

func newCollector() (*collector, error) {
	c := &collector{births: map[int]time.Time{}, came: make(chan struct{}, 1)}
	var err error
	c.receiver, err = otlp.Listen("127.0.0.1:0", c.take, nil)
	return c, err
}

func (c *collector) take(spans []otlp.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range spans {
		if _, asked := c.births[s.PID]; !asked && s.PID != 0 {
			if born, err := otlp.Birth(s.PID); err == nil {
				c.births[s.PID] = born
			}
		}
	}
	c.spans = append(c.spans, spans...)
	select {
	case c.came <- struct{}{}:
	default:
	}
}

// trace is what came of one trace, as an agent's recorder would have it.
func (c *collector) trace(id otlp.TraceID, begin time.Time) placement.Trace {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := placement.Trace{TraceID: id.String(), Begin: begin.Round(0), Tier: placement.TierCold, Phases: []placement.Phase{}}
	first := map[int]otlp.Span{}
	for _, s := range c.spans {
		if s.Trace != id {
			continue
		}
		start := time.Unix(0, int64(s.Start)).Sub(t.Begin).Seconds()
		t.Phases = append(t.Phases, placement.Phase{
			Name: s.Name, Proc: s.Proc, Start: start, Duration: time.Duration(s.End - s.Start).Seconds(), SpanID: s.ID.String(), Parent: s.Parent.String(),
		})
		if f, ok := first[s.PID]; !ok || s.Start < f.Start {
			first[s.PID] = s
		}
	}
	for pid, s := range first {
		if born, ok := c.births[pid]; ok {
			start := born.Sub(t.Begin).Seconds()
			took := time.Unix(0, int64(s.Start)).Sub(born).Seconds()
			t.Phases = append(t.Phases, placement.Phase{Name: phaseBirth, Proc: s.Proc, Start: start, Duration: max(took, 0)})
		}
	}
	return t
}

// await returns a trace when it is whole, or what there is of it after spanTime.
func (c *collector) await(ctx context.Context, id otlp.TraceID, begin time.Time) placement.Trace {
	deadline := time.NewTimer(spanTime)
	defer deadline.Stop()
	for {
		t := c.trace(id, begin)
		if whole(t) {
			return t
		}
		select {
		case <-c.came:
		case <-deadline.C:
			return t
		case <-ctx.Done():
			return t
		}
	}
}
