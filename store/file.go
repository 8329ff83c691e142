package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// The buckets of the state file.
var (
	bucketHistory = []byte("history") // position -> encoded change, append-only
	bucketKeys    = []byte("keys")    // key -> pointer to its last change
	bucketTombs   = []byte("tombs")   // deleted key -> pointer to its delete
	bucketMeta    = []byte("meta")    // the records below
	bucketUndo    = []byte("undo")    // of a tail: key -> the pointer tombs had for it

	recordState   = []byte("state")
	recordMembers = []byte("members")
	recordLocal   = []byte("local")
)

// stateFile is one open state file. It is closed by retire, once no transaction
// uses it any more.
//
// A file may be ahead of its meta: changes are written in several transactions,
// so that none takes much memory, and the last of them moves meta. What lies
// beyond meta is a tail, which whoever opens the file takes back (takeBack).
type stateFile struct {
	db    *bbolt.DB
	users sync.WaitGroup
	// origin changes when another state takes the place of this one: two files of
	// one origin hold the same history.
	origin uint64
	// facts is local as the file has it. One goroutine at a time writes the file,
	// and with it facts.
	facts atomic.Pointer[local]
	// committed is the last transaction that this process has written.
	committed atomic.Int64
	// damage is what was found bad in the file.
	damage damageList
	// disk is told of each transaction; nil where nobody watches.
	disk *Disk
}

func (f *stateFile) local() local {
	if l := f.facts.Load(); l != nil {
		return *l
	}
	return local{}
}

// openStateFile opens or creates a state file and returns what it holds. reserve
// is the address space in bytes to map, so that the map need not move while
// readers hold it. A file that is cut short or fails a check is ErrDamaged.
func openStateFile(path string, reserve int64) (_ *stateFile, m meta, members []member, err error) {
	if err := checkStateFile(path); err != nil {
		return nil, meta{}, nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createStateFile(path); err != nil {
			return nil, meta{}, nil, fmt.Errorf("create state file %s: %w", path, err)
		}
	}
	f := &stateFile{}
	var opened *os.File
	defer func() {
		switch {
		case err == nil:
		case f.db != nil:
			_ = f.db.Close()
		case opened != nil:
			_ = opened.Close() // and with it the lock, if bbolt panicked
		}
	}()
	err = guarded(func() (err error) {
		f.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:         time.Second,
			FreelistType:    bbolt.FreelistMapType,
			InitialMmapSize: int(reserve),
			NoStatistics:    true,
			OpenFile: func(path string, flag int, mode os.FileMode) (file *os.File, err error) {
				opened, err = os.OpenFile(path, flag, mode)
				return opened, err
			},
		})
		return err
	})
	if err != nil {
		return nil, meta{}, nil, fmt.Errorf("open state file %s: %w", path, err)
	}
	err = guarded(func() error {
		if m, members, err = f.load(); err != nil {
			return err
		}
		if err := f.takeBack(m); err != nil {
			return err
		}
		return f.db.View(func(tx *bbolt.Tx) error { return checkHead(tx, m) })
	})
	if err != nil {
		return nil, meta{}, nil, fmt.Errorf("read state file %s: %w", path, err)
	}
	return f, m, members, nil
}

// tableMark is an empty bucket at the front of each table. Without it the library
// would keep a small table within the page of its parent, and read it from a copy
// on the heap, where a damaged page leads to whatever lies beside.
var tableMark = []byte{0}

// isMark reports whether a cursor stands on a table's mark, not on a record.
func isMark(k, v []byte) bool { return v == nil && string(k) == string(tableMark) }

// firstRecord moves a cursor to the first record of a table.
func firstRecord(c *bbolt.Cursor) (k, v []byte) {
	if k, v = c.First(); isMark(k, v) {
		return c.Next()
	}
	return k, v
}

// createStateFile makes an empty state file at path. Until it is whole it goes by
// another name: a first start that is cut short leaves nothing that looks like a
// state. The directory is not synced.
func createStateFile(path string) error {
	unfinished := path + ".new"
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(unfinished, 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType, NoStatistics: true})
	if err != nil {
		return err
	}
	err = createTables(db)
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(unfinished, path)
}

