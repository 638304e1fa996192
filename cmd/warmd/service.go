package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"warmd/systemd"
)

// service is what systemd gave this process: sockets, an ear, and a way to say that
// the configuration is to be read again. In a process that it did not start there are
// no sockets, nobody listens, and HUP works all the same.
type service struct {
	*systemd.Notifier
	listeners []net.Listener // of the one name; nil: open your own
	started   bool           // systemd started us
	lines     *systemd.Lines // for what engines print; nil where stderr is no journal
	hup       chan os.Signal
	log       *slog.Logger
}

// newService takes it all out of the environment, so that no child can speak in our
// name. The logger must have been made before: it looks there, too.
func newService(name string, log *slog.Logger) (*service, error) {
	s := &service{hup: make(chan os.Signal, 1), log: log}
	signal.Notify(s.hup, syscall.SIGHUP) // at once: its default is our end
	_, invoked := os.LookupEnv("INVOCATION_ID")
	s.Notifier = systemd.NewNotifier(log)
	s.started = invoked && s.Enabled()
	byName, err := systemd.Listeners([]string{name})
	if err != nil {
		return nil, err
	}
	s.listeners = byName[name]
	s.lines = systemd.NewLines("warmd-engine")
	systemd.ScrubSelf()
	return s, nil
}

// reloads runs reload for every HUP. A configuration that is refused changes nothing;
// it is logged, and the line in `systemctl status` says so until the next one.
func (s *service) reloads(reload func() error, status func() string) runner {
	return runner{"reload", func(ctx context.Context) error {
		defer signal.Stop(s.hup)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-s.hup:
			}
			s.Reload(func() string {
				if err := reload(); err != nil {
					s.log.Error("configuration not read again, nothing has changed", "err", err)
					return "reload refused: " + err.Error()
				}
				return status()
			})
		}
	}}
}

// statusEvery is how often a service that is not told of changes looks for them.
const statusEvery = 2 * time.Second

// supervised tells systemd how a part is that does not do so itself: ready once that is
// closed, its line, and that it lives.
func (s *service) supervised(ready <-chan struct{}, status func() string, alive func(context.Context) error) runner {
	return runner{"supervision", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
		}
		told := status()
		s.Ready(told)
		dog := make(chan error, 1)
		go func() { dog <- s.Watchdog(ctx, func() error { return alive(ctx) }) }()
		tick := time.NewTicker(statusEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				s.Stopping("ending")
				return errors.Join(<-dog, nil)
			case <-tick.C:
			}
			if now := status(); now != told {
				s.Status("%s", now)
				told = now
			}
		}
	}}
}
