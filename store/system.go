package store

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/holdfast-db/holdfast/command"
)

// The cluster's own replicated records lie in the same tree as the users' keys,
// under names that no user key can have since they begin with a zero byte. So
// they are part of history and lineage, of every copy and delta, are scrubbed and
// repaired, and revisions count them, without anything of their own. What users
// see leaves them out: scans and changes under the empty prefix, the number of
// keys, the size of the data, and the revision at which any key changed.
const (
	systemSpace = "\x00"
	// SpaceSessions holds a command.Session as JSON under its ID.
	SpaceSessions = systemSpace + "s/"
	// SpaceHolds has an empty record under SESSION/KEY for each lock that is held.
	SpaceHolds = systemSpace + "h/"
	// SpaceDelays has the keys that cannot be locked until a moment of cluster time.
	SpaceDelays = systemSpace + "d/"
	// SpaceOnce holds the results of writes with idempotency keys.
	SpaceOnce = systemSpace + "i/"
	// SpaceStage holds the pieces of archives that are to be restored.
	SpaceStage = systemSpace + "r/"
	// SpaceBarred has an empty record for each member that may not come back.
	SpaceBarred = systemSpace + "b/"
	// SpaceSettings holds the cluster's settings under their names.
	SpaceSettings = systemSpace + "c/"

	// lastSystemKey is behind all of them.
	lastSystemKey = systemSpace + "\xff"
)

// behindSystem is where a scan of users' keys begins.
func behindSystem(prefix, after string) string {
	if prefix == "" {
		return max(after, lastSystemKey)
	}
	return after
}

// KeptName is the record that a space has under a name, for spaces that keep records
// until a moment of cluster time.
func KeptName(space, name string) string { return space + "k/" + name }

func isSystem(key string) bool { return strings.HasPrefix(key, systemSpace) }

// user reports whether the change is one of a user's key.
func (c *change) user() bool { return c.table == tableKV && !isSystem(c.rec.Key) }

// Session returns a session, or command.ErrSessionNotFound.
func (v *View) Session(id string) (command.Session, error) {
	rec, err := v.Get(SpaceSessions + id)
	if errors.Is(err, command.ErrKeyNotFound) {
		err = command.ErrSessionNotFound
	}
	if err != nil {
		return command.Session{}, err
	}
	return sessionOf(&rec)
}

// Sessions calls fn for each session, in the order of their IDs, until fn returns
// false.
func (v *View) Sessions(fn func(command.Session) bool) error {
	var bad error
	err := v.Scan(SpaceSessions, "", func(rec command.Record) bool {
		var s command.Session
		s, bad = sessionOf(&rec)
		return bad == nil && fn(s)
	})
	return errors.Join(err, bad)
}

// Session returns a session as the batch leaves it so far.
func (b *Batch) Session(id string) (s command.Session, ok bool, err error) {
	rec, ok, err := b.Get(SpaceSessions + id)
	if err == nil && ok {
		s, err = sessionOf(&rec)
	}
	return s, ok, b.fail(err)
}

// SetSession adds a session.
func (b *Batch) SetSession(s *command.Session) {
	b.Put(command.Record{Key: SpaceSessions + s.ID, Value: mustJSON(s), CreateRevision: b.NextRevision()})
}

// SessionsRevision is the last revision at which a session was created or ended.
func (v *View) SessionsRevision() uint64 { return v.gen.meta.SessionsRevision }

// Setting returns one of the cluster's settings and its revision, 0 when it was
// never set.
func (v *View) Setting(name string) (value []byte, revision uint64, err error) {
	rec, err := v.Get(SpaceSettings + name)
	if errors.Is(err, command.ErrKeyNotFound) {
		return nil, 0, nil
	}
	return rec.Value, rec.ModifyRevision, err
}

// Remembers reports whether the result of a write with an idempotency key is kept.
func (v *View) Remembers(onceKey string) (bool, error) {
	_, err := v.Get(KeptName(SpaceOnce, onceKey))
	if errors.Is(err, command.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Barred reports whether the member of an ID was removed for good.
func (v *View) Barred(id string) (bool, error) {
	_, err := v.Get(SpaceBarred + id)
	if errors.Is(err, command.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

func sessionOf(rec *command.Record) (s command.Session, err error) {
	if err = json.Unmarshal(rec.Value, &s); err != nil {
		return s, command.ErrDamaged.With("session %q: %v", rec.Key[len(SpaceSessions):], err)
	}
	s.CreateRevision = rec.CreateRevision
	return s, nil
}
