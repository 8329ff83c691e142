package store

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// The scrub reads everything in the state file once in a period, so that damage is
// found while another node still has what was lost, and not when a reader needs
// it. It looks at
//
//   - each record of history: its checksum, its order, and, from the compaction
//     point on, that none is missing;
//   - each pointer: its checksum, and that it leads to a record of its key;
//   - how many keys there are, which shows what a bad page hides.
//
// What it reads comes through the page cache, as for any reader.

const (
	// scrubPage is how much is read under one view, and scrubPageTime how long that
	// may take.
	scrubPage     = 256 << 10
	scrubPageTime = 20 * time.Millisecond
	// scrubCountTime bounds the view under which all keys are counted. A file that
	// takes longer goes uncounted.
	scrubCountTime = 8 * time.Second
	// scrubSlack is the part of a period that a pass leaves over.
	scrubSlack = 10
)

// runScrub makes one pass after the other, until stop.
func (s *State) runScrub() {
	for {
		began := time.Now()
		err := s.scrub(s.scrubPace())
		switch {
		case errors.Is(err, command.ErrStopping):
			return
		case err != nil:
			s.log.Warn("scrub of the state file ended early", "error", err)
		default:
			s.scrubbed.Store(time.Now().UnixNano())
			s.log.Debug("state file scrubbed", "took", time.Since(began))
		}
		select {
		case <-time.After(max(time.Second, s.cfg.ScrubPeriod-time.Since(began))):
		case <-s.stop:
			return
		}
	}
}

// scrubPace returns the pause after a page of so many bytes, with which a pass
// over the file as large as it is now fills the period.
func (s *State) scrubPace() func(bytes int) error {
	size := int64(1)
	_ = s.scrubView(func(t *fileTx, _ *meta) error {
		size = max(size, t.tx.Size())
		return nil
	})
	period := s.cfg.ScrubPeriod - s.cfg.ScrubPeriod/scrubSlack
	return func(bytes int) error {
		select {
		case <-time.After(time.Duration(float64(period) * min(float64(bytes)/float64(size), 1))):
			return nil
		case <-s.stop:
			return command.ErrStopping
		}
	}
}

// scrub makes one pass. What it finds is on the list of damage; an error is why it
// did not come to the end.
func (s *State) scrub(pause func(bytes int) error) error {
	for _, part := range []func(pause func(int) error) error{s.scrubHistory, s.scrubPointers} {
		if err := part(pause); err != nil {
			return err
		}
	}
	return s.scrubCount()
}

// scrubView runs fn on the file alone. Damage that fn returns has been noted; the
// pass goes on after it.
func (s *State) scrubView(fn func(t *fileTx, m *meta) error) error {
	v, err := s.fileView()
	if err != nil {
		return err
	}
	defer v.Close()
	if err := fn(v.file, &v.gen.meta); !errors.Is(err, command.ErrDamaged) {
		return err
	}
	return nil
}

