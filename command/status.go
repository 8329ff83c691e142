package command

import "time"

// Hello is how two nodes introduce themselves on every connection between
// them. A connection names the node it wants, and either side refuses when
// cluster, epoch or identity do not fit.
type Hello struct {
	ClusterID string `json:"cluster_id"` // empty on a node that never met a cluster
	Epoch     uint64 `json:"epoch"`
	ID        string `json:"id"`
	Name      string `json:"name"`
	Site      string `json:"site"`
	RaftAddr  string `json:"raft_addr"` // as other nodes dial it
	// Starts counts the starts of the node's data directory; 0 while the node
	// only asks and has not opened it.
	Starts uint64 `json:"starts"`
	// Incarnation is drawn at random by each process: two connections with
	// equal ones come from the same run.
	Incarnation string `json:"incarnation"`
	// LastIndex is the last Raft index the node has durably.
	LastIndex uint64 `json:"last_index"`
	// Applied is the highest Raft index the node's state machine has seen. It
	// is committed, so LastIndex may never be below it again.
	Applied uint64 `json:"applied"`
}

// PeerSeen is what a node remembers of a peer, to notice a disk that was
// rolled back: a peer whose Starts or LastIndex is below this went back, and so did one
// whose start of that number is another one than was seen.
type PeerSeen struct {
	Starts      uint64 `json:"starts"`
	Incarnation string `json:"incarnation,omitempty"` // of the process at that start
	LastIndex   uint64 `json:"last_index"`            // highest committed index the peer was seen to hold
}

// Site is one place and its servers, as /v1/sites shows it.
type Site struct {
	Name    string
	Home    bool
	Leader  bool // the leader is at this site
	Servers []Server
}

// Server is one member and what the answering node knows of it.
type Server struct {
	ID      string
	Name    string
	Address string // host:port of the node port
	HTTP    string // host:port for clients
	Role    Role
	Voter   bool
	Leader  bool
	// Priority is how much a voter is to lead rather than others; 0 while the
	// answering node has not been told.
	Priority int
	// State is "leader", "voter", "learner", "spare" for one that does not vote,
	// "catching-up", "unreachable", "paused", "failed" when its disk failed, "stalled"
	// when that hangs, "fenced" (said by the node itself only), or "unknown" when the
	// answering node is not told by a leader.
	State string
	// Disk is how its disk does, as far as it said.
	Disk DiskState
	// Applied is the revision the server last reported.
	Applied uint64
	Lineage string // hex, at Applied; empty when it reported nothing
	Lag     Lag
	// LastContact is the time since the leader heard from the server, in Go
	// duration syntax; "never" when it has not.
	LastContact string
	Version     string
}

// Lag is how far a copy is behind the leader.
type Lag struct {
	Entries uint64
	Bytes   uint64
	Seconds float64
	// ETA is the expected time in seconds until the copy is level; -1 unknown.
	ETA float64
}

// ReplicaStatus is what a copy says of itself in /v1/replica/status.
type ReplicaStatus struct {
	// Running: it is kept in step, as long as the leader can be reached. Not while it
	// is paused or takes part no longer.
	Running bool
	// Mode is "voter", "learner" or "leader".
	Mode string
	// Status is "level", "catching-up", "cut-off", "starting", "paused",
	// "diverged", "damaged", "stalled" (its disk hangs), "fenced" (another site
	// has become home) or "failed".
	Status string
	// FailedRequests counts consecutive failed freshness probes.
	FailedRequests uint64
	// SecondsSinceLastSuccess is -1 when no probe ever succeeded.
	SecondsSinceLastSuccess int64
	Applied                 uint64 // revision
	AppliedIndex            uint64 // Raft index
	Lineage                 string // hex, at Applied
	// Staleness is an upper bound in milliseconds; -1 when unknown.
	Staleness int64
	// FreshAsOf is the wall-clock moment of the last certificate (RFC 3339),
	// empty when there never was one.
	FreshAsOf   string
	LastCatchUp CatchUp
	// Diverged is the first revision at which the contents differ from the
	// leader's, 0 while they do not.
	Diverged uint64
	// Damaged lists what was found bad and is not repaired yet.
	Damaged []Damage
	// Disk is how the disk does.
	Disk DiskState
}

// CatchUp describes how a member last got level.
type CatchUp struct {
	Kind    string // empty when it never had to; else one of the following
	Records uint64 // log: entries; else changes of history
	Bytes   uint64
	Seconds float64
}

// How a member gets level: from the leader's log, or by a copy of a kind.
const (
	CatchUpLog = "log"
	CopyDelta  = "delta" // what changed since its revision
	CopyRange  = "range" // what was damaged
	CopyFull   = "full"  // everything
)

// Link is what a node has seen of another one on the wire.
type Link struct {
	Connected   bool
	LastContact time.Time // bytes of it last arrived; zero when never
	RemoteAddr  string    // far end of the newest connection, host:port
	BytesSent   uint64
	EntriesSent uint64 // entries it has taken of this node as leader
	Paused      bool   // it told this node as leader that it takes no replication
}

