package gpu

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cpu is the inventory of a host without GPUs: one device, whose memory is the
// host's, or less where a control group says so.
type cpu struct {
	root   string // "/", or a made-up host in tests
	device Device
	limits []limit // every cgroup that may bound us, innermost first
}

var _ Inventory = (*cpu)(nil)

func openCPU(root, group string) (*cpu, error) {
	c := &cpu{root: root, limits: findLimits(root, group)}
	c.device = Device{ID: CPUDevice, Kind: KindCPU, Name: cpuName(root)}
	m, err := c.measure()
	if err != nil {
		return nil, err
	}
	c.device.TotalBytes = m.Total
	return c, nil
}

func (c *cpu) Devices() ([]Device, error) { return []Device{c.device}, nil }

func (c *cpu) Memory(id string) (Memory, error) {
	if id != CPUDevice {
		return Memory{}, fmt.Errorf("measure memory of %s: %w", id, ErrUnknownDevice)
	}
	return c.measure()
}

// Processes is always empty: every process of a host holds some of its memory,
// so the list would not say who is in the way.
func (c *cpu) Processes(id string) ([]Process, error) {
	if id != CPUDevice {
		return nil, fmt.Errorf("list processes of %s: %w", id, ErrUnknownDevice)
	}
	return nil, nil
}

// Watch has nothing to see: it waits for ctx.
func (c *cpu) Watch(ctx context.Context, _ func(Fault)) error {
	<-ctx.Done()
	return nil
}

func (c *cpu) Close() error { return nil }

// measure is MemTotal and MemAvailable, cut down by each cgroup limit above us.
func (c *cpu) measure() (Memory, error) {
	info, err := readKeys(filepath.Join(c.root, "proc/meminfo"), "MemTotal:", "MemAvailable:")
	if err != nil {
		return Memory{}, fmt.Errorf("measure host memory: %w", err)
	}
	m := Memory{Total: info["MemTotal:"] << 10, Free: info["MemAvailable:"] << 10}
	for _, l := range c.limits {
		bound, ok := readNumber(l.bound)
		if !ok || bound >= m.Total {
			continue // "max", or version 1's way to say it: a number beyond any memory
		}
		m.Total = bound
		used, _ := readNumber(l.used)
		stat, _ := readKeys(l.stat, l.cache)
		// Page cache that the kernel drops first does not stand in the way.
		m.Free = min(m.Free, bound-used+stat[l.cache])
	}
	m.Free = max(0, min(m.Free, m.Total))
	return m, nil
}

// limit is where one control group keeps its figures.
type limit struct {
	bound, used, stat string // files
	cache             string // the key in stat for cache that is given back first
}

// findLimits lists the memory figures of a group and of all above it, for cgroup
// version 2, and version 1 where that has the memory controller. An absent group
// has no files and so no limit.
func findLimits(root, group string) []limit {
	v1, v2 := ownGroups(root)
	if group != "" {
		v1, v2 = group, group
	}
	var out []limit
	mount := filepath.Join(root, "sys/fs/cgroup")
	for dir := range ancestors(v2) {
		d := filepath.Join(mount, dir)
		out = append(out, limit{d + "/memory.max", d + "/memory.current", d + "/memory.stat", "inactive_file"})
	}
	for dir := range ancestors(v1) {
		d := filepath.Join(mount, "memory", dir)
		out = append(out, limit{d + "/memory.limit_in_bytes", d + "/memory.usage_in_bytes", d + "/memory.stat", "total_inactive_file"})
	}
	kept := out[:0]
	for _, l := range out {
		if _, err := os.Stat(l.bound); err == nil {
			kept = append(kept, l)
		}
	}
	return kept
}

// ownGroups reads this process's group in the memory hierarchy of version 1 and
// in the unified one.
func ownGroups(root string) (v1, v2 string) {
	v1, v2 = "/", "/"
	data, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) != 3:
		case f[0] == "0" && f[1] == "":
			v2 = f[2]
		case strings.Contains(","+f[1]+",", ",memory,"):
			v1 = f[2]
		}
	}
	return v1, v2
}

// ancestors yields a group and every group above it, the root last. A group
// outside our cgroup namespace reads "/../x": only its root can be seen.
func ancestors(group string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		dir := filepath.Clean("/" + group)
		if strings.HasPrefix(group, "/..") {
			dir = "/"
		}
		for yield(dir) && dir != "/" {
			dir = filepath.Dir(dir)
		}
	}
}

// readKeys reads numbers from lines of "key value ..."; a missing key is an error.
func readKeys(path string, keys ...string) (map[string]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make(map[string]int64, len(keys))
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		for _, k := range keys {
			if len(w) >= 2 && w[0] == k {
				if n, err := strconv.ParseInt(w[1], 10, 64); err == nil && n >= 0 {
					out[k] = n
				}
			}
		}
	}
	for _, k := range keys {
		if _, ok := out[k]; !ok {
			return nil, fmt.Errorf("read %s: no usable line %q", path, k)
		}
	}
	return out, nil
}

func readNumber(path string) (int64, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil && n >= 0
}

func cpuName(root string) string {
	f, err := os.Open(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return "CPU"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "CPU"
}
