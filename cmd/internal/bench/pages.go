package bench

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The states of the page cache that a start can be given.
const (
	PagesWarm = "warm" // files are read just before
	PagesCold = "cold" // files are dropped from the cache just before
)

// Pages puts the page cache into a state, before every start of every arm.
type Pages struct {
	Mode string
	// Model and Runtime are the files that a start reads.
	Model, Runtime []string
	// How says in words what is done.
	How string

	// everything is dropped, not only these files; only root can.
	everything bool
}

// Cached is the share of the bytes that the page cache holds, -1 when unknown.
type Cached struct {
	Model   float64 `json:"model"`
	Runtime float64 `json:"runtime"`
}

// NewPages looks up the files of a model and of a runtime.
func NewPages(mode, model string, runtime []string) (*Pages, error) {
	p := &Pages{Mode: mode}
	var bytes int64
	seen := map[string]bool{}
	for _, dir := range append([]string{model}, runtime...) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil && dir == model:
				return err
			case err != nil:
				return nil // a cache that is not there, a folder that is not ours to read
			case d.IsDir() && seen[path]:
				return fs.SkipDir // one folder of modules inside another
			case d.IsDir():
				seen[path] = true
				return nil
			}
			fi, err := os.Stat(path) // models are often links into a store
			if err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 {
				return nil //nolint:nilerr // a broken link is nothing to read
			}
			if dir == model {
				p.Model = append(p.Model, path)
			} else {
				p.Runtime = append(p.Runtime, path)
				bytes += fi.Size()
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list files: %w", err)
		}
	}
	switch {
	case mode == PagesCold && os.Geteuid() == 0:
		p.everything = true
		p.How = "files dropped with posix_fadvise, then the whole cache with drop_caches, before each start"
	case mode == PagesCold:
		p.How = "files of model and runtime dropped with posix_fadvise before each start"
	case bytes > memory("MemAvailable")/2:
		// Reading it all would push the model out again.
		p.Runtime, p.How = nil, "the model's files read before each start; the runtime is too large for this machine's memory and left to the discarded round"
	default:
		p.How = "files of model and runtime that were not in the cache read before each start"
	}
	return p, nil
}

// Before puts the cache into its state and says what it holds then. Pages that a
// living process has mapped stay: a parked worker's libraries, in the cold state.
func (p *Pages) Before() (Cached, error) {
	var err error
	if p.Mode == PagesCold {
		err = p.drop()
	} else {
		err = p.read()
	}
	if err != nil {
		return Cached{}, err
	}
	return Cached{share(p.Model), share(p.Runtime)}, nil
}

func (p *Pages) read() error {
	for _, list := range [][]string{p.Model, p.Runtime} {
		for _, path := range list {
			err := withFile(path, func(f *os.File, size int64) error {
				if have, ok := cachedPages(f, size); ok && have >= pages(size) {
					return nil
				}
				_, err := io.Copy(io.Discard, f)
				return err
			})
			if err != nil {
				return fmt.Errorf("read %s into the page cache: %w", path, err)
			}
		}
	}
	return nil
}

func (p *Pages) drop() error {
	for _, list := range [][]string{p.Model, p.Runtime} {
		for _, path := range list {
			err := withFile(path, func(f *os.File, _ int64) error {
				return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			})
			if err != nil {
				return fmt.Errorf("drop %s from the page cache: %w", path, err)
			}
		}
	}
	if p.everything {
		unix.Sync()
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("drop the page cache: %w", err)
		}
	}
	return nil
}

// withFile opens a file; one that is gone meanwhile, or not ours to read, is left out.
func withFile(path string, f func(*os.File, int64) error) error {
	file, err := os.Open(path)
	if err != nil {
		return nil //nolint:nilerr // a cache's file may come and go
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	return f(file, fi.Size())
}

func pages(size int64) int64 {
	page := int64(os.Getpagesize())
	return (size + page - 1) / page
}

// share is how much of some files the cache holds, -1 when the kernel does not say.
func share(list []string) float64 {
	var have, all int64
	for _, path := range list {
		known := true
		_ = withFile(path, func(f *os.File, size int64) error {
			n, ok := cachedPages(f, size)
			have, all, known = have+min(n, pages(size)), all+pages(size), ok
			return nil
		})
		if !known {
			return -1
		}
	}
	if all == 0 {
		return -1
	}
	return float64(have) / float64(all)
}

// cachedPages asks the kernel: cachestat since Linux 6.5, mincore before.
func cachedPages(f *os.File, size int64) (int64, bool) {
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0); err == nil {
		return int64(stat.Cache), true
	}
	if size == 0 {
		return 0, true
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, false
	}
	defer func() { _ = unix.Munmap(data) }()
	in := make([]byte, pages(size))
	if err := mincore(data, in); err != nil {
		return 0, false
	}
	n := int64(0)
	for _, b := range in {
		n += int64(b & 1)
	}
	return n, true
}
