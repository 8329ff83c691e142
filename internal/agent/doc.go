// Package agent runs a node: it puts store, fsm, transport, node, readreplica and http
// together, top to bottom, keeps an eye on the disk, and takes it all apart again in the
// opposite order.
//
//	config.go    all that is set about a node
//	host.go      what it stands on: network, clock, log
//	run.go       the run of a node, and another one after it where that is asked for
//	presence.go  what the transport asks about the node
//	standby.go   the disk that fails, and the other one
//	metrics.go   figures of the parts for /metrics
//	repeats.go   warnings that come again and again
package agent
