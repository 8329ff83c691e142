package agent

import (
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// Config is a complete and consistent description of a node, as far as
// that can be judged without looking at the disk, the network or the cluster.
type Config struct {
	// Node is the node's name, unique in the cluster for as long as a member
	// has it. It is part of the identity made with the data directory: a data
	// directory of another name is refused.
	Node string
	// Site is the place the node stands at, fixed like Node.
	Site string
	// Home says that Site is the home site. Only there can a node vote, and
	// the cluster refuses a node that errs about it.
	Home bool
	// Role is what the node asks to be. A voter or spare has Home.
	Role command.Role
	// DataDir is the absolute path of the data directory. It belongs to one
	// node for ever and is made at its first start.
	DataDir string

	// HTTP and Raft are the addresses to listen at: for clients, and for all
	// traffic between nodes. They differ.
	HTTP, Raft string
	// AdvertiseHTTP and AdvertiseRaft are the addresses at which clients and
	// nodes reach this one. They name a host and a port.
	AdvertiseHTTP, AdvertiseRaft string

	// BootstrapExpect is the number of voters that form a new cluster together,
	// the same on each of them; 0: this node never forms one. Positive only on
	// voters. It has no effect on a node that has met its cluster.
	BootstrapExpect int
	// Join lists node-port addresses of members, tried for ever. Without it a
	// node can only form a cluster of one, or continue where it was.
	Join []string
	// Datacenter is the cluster's name in the Consul dialect. Requests for
	// another one are refused.
	Datacenter string

	// LogStore keeps the Raft log: "wal" is several times faster, "boltdb" is
	// what older tools can read. A change converts the log at the next start.
	LogStore string
	// RaftMultiplier stretches all of Raft's timeouts, 1 to 10. More survives
	// slower hosts and networks between the voters without needless elections,
	// and takes that much longer to replace a dead leader.
	RaftMultiplier int
	// LeaderPriority, 0 to 100, says how much this voter is to lead rather than others,
	// and LeaderHoldOff how long such a one must have been fit until this node, as the
	// leader, hands over to it.
	LeaderPriority int
	LeaderHoldOff  time.Duration
	// MaxValue is the largest value in bytes that this node accepts from
	// clients. Larger ones hold up every other write while they are replicated.
	MaxValue int
	// MaxDataSize is the size of keys and values in bytes from which on this node,
	// as the leader, refuses puts; 0 is no limit. The same on each voter.
	MaxDataSize uint64
	// History is how much history the cluster keeps while this node leads it: the
	// larger of what age and changes ask for, but no more bytes. The same on each
	// voter.
	History command.Retention

	// AskLeader makes a learner answer reads that name no mode as a voter does.
	AskLeader bool
	// SessionTTLMin is the shortest TTL of a session that this node lets a client
	// create. The same on each node.
	SessionTTLMin time.Duration
	// OnceRetention and OnceBytes say how long and up to how many bytes the cluster
	// remembers the results of writes with idempotency keys that this node takes. The
	// same on each node.
	OnceRetention time.Duration
	OnceBytes     int64

	// LogRetention is about how many bytes of the Raft log are kept, so that a
	// node that was away catches up by log.
	LogRetention uint64
	// LogOutage is the longest absence that is to be made good from that.
	LogOutage time.Duration
	// CatchUpRate bounds the bytes per second of all copies this node sends to
	// others; 0 is no bound.
	CatchUpRate int64
	// WANRate bounds the bytes per second of replication and copies together that
	// this node sends to each other site; 0 is no bound.
	WANRate int64
	// ScrubPeriod is how long the node takes to read all that it stores and look
	// for damage, again and again; 0: never.
	ScrubPeriod time.Duration

	// Disk says from when on the disk counts as hanging, slow or full.
	Disk store.DiskLimits
	// StandbyDir, when set, is the absolute path of an empty directory on another disk,
	// which the node enters as a new member when the disk of DataDir has failed, or has
	// hung for StandbyAfter. From then on it is the data directory.
	StandbyDir   string
	StandbyAfter time.Duration

	LogLevel hclog.Level
	// LogJSON writes one JSON object per line instead of text.
	LogJSON bool

	// Version is this build's.
	Version string
}