func createTables(db *bbolt.DB) error {
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketHistory, bucketKeys, bucketTombs, bucketMeta} {
			table, err := tx.CreateBucket(name)
			if err != nil {
				return err
			}
			if _, err := table.CreateBucket(tableMark); err != nil {
				return err
			}
		}
		if err := putLocal(tx, local{}); err != nil {
			return err
		}
		return putMeta(tx, meta{Format: stateFormat}, nil, true)
	})
}

// load reads meta, members and local.
func (f *stateFile) load() (m meta, members []member, err error) {
	return m, members, f.db.View(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketHistory, bucketKeys, bucketTombs} {
			if tx.Bucket(name) == nil {
				return command.ErrDamaged.With("table %s is missing", name)
			}
		}
		b := tx.Bucket(bucketMeta)
		if err := openJSON("state", b.Get(recordState), &m); err != nil {
			return err
		}
		if err := checkFormat(m.Format); err != nil {
			return err
		}
		l, err := loadLocal(tx)
		if err != nil {
			return err
		}
		f.facts.Store(&l)
		return openJSON("members", b.Get(recordMembers), &members)
	})
}

func loadLocal(tx *bbolt.Tx) (l local, err error) {
	return l, openJSON("local", tx.Bucket(bucketMeta).Get(recordLocal), &l)
}

func checkFormat(format int) error {
	switch {
	case format > stateFormat:
		return fmt.Errorf("state format %d is newer than this build, which knows %d; use a newer holdfast", format, stateFormat)
	case format < stateFormat:
		return fmt.Errorf("state format %d is older than this build reads, which is %d; move the data directory away and let the node join anew", format, stateFormat)
	}
	return nil
}

// checkHead compares meta with the newest record of history.
func checkHead(tx *bbolt.Tx, m meta) error {
	h := tx.Bucket(bucketHistory)
	first := position{rev: m.Revision}
	key := first.bytes()
	enc := h.Get(key[:])
	if m.Revision == 0 {
		return nil
	}
	if enc == nil {
		return command.ErrDamaged.With("history lacks revision %d, at which the state stands", m.Revision)
	}
	var c change
	if err := c.decode(first, enc, ""); err != nil {
		return err
	}
	if c.lineage() != command.Lineage(m.Lineage) {
		return command.ErrDamaged.With("lineage of revision %d", m.Revision)
	}
	return nil
}

// retire closes the file when its last user has gone. The caller has made sure
// that no new one comes.
func (f *stateFile) retire() error {
	f.users.Wait()
	return f.db.Close()
}

// Bounds of one transaction of a flush. History is appended to, so its pages are
// few; but each key may lie on a page of its own, and a page being changed takes
// some 10 KiB of memory.
const (
	flushBytes   = 4 << 20 // of history
	flushChanges = 4096    // of keys, where pages are not counted
	flushStep    = 128     // keys between two looks at the pages
)

// flushPages bounds the pages of one transaction, where they are counted. Tests
// lower it, so that small flushes take several as well.
var flushPages = 4096

