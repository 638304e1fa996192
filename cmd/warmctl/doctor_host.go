package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a CPU runtime with the demo model needs, measured; a real model needs more.
const (
	memoryNeeded = 2 << 30
	memoryGood   = 6 << 30
	diskNeeded   = 1 << 30
	diskGood     = 10 << 30 // one venv with vLLM is 2 to 8 GiB
	shmGood      = 64 << 20
)

// checkGPU sees whether an agent could use a GPU: the device nodes are there and
// may be opened, and the driver's library can be found.
func (h host) checkGPU() []finding {
	nodes, _ := filepath.Glob(h.path("/dev/nvidia[0-9]*"))
	library := h.findLibrary("libnvidia-ml.so.1")
	onBus := h.nvidiaOnBus()
	const install = "install the NVIDIA driver (nvidia-smi must work), then systemctl restart warmd-agent"
	switch {
	case onBus > 0 && library == "" && len(nodes) == 0:
		return []finding{{"gpu", broken, fmt.Sprintf("%s on the bus, but no driver is installed (no libnvidia-ml.so.1, no /dev/nvidia*)", plural(onBus, "NVIDIA GPU")), install}}
	case onBus > 0 && len(nodes) == 0:
		return []finding{{"gpu", broken, fmt.Sprintf("%s on the bus and a driver is installed, but it is not loaded (no /dev/nvidia*)", plural(onBus, "NVIDIA GPU")),
			"modprobe nvidia; if that fails, dmesg says why (another kernel since the driver was built, Secure Boot)"}}
	case len(nodes) == 0:
		return []finding{{"gpu", fine, "no NVIDIA GPU: the agent offers cpu-0", ""}}
	case library == "":
		return []finding{{"gpu", broken, fmt.Sprintf("%s in /dev, but libnvidia-ml.so.1 is not found: the agent cannot see them", plural(len(nodes), "GPU")), install}}
	}
	for _, n := range append(nodes, h.path("/dev/nvidiactl")) {
		if err := unix.Access(n, unix.R_OK|unix.W_OK); err != nil {
			return []finding{{"gpu", broken, fmt.Sprintf("%s cannot be opened: %v", n, err), "put this user, and warmd-engine, into the group that owns it (ls -l /dev/nvidia*)"}}
		}
	}
	return []finding{{"gpu", fine, fmt.Sprintf("%s, driver library %s", plural(len(nodes), "GPU"), library), ""}}
}

// nvidiaOnBus counts display controllers of vendor 10de.
func (h host) nvidiaOnBus() int {
	devices, _ := filepath.Glob(h.path("/sys/bus/pci/devices/*"))
	n := 0
	for _, d := range devices {
		vendor, _ := os.ReadFile(filepath.Join(d, "vendor"))
		class, _ := os.ReadFile(filepath.Join(d, "class"))
		if strings.TrimSpace(string(vendor)) == "0x10de" && strings.HasPrefix(string(class), "0x03") {
			n++
		}
	}
	return n
}

// findLibrary looks where the loader looks: LD_LIBRARY_PATH, then the folders
// that distributions and the driver's installer use.
func (h host) findLibrary(name string) string {
	dirs := filepath.SplitList(h.getenv("LD_LIBRARY_PATH"))
	dirs = append(dirs, "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib", "/usr/local/lib",
		"/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/opengl-driver/lib")
	for _, d := range dirs {
		if d == "" {
			continue
		}
		if p := h.path(filepath.Join(d, name)); exists(p) {
			return p
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// checkMemory reads MemAvailable and the size of /dev/shm.
func (h host) checkMemory() []finding {
	f, err := os.Open(h.path("/proc/meminfo"))
	if err != nil {
		return []finding{{"memory", warn, err.Error(), "mount /proc"}}
	}
	defer f.Close()
	kb := map[string]int64{}
	for in := bufio.NewScanner(f); in.Scan(); {
		if p := strings.Fields(in.Text()); len(p) >= 2 {
			kb[strings.TrimSuffix(p[0], ":")], _ = strconv.ParseInt(p[1], 10, 64)
		}
	}
	available, total := kb["MemAvailable"]<<10, kb["MemTotal"]<<10
	msg := fmt.Sprintf("%s available of %s", size(available), size(total))
	var out []finding
	switch {
	case available < memoryNeeded:
		out = append(out, finding{"memory", broken, msg, fmt.Sprintf("free some: an engine needs %s, and its model", size(memoryNeeded))})
	case available < memoryGood:
		out = append(out, finding{"memory", warn, msg, "one warm worker at a time: keep the warm target and the slots at 1"})
	default:
		out = append(out, finding{"memory", fine, msg, ""})
	}
	var shm unix.Statfs_t
	if unix.Statfs(h.path("/dev/shm"), &shm) == nil {
		if n := int64(shm.Blocks) * shm.Bsize; n < shmGood {
			out = append(out, finding{"memory", warn, "/dev/shm holds " + size(n) + ": engines share tensors there", "mount it larger; for a container: --shm-size 1g"})
		}
	}
	return out
}

// checkDisk looks at the file system of the nearest folder that is there.
func (h host) checkDisk(dir string) []finding {
	at := dir
	for !exists(h.path(at)) && at != filepath.Dir(at) {
		at = filepath.Dir(at)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(h.path(at), &fs); err != nil {
		return []finding{{"disk", broken, fmt.Sprintf("%s: %v", at, err), "name another folder with --data"}}
	}
	free := int64(fs.Bavail) * fs.Bsize
	msg := fmt.Sprintf("%s free for %s", size(free), dir)
	switch {
	case fs.Flags&unix.ST_RDONLY != 0:
		return []finding{{"disk", broken, at + " is read-only", "mount it read-write, or name another folder with --data"}}
	case free < diskNeeded:
		return []finding{{"disk", broken, msg, "free some: the journal and the traces are kept there, a full disk refuses placements"}}
	case free < diskGood:
		return []finding{{"disk", warn, msg, "a venv with vLLM takes 2 to 8 GiB"}}
	case fs.Ffree == 0 && fs.Files > 0:
		return []finding{{"disk", broken, at + " has no inode left", "remove small files"}}
	}
	return []finding{{"disk", fine, msg, ""}}
}
