// Command warmd is the daemon: an agent on each GPU host, a coordinator or three
// for the fleet, and `warmd dev`, which is both with an embedded etcd in one
// process. This package turns flags and files into a Config and calls Run; it is
// the only place that knows about signals, the environment and exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"warmd/agent/conf"
	"warmd/placement"
)

// version is set by the Makefile.
var version = "dev"

func main() { os.Exit(run(os.Args)) }

// run is main without the exit. The first signal asks for an orderly end, one that
// comes a second later ends the process at once. Not sooner: timeout(1) and shells
// signal a process and its group, and an end at once leaves engines running.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	err := newApp().RunContext(ctx, args)
	if err == nil || errors.Is(err, context.Canceled) { // a signal is how a daemon ends, not an error
		return 0
	}
	fmt.Fprintln(os.Stderr, "warmd:", err)
	if exit, ok := errors.AsType[cli.ExitCoder](err); ok {
		return exit.ExitCode()
	}
	_, field := errors.AsType[*placement.FieldError](err)
	if _, file := errors.AsType[*conf.Problem](err); field || file {
		return 2
	}
	return 1
}

func newApp() *cli.App {
	app := &cli.App{
		Name: "warmd", Usage: "keep inference workers warm and place models on them", Version: version,
		HideHelpCommand: true, ExitErrHandler: func(*cli.Context, error) {},
	}
	app.Commands = []*cli.Command{
		agentCommand(), coordinatorCommand(), devCommand(), demoCommand(), runtimeCommand(), modelCommand(),
		zygoteCommand(), completeCommand(app), docsCommand(app),
	}
	return app
}
