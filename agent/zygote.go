package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"warmd/agent/internal/worker"
	"warmd/agent/runtime"
	"warmd/placement"
)

// The agent writes what a generation of a runtime is to run, systemd starts it as user
// warmd-engine, and what systemd starts comes here: look whether it is a zygote of that
// runtime, and become it.

var instanceRE = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*)\.([0-9]+)$`)

// instanceDir is where an instance's files are. The name comes from a unit's.
func instanceDir(cfg Config, instance string) (dir, runtimeName string, err error) {
	m := instanceRE.FindStringSubmatch(instance)
	if m == nil || runtime.CheckName(m[1]) != nil {
		return "", "", &placement.FieldError{Field: "INSTANCE", Problem: fmt.Sprintf("%q must be RUNTIME.GENERATION, as in warmd-runtime@vllm.3.service", instance)}
	}
	return worker.UnitDir(cfg.RunDir, instance), m[1], nil
}

// ExecZygote becomes the zygote that an instance of warmd-runtime@.service stands for.
// It returns only with an error.
func ExecZygote(cfg Config, instance string) error {
	dir, name, err := instanceDir(cfg, instance)
	if err != nil {
		return err
	}
	u, err := worker.LoadUnit(dir)
	if err != nil {
		return fmt.Errorf("start zygote %s: %w (only the agent starts these units)", instance, err)
	}
	if err := checkZygote(cfg, name, u); err != nil {
		return fmt.Errorf("start zygote %s: %w", instance, err)
	}
	if err := intoLog(u.Log); err != nil {
		return fmt.Errorf("start zygote %s: %w", instance, err)
	}
	if err := os.Chdir(u.Dir); err != nil {
		return fmt.Errorf("start zygote %s: %w", instance, err)
	}
	return fmt.Errorf("start zygote %s: %s: %w", instance, u.Argv[0], syscall.Exec(u.Argv[0], u.Argv, u.Env))
}

// checkZygote refuses what is not a zygote of the runtime: an agent that was taken
// over must not have this unit run what it likes.
func checkZygote(cfg Config, name string, u worker.Unit) error {
	m, err := runtime.Load(filepath.Join(cfg.RuntimesDir, name))
	if err != nil {
		return err
	}
	if want := m.Interpreter(); u.Argv[0] != want {
		return fmt.Errorf("it would run %s, the interpreter of runtime %s is %s", u.Argv[0], name, want)
	}
	script := u.Argv[1]
	if filepath.Clean(script) != script || filepath.Base(script) != "zygote.py" {
		return fmt.Errorf("it would run %s, which is no zygote", script)
	}
	if folder := filepath.Dir(script); folder != cfg.ScriptDir && filepath.Dir(folder) != cfg.unpackDir() {
		return fmt.Errorf("it would run %s, which is neither in script_dir (%s) nor where the agent unpacks its own", script, cfg.ScriptDir)
	}
	return nil
}

// unpackDir is for scripts that no package brought: both users can go there.
func (c Config) unpackDir() string { return filepath.Join(c.RunDir, "python") }

// intoLog makes a file stdout and stderr.
func intoLog(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o660)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	return errors.Join(unix.Dup2(int(f.Fd()), 1), unix.Dup2(int(f.Fd()), 2))
}

// ZygoteEnded notes how an instance ended, as systemd tells it to ExecStopPost=: the
// agent says so to people.
func ZygoteEnded(cfg Config, instance string, getenv func(string) string) error {
	dir, _, err := instanceDir(cfg, instance)
	if err != nil {
		return err
	}
	e := worker.UnitEnd{Result: getenv("SERVICE_RESULT"), Code: getenv("EXIT_CODE"), Status: getenv("EXIT_STATUS")}
	if sig := unix.SignalNum("SIG" + e.Status); sig != 0 {
		e.Status = strconv.Itoa(int(sig))
	}
	if err := e.Save(dir); err != nil && !errors.Is(err, os.ErrNotExist) { // the agent has removed the folder: it knows
		return err
	}
	return nil
}
