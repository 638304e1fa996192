package runtime

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
)

//go:embed vllm/*.py
var scripts embed.FS

// Unpack writes the Python side into a folder under dir whose name is the hash of
// its content, and returns that folder. A process that still runs from an older
// folder is not disturbed by an upgrade; calling it twice, or from two processes
// at once, is harmless: the folder appears whole by a rename.
func Unpack(dir string) (string, error) { return unpack(scripts, "vllm", dir) }

// Scripts returns the folder of the Python side: installed, when that holds exactly
// what this program was built with, else what Unpack makes below dir. The two differ
// while a package is being upgraded under a running agent.
func Scripts(installed, dir string) (string, error) {
	if files, _, err := readScripts(scripts, "vllm"); installed != "" && err == nil && sameFiles(installed, files) {
		return installed, nil
	}
	return Unpack(dir)
}

// ScriptsSum names the content of the Python side.
var ScriptsSum = sync.OnceValue(func() string {
	_, sum, _ := readScripts(scripts, "vllm") // embedded: it reads
	return sum
})

func unpack(src fs.FS, sub, dir string) (string, error) {
	files, sum, err := readScripts(src, sub)
	if err != nil {
		return "", fmt.Errorf("unpack scripts: %w", err)
	}
	target := filepath.Join(dir, "scripts-"+sum)
	if sameFiles(target, files) {
		return target, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("unpack scripts: %w", err)
	}
	// The engine's user is another one than the agent's, which has a umask that keeps
	// others out, and MkdirTemp gives 0700: modes are set, not asked for.
	if fi, err := os.Stat(dir); err == nil && fi.Mode().Perm()&0o005 != 0o005 {
		if err := os.Chmod(dir, 0o755); err != nil {
			return "", fmt.Errorf("unpack scripts: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(dir, ".scripts-")
	if err != nil {
		return "", fmt.Errorf("unpack scripts: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("unpack scripts: %w", err)
	}
	for name, body := range files {
		at := filepath.Join(tmp, name)
		if err := errors.Join(os.WriteFile(at, body, 0o644), os.Chmod(at, 0o644)); err != nil {
			return "", fmt.Errorf("unpack scripts: %w", err)
		}
	}
	if err := place(tmp, target, files); err != nil {
		return "", fmt.Errorf("unpack scripts: %w", err)
	}
	return target, nil
}

// place renames tmp to target. A target that is there already is either another
// process's equal work, or damaged: then it is moved aside first.
func place(tmp, target string, files map[string][]byte) error {
	err := os.Rename(tmp, target)
	if err == nil || sameFiles(target, files) {
		return nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	aside := tmp + ".old"
	if err := os.Rename(target, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer os.RemoveAll(aside)
	if err := os.Rename(tmp, target); err != nil && !sameFiles(target, files) {
		return err
	}
	return nil
}

// readScripts reads every script and the hash over names and contents.
func readScripts(src fs.FS, sub string) (map[string][]byte, string, error) {
	names, err := fs.Glob(src, path.Join(sub, "*.py")) // sorted
	if err != nil {
		return nil, "", err
	}
	h, files := sha256.New(), map[string][]byte{}
	for _, n := range names {
		body, err := fs.ReadFile(src, n)
		if err != nil {
			return nil, "", err
		}
		fmt.Fprintf(h, "%s %d\n", path.Base(n), len(body))
		h.Write(body)
		files[path.Base(n)] = body
	}
	return files, hex.EncodeToString(h.Sum(nil))[:16], nil
}

// sameFiles reports whether dir holds exactly these contents (compiled bytecode
// beside them does not count).
func sameFiles(dir string, files map[string][]byte) bool {
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != string(want) {
			return false
		}
	}
	return true
}
