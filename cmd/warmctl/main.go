// Command warmctl is warmd's command line: place a model, see where it runs and
// why it started as fast as it did, ask the fleet, drain a node, check a host.
//
// It is a client and nothing more. It speaks the HTTP interfaces of
// coordinator/api and agent/api, keeps no state, and builds without cgo. One
// file holds one command; the rest is:
//
//	main.go      arguments -> command -> exit code
//	args.go      flags may stand behind positionals; an unknown flag is never ignored
//	addr.go      which coordinator and which agent are asked
//	ask.go       ask the coordinator, fall back to the local agent
//	errors.go    exit codes, and how an error is printed
//	print.go     tables and JSON
//	help.go      help texts; docs.go man pages and REFERENCE.md from the same source
//
// urfave/cli parses and dispatches; help, completion, man pages and the order of
// arguments are ours, because its own ignore flags behind positionals.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends the command in good order; after it the default is
	// back, so a second one ends the process whatever it is doing.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, system(), os.Args[1:]))
}

// run is the whole program: it returns the exit code and prints every error itself.
func run(ctx context.Context, con console, args []string) int {
	cmds := commands()
	arranged, err := arrange(args, globalFlags(), cmds)
	switch {
	case err != nil:
		return con.fail(err, asksJSON(args))
	case arranged.help:
		_, _ = con.Out.Write([]byte(helpText(arranged.command)))
		return exitOK
	}
	app := &cli.App{
		Name: "warmctl", HideHelp: true, HideVersion: true,
		Flags:                     globalFlags(),
		Writer:                    con.Out,
		ErrWriter:                 con.Err,
		DisableSliceFlagSeparator: true, // --arg=a,b is one engine argument
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usageFromCLI,
	}
	for i := range cmds {
		app.Commands = append(app.Commands, cmds[i].forCLI(con))
	}
	err = app.RunContext(ctx, append([]string{"warmctl"}, arranged.args...))
	if err == nil {
		return exitOK
	}
	return con.fail(interrupted(ctx, err), asksJSON(args))
}
