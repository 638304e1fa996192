package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestACommandIsARuntime(t *testing.T) {
	f := newFake(t)
	f.write("bin/serve", "#!/bin/sh\n", 0o755)
	argv := []string{"serve", "--port", "{port}", "--model={model}", "{name}"}
	m, err := f.add(AddOptions{Root: f.root, Name: "x", ExecCommand: argv, Env: map[string]string{"KEY": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Kind != KindExec || m.Command[0] != filepath.Join(f.bin, "serve") || !slices.Equal(m.Command[1:], argv[1:]) || m.Env["KEY"] != "v" || m.Python == "" || m.ProfileKey == "" {
		t.Errorf("%+v", m)
	}
	if argv[0] != "serve" {
		t.Error("the caller's command was changed")
	}
	got, err := Load(filepath.Join(f.root, "x"))
	if err != nil {
		t.Fatal(err)
	}
	if found, err := Check(t.Context(), got); err != nil || len(found) != 0 {
		t.Errorf("%+v %v", found, err)
	}
	if err := os.Chmod(filepath.Join(f.bin, "serve"), 0o644); err != nil {
		t.Fatal(err)
	}
	if found, _ := Check(t.Context(), got); !slices.Equal(codes(found), []string{"program"}) {
		t.Errorf("%+v", found)
	}
}

func TestACommandThatCannotWorkIsRefused(t *testing.T) {
	f := newFake(t)
	for _, c := range []struct {
		argv  []string
		words []string
	}{
		{[]string{"sleep", "{model}"}, []string{"no {port}"}},
		{[]string{"env", "VLLM_SERVER_DEV_MODE=1", "vllm", "serve", "{model}", "--port={port}"}, []string{"VLLM_SERVER_DEV_MODE is never set"}},
		{[]string{"{model}", "{port}"}, []string{"first word must be a program"}},
		{[]string{"", "{port}"}, []string{"first word must be a program"}},
		{[]string{"sh", "-c", "serve {model} --port {port}"}, []string{"could become code", `"$1"`}},
		{[]string{"sh", "-c", "serve --port {port} '{name}'"}, []string{"could become code"}},
		{[]string{"python3", "-c", "run('{name}', {port})"}, []string{"could become code"}},
		{[]string{"no-such-program", "{port}"}, []string{"find program no-such-program", "absolute path"}},
	} {
		_, err := f.add(AddOptions{Root: f.root, Name: "x", ExecCommand: c.argv})
		says(t, err, c.words...)
		if names := f.shown(); len(names) != 0 {
			t.Fatalf("List shows %q", names)
		}
	}
}

func TestACommandWithoutAModelIsWarnedAbout(t *testing.T) {
	f := newFake(t)
	warned := false
	_, err := f.add(AddOptions{Root: f.root, Name: "x", ExecCommand: []string{"sleep", "{port}"}, Progress: func(s Step) { warned = warned || s.Warning }})
	if err != nil || !warned {
		t.Errorf("warned %v, %v", warned, err)
	}
}
