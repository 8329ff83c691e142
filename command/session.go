package command

import (
	"encoding/json"
	"time"
)

// Behavior says what the end of a session does to the keys it holds.
type Behavior string

// The behaviors.
const (
	BehaviorRelease Behavior = "release" // the lock is given back, the key stays
	BehaviorDelete  Behavior = "delete"  // the key is deleted
)

// Session is what a lock belongs to. It lives until it is destroyed or, with a
// TTL, until the leader has not heard of it for twice as long.
type Session struct {
	// ID is a UUID, made before the session is proposed; it has no slash.
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	Node string `json:"node,omitempty"`
	// LockDelay is for how long, by cluster time, the keys it held cannot be locked
	// after its end.
	LockDelay time.Duration `json:"lock_delay,omitempty"`
	Behavior  Behavior      `json:"behavior"`
	// TTL is as its creator wrote it, a Go duration; empty is for ever.
	TTL string `json:"ttl,omitempty"`
	// Checks are kept and shown, and decide nothing.
	NodeChecks    []string        `json:"node_checks,omitempty"`
	ServiceChecks json.RawMessage `json:"service_checks,omitempty"`
	// CreateRevision is set by the state machine. A session never changes.
	CreateRevision uint64 `json:"-"`
}

// Lifetime is the session's TTL; 0 is for ever.
func (s *Session) Lifetime() time.Duration {
	d, err := time.ParseDuration(s.TTL)
	if err != nil {
		return 0
	}
	return d
}

// SessionCreate makes a session. One with the same ID is left as it is.
type SessionCreate struct{ Session Session }

// SessionDestroy ends a session: in one step it is removed, its keys are
// released or deleted, and those cannot be locked for its lock-delay. Ending an
// unknown one succeeds and changes nothing.
type SessionDestroy struct{ ID string }

// Kind implements Command.
func (*SessionCreate) Kind() Kind  { return KindSessionCreate }
func (*SessionDestroy) Kind() Kind { return KindSessionDestroy }

func (c *SessionCreate) append(b []byte) []byte  { return appendJSON(b, &c.Session) }
func (c *SessionDestroy) append(b []byte) []byte { return append(b, c.ID...) }
