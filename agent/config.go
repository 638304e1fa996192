package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"warmd/agent/api/access"
	"warmd/agent/conf"
	"warmd/agent/gossip"
	"warmd/agent/internal/trace"
	"warmd/agent/runtime"
	"warmd/placement"
)

// Config is what an operator decides about an agent. Its TOML keys are the names
// in the tags; a key that is not here is an error.
type Config struct {
	// Node names the node in the fleet; default the host's name.
	Node string `toml:"node"`
	// DataDir holds the journal and the traces; it must survive a reboot.
	DataDir string `toml:"data_dir"`
	// RunDir holds sockets; it should not survive a reboot, and must survive the agent.
	RunDir string `toml:"run_dir"`
	LogDir string `toml:"log_dir"`
	// RuntimesDir is where `warmd runtime add` puts runtimes.
	RuntimesDir string `toml:"runtimes_dir"`
	// ScriptDir holds the Python side as the package installed it; it is used when it is
	// what this agent was built with. Else the agent unpacks its own below RunDir.
	ScriptDir string `toml:"script_dir"`
	// Launcher says who starts engines: systemd, so that they belong to another user and
	// to units of their own, or exec, the agent itself. auto is systemd where that
	// started the agent.
	Launcher string `toml:"launcher"`
	// Socket is the Unix socket of the HTTP interface; empty with socket activation.
	Socket string `toml:"socket"`
	// Listen are TCP addresses of the same interface.
	Listen []string `toml:"listen"`
	// Advertise is the address that the fleet calls; default the first of Listen.
	Advertise string `toml:"advertise"`
	// EndpointHost is the address that placements are served on, and told to clients.
	EndpointHost string `toml:"endpoint_host"`
	// EndpointPorts is "LOW-HIGH"; empty lets the kernel pick.
	EndpointPorts string `toml:"endpoint_ports"`
	// ModelRoots are the folders that models may be in.
	ModelRoots []string `toml:"model_roots"`
	// AllowArgs and AllowEnv widen what requests may give to the engine.
	AllowArgs []string `toml:"allow_args"`
	AllowEnv  []string `toml:"allow_env"`
	// Device is auto, cpu (cpu-0 even where there are GPUs) or cuda (an error without one).
	Device string `toml:"device"`
	// NVMLLibrary is the path of libnvidia-ml.so.1; empty lets the linker find it.
	NVMLLibrary string `toml:"nvml_library"`
	// Warm is how many workers of a runtime are kept parked on each device that has
	// a free slot; default 1 for every runtime of kind vllm.
	Warm map[string]int `toml:"warm"`
	// Devices holds what is different for one device.
	Devices map[string]DeviceConfig `toml:"devices"`
	// TLS is who this node is to others; every TCP address of Listen then speaks it.
	TLS access.Files `toml:"tls"`
	// Access gives roles to groups of this host; certificates carry theirs.
	Access access.Groups `toml:"access"`
	// KeepTraces bounds the kept traces; with 0 no start is recorded.
	KeepTraces int `toml:"keep_traces"`
	// Trace says where traces go besides.
	Trace TraceConfig `toml:"trace"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `toml:"log_level"`
	// Gossip is how this node finds the fleet; without Listen it is a fleet of one.
	Gossip gossip.Settings `toml:"gossip"`
	// EndEngines ends every engine when Run ends: dev mode. A service leaves it off.
	EndEngines bool `toml:"-"`
	// Version is told to the fleet.
	Version string `toml:"-"`
	// FollowGrace is how long a start lives that nobody follows.
	FollowGrace time.Duration `toml:"-"`
}

// The values of Launcher.
const (
	LaunchAuto    = "auto"
	LaunchSystemd = "systemd"
	LaunchExec    = "exec"
)

// DeviceConfig is what is different for one device.
type DeviceConfig struct {
	// Slots is how many placements run there at once; default 1 on a GPU, on cpu-0
	// one for each 8 GiB of memory, at most 4.
	Slots int            `toml:"slots"`
	Warm  map[string]int `toml:"warm"`
}

// TraceConfig is where finished traces are sent.
type TraceConfig struct {
	// Collector is the URL of an OpenTelemetry collector (OTLP over HTTP), empty for none.
	Collector string `toml:"otlp_endpoint"`
}

// DefaultConfig is a service's configuration.
func DefaultConfig() Config {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return Config{
		Node: host, DataDir: "/var/lib/warmd/agent", Launcher: LaunchAuto, RunDir: "/run/warmd", LogDir: "/var/log/warmd",
		RuntimesDir: runtime.DefaultRoot(), Socket: "/run/warmd/agent.sock", EndpointHost: "127.0.0.1",
		Device: "auto", Access: access.DefaultGroups(), KeepTraces: 256, LogLevel: "info", FollowGrace: 30 * time.Second,
	}
}

// ReadConfig reads a TOML file over the defaults. An error says file, line and key.
// Validate it when flags have been laid over it, and let the file locate the error.
func ReadConfig(path string) (Config, *conf.File, error) {
	c := DefaultConfig()
	f, err := conf.Read(path, &c)
	return c, f, err
}

var nodeRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)

// Validate checks the form of every value; an error is a *placement.FieldError that
// names the key, or several, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &placement.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if !nodeRE.MatchString(c.Node) {
		bad("node", "%q must match %s", c.Node, nodeRE)
	}
	if err := new(slog.Level).UnmarshalText([]byte(c.LogLevel)); err != nil {
		bad("log_level", "%q must be debug, info, warn or error", c.LogLevel)
	}
	for _, d := range []struct{ key, dir string }{
		{"data_dir", c.DataDir}, {"run_dir", c.RunDir}, {"log_dir", c.LogDir}, {"runtimes_dir", c.RuntimesDir},
	} {
		if !filepath.IsAbs(d.dir) {
			bad(d.key, "%q must be an absolute path", d.dir)
		}
	}
	if c.ScriptDir != "" && !filepath.IsAbs(c.ScriptDir) {
		bad("script_dir", "%q must be an absolute path", c.ScriptDir)
	}
	if c.Launcher != LaunchAuto && c.Launcher != LaunchSystemd && c.Launcher != LaunchExec {
		bad("launcher", "%q must be auto, systemd or exec", c.Launcher)
	}
	if c.Socket != "" && (!filepath.IsAbs(c.Socket) || len(c.Socket) > 107) {
		bad("socket", "%q must be an absolute path of at most 107 bytes", c.Socket)
	}
	for i, a := range c.Listen {
		if _, _, err := net.SplitHostPort(a); err != nil {
			bad(fmt.Sprintf("listen[%d]", i), "%q must be host:port", a)
		}
	}
	errs = append(errs, c.TLS.CheckListen(c.Listen)...)
	if c.Advertise != "" {
		if _, _, err := net.SplitHostPort(c.Advertise); err != nil {
			bad("advertise", "%q must be host:port", c.Advertise)
		}
	}
	if ip := net.ParseIP(c.EndpointHost); c.EndpointHost == "" || (ip != nil && ip.IsUnspecified()) {
		bad("endpoint_host", "%q must be an address that clients can call: it is told to them", c.EndpointHost)
	}
	if _, _, err := c.ports(); err != nil {
		bad("endpoint_ports", "%v", err)
	}
	for i, r := range c.ModelRoots {
		if !filepath.IsAbs(r) {
			bad(fmt.Sprintf("model_roots[%d]", i), "%q must be an absolute path", r)
		}
	}
	switch c.Device {
	case "auto", "cpu", "cuda":
	default:
		bad("device", "%q must be auto, cpu or cuda", c.Device)
	}
	errs = append(errs, checkWarm("warm", c.Warm))
	for _, id := range slices.Sorted(maps.Keys(c.Devices)) {
		d := c.Devices[id]
		if d.Slots < 0 || d.Slots > 64 {
			bad("devices."+id+".slots", "%d must be between 1 and 64, or left out", d.Slots)
		}
		errs = append(errs, checkWarm("devices."+id+".warm", d.Warm))
	}
	if c.KeepTraces < 0 || c.KeepTraces > 100000 {
		bad("keep_traces", "%d must be between 0 and 100000", c.KeepTraces)
	}
	if c.Trace.Collector != "" {
		if err := trace.CheckCollector(c.Trace.Collector); err != nil {
			bad("trace.otlp_endpoint", "%v", err)
		}
	}
	if c.FollowGrace <= 0 {
		bad("follow_grace", "%s must be positive", c.FollowGrace)
	}
	return errors.Join(append(errs, c.Gossip.Validate(), c.TLS.Validate(), c.Access.Validate())...)
}

func checkWarm(key string, warm map[string]int) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(warm)) {
		if n := warm[name]; n < 0 || n > 16 {
			errs = append(errs, &placement.FieldError{Field: key + "." + name, Problem: fmt.Sprintf("%d must be between 0 and 16", n)})
		}
	}
	return errors.Join(errs...)
}

// ports reads EndpointPorts; 0, 0 means any.
func (c Config) ports() (low, high int, err error) {
	if c.EndpointPorts == "" {
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(c.EndpointPorts, "-")
	if !ok {
		b = a
	}
	low, err1 := strconv.Atoi(strings.TrimSpace(a))
	high, err2 := strconv.Atoi(strings.TrimSpace(b))
	if err1 != nil || err2 != nil || low < 1 || high > 65535 || low > high {
		return 0, 0, fmt.Errorf("%q must be LOW-HIGH within 1-65535", c.EndpointPorts)
	}
	return low, high, nil
}

// slots is how many placements a device takes.
func (c Config) slots(id, kind string, total int64) int {
	if n := c.Devices[id].Slots; n > 0 {
		return n
	}
	if kind == "cpu" {
		return int(min(max(total>>33, 1), 4))
	}
	return 1
}

// warm is how many workers of a runtime are wanted parked on a device.
func (c Config) warm(id string, m runtime.Manifest) int {
	if m.Kind != runtime.KindVLLM {
		return 0
	}
	if n, ok := c.Devices[id].Warm[m.Name]; ok {
		return n
	}
	if n, ok := c.Warm[m.Name]; ok {
		return n
	}
	return 1
}
