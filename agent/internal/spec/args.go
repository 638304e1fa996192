package spec

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"warmd/placement"
)

// parsed is what a request's arguments amount to.
type parsed struct {
	argv    []string // canonical: --name, --no-name or --name=value, each one element
	aliases []string // further served names
	cold    string   // why a parked worker will not do
}

// parseArgs checks every argument of a request against the allowlist. extra names
// the options that this node's operator allows besides: those are passed on as
// given, in the forms --name and --name=value only, since we do not know them.
func parseArgs(args, extra []string, modelDir string) (parsed, error) {
	var p parsed
	seen := map[string]int{}
	for i := 0; i < len(args); i++ {
		at := i
		name, value, has := splitArg(args[i])
		fail := func(format string, a ...any) *placement.Error { return argError(at, name, format, a...) }
		if name == "" {
			return p, argError(at, clip(args[i]), "is not an option").WithHint("write options as --name=value")
		}
		if w, ok := reserved[name]; ok {
			return p, fail("cannot be given: %s", w)
		}
		base := positive(name)
		if first, dup := seen[base]; dup && base != servedName {
			return p, fail("is given twice: args[%d] has it already", first)
		}
		seen[base] = at
		o, known := allowed[name]
		sw, isSwitch := allowed[base]
		isSwitch = isSwitch && sw.check == nil && (name == base || !sw.bare)
		switch operator := allows(extra, name); {
		case isSwitch && has:
			return p, fail("takes no value: write %s or --no-%s", base, base[2:])
		case isSwitch:
			p.argv = append(p.argv, name)
			continue
		case !known && operator:
			p.argv = append(p.argv, args[i])
			continue
		case !known:
			return p, unknown(at, name)
		case !has && i+1 < len(args):
			i++
			value = args[i]
		case !has:
			return p, fail("needs a value: %s=VALUE", name)
		}
		if err := o.check(value); err != nil && !allows(extra, name) {
			return p, fail("%v, not %q", err, clip(value)).WithHint("an operator can allow any value: %s", allowHint(name))
		}
		if err := p.take(at, name, value, o, modelDir); err != nil {
			return p, err
		}
	}
	return p, nil
}

// take adds an option with its checked value.
func (p *parsed) take(at int, name, value string, o option, modelDir string) error {
	if o.cold != nil && p.cold == "" {
		p.cold = o.cold(value)
	}
	switch name {
	case servedName:
		p.aliases = append(p.aliases, value)
		return nil
	case chatTemplate:
		file, err := templateFile(modelDir, value)
		if err != nil {
			return argError(at, name, "%v", err).WithHint("put the template into the model folder and give its file name")
		}
		value = file
	case "--optimization-level":
		// -O is the spelling that every supported version has.
		p.argv = append(p.argv, "-O"+value)
		return nil
	}
	p.argv = append(p.argv, name+"="+value)
	return nil
}

// splitArg takes an argument apart: its canonical name, and the value if it holds
// one. An empty name means that it is no option.
func splitArg(arg string) (name, value string, has bool) {
	if level, ok := strings.CutPrefix(arg, "-O"); ok {
		level = strings.TrimPrefix(level, "=")
		return "--optimization-level", level, arg != "-O"
	}
	if !strings.HasPrefix(arg, "-") || arg == "-" {
		return "", "", false
	}
	name, value, has = strings.Cut(arg, "=")
	if strings.HasPrefix(name, "--") {
		// The engine reads --max_model_len and --max-model-len alike, so do we.
		name = strings.ReplaceAll(name, "_", "-")
	}
	if long, ok := short[name]; ok {
		name = long
	}
	return name, value, has
}

// templateFile finds a chat template inside the model folder. An absolute path or
// a link that leads out would let a request read any file of the engine's user.
func templateFile(modelDir, value string) (string, error) {
	file := value
	if !filepath.IsAbs(file) {
		file = filepath.Join(modelDir, file)
	}
	root, err := filepath.EvalSymlinks(modelDir)
	if err != nil {
		return "", fmt.Errorf("cannot read the model folder: %w", pathError(err))
	}
	got, err := filepath.EvalSymlinks(file)
	// A path outside is refused in the same words whether it exists or not.
	if (err != nil && !under([]string{root, modelDir}, filepath.Clean(file))) || (err == nil && !under([]string{root}, got)) {
		return "", fmt.Errorf("%q is not inside the model folder", clip(value))
	}
	if err != nil {
		return "", fmt.Errorf("%q: %w", clip(value), pathError(err))
	}
	if fi, err := os.Stat(got); err != nil || !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%q is not a file", clip(value))
	}
	return got, nil
}

// allows reports whether an operator's list names an option, in any spelling.
func allows(extra []string, name string) bool {
	return slices.ContainsFunc(extra, func(e string) bool {
		e, _, _ = strings.Cut(strings.ReplaceAll(e, "_", "-"), "=")
		return e == name || "--"+e == name || (strings.HasPrefix(name, "--no-") && strings.TrimPrefix(e, "--") == name[5:])
	})
}

// positive is the name of the switch that --no-name turns off.
func positive(name string) string {
	if rest, ok := strings.CutPrefix(name, "--no-"); ok {
		return "--" + rest
	}
	return name
}

func unknown(at int, name string) error {
	if w := why(name); w != "" {
		return argError(at, name, "is refused: %s", w).WithHint("an operator can allow it: %s", allowHint(name))
	}
	return argError(at, name, "is not on this node's list of engine arguments").
		WithHint("check its spelling; an operator can allow it: %s", allowHint(name))
}

func allowHint(name string) string {
	return fmt.Sprintf("allow_args = [%q] in the agent's configuration", name)
}

func argError(at int, name, format string, a ...any) *placement.Error {
	e := placement.Errorf(placement.CodeArgRefused, "engine argument %s %s", clip(name), fmt.Sprintf(format, a...))
	e.Field = fmt.Sprintf("args[%d]", at)
	return e
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
