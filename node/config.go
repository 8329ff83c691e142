package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// Config says what a node is and how it behaves.
type Config struct {
	// Self is this member as it wants to be known. ID is fixed for the life of
	// the data directory; the other fields are announced when they change.
	Self command.Member
	// Home says that Self.Site is the home site. Only a node of the home site
	// can be a voter.
	Home bool
	// BootstrapExpect, when positive, is the number of first voters: a node
	// that has never met a cluster forms one as soon as that many voters with
	// the same number see each other. 0 never forms a cluster.
	BootstrapExpect int
	// Join lists node-port addresses at which to find the cluster or, before
	// there is one, the other first voters. Tried for ever.
	Join []string
	// Datacenter is the cluster's name in the Consul dialect; used when the
	// cluster is formed.
	Datacenter string

	// Heartbeat is Raft's heartbeat and election timeout, and the measure of how
	// long the voters wait before they find a silent leader dead themselves: three
	// tenths of it (vigil.go). Where they do not, a follower that heard nothing for
	// one to two of it asks for an election. A leader that reaches no majority for half
	// of it steps down. Shorter fails over faster and mistakes a
	// busy host for a dead one sooner.
	Heartbeat time.Duration
	// CommitInterval is how often an idle leader tells followers its commit
	// index. Reads do not wait for it: see Await.
	CommitInterval time.Duration
	// Wait bounds how long a request waits for a leader, and is also the
	// longest a write waits for its outcome.
	Wait time.Duration
	// Lease is how long after the beginning of a leadership round default
	// reads may ride on it. A read by a lease may miss writes that a new
	// leader acknowledged within this time.
	Lease time.Duration
	// RoundTimeout bounds a leadership round.
	RoundTimeout time.Duration
	// InFlight is how many entries the group keeps in Raft at once. More
	// overlaps disk and network; fewer makes larger groups.
	InFlight int
	// LogRetention is about how many bytes of log are kept after a snapshot, so
	// that a member that was away catches up by log.
	LogRetention uint64
	// LogOutage is the longest absence that is to be made good from the log: of
	// LogRetention, what is older is not kept.
	LogOutage time.Duration
	// History is how much history the cluster keeps, as long as this node leads
	// it; its zero value means the defaults.
	History command.Retention
	// MaxData is the size of keys and values in bytes from which on this node, as
	// the leader, refuses puts; 0 is no limit. What is under way when it is
	// reached still goes, so the data may end up a little above.
	MaxData uint64

	// LeaderPriority says how much this voter is to lead rather than others: a
	// leader with a lower one hands over to it, and of equally complete voters the one
	// with the highest follows a leader that died.
	LeaderPriority int
	// LeaderHoldOff is how long a voter of a higher priority must have been fit to
	// lead before this node, as the leader, hands over to it.
	LeaderHoldOff time.Duration

	// Incarnation names this run of the process, as in its introductions.
	Incarnation string

	Clock Clock
	Log   hclog.Logger
	// RaftLog takes what the library says; Log named "raft" when nil.
	RaftLog hclog.Logger
}

// Defaults for Config.
const (
	DefaultHeartbeat      = time.Second
	DefaultCommitInterval = 20 * time.Millisecond
	DefaultWait           = 7 * time.Second
	DefaultLease          = 100 * time.Millisecond
	DefaultRoundTimeout   = time.Second
	DefaultInFlight       = 3
	DefaultLogRetention   = 512 << 20
	DefaultLeaderHoldOff  = 30 * time.Second
	DefaultLogOutage      = 24 * time.Hour
)

// DefaultHistory is the default of Config.History.
var DefaultHistory = command.Retention{Age: time.Hour, Changes: 1_000_000, Bytes: 1 << 30}

