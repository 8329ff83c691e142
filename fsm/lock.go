package fsm

import (
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// A key is locked when its record names a session. Then, and only then, there is a
// record of the hold under the session, by which the end of the session finds its
// keys.

// delaysDropped is how many lock-delays that are over the end of a session drops
// beside as many as it makes.
const delaysDropped = 16

// hold names the record that a session holds a key. A session's id has no slash.
func hold(session, key string) string { return store.SpaceHolds + session + "/" + key }

func hasSession(b *store.Batch, id string) (bool, error) {
	_, ok, err := b.Get(store.SpaceSessions + id)
	return ok, err
}

func createSession(b *store.Batch, s *command.Session) error {
	if exists, err := hasSession(b, s.ID); err != nil || exists {
		return err
	}
	b.SetSession(s)
	return nil
}

// destroySession ends a session and gives back what it holds. Whoever held a lock
// may not have noticed yet, so that nobody else gets it before the lock-delay is
// over.
func destroySession(b *store.Batch, id string) error {
	s, ok, err := b.Session(id)
	if err != nil || !ok {
		return err
	}
	holds, err := keysUnder(b, hold(id, ""))
	if err != nil {
		return err
	}
	for _, h := range holds {
		key := h[len(hold(id, "")):]
		if s.Behavior == command.BehaviorDelete {
			err = erase(b, key)
		} else {
			err = free(b, key)
			b.Delete(h)
		}
		if err != nil {
			return err
		}
		if s.LockDelay > 0 {
			if err := keep(b, store.SpaceDelays, key, s.LockDelay, nil); err != nil {
				return err
			}
		}
	}
	b.Delete(store.SpaceSessions + id)
	return dropExpired(b, store.SpaceDelays, delaysDropped+len(holds))
}

func acquire(b *store.Batch, c *command.Put) (command.Result, error) {
	if ok, err := hasSession(b, c.Session); err != nil || !ok {
		return command.Result{Err: command.ErrInvalidSession.With("%q", c.Session)}, err
	}
	return alone(b, command.VerbLock, c)
}

// alone carries out a put as the only operation of a transaction.
func alone(b *store.Batch, verb command.Verb, c *command.Put) (command.Result, error) {
	d := newDraft(b)
	_, what, err := d.write(&command.TxnOp{Verb: verb, Key: c.Key, Value: c.Value, Flags: c.Flags, Session: c.Session})
	if err != nil || what != "" {
		return command.Result{}, err
	}
	return command.Result{OK: true}, d.apply()
}

// delayed reports whether the key was lost by a session too recently to be locked.
func delayed(b *store.Batch, key string) (bool, error) {
	_, ok, err := kept(b, store.SpaceDelays, key)
	return ok, err
}

// putLocked makes rec the record of its key, which was held by a session before,
// or by none, and lets the holds follow.
func putLocked(b *store.Batch, before string, rec *command.Record) error {
	b.Put(*rec)
	if rec.Session == before {
		return nil
	}
	if before != "" {
		b.Delete(hold(before, rec.Key))
	}
	if rec.Session == "" {
		return nil
	}
	b.Put(command.Record{Key: hold(rec.Session, rec.Key), CreateRevision: b.NextRevision()})
	return drop(b, store.SpaceDelays, rec.Key) // it is over
}

// free takes the session off a locked key. The rest of it stays.
func free(b *store.Batch, key string) error {
	rec, _, err := b.Get(key)
	if err == nil {
		rec.Session = ""
		b.Put(rec)
	}
	return err
}
