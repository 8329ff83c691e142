// Package readreplica is what makes a copy useful away from home: it measures
// how old the local state may be, lets reads through or refuses them by that
// measure, and says how the copy does.
//
// # The certificate
//
// A probe notes this node's own clock, t0, and asks the leader for its
// confirmed applied index C. From the moment this node has applied C its state
// holds every write acknowledged before t0: its answers are no older than
// now - t0. No clocks of two machines are compared, and heartbeats play no part:
// they prove contact, not freshness (they carry no commit index).
//
// # Order of a read
//
// The certificate is taken before the view is opened, and the clock is read
// after the answer was evaluated. So the age that is reported, and judged
// against max_stale, is never too small.
//
// # Goroutines
//
//	probe  asks the leader once per interval, and starts one short goroutine per
//	       answer that waits until its index is applied
package readreplica