// flush stores a layer, meta and, when members is set, the members table: first
// the history, then the pointers in the order of the keys, so that each page of
// theirs is written once, and with the last of them meta. On return it is durable
// (unless the file was opened without syncing). On error the file may be ahead of
// its meta, by changes of this layer; done says how far it came, and a repeated
// call goes on there.
func (f *stateFile) flush(l *layer, m *meta, members []member, setMembers bool, done *int) error {
	pointed := l.keys.Values()
	for first := *done == 0; ; first = false {
		history := l.history[min(*done, len(l.history)):]
		n, size := 0, 0
		for n < len(history) && size < flushBytes {
			size += len(history[n].enc)
			n++
		}
		var pointers []*change
		if n == len(history) {
			pointers = pointed[max(*done-len(l.history), 0):]
		}
		whole := first && n == len(history) && len(pointers) <= flushChanges
		put, last := 0, false
		err := f.update(func(tx *bbolt.Tx, local *local) error {
			if err := putHistory(tx, history[:n]); err != nil {
				return err
			}
			local.Records += uint64(n)
			for put < len(pointers) && (whole || pages(tx) < flushPages) {
				some := pointers[put:min(put+flushStep, len(pointers))]
				if err := putPointers(tx, leadsTo(some), whole); err != nil {
					return err
				}
				put += len(some)
			}
			if last = n == len(history) && put == len(pointers); last {
				return putHead(tx, *m, members, setMembers)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if *done += n + put; last {
			return nil
		}
	}
}

// pages is how many pages a transaction has taken apart to change them.
func pages(tx *bbolt.Tx) int {
	stats := tx.Stats()
	return int(stats.GetNodeCount())
}

// current refuses a transaction that sees less than this process has written: the
// library takes the header before when the newest one is damaged.
func (f *stateFile) current(tx int64) error {
	if committed := f.committed.Load(); tx < committed {
		return command.ErrDamaged.With("the header of the state file: it is at transaction %d, %d was written", tx, committed)
	}
	return nil
}

// update runs fn in one transaction, which also stores what fn makes of local.
// On return it is durable (unless the file was opened without syncing), on error
// nothing of it is.
func (f *stateFile) update(fn func(tx *bbolt.Tx, local *local) error) error {
	defer f.disk.begin("write the state", patient)()
	var tx *bbolt.Tx
	var was, l local
	err := guarded(func() (err error) {
		if tx, err = f.db.Begin(true); err != nil {
			return err
		}
		if err := f.current(int64(tx.ID()) - 1); err != nil {
			return err
		}
		// As the file has it: a transaction that failed in the end may be in there.
		if was, err = loadLocal(tx); err != nil {
			return err
		}
		l = was
		if err = fn(tx, &l); err != nil {
			return err
		}
		if l != was {
			if err := putLocal(tx, l); err != nil {
				return err
			}
		}
		id := int64(tx.ID())
		if err := tx.Commit(); err != nil {
			return err
		}
		f.committed.Store(id)
		return nil
	})
	if err != nil && tx != nil {
		// Frees the writer's lock; an error says that the commit did it already.
		_ = guarded(tx.Rollback)
	}
	if err == nil {
		f.facts.Store(&l)
	}
	return err
}

// putChanges stores changes, and for those that are the newest of their key, the
// key's pointer to them; whole is as in putPointers.
func putChanges(tx *bbolt.Tx, changes []*change, whole bool, newest func(*change) bool) error {
	if err := putHistory(tx, changes); err != nil {
		return err
	}
	pointed := make([]*change, 0, len(changes))
	for _, c := range changes {
		if c.table == tableKV && newest(c) {
			pointed = append(pointed, c)
		}
	}
	leads := leadsTo(pointed)
	sortByKey(leads) // as they are in the file: neighbours share a page
	return putPointers(tx, leads, whole)
}

func putHistory(tx *bbolt.Tx, changes []*change) error {
	history := tx.Bucket(bucketHistory)
	history.FillPercent = 1 // only ever appended to
	for _, c := range changes {
		at := c.at.bytes()
		if err := history.Put(at[:], c.enc); err != nil {
			return fmt.Errorf("store revision %d.%d: %w", c.at.rev, c.at.k, err)
		}
	}
	return nil
}

// leadsTo are the keys of changes, and the pointers to them.
func leadsTo(changes []*change) []lead {
	leads := make([]lead, len(changes))
	for i, c := range changes {
		leads[i] = lead{c.rec.Key, c.pointer()}
	}
	return leads
}

func sortByKey(leads []lead) {
	slices.SortFunc(leads, func(a, b lead) int { return strings.Compare(a.key, b.key) })
}

// putPointers stores the pointers of keys. Unless the same transaction also moves
// meta, which whole says, it keeps what takeBack needs beside the changes.
func putPointers(tx *bbolt.Tx, leads []lead, whole bool) error {
	keys, tombs := tx.Bucket(bucketKeys), tx.Bucket(bucketTombs)
	keys.FillPercent = 0.75
	k, v := tombs.Cursor().Last()
	buried := k != nil && !isMark(k, v)                   // with no tombstone there is none to remove
	encoded := make([]byte, 0, len(leads)*longestPointer) // the library keeps them until the commit
	for i := range leads {
		l := &leads[i]
		key, start := bytesOf(l.key), len(encoded)
		if buried && !whole {
			if err := keepTomb(tx, tombs, key); err != nil {
				return err
			}
		}
		encoded = l.append(encoded, key)
		if err := point(keys, tombs, key, encoded[start:], l.deleted, buried); err != nil {
			return err
		}
	}
	return nil
}

// point stores a key's pointer, which must not be modified before the commit.
// Without buried there is no tombstone to remove.
func point(keys, tombs *bbolt.Bucket, key, pointer []byte, deleted, buried bool) (err error) {
	switch {
	case deleted:
		if err = keys.Delete(key); err == nil {
			err = tombs.Put(key, pointer)
		}
	default:
		if err = keys.Put(key, pointer); err == nil && buried {
			err = tombs.Delete(key)
		}
	}
	if err != nil {
		return fmt.Errorf("store key %q: %w", key, err)
	}
	return nil
}

// putHead stores meta and, when members is set, the members table: the file is no
// longer ahead of it.
func putHead(tx *bbolt.Tx, m meta, members []member, setMembers bool) error {
	if tx.Bucket(bucketUndo) != nil {
		if err := tx.DeleteBucket(bucketUndo); err != nil {
			return err
		}
	}
	return putMeta(tx, m, members, setMembers)
}

func putLocal(tx *bbolt.Tx, l local) error {
	return tx.Bucket(bucketMeta).Put(recordLocal, sealJSON(l))
}

func putMeta(tx *bbolt.Tx, m meta, members []member, setMembers bool) error {
	b := tx.Bucket(bucketMeta)
	if setMembers {
		if err := b.Put(recordMembers, sealJSON(members)); err != nil {
			return err
		}
	}
	return b.Put(recordState, sealJSON(m))
}

// fileTx is a read transaction of the state file, used by one goroutine at a
// time.
type fileTx struct {
	file                 *stateFile
	tx                   *bbolt.Tx
	keys, tombs, history lookup
}

// begin opens a read transaction. It must be closed, and within ten seconds.
func (f *stateFile) begin() (*fileTx, error) {
	f.users.Add(1)
	t := &fileTx{file: f}
	err := guarded(func() (err error) {
		committed := f.committed.Load()
		if t.tx, err = f.db.Begin(false); err != nil {
			return err
		}
		if committed > int64(t.tx.ID()) {
			err = errors.Join(f.current(int64(t.tx.ID())), t.tx.Rollback())
		}
		return err
	})
	if err != nil {
		f.users.Done()
		err = f.damage.note(damagedFile(err))
		return nil, fmt.Errorf("open view of the state file: %w", err)
	}
	return t, nil
}

func (t *fileTx) close() {
	_ = t.tx.Rollback() // cannot fail: the transaction is open and read-only
	t.file.users.Done()
}

// cursor returns a new cursor of a bucket.
func (t *fileTx) cursor(bucket []byte) (c *bbolt.Cursor, err error) {
	defer caught(debug.SetPanicOnFault(true), &err)
	if b := t.tx.Bucket(bucket); b != nil {
		return b.Cursor(), nil
	}
	return nil, command.ErrDamaged.With("table %s is missing", bucket)
}

// lookup finds single keys of a bucket with a cursor it keeps, which saves most
// of what bbolt would allocate for each.
type lookup struct{ c *bbolt.Cursor }

// get returns the value of key, nil when there is none.
func (l *lookup) get(t *fileTx, bucket, key []byte) ([]byte, error) {
	if l.c == nil {
		var err error
		if l.c, err = t.cursor(bucket); err != nil {
			return nil, err
		}
	}
	if k, v := l.c.Seek(key); k != nil && textOf(k) == textOf(key) {
		return v, nil
	}
	return nil, nil
}

// noted makes damage that was found here known, and returns err.
func (t *fileTx) noted(err error) error { return t.file.damage.note(err) }

// find returns the key's pointer. With buried, a deleted key is found too.
func (t *fileTx) find(key string, buried bool) (p pointer, ok bool, err error) {
	table, deleted := bucketKeys, false
	defer func() { err = t.noted(damagedAt(table, bytesOf(key), err)) }()
	defer caught(debug.SetPanicOnFault(true), &err)
	k := bytesOf(key)
	b, err := t.keys.get(t, bucketKeys, k)
	if b == nil && err == nil && buried {
		table, deleted = bucketTombs, true
		b, err = t.tombs.get(t, bucketTombs, k)
	}
	if b == nil || err != nil {
		return pointer{}, false, err
	}
	p, err = decodePointerIn(deleted, k, b)
	return p, err == nil, err
}

// change makes c the change at p, sharing memory with the file: it is valid
// until the transaction is closed. key is as in change.decode. ok is false when
// the file has none.
func (t *fileTx) change(p position, key string, c *change) (ok bool, err error) {
	defer func() { err = t.noted(damagedChange(p, err)) }()
	defer caught(debug.SetPanicOnFault(true), &err)
	at := p.bytes()
	enc, err := t.history.get(t, bucketHistory, at[:])
	if err != nil || enc == nil {
		return false, err
	}
	if err = c.decode(p, enc, key); err != nil && c.decode(p, enc, "") == nil {
		// The record is sound, and another's: the key should not lead to it.
		err = damagedAt(bucketKeys, bytesOf(key), err)
	}
	return true, err
}

// fileCursor walks a bucket. k is nil at the end. What it yields can be read
// without a fault, however damaged the page is that it comes from.
type fileCursor struct {
	c    *bbolt.Cursor
	k, v []byte
	read byte // keeps the compiler from leaving reads out
}

// seek goes to the first key at or after to.
func (c *fileCursor) seek(to []byte) error {
	return c.move(func() ([]byte, []byte) {
		if len(to) == 0 {
			return firstRecord(c.c)
		}
		return c.c.Seek(to)
	})
}

// seekBefore goes to the last key below to.
func (c *fileCursor) seekBefore(to []byte) error {
	return c.move(func() ([]byte, []byte) {
		if k, _ := c.c.Seek(to); k == nil {
			return c.c.Last()
		}
		return c.c.Prev()
	})
}

func (c *fileCursor) next() error {
	before := c.k
	err := c.move(c.c.Next)
	if err == nil && c.k != nil && bytes.Compare(before, c.k) >= 0 {
		c.k, c.v = nil, nil
		return command.ErrDamaged.With("keys of a page are out of order")
	}
	return err
}

func (c *fileCursor) prev() error { return c.move(c.c.Prev) }

// longestValue is far above what a record can be.
const longestValue = 1 << 30

func (c *fileCursor) move(to func() (k, v []byte)) (err error) {
	defer caught(debug.SetPanicOnFault(true), &err)
	c.k, c.v = nil, nil
	k, v := to()
	if isMark(k, v) { // a walk backward ends there
		return nil
	}
	if len(k) > longestKey || len(v) > longestValue {
		return command.ErrDamaged.With("a page holds a key of %d and a value of %d bytes", len(k), len(v))
	}
	c.touch(k)
	c.touch(v)
	c.k, c.v = k, v
	return nil
}

// touch reads a byte of each page that b lies on.
func (c *fileCursor) touch(b []byte) {
	for i := 0; i < len(b); i += 4096 {
		c.read ^= b[i]
	}
	if len(b) > 0 {
		c.read ^= b[len(b)-1]
	}
}

// caught, deferred, turns a panic of the storage library, or a fault while it
// reads the mapped file, into ErrDamaged: both mean that a page is not what it
// should be, and neither may end the process.
func caught(panicOnFault bool, err *error) {
	debug.SetPanicOnFault(panicOnFault)
	if p := recover(); p != nil {
		*err = command.ErrDamaged.With("state file: %v", p)
	}
}

func guarded(fn func() error) (err error) {
	defer caught(debug.SetPanicOnFault(true), &err)
	return fn()
}

// checkStateFile refuses a file that is shorter than its own header says: the
// library would map it and fault on the missing pages. A missing one is fine, it
// will be created.
func checkStateFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && info.Size() == 0:
		err = errors.New("is empty")
	case err == nil:
		err = checkBoltFile(path)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open state file: %w", err)
	default:
		return command.ErrDamaged.With("state file %s %v", path, err)
	}
}
