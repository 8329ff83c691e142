package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// The buckets of the state file.
var (
	bucketHistory = []byte("history") // position -> encoded change, append-only
	bucketKeys    = []byte("keys")    // key -> pointer to its last change
	bucketTombs   = []byte("tombs")   // deleted key -> pointer to its delete
	bucketMeta    = []byte("meta")    // the two records below

	recordState   = []byte("state")
	recordMembers = []byte("members")
)

// stateFile is one open state file. It is closed by retire, once no transaction
// uses it any more.
type stateFile struct {
	db    *bbolt.DB
	users sync.WaitGroup
}

// openStateFile opens or creates a state file and returns what it holds. reserve
// is the address space in bytes to map, so that the map need not move while
// readers hold it. A file that is cut short or fails a check is ErrDamaged.
func openStateFile(path string, reserve int64) (_ *stateFile, m meta, members []member, err error) {
	if err := checkStateFile(path); err != nil {
		return nil, meta{}, nil, err
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
		m, members, err = f.load()
		return err
	})
	if err != nil {
		return nil, meta{}, nil, fmt.Errorf("read state file %s: %w", path, err)
	}
	return f, m, members, nil
}

// load reads meta and members, creating the buckets of a new file.
func (f *stateFile) load() (m meta, members []member, err error) {
	fresh := false
	err = f.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketMeta)
		if b == nil {
			fresh = true
			return nil
		}
		if err := openJSON("state", b.Get(recordState), &m); err != nil {
			return err
		}
		if m.Format > stateFormat {
			return fmt.Errorf("state format %d is newer than this build, which knows %d; use a newer holdfast", m.Format, stateFormat)
		}
		if err := openJSON("members", b.Get(recordMembers), &members); err != nil {
			return err
		}
		return checkHead(tx, m)
	})
	if err != nil || !fresh {
		return m, members, err
	}
	m = meta{Format: stateFormat}
	return m, nil, f.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketHistory, bucketKeys, bucketTombs} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return putMeta(tx, m, nil, true)
	})
}

// checkHead compares meta with the newest record of history.
func checkHead(tx *bbolt.Tx, m meta) error {
	h := tx.Bucket(bucketHistory)
	if h == nil || tx.Bucket(bucketKeys) == nil || tx.Bucket(bucketTombs) == nil {
		return command.ErrDamaged.With("a table is missing")
	}
	if k, _ := h.Cursor().Last(); k != nil {
		if last, err := positionOf(k); err != nil || last.rev > m.Revision {
			return command.ErrDamaged.With("history ends at revision %d, the state at %d", last.rev, m.Revision)
		}
	}
	first := position{rev: m.Revision}
	key := first.bytes()
	enc := h.Get(key[:])
	if m.Revision == 0 || enc == nil {
		return nil
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

// write stores a layer, meta and, when members is set, the members table in one
// transaction. On return it is durable (unless the file was opened without
// syncing), on error nothing of it is.
func (f *stateFile) write(l *layer, m *meta, members []member, setMembers bool) error {
	var tx *bbolt.Tx
	err := guarded(func() (err error) {
		if tx, err = f.db.Begin(true); err != nil {
			return err
		}
		if err := putLayer(tx, l); err != nil {
			return err
		}
		if m != nil {
			if err := putMeta(tx, *m, members, setMembers); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
	if err != nil && tx != nil {
		// Frees the writer's lock; an error says that the commit did it already.
		_ = guarded(tx.Rollback)
	}
	return err
}

func putLayer(tx *bbolt.Tx, l *layer) error {
	if l == nil {
		return nil
	}
	history := tx.Bucket(bucketHistory)
	history.FillPercent = 1 // only ever appended to
	for _, c := range l.history {
		at := c.at.bytes()
		if err := history.Put(at[:], c.enc); err != nil {
			return fmt.Errorf("store revision %d.%d: %w", c.at.rev, c.at.k, err)
		}
	}
	keys, tombs := tx.Bucket(bucketKeys), tx.Bucket(bucketTombs)
	keys.FillPercent = 0.75
	k, _ := tombs.Cursor().First()
	buried := k != nil // with no tombstone there is none to remove
	var err error
	l.keys.Scan(func(key string, c *change) bool {
		k := bytesOf(key)
		if c.deleted {
			if err = keys.Delete(k); err == nil {
				err = tombs.Put(k, encodePointer(k, c.at))
			}
		} else {
			if err = keys.Put(k, encodePointer(k, c.at)); err == nil && buried {
				err = tombs.Delete(k)
			}
		}
		if err != nil {
			err = fmt.Errorf("store key %q: %w", key, err)
		}
		return err == nil
	})
	return err
}

func putMeta(tx *bbolt.Tx, m meta, members []member, setMembers bool) error {
	b, err := tx.CreateBucketIfNotExists(bucketMeta)
	if err != nil {
		return err
	}
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
		t.tx, err = f.db.Begin(false)
		return err
	})
	if err != nil {
		f.users.Done()
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

// find returns the position of the key's last change as the file knows it. With
// buried, a deleted key is found too.
func (t *fileTx) find(key string, buried bool) (at position, deleted, ok bool, err error) {
	defer caught(debug.SetPanicOnFault(true), &err)
	k := bytesOf(key)
	b, err := t.keys.get(t, bucketKeys, k)
	if b == nil && err == nil && buried {
		b, err = t.tombs.get(t, bucketTombs, k)
		deleted = true
	}
	if b == nil || err != nil {
		return position{}, false, false, err
	}
	at, err = decodePointer(k, b)
	return at, deleted, err == nil, err
}

// change makes c the change at p, sharing memory with the file: it is valid
// until the transaction is closed. key is as in change.decode.
func (t *fileTx) change(p position, key string, c *change) (err error) {
	defer caught(debug.SetPanicOnFault(true), &err)
	at := p.bytes()
	enc, err := t.history.get(t, bucketHistory, at[:])
	if err != nil {
		return err
	}
	if enc == nil {
		return command.ErrDamaged.With("history has no revision %d.%d", p.rev, p.k)
	}
	return c.decode(p, enc, key)
}

// fileCursor walks a bucket. k is nil at the end.
type fileCursor struct {
	c    *bbolt.Cursor
	k, v []byte
}

func (c *fileCursor) seek(to []byte) (err error) {
	defer caught(debug.SetPanicOnFault(true), &err)
	if len(to) == 0 {
		c.k, c.v = c.c.First()
	} else {
		c.k, c.v = c.c.Seek(to)
	}
	return nil
}

func (c *fileCursor) next() (err error) {
	defer caught(debug.SetPanicOnFault(true), &err)
	c.k, c.v = c.c.Next()
	return nil
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
// library would map it and fault on the missing pages. A missing or an empty
// file is fine, it will be created.
func checkStateFile(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	if err == nil {
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
