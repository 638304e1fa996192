package nspawn

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// release is a version with its packages, by format.
type release struct {
	version  string
	deb, rpm []string
}

func releaseIn(dir, version string) release {
	r := release{version: version}
	for _, p := range []string{"warmd", "warmctl"} {
		r.deb = append(r.deb, filepath.Join(dir, p+"_"+version+"_amd64.deb"))
		r.rpm = append(r.rpm, filepath.Join(dir, p+"-"+version+"-1.x86_64.rpm"))
	}
	return r
}

// thisRelease are the packages under test.
func thisRelease(t testing.TB) release {
	t.Helper()
	found := debs(t)
	return releaseIn(filepath.Dir(found[0]), strings.Split(filepath.Base(found[0]), "_")[1])
}

var nextBuild struct {
	once sync.Once
	dir  string
	err  error
}

// nextRelease are the same sources as the next version, built by the first who asks.
func nextRelease(t testing.TB) release {
	t.Helper()
	version := thisRelease(t).version + ".next"
	b := &nextBuild
	b.once.Do(func() {
		if b.dir, b.err = lab.Folder("next"); b.err != nil {
			return
		}
		build := exec.Command("../build.sh", b.dir)
		build.Env = append(os.Environ(), "VERSION="+version)
		if out, err := build.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build the next version: %w: %s", err, out)
		}
	})
	require.NoError(t, b.err)
	return releaseIn(b.dir, version)
}
