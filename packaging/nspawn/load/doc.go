// Package load puts hosts under load and keeps the books. It asks at a steady rate
// whatever becomes of the answers ([Ask]), streams completions from an engine
// ([Complete]), and places models with request ids ([Place]); afterwards [Proof]
// holds what clients were told against the records in etcd, what the agents hold
// and the engines that really run: none lost, none doubled.
package load
