package placement

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var rewrite = flag.Bool("rewrite", false, "write what Choose answers into testdata/choose")

// Each file of testdata/choose is a story: commands that build a fleet, and after
// each `choose` the whole answer between ---- and the next empty line.
//
//	node NAME [status=alive] [age=0] [draining] [summary] [addr=HOST:PORT]
//	runtime NAME [kind=vllm] [device=cuda] [zygote=up] [problem=WORDS_WITH_UNDERSCORES]
//	device ID [kind=cuda] [slots=1] [free=SLOTS] [busy=0] [quarantined=0] [gib=140] [warm=RUNTIME:N] [problem=...]
//	claim NODE DEVICE [N]
//	choose [model=/m] [runtime=] [node=] [start=auto] [gib=0]
//
// runtime and device belong to the last node. When a test fails, run with -rewrite
// and read the diff; commit it only if the change is wanted.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/choose/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			story, err := os.ReadFile(file)
			require.NoError(t, err)
			got, err := tell(story)
			require.NoError(t, err)
			if *rewrite {
				require.NoError(t, os.WriteFile(file, got, 0o644))
				return
			}
			assert.Equal(t, string(story), string(got))
		})
	}
}

// tell runs a story and returns it with the answers of now.
func tell(story []byte) ([]byte, error) {
	var out bytes.Buffer
	var s scene
	answer := false
	for i, line := range strings.Split(strings.TrimRight(string(story), "\n"), "\n") {
		if answer { // skip the old answer
			answer = line != ""
			if answer {
				continue
			}
		}
		fmt.Fprintln(&out, line)
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		if words[0] == "choose" {
			fmt.Fprint(&out, "----\n", s.choose(words[1:]))
			answer = true
			continue
		}
		if err := s.do(words); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return out.Bytes(), nil
}

type scene struct {
	nodes  []NodeView
	claims map[SlotKey]int
}

// fields are the key=value words behind the name; a bare word means true.
type fields map[string]string

func (f fields) text(key, otherwise string) string {
	if v, ok := f[key]; ok {
		return strings.ReplaceAll(v, "_", " ")
	}
	return otherwise
}

func (f fields) number(key string, otherwise int) int {
	if n, err := strconv.Atoi(f[key]); err == nil {
		return n
	}
	return otherwise
}

func fieldsOf(words []string) fields {
	f := fields{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		f[k] = v
	}
	return f
}

func (s *scene) do(words []string) error {
	if len(words) < 2 {
		return fmt.Errorf("%q names nothing", words[0])
	}
	name, f := words[1], fieldsOf(words[2:])
	if words[0] == "claim" {
		if s.claims == nil {
			s.claims = map[SlotKey]int{}
		}
		n := 1
		if len(words) > 3 {
			n, _ = strconv.Atoi(words[3])
		}
		s.claims[SlotKey{name, words[2]}] += n
		return nil
	}
	if words[0] == "node" {
		_, draining := f["draining"]
		_, summary := f["summary"]
		v := NodeView{Capacity: Capacity{Node: name, Addr: f.text("addr", ""), Draining: draining, Summary: summary}}
		v.Status = f.text("status", "alive")
		v.Alive, v.AgeSeconds = v.Status == "alive", float64(f.number("age", 0))
		s.nodes = append(s.nodes, v)
		return nil
	}
	if len(s.nodes) == 0 {
		return fmt.Errorf("%q before the first node", words[0])
	}
	n := &s.nodes[len(s.nodes)-1]
	switch words[0] {
	case "runtime":
		n.Runtimes = append(n.Runtimes, Runtime{
			Name: name, Kind: f.text("kind", "vllm"), Device: f.text("device", "cuda"), Zygote: f.text("zygote", "up"), Problem: f.text("problem", ""),
		})
	case "device":
		if n.Summary {
			name = ""
		}
		d := Device{ID: name, Kind: f.text("kind", "cuda"), Slots: f.number("slots", 1), Busy: f.number("busy", 0), Quarantined: f.number("quarantined", 0), Problem: f.text("problem", "")}
		d.Free = f.number("free", d.Slots-d.Busy-d.Quarantined)
		d.TotalBytes, d.FreeBytes = 140<<30, int64(f.number("gib", 140))<<30
		if rt, n, ok := strings.Cut(f["warm"], ":"); ok {
			count, _ := strconv.Atoi(n)
			d.Warm = map[string]int{rt: count}
		}
		n.Devices = append(n.Devices, d)
	default:
		return fmt.Errorf("unknown command %q", words[0])
	}
	return nil
}

func (s *scene) choose(words []string) string {
	f := fieldsOf(words)
	d := Choose(NewSnapshot(s.nodes, s.claims), Request{
		Model: f.text("model", "/m"), Runtime: f.text("runtime", ""), Node: f.text("node", ""),
		Start: Start(f.text("start", "")), MemoryBytes: int64(f.number("gib", 0)) << 30,
	})
	var out strings.Builder
	for i, c := range d.Candidates {
		device := c.Device
		if device == "" {
			device = "(any)"
		}
		fmt.Fprintf(&out, "%d. %s %s %s %s: %s\n", i+1, c.Node, device, c.Runtime, c.Tier, c.Why)
	}
	for _, p := range d.Passed {
		fmt.Fprintf(&out, "-  %s %s: %s\n", p.Node, p.Code, p.Reason)
	}
	if out.Len() == 0 {
		return "(no nodes)\n"
	}
	return out.String()
}
