// Package node is one running member: it runs Raft over the parts it is given,
// groups writes, settles which index a read needs, joins, leads, hands over and
// stops.
//
// # A write
//
// Propose finds the leader. On the leader the write joins a group that shares
// one log entry (group.go); elsewhere it travels to the leader on the node port
// (calls.go) and joins a group there. Raft commits the entry, the state machine
// applies it, and the results come back on the calls that asked. When an answer
// is lost, the node finds out from its own state machine what became of the write
// (own.go).
//
// # A read
//
// A read is evaluated on the node that was asked, always. AskIndex gets the
// index the node must have applied first, from the leader, which confirms its
// leadership by a round among the voters (round.go); Await waits for it.
//
// # The files
//
// config.go and node.go say what a node is made of and how it lives; startup.go
// brings it to where it was; copy.go takes what it lacks from others and gives
// them what they lack; join.go makes it a member; leadership.go leads; transfer.go
// hands over, and preferred.go does so to the voter that is to lead rather;
// autopilot.go watches over the members while it leads, promoter.go decides who
// of them votes, votes.go gives and takes votes, and removal.go takes members out;
// vigil.go finds that nobody leads, and reign.go ends what waits for a former
// leader; fitness.go and disk.go are about who must not lead, and disks that hang,
// fail, are slow or full; sessions.go lets sessions expire; compaction.go decides
// how much history is kept; restore.go puts an archive in the place of everything;
// divergence.go compares contents and heal.go replaces bad ones; peers.go
// remembers what others were seen to hold; health.go, status.go, reports.go and
// replicas.go say how it and the others do; pause.go stops and resumes a learner;
// retention.go sizes the log; promotion.go plans another home, epoch.go enters its
// epoch, and rejoin.go answers who was left behind.
//
// # Goroutines
//
//	leadership   follows Raft's state: opens and closes the group, proposes the
//	             term command (leadership.go)
//	autopilot    judges the members, gives and takes votes, while leading (autopilot.go)
//	membership   forms or joins the cluster, announces changed addresses (join.go)
//	housekeeping sizes the log, warns of learners that will need more of it, remembers
//	             what peers were seen to hold
//	compaction   moves the compaction point, while leading (compaction.go)
//	healing      repairs or replaces contents that are bad (heal.go)
//	parting      ends the node's part when another site has become home (epoch.go)
//	sessions     ends sessions nobody renews, while leading (sessions.go)
//	disk         watches the disk, and draws the consequences (disk.go)
//	watch        turns Raft's leader observations into wake-ups
//	vigil        looks whether the term has a leader, and acts when it has none (vigil.go)
//	a watch      one while a leader is watched (vigil.go)
//	group        one per entry in flight, ends when nothing is pending
//
// All are started by Start and have ended when Stop returns, but for those that
// wait for an answer the library never gives once it is shut down.
package node
