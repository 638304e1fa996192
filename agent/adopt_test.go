package agent

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent/internal/device"
	"warmd/agent/internal/worker"
)

// idle is a living worker of an earlier agent that no placement of the journal has.
type idle struct {
	device.Worker // never asked for more than this
	rec           worker.Record
}

func (w idle) Info() device.Info       { return infoOf(worker.Info{Record: w.rec}) }
func (w idle) Record() json.RawMessage { return nil }

// The rows of the package comment's table in which the journal says nothing, or parked.
func TestAWorkerThatNobodyClaimedIsParkedEndedOrQuarantinedByWhatItSays(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		rec  worker.Record
		ours bool // the journal knows it as parked
		want string
	}{
		{"parked, known", worker.Record{State: worker.Warm}, true, "warm"},
		{"parked, after the loss of the journal", worker.Record{State: worker.Warm}, false, "warm"},
		{"its end was under way", worker.Record{State: worker.Draining}, true, "draining"},
		{"ending, and unknown", worker.Record{State: worker.Draining}, false, "quarantined"},
		{"its agent was killed amid the fork", worker.Record{State: worker.Spawning}, false, "draining"},
		{"so, and it did not answer", worker.Record{State: worker.Loading}, false, "draining"},
		{"has a placement that is unknown", worker.Record{State: worker.Loading, Placement: "p"}, false, "quarantined"},
		{"serves one", worker.Record{State: worker.Serving, Placement: "p"}, true, "quarantined"},
		{"serves, and does not say what", worker.Record{State: worker.Serving}, false, "quarantined"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, nil)
			a, err := New(n.cfg, n.opt)
			require.NoError(t, err)
			defer func() { require.NoError(t, a.close()) }()
			c.rec.ID, c.rec.Runtime = "w0-1", "toy"
			parked := map[string]device.ParkedRecord{}
			if c.ours {
				parked[c.rec.ID] = device.ParkedRecord{Worker: c.rec.ID, Device: a.devices[0].ID(), Runtime: "toy"}
			}
			a.adoptIdle(&relic{rec: c.rec, worker: idle{rec: c.rec}}, parked)
			v := a.devices[0].View()
			require.Len(t, v.Workers, 1)
			require.Equal(t, c.want, v.Workers[0].State)
			require.Equal(t, c.want == "quarantined", v.Device.Quarantined == 1)
		})
	}
}
