package conf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

type device struct {
	Slots int            `toml:"slots"`
	Warm  map[string]int `toml:"warm"`
}

type config struct {
	Node    string            `toml:"node"`
	Listen  []string          `toml:"listen"`
	Warm    map[string]int    `toml:"warm"`
	Devices map[string]device `toml:"devices"`
	Gossip  struct {
		Join []string `toml:"join"`
	} `toml:"gossip"`
	Version string `toml:"-"`
}

func read(t *testing.T, text string) (config, *File, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	c := config{Node: "default", Listen: []string{"default"}}
	f, err := Read(path, &c)
	f.path = "c.toml"
	for _, e := range flat(err) {
		if p, ok := errors.AsType[*Problem](e); ok && p.Path != "" {
			p.Path = "c.toml"
		}
	}
	return c, f, err
}

func flat(err error) []error {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return all.Unwrap()
	}
	return nil
}

func TestAFileIsReadOverTheDefaults(t *testing.T) {
	c, _, err := read(t, "listen = [\"a\", \"b\"]\n[devices.\"GPU-1\"]\nslots = 2\n")
	require.NoError(t, err)
	require.Equal(t, config{Node: "default", Listen: []string{"a", "b"}, Devices: map[string]device{"GPU-1": {Slots: 2}}}, c)
}

func TestEveryProblemOfAFileIsSaidByLine(t *testing.T) {
	c, _, err := read(t, `noed = "gpu1"
node = 7
listen = [
  "10.0.0.1:1",
  3,
]
warm = { big = 1, small = "x" }
[gossip]
jion = ["a"]
join = ["b"]
[devices.GPU-1]
slots = "two"
slots = 3
[node]
under = "it"
[devices.GPU-2]
slots = 2
`)
	require.EqualError(t, err, `c.toml:1: unknown key noed
c.toml:2: node must be a string, not a TOML integer
c.toml:5: listen must be a string, not a TOML integer
c.toml:7: warm must be a whole number, not a TOML string
c.toml:9: unknown key gossip.jion
c.toml:12: devices.GPU-1.slots must be a whole number, not a TOML string
c.toml:14: node cannot store a table in a string`)
	require.Equal(t, "default", c.Node)
	require.Equal(t, []string{"b"}, c.Gossip.Join, "what is well-formed is read")
	require.Equal(t, 2, c.Devices["GPU-2"].Slots)
}

func TestAFileThatIsNoTOMLSaysWhere(t *testing.T) {
	_, _, err := read(t, "node = \"a\"\nlisten = [\n\"x\"\nwarm = {}\n")
	require.ErrorContains(t, err, "c.toml:4: ")
	_, err = Read("/nonexistent/c.toml", &config{})
	require.EqualError(t, err, "read configuration: open /nonexistent/c.toml: no such file or directory")
}

func TestARefusedValueIsFoundInTheFile(t *testing.T) {
	_, f, err := read(t, `node = "a"
listen = [
  "good",

  "bad"]
warm.x = 1

[devices]
"GPU-1.0" = { slots = 1, warm = { "v-0.32.0" = 1 } }
[devices.cpu-0]
warm = {
}
`)
	require.NoError(t, err)
	bad := func(field string) error { return &placement.FieldError{Field: field, Problem: "is bad"} }
	for field, want := range map[string]string{
		"node":                          "c.toml:1: node is bad",
		"listen[0]":                     "c.toml:3: listen[0] is bad",
		"listen[1]":                     "c.toml:5: listen[1] is bad",
		"listen[7]":                     "c.toml:2: listen[7] is bad",
		"warm.x":                        "c.toml:6: warm.x is bad",
		"devices.GPU-1.0.slots":         "c.toml:9: devices.GPU-1.0.slots is bad",
		"devices.GPU-1.0.warm.v-0.32.0": "c.toml:9: devices.GPU-1.0.warm.v-0.32.0 is bad",
		"devices.cpu-0.warm.other":      "c.toml:11: devices.cpu-0.warm.other is bad",
		"tls.ca":                        "c.toml: tls.ca is bad",
	} {
		require.EqualError(t, f.Locate(bad(field)), want)
		require.ErrorAs(t, f.Locate(bad(field)), new(*placement.FieldError))
	}
	f.SetByFlag("listen", "--listen")
	require.EqualError(t, f.Locate(errors.Join(bad("warm.x"), errors.New("other"), bad("listen[1]"), bad("node"))),
		"other\n--listen[1] is bad\nc.toml:1: node is bad\nc.toml:6: warm.x is bad")
	require.NoError(t, f.Locate(nil))
	require.EqualError(t, new(File).Locate(bad("node")), "node is bad")
}

func TestChangedNamesTheKeys(t *testing.T) {
	a := config{Node: "a", Warm: map[string]int{}, Devices: map[string]device{"g1": {Slots: 1}, "g2": {Slots: 2}}}
	b := a
	b.Listen, b.Warm, b.Version = []string{}, nil, "other"
	require.Empty(t, Changed(a, &b))
	b.Node, b.Gossip.Join = "b", []string{"x"}
	b.Devices = map[string]device{"g1": {Slots: 1, Warm: map[string]int{"v": 1}}, "g3": {Slots: 2}}
	require.Equal(t, []string{"node", "devices.g1.warm", "devices.g2.slots", "devices.g3.slots", "gossip.join"}, Changed(a, b))
}
