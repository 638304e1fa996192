package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Record is what a later agent needs to adopt a worker. It goes into the agent's
// journal, and beside the worker's sockets.
//
// Invariants: a pair has Engine and API; a cold start or an exec command has
// Engine only and Cold set. Boot is the life of the host that the Procs belong to.
type Record struct {
	ID         string `json:"id"`
	Runtime    string `json:"runtime"`
	Generation int    `json:"generation"`
	Device     string `json:"device,omitempty"`
	Cold       bool   `json:"cold,omitempty"`
	Engine     Proc   `json:"engine"`
	API        Proc   `json:"api,omitzero"`
	Boot       string `json:"boot"`
	State      State  `json:"state"`
	Placement  string `json:"placement,omitempty"`
	Attempt    int    `json:"attempt,omitempty"`
	// CGroup is the folder of the worker's own cgroup, where it has one.
	CGroup string    `json:"cgroup,omitempty"`
	Log    string    `json:"log"`
	Since  time.Time `json:"since"` // of the worker, not of the state
}

// roles lists the processes of a worker with what each is.
func (r Record) procs() map[string]Proc {
	if r.Cold {
		return map[string]Proc{roleServe: r.Engine}
	}
	return map[string]Proc{roleEngine: r.Engine, roleAPI: r.API}
}

// Living reports whether a process of the worker still runs: the same process, in
// the same life of the host.
func (r Record) Living() bool { return len(r.living()) > 0 }

// living lists the processes that still run, none after a reboot.
func (r Record) living() (alive []Proc) {
	if r.Boot != "" && r.Boot != bootID() {
		return nil
	}
	for _, p := range r.procs() {
		if p.PID > 0 && p.Alive() {
			alive = append(alive, p)
		}
	}
	return alive
}

// group is the worker's cgroup, none after a reboot.
func (r Record) group() string {
	if r.Boot != "" && r.Boot != bootID() {
		return ""
	}
	return r.CGroup
}

// Info is what there is to know of a worker now.
type Info struct {
	Record
	EnginePID, APIPID int
	LogPath           string
	StateSince        time.Time
	// DroppedEvents counts phases that nobody read in time.
	DroppedEvents int
	// Error is the first thing that went wrong, in words.
	Error string
}

const workerFile = "worker.json"

// saveRecord writes whole or not at all. The file is a second witness beside the
// agent's journal; it lies on a tmpfs, so nothing is synced.
func saveRecord(dir string, r Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode worker record: %w", err)
	}
	tmp := filepath.Join(dir, "."+workerFile)
	if err := os.WriteFile(tmp, b, 0o640); err != nil {
		return fmt.Errorf("write worker record: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, workerFile)); err != nil {
		return fmt.Errorf("write worker record: %w", err)
	}
	return nil
}

// loadRecord reports false for anything that is not a whole record of that worker.
func loadRecord(dir string) (Record, bool) {
	b, err := os.ReadFile(filepath.Join(dir, workerFile))
	var r Record
	if err != nil || json.Unmarshal(b, &r) != nil || r.ID != filepath.Base(dir) {
		return Record{}, false
	}
	return r, true
}

// ErrLost says that a recorded worker cannot be adopted: a process of it ended
// while nobody looked.
var ErrLost = errors.New("worker is lost")
