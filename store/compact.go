package store

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// Compaction has two halves. The compaction point is part of the replicated
// state: from the entry that raises it on, every node answers ErrCompacted below
// it. What becomes superfluous is dropped from each file later, by the flusher,
// in steps so small that no write waits for one.
//
// At a point T all records of revision T and later are kept, and of each key the
// last one before it. So a record below T is superfluous when a later one of its
// key is at or below T, and so is a delete below T. Since each record names the
// one before it, one walk over the records up to T finds them all, and the walk
// for the next point goes on where this one ended.

const (
	// compactChanges bounds the records one step looks at. Each may drop one from
	// a page of its own.
	compactChanges = 2048
	// compactPause is the shortest time between two steps. A step that took longer
	// is followed by compactShare times as long a pause, since it shares the disk
	// with the log.
	compactPause = 10 * time.Millisecond
	compactShare = 1
)

// compactTarget is the point records may be dropped for: what the file itself
// says.
func (s *State) compactTarget() uint64 { return s.durable.Load().meta.Oldest }

// holdCompaction keeps all records in the file until release is called, whatever
// the compaction point, and returns how far dropping has got. Who reads a state in
// more than one view needs that: of a key that was deleted, the delete might be
// dropped after the record that it deletes was read.
func (s *State) holdCompaction() (done local, release func()) {
	c := &s.copies
	c.held.Add(1)
	c.dropping.Lock() // a step under way ends
	defer c.dropping.Unlock()
	return s.gen.Load().file.local(), sync.OnceFunc(func() {
		c.held.Add(-1)
		s.nudge()
	})
}

// compactDue reports whether superfluous records may be left and may be dropped.
func (s *State) compactDue() bool {
	l := s.gen.Load().file.local()
	return s.copies.held.Load() == 0 && (l.NextRev <= l.Target && l.Target > 0 || s.compactTarget() > l.Target)
}

// compactOnce drops some superfluous records, if there are any. An error is
// damage, want of space, or has ended the store's life.
func (s *State) compactOnce() error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.copies.dropping.Lock()
	defer s.copies.dropping.Unlock()
	if s.copies.held.Load() > 0 {
		return nil
	}
	if err := s.Err(); err != nil {
		return err
	}
	err := s.gen.Load().file.compact(s.compactTarget())
	switch {
	case err == nil:
		return nil
	case canWait(err):
		return fmt.Errorf("compact state: %w", err)
	}
	// Before anybody else may write to the file.
	return s.failWith(fmt.Errorf("compact state: %w", err))
}

// canWait reports whether what failed can be done later: damage is repaired, and a
// disk that is full need not stay so.
func canWait(err error) bool {
	return errors.Is(err, command.ErrDamaged) || diskFull(err)
}

// compact carries out one step towards a target, in one transaction.
func (f *stateFile) compact(target uint64) error {
	return f.update(func(tx *bbolt.Tx, l *local) error {
		if l.NextRev > l.Target && target > l.Target || l.Target == 0 {
			// The records at the point before were kept; they are looked at again.
			l.Target, l.NextRev, l.NextK = target, l.Target, 0
		}
		drop, next, err := superfluous(tx, position{l.NextRev, l.NextK}, l.Target)
		if err != nil {
			return err
		}
		history, tombs := tx.Bucket(bucketHistory), tx.Bucket(bucketTombs)
		for _, d := range drop {
			at := d.at.bytes()
			if history.Get(at[:]) == nil {
				continue // dropped for an earlier point
			}
			if err := history.Delete(at[:]); err != nil {
				return err
			}
			l.Records--
			if d.tomb == "" {
				continue
			}
			key := bytesOf(d.tomb)
			if b := tombs.Get(key); b != nil {
				if p, err := decodePointer(key, b); err != nil {
					return err
				} else if p.at == d.at {
					if err := tombs.Delete(key); err != nil {
						return err
					}
				}
			}
		}
		l.NextRev, l.NextK = next.rev, next.k
		return nil
	})
}

// dropped is a superfluous record. tomb is its key when it is a key's delete.
type dropped struct {
	at   position
	tomb string
}

// superfluous looks at the next records from a position on and up to target, and
// returns what they show to be superfluous, and where to go on.
func superfluous(tx *bbolt.Tx, from position, target uint64) (drop []dropped, next position, err error) {
	cursor := tx.Bucket(bucketHistory).Cursor()
	key := from.bytes()
	n := 0
	for k, v := cursor.Seek(key[:]); ; k, v = cursor.Next() {
		if k == nil {
			return drop, position{rev: target + 1}, nil
		}
		at, err := positionOf(k)
		if err != nil {
			return nil, position{}, err
		}
		if at.rev > target {
			return drop, position{rev: target + 1}, nil
		}
		if n++; n > compactChanges {
			return drop, at, nil
		}
		var c change
		if err := c.decode(at, v, ""); err != nil {
			return nil, position{}, err
		}
		if !c.prev.zero() && c.prev.rev < target {
			drop = append(drop, dropped{at: c.prev})
		}
		if c.deleted && at.rev < target {
			d := dropped{at: at}
			if c.table == tableKV {
				d.tomb = c.rec.Key
			}
			drop = append(drop, d)
		}
	}
}

// compactor paces the steps of compaction. It is used by the flusher only.
type compactor struct {
	s     *State
	next  time.Time
	stuck error // why the last step could not be done
}

// due is the time until the next step; ok is false when there is nothing to do.
func (c *compactor) due() (d time.Duration, ok bool) {
	if c.s.Err() != nil || !c.s.compactDue() {
		return 0, false
	}
	return time.Until(c.next), true
}

// step carries out one step and plans the next.
func (c *compactor) step() {
	began := time.Now()
	err := c.s.compactOnce()
	took := time.Since(began)
	c.next = began.Add(took + max(compactPause, compactShare*took))
	switch {
	case err == nil:
		c.stuck = nil
	case canWait(err):
		// Somebody repairs the one and clears the other; until then the file
		// keeps what it could do without.
		if c.stuck == nil || c.stuck.Error() != err.Error() {
			c.s.log.Warn("history is not compacted", "error", err)
		}
		c.stuck = err
		c.next = time.Now().Add(compactRetry)
	}
}

// compactRetry is the pause after a step that could not be done.
const compactRetry = 10 * time.Second
