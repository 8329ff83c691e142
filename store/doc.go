// Package store owns all that a node keeps on disk: the B+tree of the state
// and its history, Raft's log and votes, and the stream that copies a state to
// another node.
//
// # The data directory
//
// A Dir is one node's data directory, held by one process at a time:
//
//	identity.json   who the node is and what the directory must hold
//	lock            held while a process uses the directory
//	state.db        the state (State)
//	marker          the highest Raft index the state machine was handed
//	stable.db       Raft's term and vote, and what was seen of the peers
//	log/ | log.db   Raft's log, in raft-wal or raft-boltdb
//	incoming/       a copy of the state that is being received
//	delta.copy      what came from another node and may not be in state.db yet
//	rewrite.db      a smaller state file being made of state.db
//	archives/       an archive being verified, and the state file being made of one
//
// Its promises:
//
//   - A directory that lacks a part it had, or whose parts are cut short, is
//     refused before anything is written: a voter that lost some of what it
//     acknowledged must not vote again. Inspect tells without a trace.
//   - identity.json is replaced as a whole. It names the log store in use, and
//     that name alone decides which of two logs is the real one, so a
//     conversion between log stores may stop at any point.
//   - Each start is counted, durably, before anything else happens. Peers
//     compare the count with what they last saw and so notice a directory that
//     was put back from an older copy.
//
// # Raft's stores
//
// Logs gives Raft its log and stable store. Both share one latch: after the
// first failed write nothing is written any more by this process. A vote is
// one record with its term, so that no crash leaves one without the other.
//
// # The state
//
// State is a bbolt file under an ordered buffer in memory. Applying an entry
// changes the buffer and publishes a new immutable generation of it; a flush
// in the background writes a frozen generation into the file, in synced
// transactions of bounded size, the last of which moves the Raft index that the
// file stands for. Readers lay a
// generation over a file transaction taken under the same lock, so they see
// one revision. Every change is an append to the history, which holds the only
// copy of each value; keys point into it. Another node that lacks something is
// sent that history from where its own ends (a delta), or all of it and the
// pointers of the keys (a full copy), and whatever breaks off goes on where it
// was.
package store
