package command

import (
	"encoding/json"
	"strings"
)

// Level is the highest command level this build knows. It goes up by one
// whenever a kind of command, or a field that changes what a command does, is
// added. A cluster's level is the lowest of its members', and a node below it is
// refused. A build that adds a level must propose nothing above the cluster's; no
// level below this one was ever released, so nothing is held back yet.
const Level = 2

// Limits that are part of the contract with every node. They are judged before
// a command is proposed, never inside the state machine.
const (
	// MaxKey is the longest key in bytes.
	MaxKey = 2 << 10
	// DefaultMaxValue is the largest value in bytes unless configured.
	DefaultMaxValue = 512 << 10
	// MaxEntry bounds the bytes of writes that share one log entry. A single
	// command may be larger. Entries of that size fill a disk's bandwidth, and
	// several of them are held in memory for each member that is behind.
	MaxEntry = 256 << 10
)

// Kind names a command in the log.
type Kind uint8

// The kinds. Numbers are part of the log format and never reused.
const (
	KindTerm         Kind = 1
	KindInit         Kind = 2
	KindMemberSet    Kind = 3
	KindMemberRemove Kind = 4
	KindPut          Kind = 5
	KindDelete       Kind = 6
	KindDeleteTree   Kind = 7
	KindPutMany      Kind = 8
	KindCompact      Kind = 9
	// KindSessionCreate and those below came with level 2.
	KindSessionCreate  Kind = 10
	KindSessionDestroy Kind = 11
	KindTxn            Kind = 12
	KindOnce           Kind = 13
	KindSetting        Kind = 14
	KindStage          Kind = 15
	KindRestore        Kind = 16
)

// Command is one write: what a client asked for, complete, so that every node
// that applies it comes to the same state. Values may share memory with the
// buffer a command was decoded from.
type Command interface {
	Kind() Kind
	append(b []byte) []byte
}

// Term is the first command a new leader proposes. Until the state machine has
// applied it, the leader answers no read index. It carries nothing: the term
// is that of its entry.
type Term struct{}

// Init gives the cluster its identity and its first members. It is proposed
// once, by the node that bootstrapped; a second Init changes nothing.
type Init struct {
	Cluster Cluster
	Members []Member
}

// MemberSet adds a member or replaces the one with the same ID. One that was removed
// for good gets ErrRemoved.
type MemberSet struct{ Member Member }

// MemberRemove removes a member; Barred also keeps it from coming back under its
// ID. Removing an unknown one changes nothing else.
type MemberRemove struct {
	ID     string
	Barred bool
}

// PutMode says under which condition a Put happens.
type PutMode uint8

// The put modes.
const (
	PutAlways  PutMode = iota
	PutCAS             // only if ModifyRevision equals Index; 0: only if absent
	PutAcquire         // take the lock for Session
	PutRelease         // give the lock of Session back
)

// Put sets a key. Its result is false when the condition failed.
type Put struct {
	Key     string
	Value   []byte
	Flags   uint64
	Mode    PutMode
	Index   uint64 // PutCAS
	Session string // PutAcquire, PutRelease
}

// Delete removes a key. With CAS it does so only if ModifyRevision equals
// Index. Removing an absent key succeeds and changes nothing.
type Delete struct {
	Key   string
	CAS   bool
	Index uint64
}

// DeleteTree removes all keys that start with Prefix, in one step.
type DeleteTree struct{ Prefix string }

// KV is one pair of a PutMany.
type KV struct {
	Key   string
	Value []byte
	Flags uint64
}

// PutMany sets many keys in one step: all of them share one revision.
type PutMany struct{ KVs []KV }

// Compact forgets history: from now on no revision below Revision can be read.
// It never goes back and steps no revision. A revision that is not reached yet
// counts as the newest.
type Compact struct{ Revision uint64 }

// SettingPut sets one of the cluster's own settings, such as that of autopilot.
// With CAS it does so only if the setting's revision equals Index.
type SettingPut struct {
	Name  string
	Value []byte // JSON
	CAS   bool
	Index uint64
}

