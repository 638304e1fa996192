package spec

import (
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"warmd/agent/runtime"
	"warmd/placement"
)

// Policy is what an operator decides about requests. The zero value allows what
// anybody may ask for, on no model at all.
type Policy struct {
	// AllowArgs names engine arguments that requests may give besides the harmless
	// ones ("--trust-remote-code").
	AllowArgs []string
	// AllowEnv names environment variables likewise.
	AllowEnv []string
	// ModelRoots are the folders that models are in.
	ModelRoots []string
	// Host is what an engine listens on when it makes its own socket; "" is 127.0.0.1.
	Host string
}

// Start is how a request is started.
type Start struct {
	// Argv goes to a parked worker: the engine's flags with --model.
	Argv []string
	// Env is what is added to the runtime's environment: by the request, and what keeps
	// the engine's own sockets on loopback.
	Env map[string]string
	// Cold says that a parked worker will not do, or was not wanted.
	Cold       bool
	ColdReason string
	// ServeArgv is the whole command of a cold start.
	ServeArgv []string
	// FullEnv is the whole environment of a cold start, sorted.
	FullEnv []string
}

// Build prepares a start under the default policy; see [Policy.Build].
func Build(m runtime.Manifest, r placement.Request, modelDir string, port int) (Start, error) {
	return Policy{}.Build(m, r, modelDir, port)
}

// Build prepares the start of a request on a runtime. It decides nothing about
// devices: both forms of a start, parked and cold, carry the same arguments and the
// same environment. The error is a *placement.Error.
func (p Policy) Build(m runtime.Manifest, r placement.Request, modelDir string, port int) (Start, error) {
	r = r.Normalize()
	if err := checkSlots(r, modelDir, port); err != nil {
		return Start{}, err
	}
	env, cold, err := checkEnv(m, r.Env, p.AllowEnv)
	if err != nil {
		return Start{}, err
	}
	if m.Kind == runtime.KindVLLM {
		env = withOwnSockets(m, env)
	}
	s := Start{Env: env, ColdReason: cold, FullEnv: fullEnv(m, env, r.Args)}
	if m.Kind == runtime.KindExec {
		err = s.exec(p, m, r, modelDir, port)
	} else {
		err = s.vllm(p, m, r, modelDir, port)
	}
	if err != nil {
		return Start{}, err
	}
	if s.ColdReason != "" && r.Start == placement.StartWarm {
		return Start{}, placement.Errorf(placement.CodeNoWarm, "start=warm cannot be had: %s", s.ColdReason).
			WithHint("use start=auto to accept a cold start, or a runtime that was added with this setting")
	}
	if r.Start == placement.StartCold {
		s.ColdReason = "cold start asked for"
	}
	s.Cold = s.ColdReason != ""
	return s, nil
}

func (p Policy) host() string {
	if p.Host == "" {
		return "127.0.0.1"
	}
	return p.Host
}

// vllm fills in the two forms of a vLLM start.
func (s *Start) vllm(p Policy, m runtime.Manifest, r placement.Request, modelDir string, port int) error {
	args, err := parseArgs(r.Args, p.AllowArgs, modelDir)
	if err != nil {
		return err
	}
	if s.ColdReason == "" {
		s.ColdReason = args.cold
	}
	// Served names are the one list among the options: it ends at the next option.
	flags := slices.Concat([]string{servedName, r.Name}, dropName(args.aliases, r.Name), args.argv,
		eagerWhereItMust(m, args.argv), []string{"--host=" + p.host(), "--port=" + strconv.Itoa(port)})
	s.Argv = slices.Concat([]string{"--model", modelDir}, flags)
	vllm := filepath.Join(filepath.Dir(m.Python), "vllm")
	s.ServeArgv = slices.Concat([]string{m.Python, vllm, "serve", modelDir}, flags)
	return nil
}

// eagerWhereItMust adds --enforce-eager to a start on a runtime whose environment
// turns the compiler off (the CPU ones: probing for g++ costs 24 s a start), unless
// the request decides. vLLM would otherwise try to compile, and die.
func eagerWhereItMust(m runtime.Manifest, argv []string) []string {
	if m.Env["TORCHDYNAMO_DISABLE"] != "1" || slices.ContainsFunc(argv, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return positive(name) == "--enforce-eager" || strings.HasPrefix(a, "-O") || name == "--optimization-level" || name == "--compilation-config"
	}) {
		return nil
	}
	return []string{"--enforce-eager"}
}

// exec fills the command's slots. Each stays inside the element it is in: there is
// no shell, and runtime.Add refuses a slot inside a shell script.
func (s *Start) exec(p Policy, m runtime.Manifest, r placement.Request, modelDir string, port int) error {
	s.ColdReason = "runtime " + m.Name + " is of kind exec: it has no warm stage"
	slots := strings.NewReplacer("{host}", p.host(), "{port}", strconv.Itoa(port), "{model}", modelDir, "{name}", r.Name)
	for _, a := range m.Command {
		s.ServeArgv = append(s.ServeArgv, slots.Replace(a))
	}
	for i, a := range r.Args {
		name, _, _ := strings.Cut(a, "=")
		if !strings.HasPrefix(a, "-") || !allows(p.AllowArgs, name) {
			return argError(i, clip(name), "is not on this node's list: runtime %s is a command that warmd knows no arguments of", m.Name).
				WithHint("put it into the runtime's command, or let an operator allow it: %s", allowHint(name))
		}
		s.ServeArgv = append(s.ServeArgv, a)
	}
	return nil
}

// checkSlots checks what goes into argv besides arguments.
func checkSlots(r placement.Request, modelDir string, port int) error {
	if err := r.Validate(); err != nil {
		return placement.AsError(err)
	}
	if !servedRE.MatchString(r.Name) {
		e := placement.Errorf(placement.CodeBadRequest, "name %q must match %s", clip(r.Name), servedRE).WithHint("give one with --name")
		e.Field = "name"
		return e
	}
	if !filepath.IsAbs(modelDir) || strings.ContainsAny(modelDir, "\x00\n\r") {
		return placement.Errorf(placement.CodeModelInvalid, "model folder %q must be an absolute path on one line", clip(modelDir))
	}
	if port < 1 || port > 65535 {
		return placement.Errorf(placement.CodeInternal, "build start: port %d is out of range", port)
	}
	return nil
}

// fullEnv is the runtime's environment with the request's over it.
func fullEnv(m runtime.Manifest, add map[string]string, args []string) []string {
	all := maps.Clone(m.Env)
	if all == nil {
		all = map[string]string{}
	}
	runtime.FlagsWin(all, args)
	maps.Copy(all, add)
	return runtime.Manifest{Env: all}.Environ()
}

// dropName takes the first served name and repetitions out of the aliases.
func dropName(aliases []string, name string) (out []string) {
	for _, a := range aliases {
		if a != name && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
