package placement

import "time"

// Capacity is what one node says it has, whole: a newer one replaces the older.
//
// Invariants:
//
//	Epoch changes when the agent starts; Generation grows by one per change within an Epoch
//	for each device: Free + Busy + Quarantined == Slots
//	for each device: sum over runtimes of Warm is what is parked and idle right now
type Capacity struct {
	Node string `json:"node"`
	// Epoch is the agent's start (Unix nanoseconds): it orders two lives of a node.
	Epoch int64 `json:"epoch"`
	// Generation orders two capacities of one epoch.
	Generation uint64 `json:"generation"`
	// Addr is the agent's fleet address (host:port), empty when it listens locally only.
	Addr     string `json:"addr,omitempty"`
	Version  string `json:"version,omitempty"`
	Draining bool   `json:"draining,omitempty"`
	// Coordinator says that this member wants direct capacity messages.
	Coordinator bool      `json:"coordinator,omitempty"`
	Devices     []Device  `json:"devices"`
	Runtimes    []Runtime `json:"runtimes,omitempty"`
	// Summary is set when this capacity came from gossip: counts are right, names
	// and bytes are quantised or missing.
	Summary bool `json:"summary,omitempty"`
}

// Device is one device of a node as the fleet sees it.
type Device struct {
	ID         string `json:"id"`   // NVML UUID, or cpu-0
	Kind       string `json:"kind"` // cpu, cuda
	Name       string `json:"name,omitempty"`
	TotalBytes int64  `json:"total_bytes"`
	// FreeBytes is measured (NVML, or MemAvailable), not remembered.
	FreeBytes   int64 `json:"free_bytes"`
	Slots       int   `json:"slots"`
	Free        int   `json:"free"`        // slots that would accept a claim now
	Busy        int   `json:"busy"`        // loading, serving, sleeping, draining
	Quarantined int   `json:"quarantined"` // memory not returned, or a worker nobody can explain
	// Warm counts parked idle workers by runtime; only state warm counts.
	Warm map[string]int `json:"warm,omitempty"`
	// Placements lists what runs here, by placement id.
	Placements []string `json:"placements,omitempty"`
	// Sleeping names those of them that sleep, each with its [Request.Key].
	Sleeping map[string]string `json:"sleeping,omitempty"`
	// Problem says why a device takes nothing, in words.
	Problem string `json:"problem,omitempty"`
}

// Runtime is an installed engine as the fleet sees it.
type Runtime struct {
	Name       string `json:"name"`
	Kind       string `json:"kind"` // vllm, exec
	Engine     string `json:"engine,omitempty"`
	Version    string `json:"version,omitempty"`
	Device     string `json:"device,omitempty"` // cpu, cuda: what it was built for
	ProfileKey string `json:"profile_key,omitempty"`
	// Zygote is up, starting, down: whether warm starts can be had.
	Zygote string `json:"zygote,omitempty"`
	// Problem says why not, in words.
	Problem string `json:"problem,omitempty"`
}

// Newer reports whether c replaces o: a later epoch, or a later generation of
// the same one. Exact beats a summary of the same generation.
func (c Capacity) Newer(o Capacity) bool {
	if c.Epoch != o.Epoch {
		return c.Epoch > o.Epoch
	}
	if c.Generation != o.Generation {
		return c.Generation > o.Generation
	}
	return o.Summary && !c.Summary
}

// Totals adds up the slots of a node.
func (c Capacity) Totals() (slots, free, busy, quarantined, warm int) {
	for _, d := range c.Devices {
		slots, free, busy, quarantined = slots+d.Slots, free+d.Free, busy+d.Busy, quarantined+d.Quarantined
		for _, n := range d.Warm {
			warm += n
		}
	}
	return
}

// NodeView is one node in somebody's view: what it said, and how old that is.
type NodeView struct {
	Capacity
	// Alive is memberlist's opinion, corrected by refused calls.
	Alive bool `json:"alive"`
	// Status is alive, suspect, left or failed.
	Status string `json:"status"`
	// AgeSeconds is the time since the node's word was received.
	AgeSeconds float64 `json:"age_seconds"`
}

// Fleet is the answer to a capacity query: a view, whose it is, and of when.
type Fleet struct {
	From  string     `json:"from"` // the member that answers from its own view
	At    time.Time  `json:"at"`
	Nodes []NodeView `json:"nodes"` // sorted by name
}
