package store

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// A builder makes a state file from the pages of another one: its history up to
// a revision, the anchor; then what its keys lead to, in the order of the keys;
// then the history made meanwhile. So all but the last part comes in the order of
// its table, and a bulkFile takes it; for the rest the file is opened as usual. A
// pointer may lead beyond the anchor, since it is read later than the history
// before it; the history that follows sets it right.
//
// Pages are verified when they are handed in, and written by a goroutine of the
// builder's own. Nothing is synced before finish, but what has been written is
// pushed to the disk steadily, so that finish does not take long and other files'
// syncs do not wait behind it.
type builder struct {
	stateFile // open once the bulk is sealed
	disk      *os.File
	path      string
	reserve   int64      // address space to map
	from      copyHeader // Revision is the anchor
	dropped   uint64     // the highest point any source had dropped records for

	// What has been handed in. These belong to the caller.
	stage   buildStage
	next    position        // where history goes on
	lineage command.Lineage // of the last revision
	key     string          // the last one
	reach   uint64          // the highest revision anything belongs to

	piece  piece
	pieces chan piece
	spare  chan []byte
	writer sync.WaitGroup
	failed atomic.Pointer[error]

	// These belong to the writer.
	bulk     bulk
	unit     int // of write-back
	unpushed int
	pushing  chan error // nil while no push is under way
	pace     pace
}

type buildStage uint8

const (
	buildHistory buildStage = iota // up to the anchor
	buildKeys
	buildRounds // history after the anchor
)

// bulk is what is written before the file is opened.
type bulk struct {
	file                 *bulkFile
	history, keys, tombs *bulkTable
}

// piece is what the writer takes at once. Its pages are of one stage.
type piece struct {
	stage buildStage
	pages [][]byte
	bytes int
}

const (
	// pieceBytes is how much the writer takes at once.
	pieceBytes = 1 << 20
	// pieceQueue pieces may wait for the writer.
	pieceQueue = 4
	// writeBackUnit is how many bytes are pushed to the disk at once.
	writeBackUnit = 16 << 20
	// keysFill leaves some room in the pages of keys, as those fill up at random.
	keysFill = 0.9
)

// newBuilder creates the file at path. reserve is the address space to map.
func newBuilder(path string, from *copyHeader, reserve int64) (*builder, error) {
	disk, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	b := &builder{
		disk: disk, path: path, reserve: reserve, from: *from, dropped: from.Compaction.Target,
		unit:  writeBackUnit,
		spare: make(chan []byte, (pieceQueue+2)*pieceBytes/copyPage),
	}
	b.bulk.file = newBulkFile(disk)
	b.bulk.history = b.bulk.file.table(1)
	b.bulk.keys, b.bulk.tombs = b.bulk.file.table(keysFill), b.bulk.file.table(keysFill)
	return b, nil
}

// open makes of the bulk a file that can be read and written, with a meta that
// says nothing yet.
func (b *builder) open() error {
	if b.db != nil {
		return nil
	}
	head := b.bulk.file.table(1)
	for _, r := range []struct {
		name []byte
		v    any
	}{{recordLocal, local{Records: b.bulk.history.records}}, {recordMembers, []member(nil)}, {recordState, meta{Format: stateFormat}}} {
		if err := head.put(r.name, sealJSON(r.v)); err != nil {
			return err
		}
	}
	if err := b.bulk.file.seal([]bulkBucket{
		{bucketHistory, b.bulk.history}, {bucketKeys, b.bulk.keys}, {bucketMeta, head}, {bucketTombs, b.bulk.tombs},
	}); err != nil {
		return err
	}
	b.bulk = bulk{}
	db, err := bbolt.Open(b.path, 0o600, &bbolt.Options{
		FreelistType: bbolt.FreelistMapType, NoSync: true, NoGrowSync: true, NoStatistics: true, InitialMmapSize: int(b.reserve),
	})
	b.db = db
	return err
}

// start makes the builder take pages, until drain.
func (b *builder) start() {
	b.pieces = make(chan piece, pieceQueue)
	b.writer.Go(func() {
		for p := range b.pieces {
			if b.err() == nil {
				if err := b.write(p); err != nil {
					b.failed.CompareAndSwap(nil, &err)
				}
			}
			for _, page := range p.pages {
				b.recycle(page)
			}
		}
	})
}

// drain waits until everything that was handed in is in the file.
func (b *builder) drain() error {
	b.handOver()
	close(b.pieces)
	b.writer.Wait()
	b.pieces = nil
	return b.err()
}

