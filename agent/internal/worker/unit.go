package worker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Unit is a zygote to be started: the systemd unit warmd-runtime@RUNTIME.GENERATION,
// or a plain process of the same shape.
type Unit struct {
	Runtime    string   `json:"runtime"`
	Generation int      `json:"generation"`
	Argv       []string `json:"argv"`
	// Env is the whole environment; nothing of the agent's is added.
	Env []string `json:"env"`
	// Dir is the working directory, Log gets stdout and stderr, Socket is where the
	// zygote will listen.
	Dir    string `json:"dir"`
	Log    string `json:"log"`
	Socket string `json:"socket"`
}

// Instance is what stands for the unit in its systemd name.
func (u Unit) Instance() string { return u.Runtime + "." + strconv.Itoa(u.Generation) }

// The files by which agent and unit talk, in the generation's folder: what to run, and
// how it ended.
const (
	unitFile = "unit.json"
	endFile  = "end.json"
)

// UnitDir is the folder of an instance below an agent's run dir.
func UnitDir(runDir, instance string) string { return filepath.Join(runDir, "rt", instance) }

func (u Unit) save() error {
	b, err := json.Marshal(u)
	if err == nil {
		err = os.WriteFile(filepath.Join(u.Dir, unitFile), b, 0o640)
	}
	if err != nil {
		return fmt.Errorf("write unit: %w", err)
	}
	return nil
}

// LoadUnit reads what an agent wants to be run.
func LoadUnit(dir string) (u Unit, err error) {
	b, err := os.ReadFile(filepath.Join(dir, unitFile))
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	if err != nil {
		return u, fmt.Errorf("read unit: %w", err)
	}
	if u.Instance() != filepath.Base(dir) || len(u.Argv) < 2 {
		return u, fmt.Errorf("read unit: %s is not that of %s", filepath.Join(dir, unitFile), filepath.Base(dir))
	}
	return u, nil
}

// UnitEnd is how systemd says that a unit ended: what it gives to ExecStopPost= as
// $SERVICE_RESULT, $EXIT_CODE and $EXIT_STATUS. The unit itself is forgotten by then.
type UnitEnd struct {
	Result string `json:"result"`
	Code   string `json:"code"`   // exited, killed, dumped
	Status string `json:"status"` // a number, or a signal's name
}

// Save leaves it for the agent.
func (e UnitEnd) Save(dir string) error {
	b, err := json.Marshal(e)
	if err == nil {
		tmp := filepath.Join(dir, "."+endFile)
		if err = os.WriteFile(tmp, b, 0o660); err == nil {
			err = os.Rename(tmp, filepath.Join(dir, endFile))
		}
	}
	if err != nil {
		return fmt.Errorf("write end of unit: %w", err)
	}
	return nil
}

func loadEnd(dir string) (e UnitEnd, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, endFile))
	return e, err == nil && json.Unmarshal(b, &e) == nil
}

// setup is what systemd could not do before it ran anything: its own exit codes, of
// which these have a cure that an operator can apply.
var setup = map[string]string{
	"203": "cannot run /usr/bin/warmd: is the package whole?",
	"216": "group warmd-engine is missing: systemd-sysusers",
	"217": "user warmd-engine is missing: systemd-sysusers",
	"218": "systemd cannot set its capabilities: a container that has too few?",
	"219": "systemd cannot make its cgroup",
	"226": "systemd cannot set its sandbox up: are the folders of /usr/lib/tmpfiles.d/warmd.conf there? systemd-tmpfiles --create",
}

// words says how a unit ended, as an operator would say it.
func (e UnitEnd) words() string {
	switch {
	case e.Result == "oom-kill":
		return "was killed by the kernel: out of memory"
	case e.Result == "timeout":
		return "was killed by systemd: it took too long"
	case e.Code == "exited" && setup[e.Status] != "":
		return "did not start: " + setup[e.Status]
	case e.Code == "exited":
		return "exited with code " + e.Status
	case e.Code == "killed", e.Code == "dumped":
		return "killed by signal " + e.Status
	case e.Result != "":
		return "ended (" + e.Result + ")"
	}
	return "ended"
}
