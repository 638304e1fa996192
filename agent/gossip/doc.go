// Package gossip is how the members of a fleet know each other: who is alive, and
// what each has. It is the only importer of memberlist.
//
// Three things travel, and none of them is an authority (the agent that accepts a
// claim is):
//
//	summary    placement.EncodeMeta, <= 128 bytes, to everybody, by gossip: at most one
//	           update a second from a node, fewer in a big fleet
//	exact      placement.EncodeCapacity, straight to each member with the coordinator
//	           flag: 50 ms after a change, again every 15 s, so that a lost one heals
//	ack        16 bytes on the answer to memberlist's own probes: "what I last
//	           published still stands", which keeps ages honest and costs no message
//
// Any member answers a fleet query from its own [View], with the age of each
// node's word, whatever else is down.
//
// # Goroutines
//
// [New] starts nothing. [Member.Run] owns all of them:
//
//	publisher  the only caller of memberlist's UpdateNode, which blocks for up to a second
//	teller     sends the exact capacity to coordinators
//	post       one goroutine per coordinator with a letter under way (TCP, latest wins)
//	joiner     joins, looks again until the view is stable, heals partitions
//
// memberlist calls the delegate with its own lock held: the delegate copies bytes
// into the View, under the View's lock, and never calls memberlist.
//
// # Whose word counts
//
// Words are ordered by (Epoch, Generation), and exact beats a summary of the same
// generation; an older word is dropped. Liveness is memberlist's opinion, corrected
// at once by callers: [View.MarkUnreachable] after a failed call, [View.Apply] with
// the capacity that came with a refusal.
//
// # Reading order
//
// view.go, member.go, publisher.go, teller.go, join.go; the rest is plumbing.
package gossip
