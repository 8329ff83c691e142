package store

import (
	"encoding/binary"

	"github.com/holdfast-db/holdfast/command"
)

// History is an append-only log of every change, ordered by position. What is
// in the file comes first, then the frozen layer, then the active one; while a
// flush is between its commit and the drop of the frozen layer the two overlap,
// which is why a walk goes on from the last position it saw.

// A page of history, as a copy carries it, holds for each change
//
//	position (12) | length (4) | encoding
const changeHead = positionSize + 4

func appendChange(page []byte, at position, enc []byte) []byte {
	b := at.bytes()
	page = append(page, b[:]...)
	page = binary.BigEndian.AppendUint32(page, uint32(len(enc)))
	return append(page, enc...)
}

// walk calls fn for each change from a position on, up to a revision, in order,
// until fn returns false or an error. The encoding's checksum has been verified;
// it is valid until the overlay is closed. through must not be beyond the state's
// revision: that a change is missing is damage.
func (o *overlay) walk(from position, through uint64, fn func(at position, enc []byte) (bool, error)) error {
	t, err := o.tx()
	if err != nil {
		return err
	}
	cursor, err := t.cursor(bucketHistory)
	if err != nil {
		return err
	}
	key := from.bytes()
	c := fileCursor{c: cursor}
	order := continuityFrom(from, o.oldest)
	for err = c.seek(key[:]); err == nil && c.k != nil; err = c.next() {
		at, err := positionOf(c.k)
		if err != nil {
			return t.noted(damagedAt(bucketHistory, c.k, err))
		}
		if err := order.take(at, o.oldest); err != nil {
			return t.noted(err)
		}
		if at.rev > through {
			return nil
		}
		if err := checkChange(at, c.v); err != nil {
			return t.noted(damagedChange(at, err))
		}
		if more, err := fn(at, c.v); err != nil || !more {
			return err
		}
		from = position{at.rev, at.k + 1}
	}
	if err != nil {
		return t.noted(damagedFile(err))
	}
	for _, l := range [...]*layer{o.under, o.top} {
		if l == nil {
			continue
		}
		for _, c := range l.history[l.from(from):] {
			if err := order.take(c.at, o.oldest); err != nil {
				return t.noted(err)
			}
			if c.at.rev > through {
				return nil
			}
			if more, err := fn(c.at, c.enc); err != nil || !more {
				return err
			}
			from = position{c.at.rev, c.at.k + 1}
		}
	}
	return t.noted(order.end(through, o.oldest))
}

// eachChange splits a page into its changes, which share memory with it.
func eachChange(page []byte, fn func(at position, enc []byte) error) error {
	for len(page) > 0 {
		if len(page) < changeHead {
			return command.ErrDamaged.With("copy: page of history ends within a header")
		}
		at, err := positionOf(page[:positionSize])
		if err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(page[positionSize:])
		page = page[changeHead:]
		if uint64(n) > uint64(len(page)) {
			return command.ErrDamaged.With("copy: page of history ends within revision %d.%d", at.rev, at.k)
		}
		if err := fn(at, page[:n:n]); err != nil {
			return err
		}
		page = page[n:]
	}
	return nil
}

// countChanges is how many changes a page holds, if it is whole.
func countChanges(page []byte) (n uint64) {
	_ = eachChange(page, func(position, []byte) error { n++; return nil })
	return n
}
