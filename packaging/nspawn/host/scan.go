package host

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Scan tries every TCP port of an address from the neighbour's place and returns
// those that are open. On the one bridge a port answers at once or is filtered.
func (l *Lab) Scan(t testing.TB, addr string) []int {
	t.Helper()
	const scanners, ports = 64, 1 << 16
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		open []int
	)
	for first := range scanners {
		wg.Go(func() {
			err := within(l.namespace(outsideName), func() error {
				for port := first; port < ports; port += scanners {
					if port != 0 && answers(t.Context(), addr, port) {
						mu.Lock()
						open = append(open, port)
						mu.Unlock()
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(open)
	return open
}

func answers(ctx context.Context, addr string, port int) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(addr, fmt.Sprint(port)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
