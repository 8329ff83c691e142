package store

import (
	"encoding/binary"

	"github.com/holdfast-db/holdfast/command"
)

// History is an append-only log of every change, ordered by position. What is
// in the file comes first, then the frozen layer, then the active one; while a
// flush is between its commit and the drop of the frozen layer the two overlap,
// which is why a walk goes on from the last position it saw.

// historyPage is one piece of history, as WriteCopy sends it: for each change
//
//	position (12) | length (4) | encoding
type historyPage struct {
	data    []byte
	records int
	last    position // of the last change in data
}

func (p *historyPage) add(at position, enc []byte) {
	b := at.bytes()
	p.data = append(p.data, b[:]...)
	p.data = binary.BigEndian.AppendUint32(p.data, uint32(len(enc)))
	p.data = append(p.data, enc...)
	p.records++
	p.last = at
}

// historyAfter fills p with the changes after a position and up to a revision,
// until it holds limit bytes; every change's checksum is verified. An empty
// page means that there are no more.
func (o *overlay) historyAfter(after position, through uint64, limit int, p *historyPage) error {
	p.data, p.records, p.last = p.data[:0], 0, after
	t, err := o.tx()
	if err != nil {
		return err
	}
	next := position{after.rev, after.k + 1}
	key := next.bytes()
	cursor, err := t.cursor(bucketHistory)
	if err != nil {
		return err
	}
	c := fileCursor{c: cursor}
	for err = c.seek(key[:]); err == nil && c.k != nil && len(p.data) < limit; err = c.next() {
		at, err := positionOf(c.k)
		if err != nil {
			return err
		}
		if at.rev > through {
			return nil
		}
		if len(c.v) <= bodyOffset(at) || binary.BigEndian.Uint32(c.v) != changeSum(at, c.v[4:]) {
			return command.ErrDamaged.With("checksum of revision %d.%d", at.rev, at.k)
		}
		p.add(at, c.v)
	}
	if err != nil {
		return err
	}
	for _, l := range [...]*layer{o.under, o.top} {
		if l == nil {
			continue
		}
		for _, c := range l.history[l.from(position{p.last.rev, p.last.k + 1}):] {
			if c.at.rev > through || len(p.data) >= limit {
				return nil
			}
			p.add(c.at, c.enc)
		}
	}
	return nil
}

// eachChange splits a page into its changes, which share memory with it.
func eachChange(page []byte, fn func(at position, enc []byte) error) error {
	const head = positionSize + 4
	for len(page) > 0 {
		if len(page) < head {
			return command.ErrDamaged.With("copy: page of history ends within a header")
		}
		at, err := positionOf(page[:positionSize])
		if err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(page[positionSize:])
		page = page[head:]
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