// scrubTable reads a table in pages, each under a view of its own, and has look judge
// what stands in it until look returns false. end judges the table as a whole, if it
// could be read to its end. Behind a page that cannot be read the pass goes on, unless
// it gets no further.
func (s *State) scrubTable(table []byte, pause func(int) error,
	look func(t *fileTx, m *meta, k, v []byte) bool, end func(m *meta) error,
) error {
	for next, more := []byte(nil), true; more; {
		size, first := 0, bytes.Clone(next)
		if err := s.scrubView(func(t *fileTx, m *meta) error {
			more = false
			c, err := t.cursor(table)
			if err != nil {
				return t.noted(damagedFile(err))
			}
			cursor, began := fileCursor{c: c}, time.Now()
			for err = cursor.seek(next); err == nil && cursor.k != nil; err = cursor.next() {
				if !look(t, m, cursor.k, cursor.v) {
					break
				}
				next = append(append(next[:0], cursor.k...), 0)
				size += len(cursor.k) + len(cursor.v)
				if size >= scrubPage || time.Since(began) > scrubPageTime {
					more = true
					break
				}
			}
			switch {
			case err != nil:
				more = bytes.Compare(first, next) < 0
			case !more:
				err = t.noted(end(m))
			}
			return t.noted(damagedFile(err))
		}); err != nil {
			return err
		}
		if err := pause(size); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) scrubHistory(pause func(int) error) error {
	var last continuity
	return s.scrubTable(bucketHistory, pause, func(t *fileTx, m *meta, k, v []byte) bool {
		at, err := positionOf(k)
		if err != nil {
			_ = t.noted(damagedAt(bucketHistory, k, err))
			return true
		}
		if at.rev > m.Revision {
			return false // a flush is at work on it
		}
		var ch change
		if err := ch.decode(at, v, ""); err != nil {
			_ = t.noted(damagedChange(at, err))
			last = continuity{}
		} else if err := last.take(at, m.Oldest); err != nil {
			_ = t.noted(err)
		}
		return true
	}, func(m *meta) error { return last.end(m.Revision, m.Oldest) })
}

func (s *State) scrubPointers(pause func(int) error) error {
	for _, table := range [][]byte{bucketKeys, bucketTombs} {
		deleted := string(table) == string(bucketTombs)
		if err := s.scrubTable(table, pause, func(t *fileTx, m *meta, k, v []byte) bool {
			_ = t.noted(damagedAt(table, k, t.leads(k, v, deleted, m.Oldest)))
			return true
		}, func(*meta) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// leads reports what is wrong with a key's pointer: it must lead to a change of
// that key, which deletes it or not as the table says. A delete below the
// compaction point may be gone.
func (t *fileTx) leads(key, pointer []byte, deleted bool, oldest uint64) error {
	p, err := decodePointer(key, pointer)
	if err != nil || deleted && p.at.rev < oldest {
		return err
	}
	at := p.at
	var c change
	switch ok, err := t.change(at, string(key), &c); {
	case err != nil:
		return nil // noted there
	case !ok:
		return t.noted(damagedChange(at, command.ErrDamaged.With("history has no revision %d.%d, which key %q leads to", at.rev, at.k, key)))
	case c.deleted != deleted:
		return command.ErrDamaged.With("pointer of key %q leads to a change of the other kind", key)
	case c.pointer() != p:
		return command.ErrDamaged.With("pointer of key %q does not say what its change does", key)
	}
	return nil
}

// scrubCount compares the number of keys with what the file says of itself, under
// one view.
func (s *State) scrubCount() error {
	return s.scrubView(func(t *fileTx, _ *meta) error {
		var m meta
		if err := guarded(func() error { return openJSON("state", t.tx.Bucket(bucketMeta).Get(recordState), &m) }); err != nil {
			return t.noted(damagedFile(err))
		}
		if last, err := t.last(); err != nil || last.rev > m.Revision {
			return t.noted(damagedFile(err)) // a flush is at work: the tables are ahead
		}
		c, err := t.cursor(bucketKeys)
		if err != nil {
			return t.noted(damagedFile(err))
		}
		cursor, began, n := fileCursor{c: c}, time.Now(), uint64(0)
		for err = cursor.seek(nil); err == nil && cursor.k != nil; err = cursor.next() {
			if n++; n%4096 == 0 && time.Since(began) > scrubCountTime {
				return nil
			}
		}
		if err == nil && n != m.Keys {
			err = &damageError{table: string(bucketKeys), problem: fmt.Sprintf("%d keys are found of %d", n, m.Keys)}
		}
		return t.noted(damagedFile(err))
	})
}

// last is the position at which history ends.
func (t *fileTx) last() (position, error) {
	c, err := t.cursor(bucketHistory)
	if err != nil {
		return position{}, err
	}
	cursor := fileCursor{c: c}
	if err := cursor.move(cursor.c.Last); err != nil || cursor.k == nil {
		return position{}, err
	}
	return positionOf(cursor.k)
}
