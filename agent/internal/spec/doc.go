// Package spec turns a request into what a process is started with, and refuses
// everything that must not get there. It reads files (a model's headers), starts
// nothing and keeps nothing.
//
// # Invariants
//
//	a request's bytes reach argv only as the value of an allowed option, in the form
//	--option=value, as a served name that matches a pattern, or as a resolved path
//	a request's bytes reach the environment only as the value of an allowed variable
//	Start.Cold && Request.Start == warm  => the request is refused, not degraded
//	!Start.Cold  => Start.Env has no import-time variable (see runtime.ImportTime)
//
// The engine's argument parser accepts abbreviations, underscores and dotted names.
// None of them is an allowed option's exact name, so all of them are refused: what
// is emitted is always the canonical spelling.
//
// # Reading order
//
// resolve.go (which folder), model.go and safetensors.go (can it be served),
// options.go (the allowlist), args.go, env.go, build.go.
package spec
