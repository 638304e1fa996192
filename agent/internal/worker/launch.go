package worker

import "context"

// Launcher starts zygotes so that they outlive the agent.
type Launcher interface {
	// Start returns when the process runs, not when it listens.
	Start(context.Context, Unit) error
	// Stop ends a zygote that its control socket could not end. A unit that does
	// not run is no error.
	Stop(context.Context, Unit) error
}

// exitReporter is a Launcher that knows when a unit it started has ended: then a
// zygote that dies before it listens is noticed at once, not by a timeout.
type exitReporter interface {
	// Exited returns how the unit ended, in words, once it has.
	Exited(Unit) (cause string, ended bool)
}
