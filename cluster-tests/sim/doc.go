// Package sim runs whole clusters in virtual time: every member as the program builds
// it (package agent), HTTP API included, in one testing/synctest bubble, over a network
// in memory. Nobody waits for a clock, so an hour of elections and faults takes
// half a minute. The workloads, the faults and the judges are those of the tests with
// real processes.
//
//	network.go  hosts, lines between them, what is blocked; ports, dialling, the loss of power
//	conn.go     connections as TCP shows them, in virtual time
//	slow.go     machines whose disks take their time, and that lag behind
//	image.go    what a killed process leaves on disk
//	disks.go    disks that know what was synced, lose power, and fail
//	cluster.go  a cluster: start, stop, kill, level
//	target.go   the same as a target of package fault
//	moments.go  members in the middle of a copy, a compaction, a hand-over
//	run.go      a seed: the cluster, clients and faults it makes, and what came of them
//	sim_test.go, planted_test.go
//	            the seeds that are run (make sim SEEDS=n), and the bugs that some have to find
//
// Nothing imports this package.
package sim
