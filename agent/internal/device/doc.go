// Package device is the loop of one device: it keeps parked workers ready, takes
// claims, and gives every accepted claim a slot that nothing else can have.
//
// # Who writes what
//
//	the loop (device.go)      slots: which claim has one, which worker is parked, what is quarantined
//	a life (life.go)          one accepted placement, claim to end, in one goroutine
//	an Entry (entry.go)       the placement's record; its life writes it, everybody reads it without a lock
//
// The loop never does I/O and never waits: forks, fsyncs, probes and kills run in
// goroutines whose number is bounded by the slots and the warm targets, and each
// comes back as a message. A read never goes through the loop: it loads the last
// published [View].
//
// # Invariants
//
//	Free + Busy + Quarantined == Slots, in every published View
//	one slot, one life; one life, at most one worker; a worker serves one placement in its life
//	a claim is accepted only after its record is fsynced
//	a slot is free only after every process of its worker is proven gone and, on
//	a GPU, the memory is measured back; else it is quarantined, with the reason
//	no worker is ended because the agent ends, or because nobody can explain it
//
// # The life of an accepted claim
//
//	fsync -> accepted -> worker (parked | forked now | cold) -> load -> one token -> ready
//	      -> release | death | deadline | nobody follows -> stop, prove, slot free -> refill
//
// A ready one may sleep and wake (sleep.go). It keeps its slot: memory that it gave up
// is used by what runs in the device's other slots, or by nobody.
//
// # Reading order
//
// plan.go (pure), seams.go (what the loop needs from the world), device.go,
// claim.go, life.go, start.go, sleep.go, end.go.
package device
