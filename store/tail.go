package store

import (
	"bytes"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// tailChanges bounds how much of a tail one transaction takes back.
const tailChanges = flushChanges

// takeBack removes from the file the tail that lies beyond m: changes that were
// written ahead of their meta when the process ended, or that turned out wrong.
// From the last one back, what a key leads to becomes what it led to before. So
// the file holds exactly what m describes, whatever was cut short.
//
// It may be cut short itself: each of its transactions leaves a shorter tail.
func (f *stateFile) takeBack(m meta) error {
	for {
		n := 0
		behind := false
		if err := f.db.View(func(tx *bbolt.Tx) error {
			k, v := tx.Bucket(bucketHistory).Cursor().Last()
			if k == nil || isMark(k, v) {
				return nil
			}
			at, err := positionOf(k)
			behind = at.rev > m.Revision
			return err
		}); err != nil {
			return err
		}
		if !behind {
			return f.restoreTombs(m)
		}
		if err := f.update(func(tx *bbolt.Tx, local *local) error {
			history := tx.Bucket(bucketHistory)
			var drop []position
			cursor := history.Cursor()
			for k, v := cursor.Last(); k != nil && !isMark(k, v) && len(drop) < tailChanges; k, v = cursor.Prev() {
				at, err := positionOf(k)
				if err != nil {
					return err
				}
				if at.rev <= m.Revision {
					break
				}
				var c change
				if err := c.decode(at, v, ""); err != nil {
					return err
				}
				if err := unpoint(tx, m, &c); err != nil {
					return err
				}
				drop = append(drop, at)
			}
			for _, at := range drop {
				key := at.bytes()
				if err := history.Delete(key[:]); err != nil {
					return err
				}
			}
			n = len(drop)
			local.Records -= uint64(n)
			return nil
		}); err != nil {
			return err
		}
	}
}

// A pointer to a delete is lost when its key is written again after the delete was
// forgotten: the new change then names none before it. keepTomb keeps it,
// and restoreTombs puts back those that were there at m.
func keepTomb(tx *bbolt.Tx, tombs *bbolt.Bucket, key []byte) error {
	pointer := tombs.Get(key)
	if pointer == nil {
		return nil
	}
	undo, err := tx.CreateBucketIfNotExists(bucketUndo)
	if err != nil || undo.Get(key) != nil {
		return err
	}
	return undo.Put(key, bytes.Clone(pointer))
}

func (f *stateFile) restoreTombs(m meta) error {
	kept := false
	if err := f.db.View(func(tx *bbolt.Tx) error {
		kept = tx.Bucket(bucketUndo) != nil
		return nil
	}); err != nil || !kept {
		return err
	}
	return f.update(func(tx *bbolt.Tx, _ *local) error {
		keys, tombs := tx.Bucket(bucketKeys), tx.Bucket(bucketTombs)
		if err := tx.Bucket(bucketUndo).ForEach(func(key, pointer []byte) error {
			p, err := decodePointerIn(true, key, pointer)
			if err != nil || p.at.rev > m.Revision {
				return err
			}
			return point(keys, tombs, key, bytes.Clone(pointer), true, false)
		}); err != nil {
			return err
		}
		return tx.DeleteBucket(bucketUndo)
	})
}

// unpoint makes the key of c lead to what it led to before c, unless it leads
// where it did at m: the write that was cut short points only to the newest
// change of a key, and may not have come that far.
func unpoint(tx *bbolt.Tx, m meta, c *change) error {
	if c.table != tableKV {
		return nil // members and cluster are part of meta
	}
	key := bytesOf(c.rec.Key)
	keys, tombs := tx.Bucket(bucketKeys), tx.Bucket(bucketTombs)
	for _, b := range [...]*bbolt.Bucket{keys, tombs} {
		if pointer := b.Get(key); pointer != nil {
			if p, err := decodePointer(key, pointer); err != nil || p.at.rev <= m.Revision {
				return err
			}
			if err := b.Delete(key); err != nil {
				return err
			}
		}
	}
	if c.prev.zero() {
		return nil
	}
	before := c.prev.bytes()
	enc := tx.Bucket(bucketHistory).Get(before[:])
	if enc == nil {
		if c.created() {
			return nil // the delete before it has been forgotten
		}
		return command.ErrDamaged.With("history has no revision %d.%d", c.prev.rev, c.prev.k)
	}
	var p change
	if err := p.decode(c.prev, enc, c.rec.Key); err != nil {
		return err
	}
	return point(keys, tombs, key, encodePointer(nil, &p), p.deleted, false)
}