// Stage puts a piece of an archive aside, to be restored by Restore: the pieces of
// an ID are numbered from 0. An empty Data drops all that was staged under the ID.
type Stage struct {
	ID    string
	Piece uint64
	Data  []byte
}

// Restore replaces all keys and sessions by those of the archive that was staged
// under the ID: Pieces pieces, whose bytes together have the checksum. On every
// node the revision goes on above both the present one and the archive's; history
// and lineage begin anew there. If the pieces are not all there, or do not match,
// nothing changes and the result is ErrArchive.
type Restore struct {
	ID     string
	Pieces uint64
	SHA256 [32]byte
}

// Kind implements Command.
func (*Term) Kind() Kind         { return KindTerm }
func (*Init) Kind() Kind         { return KindInit }
func (*MemberSet) Kind() Kind    { return KindMemberSet }
func (*MemberRemove) Kind() Kind { return KindMemberRemove }
func (*Put) Kind() Kind          { return KindPut }
func (*Delete) Kind() Kind       { return KindDelete }
func (*DeleteTree) Kind() Kind   { return KindDeleteTree }
func (*PutMany) Kind() Kind      { return KindPutMany }
func (*Compact) Kind() Kind      { return KindCompact }
func (*SettingPut) Kind() Kind   { return KindSetting }
func (*Stage) Kind() Kind        { return KindStage }
func (*Restore) Kind() Kind      { return KindRestore }

// Result is what one command came to.
type Result struct {
	// OK is false when the command's condition did not hold.
	OK bool
	// Revision is the revision the command made, or, when it changed nothing,
	// the one at which that was decided.
	Revision uint64
	// Err is a refusal by the state machine itself, e.g. ErrInvalidSession.
	Err error
	// Txn is what a transaction came to; nil for other commands.
	Txn *TxnResult
}

// ID names a write: the run of the process that received it from a client, drawn
// at random, and a number which that run gives out once. The zero ID names none.
// Whoever applies an entry learns by it which of its own writes have happened.
type ID struct{ Run, Seq uint64 }

// Validate refuses a command that no state can hold. It is asked before a
// command is proposed: the state machine must be able to carry out whatever is
// committed, on every node.
func Validate(c Command) error {
	switch c := c.(type) {
	case *Put:
		return validKey(c.Key)
	case *Delete:
		return validKey(c.Key)
	case *DeleteTree:
		return validPrefix(c.Prefix)
	case *PutMany:
		for _, kv := range c.KVs {
			if err := validKey(kv.Key); err != nil {
				return err
			}
		}
	case *Txn:
		for i := range c.Ops {
			check := validKey
			switch v := c.Ops[i].Verb; {
			case v == 0 || v >= verbEnd:
				return ErrInvalidCommand.With("%v", v)
			case v == VerbGetTree || v == VerbDeleteTree:
				check = validPrefix
			}
			if err := check(c.Ops[i].Key); err != nil {
				return err
			}
		}
	case *SessionCreate:
		if s := &c.Session; strings.Contains(s.ID, "/") || len(s.ServiceChecks) > 0 && !json.Valid(s.ServiceChecks) {
			return ErrInvalidCommand.With("session %q", s.ID)
		}
		return validName("session id", c.Session.ID)
	case *Once:
		if c.Command == nil || c.Command.Kind() == KindOnce {
			return ErrInvalidCommand.With("nothing to be done once")
		}
		if err := validName("idempotency key", c.Key); err != nil {
			return err
		}
		return Validate(c.Command)
	case *SettingPut:
		return validName("setting", c.Name)
	case *Stage:
		return validName("archive id", c.ID)
	case *Restore:
		return validName("archive id", c.ID)
	}
	return nil
}

// validKey refuses also what begins with a zero byte: the store keeps the system's
// own records there.
func validKey(key string) error {
	if key == "" || len(key) > MaxKey || key[0] == 0 {
		return ErrInvalidCommand.With("key of %d bytes", len(key))
	}
	return nil
}

func validPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return validKey(prefix)
}

func validName(what, name string) error {
	if name == "" || len(name) > MaxOnceKey {
		return ErrInvalidCommand.With("%s of %d bytes", what, len(name))
	}
	return nil
}
