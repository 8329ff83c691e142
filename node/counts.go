package node

import "sync/atomic"

// Counts are what a node has done since its start.
type Counts struct {
	// IndexRequests are the messages to the leader that asked which index reads need.
	// Reads that wait at the same time share one.
	IndexRequests uint64
	// Rounds are the leadership rounds of this node: all reads that wait for one
	// share it.
	Rounds uint64
	// HandOvers are the times this node gave leadership away on purpose.
	HandOvers uint64
}

// counts holds them while they grow.
type counts struct{ indexRequests, rounds, handOvers atomic.Uint64 }

// Counts says what this node has done.
func (n *Node) Counts() Counts {
	return Counts{IndexRequests: n.counts.indexRequests.Load(), Rounds: n.counts.rounds.Load(), HandOvers: n.counts.handOvers.Load()}
}