func (b *builder) err() error {
	if p := b.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// buffer returns memory for a page.
func (b *builder) buffer() []byte {
	select {
	case page := <-b.spare:
		return page[:0]
	default:
		return make([]byte, 0, copyPage+copyPage/4)
	}
}

func (b *builder) recycle(page []byte) {
	if cap(page) > 4*copyPage {
		return // of one huge record
	}
	select {
	case b.spare <- page:
	default:
	}
}

// history takes in a page of history, which becomes the builder's. It must
// follow what was taken in before, and lie on one side of the anchor.
func (b *builder) history(page []byte) error {
	stage, next, n := b.stage, b.next, uint64(0)
	err := eachChange(page, func(at position, enc []byte) error {
		side := buildHistory
		if at.rev > b.from.Revision {
			side = buildRounds
		}
		switch {
		case at.less(next) || side < stage || n > 0 && side != stage:
			return command.ErrDamaged.With("revision %d.%d comes after the place it belongs to", at.rev, at.k)
		case at.k == 0 && len(enc) < 4+len(b.lineage):
			return command.ErrDamaged.With("fields of revision %d.%d", at.rev, at.k)
		case at.k == 0:
			copy(b.lineage[:], enc[4:])
		}
		stage, next = side, position{at.rev, at.k + 1}
		n++
		return checkChange(at, enc)
	})
	if err != nil || n == 0 {
		return err
	}
	b.stage, b.next, b.reach = stage, next, max(b.reach, next.rev)
	return b.put(stage, page)
}

// pointers takes in a page of pointers, which becomes the builder's.
func (b *builder) pointers(page []byte) error {
	if b.stage > buildKeys {
		return command.ErrDamaged.With("keys come after later history")
	}
	last := b.key
	var key []byte
	err := eachPointer(page, func(k, pointer []byte, deleted bool) error {
		if textOf(k) <= last {
			return command.ErrDamaged.With("key %q comes after the place it belongs to", k)
		}
		p, err := decodePointerIn(deleted, k, pointer)
		if err != nil {
			return err
		}
		b.reach = max(b.reach, p.at.rev)
		key, last = k, textOf(k)
		return nil
	})
	if err != nil {
		return err
	}
	if key != nil {
		b.key = string(key)
	}
	b.stage = buildKeys
	return b.put(buildKeys, page)
}

// put hands a verified page to the writer.
func (b *builder) put(stage buildStage, page []byte) error {
	if b.piece.stage != stage {
		b.handOver()
		b.piece.stage = stage
	}
	b.piece.pages = append(b.piece.pages, page)
	if b.piece.bytes += len(page); b.piece.bytes >= pieceBytes {
		b.handOver()
	}
	return b.err()
}

func (b *builder) handOver() {
	if len(b.piece.pages) > 0 {
		b.pieces <- b.piece
	}
	b.piece = piece{stage: b.piece.stage}
}

// write puts a piece into the file.
func (b *builder) write(p piece) error {
	var err error
	switch p.stage {
	case buildHistory:
		err = p.each(func(page []byte) error {
			return eachChange(page, func(at position, enc []byte) error {
				key := at.bytes()
				return b.bulk.history.put(key[:], enc)
			})
		})
	case buildKeys:
		err = p.each(func(page []byte) error {
			return eachPointer(page, func(key, pointer []byte, deleted bool) error {
				if deleted {
					return b.bulk.tombs.put(key, pointer)
				}
				return b.bulk.keys.put(key, pointer)
			})
		})
	case buildRounds:
		if err := b.open(); err != nil {
			return err
		}
		var changes []*change
		err = p.each(func(page []byte) error {
			return eachChange(page, func(at position, enc []byte) error {
				c := &change{}
				changes = append(changes, c)
				return c.decode(at, enc, "")
			})
		})
		for len(changes) > 0 && err == nil {
			n := min(len(changes), flushChanges)
			err = b.extend(changes[:n], true, newestOf(changes[:n]))
			changes = changes[n:]
		}
	}
	if err != nil {
		return err
	}
	b.pace.after(p.bytes)
	return b.writeBack(p.bytes)
}

func (p *piece) each(fn func(page []byte) error) error {
	for _, page := range p.pages {
		if err := fn(page); err != nil {
			return err
		}
	}
	return nil
}

// newestOf tells which changes are the newest of their key.
func newestOf(changes []*change) func(*change) bool {
	newest := make(map[string]*change, len(changes))
	for _, c := range changes {
		if c.table == tableKV {
			newest[c.rec.Key] = c
		}
	}
	return func(c *change) bool { return newest[c.rec.Key] == c }
}

// extend stores changes that follow what is in the file, ahead of its meta, as
// putChanges does. With whole they will never be taken back.
func (f *stateFile) extend(changes []*change, whole bool, newest func(*change) bool) error {
	return f.update(func(tx *bbolt.Tx, local *local) error {
		local.Records += uint64(len(changes))
		return putChanges(tx, changes, whole, newest)
	})
}

// writeBack counts what was written and pushes it to the disk from time to time,
// while the writer goes on. No more than two units are on their way.
func (b *builder) writeBack(bytes int) error {
	if b.unpushed += bytes; b.unpushed < b.unit {
		return nil
	}
	b.unpushed = 0
	if err := b.pushed(); err != nil {
		return err
	}
	done := make(chan error, 1)
	b.pushing = done
	go func() { done <- pushToDisk(b.disk) }()
	return nil
}

// sync makes what was written durable, though the file may not be complete. The
// builder must have been drained.
func (b *builder) sync() error {
	if err := b.pushed(); err != nil {
		return err
	}
	b.unpushed = 0
	return b.disk.Sync()
}

// pushed waits until the push under way has begun.
func (b *builder) pushed() error {
	if b.pushing == nil {
		return nil
	}
	err := <-b.pushing
	b.pushing = nil
	return err
}

// joinedBy notes how far another source of the same copy has got with dropping
// records. What the file lacks is as if the least of them had dropped it.
func (b *builder) joinedBy(c *local) {
	b.dropped = max(b.dropped, c.Target)
	if c.next().less(b.from.Compaction.next()) {
		b.from.Compaction = *c
	}
}

// resume says where a copy that broke off goes on.
func (b *builder) resume() *copyResume {
	return &copyResume{
		Anchor: b.from.Revision, Lineage: b.from.Lineage, Stage: b.stage, NextRev: b.next.rev, NextK: b.next.k,
		Key: []byte(b.key), Reach: b.reach, Compaction: b.from.Compaction, Dropped: b.dropped,
	}
}

// complete verifies the whole against what a received copy says of itself, and
// makes the file durable with it.
func (b *builder) complete(state *copyState) error {
	if err := b.check(&state.Meta); err != nil {
		return err
	}
	return b.finish(func(tx *bbolt.Tx) error {
		return putMeta(tx, state.Meta, state.Members, true)
	})
}

// check compares what was taken in with what the state says of itself.
func (b *builder) check(m *meta) error {
	if err := checkFormat(m.Format); err != nil {
		return err
	}
	last := b.next.rev
	switch {
	case b.reach > m.Revision:
		return command.ErrDamaged.With("the state is at revision %d, its parts are of %d", m.Revision, b.reach)
	case last != m.Revision:
		return command.ErrDamaged.With("history ends at revision %d, the state is at %d", last, m.Revision)
	case last > 0 && b.lineage != command.Lineage(m.Lineage):
		return command.ErrDamaged.With("lineage of revision %d", m.Revision)
	}
	if err := b.open(); err != nil {
		return err
	}
	keys := uint64(0)
	if err := b.db.View(func(tx *bbolt.Tx) error {
		keys = uint64(tx.Bucket(bucketKeys).Stats().KeyN) - 1 // the table's mark
		return nil
	}); err != nil {
		return err
	}
	if keys != m.Keys {
		return command.ErrDamaged.With("%d keys came, the state has %d", keys, m.Keys)
	}
	return nil
}

// finish stores what is neither history nor keys, and makes the file durable.
// The builder must have been drained and checked.
func (b *builder) finish(put func(tx *bbolt.Tx) error) error {
	if err := b.update(func(tx *bbolt.Tx, local *local) error {
		c := &b.from.Compaction
		local.Target, local.NextRev, local.NextK = c.Target, c.NextRev, c.NextK
		return put(tx)
	}); err != nil {
		return err
	}
	return b.sync()
}

// close ends the use of the file, which stays.
func (b *builder) close() error {
	err := b.pushed()
	if b.db != nil {
		err = errors.Join(err, b.db.Close())
	}
	return errors.Join(err, b.disk.Close())
}

// discard gives the file up.
func (b *builder) discard() {
	if b.pieces != nil {
		_ = b.drain()
	}
	_ = b.close()
	_ = os.Remove(b.path)
}

// A page of pointers holds for each key
//
//	length of the key, and the top bit when it is deleted (2) |
//	length of the pointer (1) | pointer | key
const (
	pointerHead    = 2 + 1
	pointerDeleted = 1 << 15
)

func appendPointer(page []byte, key string, p pointer) []byte {
	n := uint16(len(key))
	if p.deleted {
		n |= pointerDeleted
	}
	page = append(binary.BigEndian.AppendUint16(page, n), 0)
	start := len(page)
	page = p.append(page, bytesOf(key))
	page[start-1] = byte(len(page) - start)
	return append(page, key...)
}

// countPointers is how many pointers a page holds, if it is whole.
func countPointers(page []byte) (n uint64) {
	_ = eachPointer(page, func(_, _ []byte, _ bool) error { n++; return nil })
	return n
}

// eachPointer splits a page into its pointers, which share memory with it.
func eachPointer(page []byte, fn func(key, pointer []byte, deleted bool) error) error {
	for len(page) > 0 {
		if len(page) < pointerHead {
			return command.ErrDamaged.With("a page of keys ends within a pointer")
		}
		n := binary.BigEndian.Uint16(page)
		name := pointerHead + int(page[2])
		size := name + int(n&^pointerDeleted)
		if size == name || size > len(page) {
			return command.ErrDamaged.With("a page of keys ends within a key")
		}
		if err := fn(page[name:size:size], page[pointerHead:name:name], n&pointerDeleted != 0); err != nil {
			return err
		}
		page = page[size:]
	}
	return nil
}
