package spec

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"warmd/placement"
)

// tensors builds a safetensors file of a header and n bytes of data.
func tensors(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

const (
	goodConfig = `{"architectures": ["OPTForCausalLM"]}`
	goodHeader = `{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}`
)

// folder makes a model folder of the given files.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := tempDir(t)
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestWholeModelsPass(t *testing.T) {
	good := string(tensors(goodHeader, 16))
	index := `{"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors"}}`
	one := string(tensors(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4))
	two := string(tensors(`{"b":{"dtype":"NEW","shape":[4],"data_offsets":[0,5]}}`, 5)) // a dtype of tomorrow
	for name, files := range map[string]map[string]string{
		"one file":    {"config.json": goodConfig, "model.safetensors": good},
		"padded":      {"config.json": goodConfig, "model.safetensors": string(tensors(goodHeader+"   ", 16))},
		"index":       {"config.json": goodConfig, indexFile: index, "s-1.safetensors": one, "s-2.safetensors": two, "broken.safetensors": "not in the index"},
		"pickles":     {"config.json": goodConfig, "pytorch_model.bin": "PK"},
		"a whole set": {"config.json": goodConfig, "m-00001-of-00002.safetensors": one, "m-00002-of-00002.safetensors": two},
		"no elements": {"config.json": goodConfig, "model.safetensors": string(tensors(`{"a":{"dtype":"F16","shape":[0,7],"data_offsets":[0,0]}}`, 0))},
	} {
		if err := CheckModel(folder(t, files)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBrokenModelsAreNamed(t *testing.T) {
	good := tensors(goodHeader, 16)
	head := func(h string, n int) string { return string(tensors(h, n)) }
	cfg := func(more map[string]string) map[string]string {
		more["config.json"] = goodConfig
		return more
	}
	weights := func(body string) map[string]string { return cfg(map[string]string{"model.safetensors": body}) }
	for name, c := range map[string]struct {
		files map[string]string
		words []string
	}{
		"empty folder":      {nil, []string{"no config.json"}},
		"config no json":    {map[string]string{"config.json": "{"}, []string{"config.json is not valid"}},
		"config empty":      {map[string]string{"config.json": ""}, []string{"config.json", "is empty"}},
		"config is a list":  {map[string]string{"config.json": "[]"}, []string{"config.json is not valid"}},
		"no architectures":  {map[string]string{"config.json": "{}"}, []string{"names no architectures"}},
		"empty arch":        {map[string]string{"config.json": `{"architectures":[""]}`}, []string{"names no architectures"}},
		"no weights":        {cfg(map[string]string{}), []string{"no weights", "--load-format=dummy"}},
		"empty weights":     {weights(""), []string{"model.safetensors", "is empty"}},
		"seven bytes":       {weights("1234567"), []string{"truncated", "7 bytes"}},
		"truncated header":  {weights(string(good[:20])), []string{"model.safetensors", "truncated", "its header alone"}},
		"truncated data":    {weights(string(good[:len(good)-1])), []string{"truncated", `tensor "b"`, "fetch model.safetensors again"}},
		"bytes behind":      {weights(string(good) + "x"), []string{"corrupt", "1 bytes follow"}},
		"huge header":       {weights("\xff\xff\xff\xff\xff\xff\xff\xff{}"), []string{"corrupt", "claims"}},
		"header no json":    {weights(head("not json", 0)), []string{"corrupt", "not JSON"}},
		"header a list":     {weights(head("[]", 0)), []string{"corrupt"}},
		"no tensor":         {weights(head(`{"__metadata__":{}}`, 0)), []string{"no tensor"}},
		"offsets reversed":  {weights(head(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}`, 4)), []string{"corrupt", "offsets"}},
		"offsets missing":   {weights(head(`{"a":{"dtype":"U8","shape":[4]}}`, 4)), []string{"corrupt", "offsets"}},
		"negative":          {weights(head(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}}`, 4)), []string{"corrupt"}},
		"hole":              {weights(head(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}`, 8)), []string{"a hole or an overlap at byte 0"}},
		"overlap":           {weights(head(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}`, 6)), []string{"overlap at byte 2"}},
		"shape does not":    {weights(head(`{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}`, 4)), []string{"does not fill"}},
		"shape overflows":   {weights(head(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, 0)), []string{"does not fill"}},
		"missing of a set":  {cfg(map[string]string{"m-00001-of-00002.safetensors": string(good)}), []string{"m-00002-of-00002.safetensors is missing"}},
		"index no json":     {cfg(map[string]string{indexFile: "{"}), []string{indexFile}},
		"index empty":       {cfg(map[string]string{indexFile: "{}"}), []string{indexFile, "weight_map is empty"}},
		"index escapes":     {cfg(map[string]string{indexFile: `{"weight_map":{"a":"../../etc/passwd"}}`}), []string{indexFile, "not in the folder"}},
		"index shard gone":  {cfg(map[string]string{indexFile: `{"weight_map":{"a":"s1.safetensors"}}`}), []string{"s1.safetensors is missing"}},
		"index tensor gone": {cfg(map[string]string{indexFile: `{"weight_map":{"zz":"s1.safetensors"}}`, "s1.safetensors": string(good)}), []string{"s1.safetensors", `no tensor "zz"`}},
	} {
		t.Run(name, func(t *testing.T) {
			e := refusal(t, CheckModel(folder(t, c.files)), placement.CodeModelInvalid, c.words...)
			if e != nil && !strings.HasPrefix(e.Message, "check model /") {
				t.Errorf("does not name the folder: %s", e.Message)
			}
		})
	}
}

func TestAMissingFolderIsNotFound(t *testing.T) {
	refusal(t, CheckModel("/no/such/model"), placement.CodeModelNotFound, "/no/such/model", "no such file")
}

func TestAnUnreadableFolderIsNotFound(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root reads everything: a file in the folder's place fails in the same call.
		f := filepath.Join(t.TempDir(), "f")
		_ = os.WriteFile(f, nil, 0)
		refusal(t, CheckModel(f), placement.CodeModelNotFound, f)
		return
	}
	dir := folder(t, map[string]string{"config.json": goodConfig})
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	refusal(t, CheckModel(dir), placement.CodeModelNotFound, "permission denied")
}

func TestAPipeInAModelFolderDoesNotHang(t *testing.T) {
	for _, name := range []string{"config.json", "model.safetensors", indexFile} {
		files := map[string]string{"config.json": goodConfig}
		delete(files, name)
		dir := folder(t, files)
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
		refusal(t, CheckModel(dir), placement.CodeModelInvalid, name, "not a regular file")
	}
}

func TestDummyWeightsNeedNoFiles(t *testing.T) {
	dir := folder(t, map[string]string{"config.json": goodConfig})
	for _, args := range [][]string{{"--load-format=dummy"}, {"--seed=1", "--load-format", "dummy"}} {
		if err := CheckModelFor(dir, placement.Request{Args: args}); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	refusal(t, CheckModelFor(dir, placement.Request{Args: []string{"--load-format=auto"}}), placement.CodeModelInvalid, "no weights")
}

func FuzzAnyHeaderIsJudgedWithoutAPanic(f *testing.F) {
	f.Add(tensors(goodHeader, 16))
	f.Add(tensors(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4))
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	f.Add([]byte("\xff\xff\xff\x7f\x00\x00\x00\x00{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		names, err := parseHeader(bytes.NewReader(b), uint64(len(b)))
		if err == nil && len(names) == 0 {
			t.Fatal("accepted a file without tensors")
		}
		if err == nil && len(b) > 8 {
			// Whatever passes is whole: one byte less must not pass.
			if _, err := parseHeader(bytes.NewReader(b[:len(b)-1]), uint64(len(b)-1)); err == nil && binary.LittleEndian.Uint64(b)+8 < uint64(len(b)) {
				t.Fatal("a truncated file passed")
			}
		}
	})
}
