// Package transport carries all that passes between nodes: Raft's requests,
// calls from node to node, copies of the state, and pings that show that a process
// lives. One TCP port serves all four; a connection is for one of them all its
// life, so that a heartbeat never waits behind bulk.
//
// # Introduction
//
// Each connection starts with a fixed preface and a greeting from either side:
// who it is, which cluster and epoch it lives in, and, from the side that dialled,
// which server id it wants to reach. Both sides check what they were told (the
// wanted id, equal cluster, equal epoch, then Config.Check) before anything
// else is sent. Raft and copies need both sides in the same cluster; a call is
// also allowed while one of them is in none yet.
//
// # Raft
//
// A Transport is a raft.Transport whose server addresses are server ids, which
// are resolved to host and port when a connection is made. It does not build on
// the library's NetworkTransport, whose channel towards Raft is out of reach:
// refusing TimeoutNow and injecting a commit index would take a goroutine
// between the network and Raft, on the path of every entry. Here the goroutine
// of a connection decodes a request and gives it to Raft itself, and a
// heartbeat to Raft's handler. Entries share memory with the one buffer they
// were read into. Beyond the library's, the transport
//
//   - holds replication for a peer that is away or paused, see SetLeading,
//   - caps a request by what the peer takes in about two seconds, and gives it the
//     time it needs as long as it moves (moving.go),
//   - compresses replication to other sites where that pays (packing.go),
//   - repeats a request at once when a pooled connection turns out to be dead,
//   - does not let a broken pipeline pass for a sign of life of its peer.
//
// Replication and copies to another site share Config.WANRate and keep the queue
// that they cause on the way short, so that what is small and urgent passes (far.go).
//
// # Calls
//
// Calls to a peer share one connection, on which answers may overtake one
// another. Whoever has a frame to send appends it to a buffer; one writer gives
// the kernel all that has gathered with a single write. Both ends ping, so a
// peer that fell silent is noticed, and calls that wait on it fail at once.
//
// # Copies
//
// Each copy has a connection of its own, so that no receiver holds up another,
// and is sent in chunks, each verified before a byte of it is read. The sender
// compresses chunks while that makes a slow link faster, see pace, keeps all its
// copies together to Config.CopyRate, and shows that it is alive while its
// handler has nothing to send. There is no bound on the time a copy takes, only
// on that in which nothing moves. Taking up a broken one is the business of
// those who ask for it and answer.
//
// # Watches
//
// A watch follows the life of one peer's process over a connection of its own that
// carries nothing but pings and what the peer says of itself. It tells apart a
// process that ended (its port refuses, or another incarnation answers) from one
// that is silent, for which all that arrives from the peer counts.
//
// # Goroutines
//
// All of them belong to the Transport, and Close returns when they have ended:
//
//	accept     takes connections off the port; from Serve to Close
//	serve      one for each accepted connection: reads it and, for Raft and
//	           copies, answers
//	connect    one for each call connection this node dialled: dials, then reads
//	write      one for each call connection on either side: writes and pings
//	worker     one for each call being answered; up to 64 idle ones are kept
//	read       one for each replication pipeline: reads its answers
//	deliver    at most one, while InjectCommit has something to deliver
//	attend     one for each watch: keeps its connection and reads
//	ping       one for each connection of a watch, on the side that dialled
//	a watcher  one for each copy being sent: notices that its caller is gone
//	keepAlive  one for each copy being sent: speaks while its handler is silent
package transport
