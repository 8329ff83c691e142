package command

import "time"

// DiskState says how a node's disk does. The empty state is unknown.
type DiskState string

// The states of a disk, the best first.
const (
	DiskOK DiskState = "ok"
	// DiskUnsteady: it answers, and hung a short while ago. Such a node leads only if no
	// other voter is better off.
	DiskUnsteady DiskState = "unsteady"
	// DiskSlow: it answers, and takes long for it. This too is a reason to prefer
	// another leader.
	DiskSlow DiskState = "slow"
	// DiskFull: what is left is kept for votes, deletes and the next flush. Writes
	// that add data are refused by a leader whose disk is full.
	DiskFull DiskState = "full"
	// DiskStalled: a call has been under way for longer than the limit. It may end
	// any moment, or never.
	DiskStalled DiskState = "stalled"
	// DiskFailed: a write failed, and the process writes nothing more.
	DiskFailed DiskState = "failed"
)

// Well reports whether a node with such a disk may be preferred as the leader.
func (s DiskState) Well() bool { return s == DiskOK || s == "" }

// Down reports whether nothing can be written now.
func (s DiskState) Down() bool { return s == DiskStalled || s == DiskFailed }

// Disk is what a node knows of its disk right now.
type Disk struct {
	State DiskState
	// Stalled is how long the oldest call under way has been running.
	Stalled time.Duration
	// Call names it.
	Call string
	// Latency is a moving mean of the time that an append to the Raft log takes.
	Latency time.Duration
	// Free is the space in bytes that is left, Reserve below how much the disk counts
	// as full.
	Free, Reserve uint64
}
