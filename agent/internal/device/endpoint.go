package device

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"warmd/placement"
)

// Ports reserves the addresses that placements answer on.
type Ports struct {
	// Host is the address to bind and to tell clients.
	Host string
	// Low and High bound the ports; both 0 lets the kernel pick.
	Low, High int

	mu   sync.Mutex
	next int
	held map[int]bool
}

// Endpoint is a reserved address: a TCP socket that is bound and does not listen
// yet. A parked worker gets it listening, so clients queue in its backlog from
// the moment the claim is accepted. A cold engine binds the port by itself while
// the reservation holds everybody else off: SO_REUSEADDR (and SO_REUSEPORT, for
// servers that set only that) let two sockets bind one port as long as one of
// them does not listen.
type Endpoint struct {
	Port  int
	host  string
	ports *Ports
	mu    sync.Mutex
	file  *os.File
}

// Reserve binds a port of the range. The error is a refusal.
func (p *Ports) Reserve() (*Endpoint, error) {
	if p.Low == 0 {
		return p.reserveAny()
	}
	p.mu.Lock()
	start := p.next
	p.next++
	p.mu.Unlock()
	n := p.High - p.Low + 1
	var last error
	for i := range n {
		e, err := p.Bind(p.Low + (start+i)%n)
		if err == nil {
			return e, nil
		}
		last = err
	}
	return nil, placement.Errorf(placement.CodeNoCapacity, "every port of %d-%d is taken: %v", p.Low, p.High, last).
		WithHint("widen endpoint_ports in the agent's configuration")
}

// reserveAny lets the kernel pick until it picks a port that no placement holds: that of
// a worker that has just ended is free for the kernel, and not yet for us.
func (p *Ports) reserveAny() (e *Endpoint, err error) {
	for range 64 {
		if e, err = p.Bind(0); !errors.Is(err, errHeld) {
			break
		}
	}
	return e, err
}

var errHeld = errors.New("another placement has it")

// Bind reserves one port, 0 for any.
func (p *Ports) Bind(port int) (*Endpoint, error) {
	p.mu.Lock()
	taken := port != 0 && p.held[port]
	p.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("bind %s:%d: %w", p.Host, port, errHeld)
	}
	addr, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(p.Host, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("resolve endpoint host %q: %w", p.Host, err)
	}
	fd, got, err := bind(addr)
	if err != nil {
		return nil, fmt.Errorf("bind %s: %w", addr, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(map[int]bool)
	}
	if p.held[got] { // since the look, or by the kernel's choice
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind %s:%d: %w", p.Host, got, errHeld)
	}
	p.held[got] = true
	return &Endpoint{Port: got, host: p.Host, ports: p, file: os.NewFile(uintptr(fd), "endpoint")}, nil
}

func bind(addr *net.TCPAddr) (fd, port int, err error) {
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: addr.Port})
	if ip4 := addr.IP.To4(); ip4 != nil {
		sa = &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip4)}
	} else if addr.IP != nil {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: addr.Port, Addr: [16]byte(addr.IP.To16())}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		sa, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, 0, err
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		port = a.Port
	case *unix.SockaddrInet6:
		port = a.Port
	}
	return fd, port, nil
}

// URL is the base URL of the endpoint.
func (e *Endpoint) URL() string {
	return "http://" + net.JoinHostPort(e.host, strconv.Itoa(e.Port))
}

// Listen makes the socket listen. The Endpoint keeps owning the file. The port is
// not shared any more then: who could bind it could take our clients.
func (e *Endpoint) Listen() (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.file == nil {
		return nil, fmt.Errorf("listen on %s: closed", e.URL())
	}
	if err := unix.SetsockoptInt(int(e.file.Fd()), unix.SOL_SOCKET, unix.SO_REUSEPORT, 0); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e.URL(), err)
	}
	if err := unix.Listen(int(e.file.Fd()), unix.SOMAXCONN); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e.URL(), err)
	}
	return e.file, nil
}

// Held reports that the port is only remembered: a worker has the socket.
func (e *Endpoint) Held() bool {
	if e == nil {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.file == nil
}

// HandOver closes the agent's copy of the socket once the worker has it, so that
// clients of a dead worker are refused instead of queueing for ever. The port
// stays reserved within this agent.
func (e *Endpoint) HandOver() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.file != nil {
		_ = e.file.Close()
		e.file = nil
	}
}

// Close gives the port back. It is safe on nil and when closed already.
func (e *Endpoint) Close() {
	if e == nil {
		return
	}
	e.HandOver()
	e.ports.mu.Lock()
	delete(e.ports.held, e.Port)
	e.ports.mu.Unlock()
}

// Hold marks the port of an adopted placement as taken, without a socket.
func (p *Ports) Hold(port int) *Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(map[int]bool)
	}
	p.held[port] = true
	return &Endpoint{Port: port, host: p.Host, ports: p}
}
