package command

import (
	"math"
	"time"
)

// Record is one key as it stands at some revision.
type Record struct {
	Key   string
	Value []byte // not to be modified: it may share memory with the store
	// Flags is opaque to Holdfast.
	Flags uint64
	// LockIndex counts how often the lock went from free to held. It never
	// goes down while the key exists, so {Key, LockIndex, Session} fences.
	LockIndex uint64
	// Session holds the lock; empty when the lock is free.
	Session string
	// CreateRevision <= ModifyRevision <= the store's revision.
	CreateRevision uint64
	ModifyRevision uint64
}

// Role is what a member asked to be. Whether it votes is for the Raft
// configuration to say: a voter-to-be is a non-voter until it has caught up.
type Role string

// The roles.
const (
	RoleVoter   Role = "voter"
	RoleLearner Role = "learner"
	// RoleSpare is a learner of the home site that votes in the place of a voter
	// that is dead.
	RoleSpare Role = "spare"
)

// MayVote reports whether members of the role are ever made voters. They have to be
// at the home site.
func (r Role) MayVote() bool { return r == RoleVoter || r == RoleSpare }

// Member is one node as all nodes know it: replicated state, kept in the
// members table and changed only through the log.
type Member struct {
	// ID is the Raft server id: the name and a random part made with the data
	// directory. A node whose disk was wiped comes back with another ID.
	ID       string `json:"id"`
	Name     string `json:"name"`
	Site     string `json:"site"`
	Role     Role   `json:"role"`
	RaftAddr string `json:"raft_addr"` // host:port other nodes dial
	HTTPAddr string `json:"http_addr"` // host:port clients use
	Version  string `json:"version"`
	// Level is the highest command level the node's build knows.
	Level uint32 `json:"level"`
}

// Cluster is what identifies the cluster, set once by Init.
type Cluster struct {
	ID         string `json:"id"`
	Datacenter string `json:"datacenter"`
	HomeSite   string `json:"home_site"`
	// Epoch goes up when a remote site is made the new home. 1 at birth.
	Epoch uint64 `json:"epoch"`
}

// View is one consistent state of the store. All answers of a view belong to
// the same revision. A view must be closed within ten seconds: until then the
// store cannot reuse the pages it sees.
type View interface {
	// Revision is the store's counter at this view.
	Revision() uint64
	// Applied is the Raft index of the last entry in this view.
	Applied() uint64
	// Lineage is the rolling hash over all changes up to Revision.
	Lineage() Lineage
	// KVRevision is the last revision at which any key changed.
	KVRevision() uint64
	// Get returns the record of key, or ErrKeyNotFound.
	Get(key string) (Record, error)
	// Scan calls fn for each record whose key starts with prefix and is
	// greater than after, in ascending byte order, until fn returns false.
	Scan(prefix, after string, fn func(Record) bool) error
	// ScanKeys is Scan without reading values.
	ScanKeys(prefix, after string, fn func(key string, modifyRevision uint64) bool) error
	// PrefixRevision is the last revision at which a key under the prefix was
	// changed or deleted; KVRevision when nothing is known of the prefix.
	PrefixRevision(prefix string) (uint64, error)

	// OldestRevision is the oldest revision that is kept: what follows answers
	// for it and later ones, else ErrCompacted or ErrRevisionNotReached.
	OldestRevision() uint64
	// GetAt is Get in the state as it was at a revision.
	GetAt(key string, revision uint64) (Record, error)
	// ScanAt is Scan in the state as it was at a revision.
	ScanAt(prefix, after string, revision uint64, fn func(Record) bool) error
	// KVRevisionAt is the last revision up to the given one at which any key
	// changed, as far as it is kept.
	KVRevisionAt(revision uint64) (uint64, error)
	// PrefixRevisionAt is PrefixRevision as it was at a revision.
	PrefixRevisionAt(prefix string, revision uint64) (uint64, error)
	// ChangesAfter calls fn for each change of a key under the prefix, from
	// behind a position to the last of revision to, in order, until fn returns
	// false. Behind all changes of a revision is the position with the largest K.
	// A to beyond the view's revision ends there.
	ChangesAfter(prefix string, after Position, to uint64, fn func(Change) bool) error
	// KeyHistory calls fn for each kept change of a key, newest first, until fn
	// returns false. The last is the one that held at OldestRevision.
	KeyHistory(key string, fn func(Change) bool) error
	// ChangeAt returns one change: that of a Change's At or Prev.
	ChangeAt(at Position) (Change, error)

	// Cluster is the cluster's identity; the zero value before Init.
	Cluster() Cluster
	// Members lists all members, ordered by ID.
	Members() ([]Member, error)
	// MembersRevision is the last revision at which a member changed.
	MembersRevision() uint64
	// Session returns a session, or ErrSessionNotFound.
	Session(id string) (Session, error)
	// Sessions calls fn for each session, in the order of their IDs, until fn
	// returns false.
	Sessions(fn func(Session) bool) error
	// SessionsRevision is the last revision at which a session was created or
	// ended.
	SessionsRevision() uint64
	// Setting returns one of the cluster's settings and its revision, 0 when it was
	// never set.
	Setting(name string) (value []byte, revision uint64, err error)
	// Remembers reports whether the result of a write with an idempotency key is kept.
	Remembers(onceKey string) (bool, error)
	// Barred reports whether the member of an ID was removed for good.
	Barred(id string) (bool, error)
	Close()
}

