package systemd

import (
	"os"
	"strings"
)

// What systemd puts into a service's environment for that service alone. A child
// that has it could report READY in our name, take our sockets' numbers for its
// own, read our credentials, or log as if it were on our journal stream.
var (
	ownNames = map[string]bool{
		"NOTIFY_SOCKET": true, "CREDENTIALS_DIRECTORY": true, "INVOCATION_ID": true, "JOURNAL_STREAM": true,
		"MAINPID": true, "MANAGERPID": true, "MANAGERPIDFDID": true, "SYSTEMD_EXEC_PID": true, "FDSTORE": true, "PIDFILE": true, "LOG_NAMESPACE": true,
		"RUNTIME_DIRECTORY": true, "STATE_DIRECTORY": true, "CACHE_DIRECTORY": true, "LOGS_DIRECTORY": true, "CONFIGURATION_DIRECTORY": true,
		"SERVICE_RESULT": true, "EXIT_CODE": true, "EXIT_STATUS": true, "REMOTE_ADDR": true, "REMOTE_PORT": true,
	}
	ownPrefixes = []string{"LISTEN_", "WATCHDOG_", "MONITOR_", "TRIGGER_", "MEMORY_PRESSURE_"}
)

// Own reports whether a variable is between systemd and this process.
func Own(name string) bool {
	if ownNames[name] {
		return true
	}
	for _, p := range ownPrefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// Scrub returns env ("K=V" each) without what is systemd's and ours. Children get
// an explicit environment anyway; this is for those that are built from one that
// was inherited. env is not changed.
func Scrub(env []string) []string {
	out := make([]string, 0, len(env))
	for _, kv := range env {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "" && !Own(name) {
			out = append(out, kv)
		}
	}
	return out
}

// ScrubSelf takes the same out of this process's own environment. Call it after
// Listeners, NewNotifier and NewLogHandler have read theirs.
func ScrubSelf() {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); Own(name) {
			os.Unsetenv(name)
		}
	}
}
