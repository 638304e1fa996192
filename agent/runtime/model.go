package runtime

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// MakeModel makes a model folder with random weights: no download, and any Python
// 3.10 to 3.13. args go to the generator ("--preset", "opt-125m"). It returns what
// the generator says about the model.
func MakeModel(ctx context.Context, python, dir string, args ...string) (string, error) {
	py, err := findPython(ctx, python, minPython)
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp("", "warmd-model-")
	if err != nil {
		return "", fmt.Errorf("make model: %w", err)
	}
	defer os.RemoveAll(tmp)
	scripts, err := Unpack(tmp)
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", fmt.Errorf("make model: %w", err)
	}
	var out bytes.Buffer
	argv := append([]string{py.Path, filepath.Join(scripts, "modelgen.py"), dir}, args...)
	if err := (command{argv: argv, env: installEnv(os.Environ()), dir: tmp, out: &out}).run(ctx); err != nil {
		return "", fmt.Errorf("make model %s: %w", dir, err)
	}
	return strings.TrimSpace(out.String()), nil
}
