package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// plainRE is what may stand around a slot: in anything else, a shell script above
// all, a model's name could become code.
var plainRE = regexp.MustCompile(`^[A-Za-z0-9_=./:,@%+-]*$`)

// checkCommand checks the command of kind exec.
func checkCommand(argv []string) error {
	all := strings.Join(argv, "\x00")
	switch {
	case argv[0] == "" || strings.Contains(argv[0], "{"):
		return errors.New("check command: its first word must be a program")
	case !strings.Contains(all, "{port}"):
		return hint(errors.New("check command: no {port}"), "warmd tells the engine which port to listen on: put {port} where the command takes it")
	}
	for _, a := range argv {
		if name, _, ok := strings.Cut(a, "="); ok && Sealed(name) != "" {
			return fmt.Errorf("check command: %s is never set: %s", name, Sealed(name))
		}
		rest := strings.NewReplacer("{model}", "", "{name}", "", "{port}", "", "{host}", "").Replace(a)
		if (strings.Contains(a, "{model}") || strings.Contains(a, "{name}")) && !plainRE.MatchString(rest) {
			return hint(fmt.Errorf("check command: a slot inside %q could become code", a), "give {model} and {name} as words of their own: sh -c 'serve \"$1\" --port \"$2\"' sh {model} {port}")
		}
	}
	return nil
}

// exec adds a command. Its zygote needs an interpreter too: it starts and watches
// the command, so that it outlives the agent as an engine of kind vllm does.
func (a *adder) exec(ctx context.Context, m Manifest) (Manifest, error) {
	if !strings.Contains(strings.Join(a.opts.ExecCommand, " "), "{model}") {
		a.report.warn("inspect", "the command has no {model}: it serves the same whatever model is placed on it")
	}
	py, err := findPython(ctx, a.opts.Python, minPython)
	if err != nil {
		return m, err
	}
	m.Kind, m.Engine, m.Device, m.Python = KindExec, "exec", a.opts.Device, py.Path
	m.PythonVersion = fmt.Sprintf("%d.%d", py.Major, py.Minor)
	m.Command = append([]string(nil), a.opts.ExecCommand...)
	program, err := exec.LookPath(m.Command[0])
	if err != nil {
		return m, hint(fmt.Errorf("find program %s: %w", m.Command[0], err), "give its absolute path")
	}
	if m.Command[0], err = filepath.Abs(program); err != nil {
		return m, fmt.Errorf("find program: %w", err)
	}
	cache := filepath.Join(a.dir, cacheDir)
	m.Env = map[string]string{
		"PATH": "/usr/local/bin:/usr/bin:/bin",
		// Nothing is written into a user's home, and no user's configuration is read.
		"HOME":           filepath.Join(cache, "home"),
		"XDG_CACHE_HOME": filepath.Join(cache, "xdg"),
		"LANG":           "C.UTF-8",
	}
	maps.Copy(m.Env, a.opts.Env)
	m.ImportEnv = map[string]string{}
	m.ProfileKey = ProfileKeyOf(m)
	if err := makeCaches(m.Env, a.dir); err != nil {
		return m, err
	}
	return m, a.commit(&m)
}
