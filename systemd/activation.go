// Package systemd is warmd's side of the service manager: sockets that it opened
// for us, words to it about how we are, its journal, and an environment for
// children without any of that.
//
// Everything does nothing, and says so by its result, in a process that systemd
// did not start: `warmd dev` runs through the same code.
package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/activation"
)

// SocketError says how the sockets that systemd passed differ from those expected.
type SocketError struct {
	Missing []string // names that no socket has
	Stray   []string // file descriptors that nobody asked for, or that cannot be listened on
}

func (e *SocketError) Error() string {
	var parts []string
	if len(e.Missing) > 0 {
		parts = append(parts, "no socket named "+strings.Join(e.Missing, ", ")+" (is its .socket unit enabled, and its FileDescriptorName= right?)")
	}
	if len(e.Stray) > 0 {
		parts = append(parts, "unexpected "+strings.Join(e.Stray, ", ")+" (closed)")
	}
	return "socket activation: " + strings.Join(parts, "; ")
}

// taken guards the descriptors: they can be taken once in the life of a process.
var taken atomic.Bool

// Listeners takes the sockets that systemd passed, by FileDescriptorName=. Each
// name of required must have at least one; those of optional may. Anything else is
// closed: a descriptor that nobody serves would swallow connections.
//
// Without socket activation the map is nil, and so is the error: open your own.
// With an error every descriptor has been closed, ours included; systemd keeps the
// sockets, and a restart is given them again.
//
// A second call is a bug and an error, where the library would say "no sockets".
func Listeners(required []string, optional ...string) (map[string][]net.Listener, error) {
	if taken.Swap(true) {
		return nil, errors.New("socket activation: the sockets were taken before")
	}
	return dispatch(activation.Files(true), required, optional)
}

func dispatch(files []*os.File, required, optional []string) (map[string][]net.Listener, error) {
	if len(files) == 0 {
		return nil, nil
	}
	out := map[string][]net.Listener{}
	var e SocketError
	for _, f := range files {
		what := fmt.Sprintf("fd %d (%s)", f.Fd(), f.Name())
		l, err := net.FileListener(f) // a copy
		f.Close()
		switch {
		case err != nil:
			e.Stray = append(e.Stray, what+", not a listening stream socket")
		case !slices.Contains(required, f.Name()) && !slices.Contains(optional, f.Name()):
			l.Close()
			e.Stray = append(e.Stray, what)
		default:
			out[f.Name()] = append(out[f.Name()], l)
		}
	}
	for _, name := range required {
		if len(out[name]) == 0 {
			e.Missing = append(e.Missing, name)
		}
	}
	if len(e.Missing)+len(e.Stray) > 0 {
		for _, ls := range out {
			for _, l := range ls {
				l.Close()
			}
		}
		return nil, &e
	}
	return out, nil
}
