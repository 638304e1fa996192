package worker

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// pairLost is the exit code of a half that ended because its other half did.
const pairLost = 70

// ending is everything that is known about how a worker ended. Words is pure.
type ending struct {
	asked  bool              // Stop came before the first death
	reason string            // why the agent ended it on its own account
	deaths []string          // roles, in the order we saw them end
	exits  map[string]exit   // by role, as the zygote tells it
	errors map[string]string // by role, what the half itself said in one line
	log    string            // the last lines of the worker's log
}

var roleWords = map[string]string{roleEngine: "engine", roleAPI: "API server", roleServe: "engine process"}

var otherHalf = map[string]string{roleEngine: roleAPI, roleAPI: roleEngine}

// words says why a worker ended, as an operator would say it.
func (e ending) words() string {
	if e.asked {
		return "stopped"
	}
	role := e.culprit()
	if role == "" && e.reason != "" {
		return e.reason
	}
	if role == "" {
		return "ended before it had a process"
	}
	name := roleWords[role]
	x, known := e.exits[role]
	switch {
	case e.reason != "" && (!known || x.Cause == "kill" || x.Signal != nil && *x.Signal == int(syscall.SIGKILL)):
		return e.reason // our own kill, whether it went through the zygote or past it
	case !known:
		return name + " ended, its exit code is not known (its zygote is gone)" + colon(e.line(role, false))
	case x.Cause == "kill":
		return name + " was killed through its zygote"
	case x.Signal != nil:
		return fmt.Sprintf("%s killed by signal %d", name, *x.Signal) + colon(e.errors[role])
	case x.Code != nil:
		return fmt.Sprintf("%s exited with code %d", name, *x.Code) + colon(e.line(role, *x.Code != 0))
	}
	return name + " ended"
}

// culprit is the half that ended by itself; the other one was taken along.
func (e ending) culprit() string {
	best := ""
	for role, x := range e.exits {
		byItself := x.Cause == "exit" && (x.Code == nil || *x.Code != pairLost)
		if byItself && (best == "" || x.TNS < e.exits[best].TNS) {
			best = role
		}
	}
	if best != "" {
		return best
	}
	// A half that ended with pairLost saw the other one go, whatever order the
	// zygote collected them in.
	for role, x := range e.exits {
		if other := otherHalf[role]; x.Code != nil && *x.Code == pairLost && slices.Contains(e.deaths, other) {
			return other
		}
	}
	// Nobody ended by itself: somebody killed one half through the zygote, or there
	// is no zygote to tell. A half that said what was wrong comes first.
	for _, role := range e.deaths {
		if x, ok := e.exits[role]; (ok && x.Cause == "kill") || e.errors[role] != "" {
			return role
		}
	}
	if len(e.deaths) > 0 {
		return e.deaths[0]
	}
	return ""
}

// line is the one line that explains an end: what the half said, else what its
// log says when it ended badly.
func (e ending) line(role string, bad bool) string {
	if msg := e.errors[role]; msg != "" || !bad {
		return msg
	}
	return errorLine(e.log)
}

// errorLine picks the last line that names an error, else the last line at all.
func errorLine(log string) string {
	last := ""
	lines := strings.Split(log, "\n")
	for _, line := range slices.Backward(lines) {
		line := strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if last == "" {
			last = line
		}
		if low := strings.ToLower(line); strings.Contains(low, "error") || strings.Contains(low, "exception") || strings.Contains(low, "fatal") {
			last = line
			break
		}
	}
	const most = 500
	if len(last) > most {
		last = last[:most] + "..."
	}
	return last
}

func colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}
