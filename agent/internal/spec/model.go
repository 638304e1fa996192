package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"warmd/placement"
)

// maxJSON bounds config.json and the index; the largest index we know has 15 MB.
const maxJSON = 64 << 20

// CheckModel reports whether a folder can be served, by its headers only: it reads
// kilobytes of a model of any size. Better here, in milliseconds and with a name,
// than after a worker was spent. The error is a *placement.Error.
func CheckModel(dir string) error { return checkModel(dir, true) }

// CheckModelFor is CheckModel for one request: --load-format=dummy needs no weights.
func CheckModelFor(dir string, r placement.Request) error {
	dummy := slices.Contains(r.Args, "--load-format=dummy")
	for i := 1; i < len(r.Args); i++ {
		dummy = dummy || (r.Args[i-1] == "--load-format" && r.Args[i] == "dummy")
	}
	return checkModel(dir, !dummy)
}

func checkModel(dir string, weights bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return notFound("check model %s: %v", dir, pathError(err)).WithHint("check the path, and that the agent's user may read it")
	}
	if err := checkConfig(dir); err != nil {
		return err
	}
	if !weights {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return checkWeights(dir, names)
}

// checkConfig reads config.json: present, JSON, and naming an architecture.
func checkConfig(dir string) error {
	raw, err := readSmall(filepath.Join(dir, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return invalid("check model %s: no config.json", dir).WithHint("give the folder that holds config.json; an unfinished download has none")
	}
	if err != nil {
		return invalid("check model %s: config.json: %v", dir, pathError(err))
	}
	var cfg struct {
		Architectures []string `json:"architectures"`
	}
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return invalid("check model %s: config.json is not valid: %v", dir, err).WithHint("fetch config.json again")
	}
	if len(cfg.Architectures) == 0 || slices.Contains(cfg.Architectures, "") {
		return invalid("check model %s: config.json names no architectures", dir).WithHint("a model that can be served says, for example, \"architectures\": [\"LlamaForCausalLM\"]")
	}
	return nil
}

var shardRE = regexp.MustCompile(`^(.+)-(\d{5})-of-(\d{5})\.safetensors$`)

const indexFile = "model.safetensors.index.json"

// checkWeights checks the weight files in the order in which the engine picks
// them: the index's shards, all safetensors, other formats.
func checkWeights(dir string, names []string) error {
	if slices.Contains(names, indexFile) {
		return checkIndex(dir)
	}
	var tensors []string
	for _, n := range names {
		if strings.HasSuffix(n, ".safetensors") {
			tensors = append(tensors, n)
		}
	}
	for _, n := range tensors {
		if m := shardRE.FindStringSubmatch(n); m != nil {
			if miss := missingShard(m, names); miss != "" {
				return invalid("check model %s: weight file %s is missing", dir, miss).WithHint("fetch the model again; %s says how many there are", n)
			}
		}
		if _, err := safetensorsHeader(filepath.Join(dir, n)); err != nil {
			return badFile(dir, n, err)
		}
	}
	if len(tensors) > 0 {
		return nil
	}
	for _, n := range names {
		for _, ext := range []string{".bin", ".pt", ".pth", ".gguf", ".tensors"} {
			if strings.HasSuffix(n, ext) && regular(filepath.Join(dir, n)) == nil {
				return nil
			}
		}
	}
	return invalid("check model %s: no weights (*.safetensors, *.bin, *.pt)", dir).
		WithHint("fetch the weights, or place it with --arg=--load-format=dummy for random ones")
}

// missingShard names a file of a numbered set that is not there.
func missingShard(m []string, names []string) string {
	total, _ := strconv.Atoi(m[3])
	for i := 1; i <= total; i++ {
		if n := fmt.Sprintf("%s-%05d-of-%s.safetensors", m[1], i, m[3]); !slices.Contains(names, n) {
			return n
		}
	}
	return ""
}

// checkIndex checks that every tensor of the index is in the shard that it names.
func checkIndex(dir string) error {
	raw, err := readSmall(filepath.Join(dir, indexFile))
	if err != nil {
		return badFile(dir, indexFile, err)
	}
	var idx struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(raw, &idx); err != nil {
		return badFile(dir, indexFile, err)
	}
	if len(idx.WeightMap) == 0 {
		return badFile(dir, indexFile, errors.New("weight_map is empty"))
	}
	shards := map[string][]string{}
	for tensor, file := range idx.WeightMap {
		if file == "" || file != filepath.Base(file) || file == ".." || file == "." {
			return badFile(dir, indexFile, fmt.Errorf("names the file %q, which is not in the folder", file))
		}
		shards[file] = append(shards[file], tensor)
	}
	for _, file := range sortedKeys(shards) {
		have, err := safetensorsHeader(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			return invalid("check model %s: weight file %s is missing", dir, file).WithHint("fetch the model again; %s names it", indexFile)
		}
		if err != nil {
			return badFile(dir, file, err)
		}
		slices.Sort(shards[file])
		for _, t := range shards[file] {
			if !have[t] {
				return badFile(dir, file, fmt.Errorf("has no tensor %q, which %s places there", t, indexFile))
			}
		}
	}
	return nil
}

// readSmall reads a regular file of bounded size: a pipe or a device in a model
// folder must not hang the agent.
func readSmall(file string) ([]byte, error) {
	if err := regular(file); err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err == nil && len(raw) > maxJSON {
		err = fmt.Errorf("is larger than %d bytes", maxJSON)
	}
	return raw, err
}

func regular(file string) error {
	fi, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return errors.New("is not a regular file")
	case fi.Size() == 0:
		return errors.New("is empty")
	}
	return nil
}

func badFile(dir, file string, err error) error {
	return invalid("check model %s: %s: %v", dir, file, pathError(err)).WithHint("fetch %s again", file)
}

func invalid(format string, args ...any) *placement.Error {
	return placement.Errorf(placement.CodeModelInvalid, format, args...)
}

// pathError drops the path that os puts into its errors: the message names it.
func pathError(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
