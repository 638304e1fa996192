package agent

import (
	"encoding/json"
	"maps"
	"sort"
	"time"

	"warmd/agent/internal/device"
	"warmd/placement"
)

// journalState is what the journal knows.
type journalState struct {
	placements map[string]*device.Record // shared with the book, and never changed
	parked     map[string]device.ParkedRecord
	draining   bool
}

// journalEntry is one frame's payload: exactly one field is set.
type journalEntry struct {
	Placement *device.Record       `json:"p,omitempty"`
	Park      *device.ParkedRecord `json:"w,omitempty"`
	Unpark    string               `json:"u,omitempty"`
	Drain     *bool                `json:"d,omitempty"`
}

// replay is pure: any bytes give a state.
func replay(raw []byte) (journalState, int) {
	s := journalState{placements: map[string]*device.Record{}, parked: map[string]device.ParkedRecord{}}
	undecodable := 0
	damaged := frames(raw, func(p []byte) {
		var e journalEntry
		if err := json.Unmarshal(p, &e); err != nil {
			undecodable += len(p) // a later version wrote it, or a bug
			return
		}
		s.apply(e)
	})
	return s, damaged + undecodable
}

func (s *journalState) apply(e journalEntry) {
	switch {
	case e.Placement != nil && e.Placement.Placement.ID != "":
		s.placements[e.Placement.Placement.ID] = e.Placement
	case e.Park != nil && e.Park.Worker != "":
		s.parked[e.Park.Worker] = *e.Park
	case e.Unpark != "":
		delete(s.parked, e.Unpark)
	case e.Drain != nil:
		s.draining = *e.Drain
	}
}

// placements lists every record, the longest untouched first.
func (j *Journal) placements() []device.Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]device.Record, 0, len(j.state.placements))
	for _, r := range j.state.placements {
		out = append(out, *r)
	}
	sort.Slice(out, func(i, k int) bool { return out[i].Placement.Updated.Before(out[k].Placement.Updated) })
	return out
}

// parked lists the parked workers by id.
func (j *Journal) parked() map[string]device.ParkedRecord {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.state.parked)
}

// workerRecords lists the record of every worker that should be living.
func (j *Journal) workerRecords() (out []json.RawMessage) {
	for _, p := range j.parked() {
		out = append(out, p.Record)
	}
	for _, r := range j.placements() {
		if len(r.WorkerRecord) > 0 && !r.Placement.State.Terminal() {
			out = append(out, r.WorkerRecord)
		}
	}
	return out
}

// forgetLiving ends everything that lives, because its engines were ended.
func (j *Journal) forgetLiving(reason string) {
	for id := range j.parked() {
		j.Unpark(id)
	}
	for _, r := range j.placements() {
		if p := &r.Placement; !p.State.Terminal() {
			p.State, p.Reason, p.Updated = placement.Failed, reason, time.Now()
			_ = j.Put(&r, false)
		}
	}
}

// entries is the state as the fewest entries, the oldest ended placements left out.
func (s *journalState) entries() []journalEntry {
	var live, ended []*device.Record
	for _, r := range s.placements {
		if r.Placement.State.Terminal() {
			ended = append(ended, r)
		} else {
			live = append(live, r)
		}
	}
	sort.Slice(ended, func(i, k int) bool { return ended[i].Placement.Updated.Before(ended[k].Placement.Updated) })
	if n := len(ended) - keepEnded; n > 0 {
		for _, r := range ended[:n] {
			delete(s.placements, r.Placement.ID)
		}
		ended = ended[n:]
	}
	var out []journalEntry
	for _, r := range append(ended, live...) {
		out = append(out, journalEntry{Placement: r})
	}
	for _, p := range s.parked {
		out = append(out, journalEntry{Park: &p})
	}
	if s.draining {
		out = append(out, journalEntry{Drain: &s.draining})
	}
	return out
}
