package nspawn

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"warmd/packaging/nspawn/host"
)

// lab is the run of this test binary. Hosts are booted once and shared: a test
// leaves them as it found them, or makes hosts of its own.
var lab *host.Lab

func TestMain(m *testing.M) {
	host.BeJanitor()
	if len(os.Args) > 1 && os.Args[1] == playRun {
		runUntilKilled()
	}
	if os.Getenv("WARMD_TEST_HOSTS") == "" {
		fmt.Println("host tests boot hosts: run `make test-hosts`")
		return
	}
	os.Exit(func() int {
		var err error
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		if lab, err = host.Open(ctx, cacheDir()); err != nil {
			fmt.Println(err)
			return 1
		}
		code := m.Run()
		if code != 0 && os.Getenv("WARMD_TEST_HOLD") != "" {
			hold()
		}
		if err := lab.Close(); err != nil {
			fmt.Println(err)
			code = 1
		}
		return code
	}())
}

// hold keeps the hosts up for whoever wants to look around, until an interrupt.
func hold() {
	fmt.Println("WARMD_TEST_HOLD is set: the hosts stay up until ^C. Enter one of them with")
	for _, h := range lab.Hosts() {
		fmt.Printf("  nsenter --all --target %d  # %s\n", h.Leader(), h.Name)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	<-stop
}

// cacheDir is make's CACHE.
func cacheDir() string {
	if dir := os.Getenv("WARMD_CACHE"); dir != "" {
		return dir
	}
	home, _ := os.UserHomeDir()
	return filepath.Join(home, ".cache", "warmd")
}

// figure prints a measured figure, for the closing note.
func figure(name string, value any) { fmt.Printf("figure: %s %v\n", name, value) }

var threeHosts struct {
	once  sync.Once
	hosts []*host.Host
	err   error
}

// three returns the three hosts that tests share, booted by the first who asks.
func three(t *testing.T) []*host.Host {
	t.Helper()
	s := &threeHosts
	s.once.Do(func() { s.hosts, s.err = bootAll(host.Spec{}, "h1", "h2", "h3") })
	if s.err != nil {
		t.Fatal(s.err)
	}
	lab.Explain(t)
	return s.hosts
}

// bootAll boots hosts at once.
func bootAll(spec host.Spec, names ...string) ([]*host.Host, error) {
	hosts, errs := make([]*host.Host, len(names)), make(chan error, len(names))
	begin := time.Now()
	for i, name := range names {
		go func() {
			var err error
			hosts[i], err = lab.Boot(context.Background(), name, spec)
			errs <- err
		}()
	}
	for range names {
		if err := <-errs; err != nil {
			return nil, err
		}
	}
	figure(fmt.Sprintf("boot_seconds_of_%d_hosts", len(names)), fmt.Sprintf("%.1f", time.Since(begin).Seconds()))
	return hosts, nil
}
