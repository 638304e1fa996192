// Package placement is warmd's shared language and its pure decisions. It
// imports the standard library only, starts no goroutine, reads no clock and
// does no I/O: the agent, the coordinator and warmctl all speak through it, and
// every function here can be tested with a table.
//
// # Words
//
//	node        a host with an agent
//	device      one GPU (by NVML UUID), a MIG slice, or "cpu-0" on a host without GPUs
//	slot        room for one placement on a device (a GPU has 1 unless configured)
//	runtime     an installed engine: one vLLM in one venv, or any command (kind exec)
//	worker      a parked engine + API server pair; serves at most one placement in its life
//	placement   a model put on a worker: an id, a request, an attempt, a state, an endpoint
//	tier        how warm a start was: serving, sleeping, warm, cold
//	trace       the phases of one start
//
// # The life of a placement
//
// Stored in etcd are assigned, ready, failed and released. pending and loading
// are quasi-states: they live in a coordinator's memory and on the agent's
// stream only.
//
//	pending  --claimed-->  assigned --accepted--> loading --first token--> ready --release--> released
//	   ^                      |                      |                       |
//	   +---- refused ---------+                      |                       | worker lost
//	   +---- worker lost before ready ---------------+                       v
//	   (each of the two adds one to Attempt)                               failed
//	pending --no capacity by the deadline, attempts spent--> failed
//	assigned --accepted, but the answer was lost and a token came--> ready
//	assigned, loading --no other node will do, deadline--> failed
//	release is legal from every state that is not terminal.
//
// [CanMove] is that drawing as a table; a test compares the two.
//
// # Who owns which fact
//
// The agent's loop for a device owns the device and its workers, and accepts or
// refuses a claim. etcd owns the placement record. memberlist owns who is alive.
// Everything else, a [Snapshot] above all, is a hint with an age: a refusal
// carries the node's fresh [Capacity], so the caller's next choice is right.
//
// # Reading order
//
// state.go, request.go, capacity.go, choose.go.
package placement