// Replica is how the leader sees one learner, as /v1/replicas shows it. Counts are
// those of the present leader since its process started.
type Replica struct {
	ID, Name, Site string
	// Status is "level", "catching-up", "paused" or "unreachable".
	Status string
	// LastSeenTimestamp is when anything of it last arrived (RFC 3339), empty when
	// nothing has; LastRequest what it last asked for: "probe", "read", "write",
	// "renew", "join", "compare" or "copy".
	LastSeenTimestamp string
	LastRequest       string
	// RemoteAddress and RemotePort are the far end of the newest connection.
	RemoteAddress string
	RemotePort    int
	// TransferredEntries counts log entries it has taken, TransferredBytes all that was
	// sent to it, as it travelled.
	TransferredEntries, TransferredBytes uint64
	// SnapshotsSent and DeltasSent count full copies and deltas.
	SnapshotsSent, DeltasSent uint64
	// Applied is the revision it last reported, 0 when it has not; AppliedIndex the
	// last Raft entry it is known to have applied.
	Applied, AppliedIndex uint64
	// Lag has -1 for seconds and ETA that are not known.
	Lag Lag
	Log LogPlace
}

// LogPlace is where a member stands in the leader's log.
type LogPlace struct {
	// First is the first entry of the log. Distance is how many entries lie between it
	// and the first one that the member lacks; negative: that one is gone, and the
	// member needs a delta or a full copy.
	First    uint64
	Distance int64
	// Used is which part of what the log keeps the member lacks, by bytes or by time,
	// whichever is more: at 1 it needs a copy. ExpiresIn is in how many seconds that is
	// expected, -1 when it is not.
	Used      float64
	ExpiresIn float64
	// Warning: Used is 0.8 or more.
	Warning bool
}

// NodeStatus is what a node knows of itself and of the cluster right now.
type NodeStatus struct {
	ID, Name, Site  string
	HTTPAddr        string
	RaftAddr        string
	Cluster         Cluster
	State           string // "Leader", "Follower", "Candidate", "Learner", "Shutdown"
	Leader          string // name of the leader, "" when unknown
	LeaderID        string
	LeaderRaftAddr  string
	VoterRaftAddrs  []string
	Term            uint64
	LastIndex       uint64 // last entry in the log
	CommitIndex     uint64
	AppliedIndex    uint64 // applied by the state machine
	Revision        uint64
	Lineage         Lineage
	LastContact     time.Duration
	Ready           bool
	NotReadyBecause string // why Ready is false
	Disk            Disk
	Started         time.Time
	Version         string
	// LeaderChanges counts the leaders this process has seen follow one another, and
	// ElectionsForced how often it had itself elected because the voters found that
	// nobody leads.
	LeaderChanges, ElectionsForced uint64
}

// SilentAfter is how long after its last report to the leader a member is called
// unreachable. Members report twice a second.
const SilentAfter = 3 * time.Second

// Health is how the leader sees the cluster.
type Health struct {
	// Healthy: every member is. FailureTolerance is how many voters may fail before
	// there is no majority of healthy ones.
	Healthy          bool
	FailureTolerance int
	Leader           string // id
	// Configuration is the index of the Raft configuration the members are from.
	Configuration uint64
	Members       []MemberHealth // in the order of their names
}

// MemberHealth is how the leader sees one member.
type MemberHealth struct {
	ID, Name, Site, Address, Version string
	Role                             Role
	Voter, Leader                    bool
	// LastContact is the time since the member reported to the leader; negative when
	// it has not.
	LastContact         time.Duration
	LastTerm, LastIndex uint64 // of the last entry in its log
	Disk                DiskState
	Healthy             bool
	// StableSince is since when Healthy is what it is, as this leader has seen it.
	StableSince time.Time
	// UnhealthyBecause is empty for a healthy member.
	UnhealthyBecause string
}

// Autopilot is the cluster's setting of that name.
type Autopilot struct {
	// CleanupDeadServers removes members that have been dead for VoterCleanupTime,
	// voters and spares, or for LearnerCleanupTime, but voters only down to MinQuorum, or
	// to three when that is 0. One that comes back enters by itself.
	CleanupDeadServers bool
	// LastContactThreshold and MaxTrailingLogs are how long a healthy member may
	// have been silent, beyond the half second between its reports, and how many
	// entries it may lack.
	LastContactThreshold time.Duration
	MaxTrailingLogs      uint64
	MinQuorum            uint64
	// ServerStabilizationTime is how long a member must have been healthy before it
	// becomes a voter.
	ServerStabilizationTime time.Duration
	// The next three have no effect.
	RedundancyZoneTag       string
	DisableUpgradeMigration bool
	UpgradeVersionTag       string
	// DeadServerTime is how long after its last report a voter is dead, and a spare
	// takes its place.
	DeadServerTime     time.Duration
	VoterCleanupTime   time.Duration
	LearnerCleanupTime time.Duration
}

// SettingAutopilot names the setting that holds an Autopilot as JSON.
const SettingAutopilot = "autopilot"

// DefaultAutopilot is what holds while the setting was never set. Dead members are not
// removed: a site that is cut off for days is to be seen. The times let a host be
// repaired and restarted first.
var DefaultAutopilot = Autopilot{
	LastContactThreshold: 200 * time.Millisecond, MaxTrailingLogs: 250,
	DeadServerTime: 10 * time.Second, VoterCleanupTime: 15 * time.Minute, LearnerCleanupTime: 72 * time.Hour,
}
