// Package store keeps placement records: in etcd ([Etcd]), and in memory ([Mem])
// for tests, behind the same promises. One contract suite (storetest) runs over
// both. It is, with sweep, the only place of the coordinator that knows etcd.
//
// # Keys, below one prefix
//
//	placements/<id>          Record, JSON
//	requests/<request id>    the id of the placement that it names
//	coordinators/<instance>  who lives, under the lease of that coordinator (package sweep)
//	leader/<lease>           who sweeps (package sweep)
//
// # Promises
//
//	a requests/ key exists  iff  the record it names exists: both are put, and
//	deleted, in one transaction
//	a record is replaced only by a writer that names the revision it has read
//	a write under a [Fence] is applied only while that leader still leads
//	a write repeated after an unknown outcome succeeds once: equal bytes are success
package store

import (
	"errors"

	"warmd/placement"
)

// Record is a placement as it is stored: what everybody sees, and who works on it.
type Record struct {
	placement.Placement
	// Owner is the coordinator instance that finishes the placement while it is
	// assigned. Another one may do so only after it has written itself here.
	Owner string `json:"owner,omitempty"`
	// Aliases are request ids besides the placement's own that it answered, because it
	// slept and was woken for them.
	Aliases []string `json:"aliases,omitempty"`
	// Code is why State == failed, so that a repeated request gets the same answer.
	Code placement.Code `json:"code,omitempty"`
	// Revision is etcd's ModRevision of what was read; it is not stored.
	Revision int64 `json:"-"`
}

// Fence makes a write conditional on an election: Key must still have been created
// at Rev. A leader whose lease has run out finds its writes refused, however long
// it slept. The zero Fence asks for nothing.
type Fence struct {
	Key string
	Rev int64
}

// NoFence is for writers that need not lead: compare-and-set alone orders them.
var NoFence = Fence{}

// What callers branch on.
var (
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("no such record")
	// ErrExists: the placement id is taken; choose another.
	ErrExists = errors.New("placement id is taken")
	// ErrRequestTaken: the request id names a record already, which came back with it.
	ErrRequestTaken = errors.New("request id is taken")
	// ErrChanged: somebody else wrote the record since it was read.
	ErrChanged = errors.New("record has changed")
	// ErrFenced: the writer does not lead any more.
	ErrFenced = errors.New("not the leader any more")
)

// Change is what a follower of all records is told.
//
//	Reset: All is the whole state at Revision; what is not in it is gone
//	otherwise: Put or Deleted is set
type Change struct {
	Reset    bool
	All      []Record
	Put      *Record
	Deleted  string
	Revision int64
}
