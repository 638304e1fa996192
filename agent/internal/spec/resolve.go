package spec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"warmd/placement"
)

// Resolve finds the folder of a model: an absolute path inside one of the roots,
// or a name ("tiny", "org/model") under exactly one of them. Symbolic links are
// followed and must end inside the roots. The error is a *placement.Error.
func Resolve(roots []string, model string) (string, error) {
	real := realRoots(roots)
	if len(real) == 0 {
		return "", notFound("resolve model %q: this node has no model roots", model).
			WithHint("set model_roots in the agent's configuration to the folders that hold models")
	}
	if model == "" || strings.ContainsAny(model, "\x00\n\r") {
		return "", &placement.Error{Code: placement.CodeBadRequest, Field: "model", Message: "model is empty or has a control character"}
	}
	if slices.Contains(strings.Split(model, "/"), "..") {
		return "", notFound("resolve model %q: \"..\" is not allowed", model).WithHint("give the folder's absolute path, or its name under a model root")
	}
	if filepath.IsAbs(model) {
		return inside(real, filepath.Clean(model), model)
	}
	return byName(real, model)
}

// byName looks for a name under every root.
func byName(roots []string, model string) (string, error) {
	var found []string
	var outside error
	for _, root := range roots {
		dir := filepath.Join(root, model)
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			continue
		}
		got, err := inside(roots, dir, model)
		if err != nil {
			outside = err
		} else if !slices.Contains(found, got) { // two roots may overlap
			found = append(found, got)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", notFound("resolve model %q: it is ambiguous: %s", model, strings.Join(found, " and ")).
			WithHint("give the absolute path of the one that is meant")
	case outside != nil:
		return "", outside
	}
	return "", notFound("resolve model %q: no such folder under %s", model, strings.Join(roots, ", ")).
		WithHint("put the model folder under a model root, or give the absolute path of one that is there")
}

// inside follows links and checks where they end.
func inside(roots []string, dir, model string) (string, error) {
	got, err := filepath.EvalSymlinks(dir)
	if err != nil {
		if !under(roots, dir) { // do not tell strangers what exists elsewhere
			return "", outsideError(model, roots)
		}
		return "", notFound("resolve model %q: %v", model, pathError(err)).WithHint("check the folder's name and who may read it")
	}
	if !under(roots, got) {
		return "", outsideError(model, roots)
	}
	if fi, err := os.Stat(got); err != nil || !fi.IsDir() {
		return "", notFound("resolve model %q: it is not a folder", model).WithHint("give the folder that holds config.json")
	}
	return got, noEscape(roots, got, model)
}

// noEscape checks the files of a model folder: a link in it (a hub cache is made
// of them) must end inside the roots too.
func noEscape(roots []string, dir, model string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return notFound("resolve model %q: %v", model, pathError(err)).WithHint("make the folder readable for the agent's user")
	}
	for _, e := range entries {
		if e.Type()&os.ModeSymlink == 0 {
			continue
		}
		got, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err == nil && !under(roots, got) {
			return invalid("resolve model %q: %s is a link to outside the model roots", model, e.Name()).
				WithHint("copy the file, or add the folder it is in to model_roots in the agent's configuration")
		}
	}
	return nil
}

func outsideError(model string, roots []string) error {
	return notFound("resolve model %q: it is not inside a model root (%s)", model, strings.Join(roots, ", ")).
		WithHint("move it there, or add its folder to model_roots in the agent's configuration")
}

// realRoots are the roots with links followed; what does not exist holds nothing.
func realRoots(roots []string) []string {
	var out []string
	for _, r := range roots {
		if got, err := filepath.EvalSymlinks(r); err == nil && filepath.IsAbs(got) && !slices.Contains(out, got) {
			out = append(out, got)
		}
	}
	return out
}

func under(roots []string, dir string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return dir == root || strings.HasPrefix(dir, strings.TrimSuffix(root, "/")+"/")
	})
}

func notFound(format string, args ...any) *placement.Error {
	return placement.Errorf(placement.CodeModelNotFound, format, args...)
}