// Position names one change: the K-th, from 0, of a revision. The zero Position
// means that there is none.
type Position struct {
	Revision uint64
	K        uint32
}

// EndOf is the position behind all changes of a revision.
func EndOf(revision uint64) Position { return Position{Revision: revision, K: math.MaxUint32} }

// IsEnd reports whether p is behind all changes of its revision.
func (p Position) IsEnd() bool { return p.K == math.MaxUint32 }

// Before reports whether p comes before q in history.
func (p Position) Before(q Position) bool {
	return p.Revision < q.Revision || p.Revision == q.Revision && p.K < q.K
}

// Change is one change of a key.
type Change struct {
	At Position
	// Prev is the key's change before; zero when the key did not exist.
	Prev    Position
	Deleted bool
	// Record is what the key became; of a deleted one, only Key and
	// ModifyRevision are set.
	Record Record
	// Wall is the leader's clock when the revision was proposed, for display;
	// zero when it is no longer known.
	Wall time.Time
}

// Retention says how much history is kept: the larger of what Age and Changes
// ask for, but no more than Bytes.
type Retention struct {
	Age     time.Duration // by cluster time
	Changes uint64
	Bytes   uint64 // of changes as they are stored
}

// Damage is a part of the stored state that was found bad. It is never served.
type Damage struct {
	Table    string // "history", "keys", "tombs", "meta" or "file"
	From, To string // the first and last record affected, for people
	Problem  string
	Found    time.Time
}

// Lineage is a rolling hash: L(r) = H(L(r-1), r, changes of r). Equal revision
// and equal lineage on two nodes mean equal contents.
type Lineage [16]byte

// ReadMode is the consistency a read asks for.
type ReadMode uint8

// The read modes. The state is always read on the node that was asked; the
// mode decides which index that node must have applied first, and who says so.
const (
	// ReadDefault is linearizable on a voter, but for 100 ms after a
	// leadership round. On a learner it is ReadStale, unless it was told to do as
	// voters do.
	ReadDefault ReadMode = iota
	// ReadConsistent is linearizable: leadership is confirmed after the read
	// arrived.
	ReadConsistent
	// ReadStale is a prefix of the committed history that never goes back on
	// one node.
	ReadStale
)

// ReadOptions says how a read wants to be answered.
type ReadOptions struct {
	Mode ReadMode
	// MaxStale, when positive, bounds the age of the answer; Mode must be
	// ReadStale.
	MaxStale time.Duration
	// MinRevision, when positive, makes the read wait until the node applied
	// it, for at most Wait (5 s when zero).
	MinRevision uint64
	Wait        time.Duration
}

// ReadInfo says what an answer is worth.
type ReadInfo struct {
	Node     string // name of the node that answered
	Site     string
	Revision uint64 // revision of the answering state
	// Oldest is the oldest revision that state can be read at.
	Oldest uint64
	// Staleness is an upper bound of the answer's age: it holds every write
	// acknowledged before (request sent - Staleness). Valid only when
	// StalenessKnown.
	Staleness      time.Duration
	StalenessKnown bool
	// FreshAsOf is, when the staleness is not known, the last wall-clock
	// moment at which this state was certified; zero when never.
	FreshAsOf time.Time
	// KnownLeader: the node knows a leader.
	KnownLeader bool
	// LastContact is the time since the node heard from the leader; 0 on it.
	LastContact time.Duration
}