func (c *Config) validate() error {
	if c.Self.Role.MayVote() && !c.Home {
		return command.ErrNotHome.With("%s is started as a %s of site %s, which is not said to be the home site", c.Self.Name, c.Self.Role, c.Self.Site)
	}
	if c.BootstrapExpect > 0 && c.Self.Role != command.RoleVoter {
		return errors.New("only a voter can expect to form a cluster; drop --bootstrap-expect or start it with --role voter")
	}
	if c.BootstrapExpect > 1 && len(c.Join) == 0 {
		return fmt.Errorf("forming a cluster of %d voters needs their addresses; give --join", c.BootstrapExpect)
	}
	setDefault(&c.Heartbeat, DefaultHeartbeat)
	setDefault(&c.CommitInterval, DefaultCommitInterval)
	setDefault(&c.Wait, DefaultWait)
	setDefault(&c.Lease, DefaultLease)
	setDefault(&c.RoundTimeout, DefaultRoundTimeout)
	setDefault(&c.InFlight, DefaultInFlight)
	setDefault(&c.LogRetention, DefaultLogRetention)
	setDefault(&c.LeaderHoldOff, DefaultLeaderHoldOff)
	setDefault(&c.LogOutage, DefaultLogOutage)
	setDefault(&c.History, DefaultHistory)
	if c.Clock == nil {
		c.Clock = SystemClock{}
	}
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
	if c.RaftLog == nil {
		c.RaftLog = c.Log.Named("raft")
	}
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Parts are what a node runs on. The command builds the real ones, tests build
// memory ones.
type Parts struct {
	State     State
	FSM       FSM
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	Logs      Logs
	Identity  Identity
	Transport Transport
	// Disk is how the disk does; nil when nobody watches it.
	Disk Disk
	// Failed delivers an error that ends this process's part in Raft: of the
	// log, the stable store or the state. The node stops voting and leading at
	// once and goes on serving stale reads.
	Failed <-chan error
}

// Disk is what the node asks about its disk.
type Disk interface {
	// Look never waits for the disk.
	Look() command.Disk
}

// State is the store as the node sees it.
type State interface {
	View() (command.View, error)
	// Applied is the index and term of the last command or configuration that
	// views contain.
	Applied() (index, term uint64)
	Revision() uint64
	// WaitApplied returns when Applied has reached index.
	WaitApplied(ctx context.Context, index uint64) error
	WaitRevision(ctx context.Context, revision uint64) error
	// Watch's channel is closed at the first change of t after the call; stop
	// must be called once.
	Watch(t command.Target) (changed <-chan struct{}, stop func())
	// Marker is the highest index the state machine was handed before the
	// process last ended.
	Marker() (index uint64, clean bool)
	// Configuration is the last Raft configuration that was applied, and the index of
	// its entry.
	Configuration() (raft.Configuration, uint64)
	// Stamp is the cluster time of the last applied entry.
	Stamp() (command.Stamp, time.Time)
	Certify(wall time.Time)
	LastCertified() time.Time
	// CopyRequest is what this state asks another one for: all it lacks, or
	// with full everything. After a copy that broke off it asks for the rest.
	CopyRequest(full bool) []byte
	// LeapRequest asks for what it lacks only if that is much, and a delta; nil when
	// a copy is not what it lacks.
	LeapRequest() []byte
	// WriteCopy answers a request: with what changed since the asker's revision
	// where history still has it, with the damaged ranges it named, else with
	// everything. A writer that has a method CopyKind(kind string) is told of which
	// kind it is.
	WriteCopy(ctx context.Context, request []byte, w io.Writer) error
	// ReceiveCopy takes in the answer. A delta or a range is in place when it
	// returns; a full copy is staged until Raft's restore, or SwapCopy.
	ReceiveCopy(ctx context.Context, r io.Reader) (command.CatchUp, error)
	// SwapCopy puts a staged copy in place; with force also one that holds less
	// than the state, which is known to be wrong.
	SwapCopy(force bool) error
	// LineageAt is the lineage at a kept revision.
	LineageAt(revision uint64) (command.Lineage, error)
	// OldestRevision is the compaction point, and HistoryStart where it would be
	// by a retention.
	OldestRevision() uint64
	HistoryStart(keep command.Retention) (revision uint64, err error)
	// DataBytes is the size of the live keys and values.
	DataBytes() uint64
	// Damaged lists what was found bad; DamageFound is signalled by each find.
	Damaged() []command.Damage
	DamageFound() <-chan struct{}
	Export(ctx context.Context, prefix string, revision uint64, fn func(command.Record) error) error
	// Archive writes an archive of the state at the revision it tells begin.
	Archive(ctx context.Context, begin func(revision uint64) io.Writer) error
	// SpoolArchive takes an archive in and calls use with it once it is verified.
	SpoolArchive(ctx context.Context, r io.Reader, use func(archive io.Reader, sum [sha256.Size]byte) error) error
	// Forks are where the epochs of the cluster behind the first began, in order.
	Forks() []command.Fork
	// BeginEpoch begins an epoch in this state, durably on return and in one step.
	BeginEpoch(ctx context.Context, e command.EpochStart) error
	// Flush makes what was applied durable in the state.
	Flush(ctx context.Context) error
	// Restored is the id and the revision of the last restore.
	Restored() (id string, revision uint64)
}

// FSM is the state machine.
type FSM interface {
	raft.BatchingFSM
	// Term is the Raft term of the last Term command applied by this process.
	Term() uint64
	// Observe has fn called for each entry of commands that was applied, in order.
	// e and results are nil for one the state held already.
	Observe(fn func(index, term uint64, e *command.Entry, results []command.Result))
}

// Logs is what the node needs of the log beyond raft.LogStore.
type Logs interface {
	// Bounds are the first and last index, both 0 for an empty log.
	Bounds() (first, last uint64, err error)
	// Reset drops the whole log.
	Reset() error
	// EntryBytes is the average size of recent entries.
	EntryBytes() uint64
	SetPeer(id string, seen command.PeerSeen) error
	Peers() map[string]command.PeerSeen
}

// Identity is the node's durable membership of a cluster.
type Identity interface {
	Cluster() (id string, epoch uint64)
	// SetCluster is durable on return, as are all below.
	SetCluster(id string, epoch uint64) error
	// Paused is whether this copy was paused; SetPaused is durable on return.
	Paused() bool
	SetPaused(paused bool) error
	// Promotion is the order to be the seed of a new home, nil when there is none.
	Promotion() *command.Promotion
	SetPromotion(p *command.Promotion) error
	// Forks are what this node has learned of epochs later than its own at that time.
	Forks() []command.Fork
	SetForks(forks []command.Fork) error
	// EnterEpoch records that the node lives in an epoch, and whether as the seed of
	// its home. There is no promotion then.
	EnterEpoch(epoch uint64, seed bool) error
}

// Transport is the node port.
type Transport interface {
	raft.Transport
	raft.WithPreVote
	// Call sends a request to a member; CallAddr to whoever listens there. An
	// error is command.ErrOutcomeUnknown when the request may have arrived.
	Call(ctx context.Context, to string, method uint8, req []byte) ([]byte, error)
	CallAddr(ctx context.Context, addr string, method uint8, req []byte) ([]byte, error)
	FetchCopy(ctx context.Context, to string, req []byte) (io.ReadCloser, error)
	FetchCopyAddr(ctx context.Context, addr string, req []byte) (io.ReadCloser, error)
	Learn(id, addr string)
	SetLeading(leading bool)
	InjectCommit(leaderID string, term, index, indexTerm uint64)
	// InjectTimeoutNow tells the local Raft to stand for election at once.
	InjectTimeoutNow(ctx context.Context) error
	// Watch calls tell with what is known of the life of a member's process whenever
	// that changes, until ctx ends. It pings every beat; tell must not block.
	Watch(ctx context.Context, id string, beat time.Duration, tell func(command.Pulse))
	Disconnect(id string)
	// Link tells what is known of the way to a member; Knock connects to one and hangs
	// up, so that it goes on with what it holds for this node.
	Link(id string) command.Link
	Knock(ctx context.Context, id string) error
	// CloseStreams fails Raft's requests under way.
	CloseStreams()
}
