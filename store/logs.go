package store

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/command"
)

// ErrNoSpace says that an entry was not stored because the disk is nearly
// full. No file was touched by that.
var ErrNoSpace = errors.New("too little free space for the Raft log; free some, or enlarge the disk")

// Logs are Raft's stores in a data directory.
//
// A failed write to either, or an entry that cannot be read, is final: Failed
// reports it, and from then on no entry and no vote is stored by this process,
// because what the disk holds is no longer known. Reads go on. Only ErrNoSpace
// is not a failure, unless it keeps out what was to follow a deleted end of the log:
// Raft takes that for being there still.
type Logs struct {
	// Log is the log store for Raft. It keeps recent entries in memory and
	// forwards IsMonotonic.
	Log raft.LogStore
	// Stable is the stable store for Raft.
	Stable raft.StableStore

	kind   string
	log    *raftLog
	stable *raftStable
	latch  *latch
	// release gives the directory's note of these logs back.
	release func()
	once    sync.Once
	err     error // of Close
}

// Kind is LogStoreWAL or LogStoreBolt.
func (l *Logs) Kind() string { return l.kind }

// Bounds returns the first and last index in the log, both 0 when it is empty.
func (l *Logs) Bounds() (first, last uint64, err error) {
	if first, err = l.log.FirstIndex(); err != nil {
		return 0, 0, err
	}
	if last, err = l.log.LastIndex(); err != nil {
		return 0, 0, err
	}
	return first, last, nil
}

// EntryTerm is the term of an entry, if it is in the log.
func (l *Logs) EntryTerm(index uint64) (term uint64, ok bool) {
	var e raft.Log
	err := l.log.GetLog(index, &e)
	return e.Term, err == nil
}

// InTerm runs fn while Raft's current term is term and cannot change, or reports that it
// is another one or about to change. fn must not wait for Raft.
func (l *Logs) InTerm(term uint64, fn func()) bool { return l.stable.inTerm(term, fn) }

// Reset drops the whole log, durably. The next entry may have any index.
func (l *Logs) Reset() error {
	first, last, err := l.Bounds()
	if err != nil || last == 0 {
		return err
	}
	return l.log.DeleteRange(first, last)
}

// EntryBytes is a moving average of the bytes an entry takes in the log, over
// some hundreds of entries; 0 while no entry was seen.
func (l *Logs) EntryBytes() uint64 {
	return uint64(math.Ceil(math.Float64frombits(l.log.average.Load())))
}

// Failed delivers the first failure, once, and is closed after it.
func (l *Logs) Failed() <-chan error { return l.latch.ch }

// Err is the failure Failed delivered, nil while there is none.
func (l *Logs) Err() error { return l.latch.get() }

// SetPeer records what was last seen of a peer, durably. The zero value
// forgets the peer. Nothing is written when it is recorded already.
func (l *Logs) SetPeer(id string, v PeerSeen) error { return l.stable.setPeer(id, v) }

// Peers returns what was last seen of each peer.
func (l *Logs) Peers() map[string]PeerSeen { return l.stable.peersSeen() }

// Close closes both stores. Raft must have stopped.
func (l *Logs) Close() error {
	l.once.Do(func() {
		l.err = errors.Join(l.log.db.Close(), l.stable.db.Close())
		l.release()
	})
	return l.err
}

// logBackend is what keeps the entries: raft-wal, raft-boltdb, or a test's.
type logBackend interface {
	raft.LogStore
	io.Closer
}

// raftLog is Raft's log store: recent entries in memory over a backend, with
// the latch and the check for free space before it.
type raftLog struct {
	db     logBackend
	kind   string
	latch  *latch
	recent recentEntries
	// swept holds what was read from the backend last: Raft reads more entries for
	// one message to a member that is behind than the transport puts into it, and
	// reads the rest again for the next.
	swept recentEntries
	disk  *Disk
	// cut: the end of the log was deleted, and nothing has been appended since. Raft
	// learns where its log ends by the append only.
	cut atomic.Bool
	// average holds the float64 bits of the mean entry size. One append runs
	// at a time.
	average atomic.Uint64
}

var (
	_ raft.LogStore          = (*raftLog)(nil)
	_ raft.MonotonicLogStore = (*raftLog)(nil)
)

// entryOverhead is what an entry takes in bytes beside its data, at most.
const entryOverhead = 64

func newRaftLog(db logBackend, kind string, l *latch, disk *Disk) (*raftLog, error) {
	s := &raftLog{db: db, kind: kind, latch: l, disk: disk}
	first, err := db.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := db.LastIndex()
	if err != nil {
		return nil, err
	}
	// Start the average from the newest entries. In a log that need not be unbroken some
	// may be missing: see unbrokenFrom.
	const sample = 32
	for i := max(first, last-min(last, sample)+1); last > 0 && i <= last; i++ {
		var e raft.Log
		if err := db.GetLog(i, &e); errors.Is(err, raft.ErrLogNotFound) && !s.IsMonotonic() {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read entry %d of the %s log: %w", i, kind, err)
		}
		s.weigh([]*raft.Log{&e})
	}
	return s, nil
}

// IsMonotonic implements raft.MonotonicLogStore: whether entries must follow
// each other without a gap.
func (s *raftLog) IsMonotonic() bool {
	m, ok := s.db.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// FirstIndex implements raft.LogStore.
func (s *raftLog) FirstIndex() (uint64, error) { return s.db.FirstIndex() }

// LastIndex implements raft.LogStore.
func (s *raftLog) LastIndex() (uint64, error) { return s.db.LastIndex() }

// GetLog implements raft.LogStore. An entry that is there but cannot be read is
// a failure like a failed write.
func (s *raftLog) GetLog(index uint64, log *raft.Log) error {
	if s.recent.get(index, log) || s.swept.get(index, log) {
		return nil
	}
	done := s.disk.begin("read the Raft log", urgent)
	err := s.db.GetLog(index, log)
	done()
	if err == nil && log.Index != index {
		err = command.ErrDamaged.With("entry %d stands in its place", log.Index)
	}
	if err == nil {
		e := *log
		s.swept.add([]*raft.Log{&e})
		return nil
	}
	if errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	err = fmt.Errorf("read entry %d of the %s log: %w", index, s.kind, err)
	s.latch.fail(err)
	return err
}

// StoreLog implements raft.LogStore.
func (s *raftLog) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. The entries are durable on return.
func (s *raftLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if err := s.latch.get(); err != nil {
		return err
	}
	defer s.disk.timed("append to the Raft log")()
	if err := s.disk.room(); err != nil {
		if s.cut.Load() {
			err = s.latch.fail(fmt.Errorf("append entry %d in the place of others: %w", logs[0].Index, err))
		}
		return err
	}
	if err := s.db.StoreLogs(logs); err != nil {
		return s.latch.fail(fmt.Errorf("append entries %d to %d to the %s log: %w",
			logs[0].Index, logs[len(logs)-1].Index, s.kind, err))
	}
	s.cut.Store(false)
	s.recent.add(logs)
	s.weigh(logs)
	return nil
}

// DeleteRange implements raft.LogStore. The range is inclusive, and gone
// durably on return.
func (s *raftLog) DeleteRange(first, last uint64) error {
	if err := s.latch.get(); err != nil {
		return err
	}
	defer s.disk.begin("truncate the Raft log", patient)()
	s.recent.forget(first, last)
	s.swept.forget(first, last)
	if end, err := s.db.LastIndex(); err != nil || last >= end {
		s.cut.Store(true)
	}
	if err := s.db.DeleteRange(first, last); err != nil {
		return s.latch.fail(fmt.Errorf("delete entries %d to %d from the %s log: %w", first, last, s.kind, err))
	}
	return nil
}

// weigh moves the average towards the entries' mean size.
func (s *raftLog) weigh(logs []*raft.Log) {
	const memory = 256 // entries
	var bytes float64
	for _, l := range logs {
		bytes += float64(len(l.Data) + len(l.Extensions) + entryOverhead)
	}
	n := float64(len(logs))
	mean, old := bytes/n, math.Float64frombits(s.average.Load())
	if old > 0 {
		mean = old + (mean-old)*n/(n+memory)
	}
	s.average.Store(math.Float64bits(mean))
}

// recentEntries keeps entries that are about to be asked for: the newest, which
// the followers want, or the last read. It is bounded by count and by bytes, as
// entries may be large.
type recentEntries struct {
	mu sync.RWMutex
	// The ring holds the entries low <= index < next, each at index modulo its
	// length.
	ring      [128]*raft.Log
	low, next uint64
	bytes     int // of the data of the entries held
}

const recentBytes = 16 << 20

func (r *recentEntries) add(logs []*raft.Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range logs {
		if l.Index != r.next {
			r.clear(l.Index)
		}
		r.ring[l.Index%uint64(len(r.ring))], r.next = l, l.Index+1
		r.bytes += len(l.Data)
		for r.next-r.low >= uint64(len(r.ring)) || r.bytes > recentBytes {
			r.dropLowest()
		}
	}
}

// dropLowest forgets the oldest entry. There is one: low < next.
func (r *recentEntries) dropLowest() {
	slot := &r.ring[r.low%uint64(len(r.ring))]
	r.bytes -= len((*slot).Data)
	*slot = nil
	r.low++
}

func (r *recentEntries) clear(next uint64) {
	for r.low < r.next {
		r.dropLowest()
	}
	r.low, r.next = next, next
}

func (r *recentEntries) get(index uint64, log *raft.Log) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if index < r.low || index >= r.next {
		return false
	}
	*log = *r.ring[index%uint64(len(r.ring))]
	return true
}

// forget drops what a deletion touches, and for simplicity all that is newer.
func (r *recentEntries) forget(first, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case last < r.low || first >= r.next:
	case first <= r.low && last < r.next-1:
		for r.low <= last {
			r.dropLowest()
		}
	default:
		r.clear(0)
	}
}

// latch keeps the first failure.
type latch struct {
	err  atomic.Pointer[error]
	ch   chan error
	told func(error) // hears of it too; may be nil
}

func newLatch() *latch { return &latch{ch: make(chan error, 1)} }

func (l *latch) get() error {
	if e := l.err.Load(); e != nil {
		return *e
	}
	return nil
}

// fail records err if it is the first, and returns the one that was.
func (l *latch) fail(err error) error {
	if l.err.CompareAndSwap(nil, &err) {
		if l.told != nil {
			l.told(err)
		}
		l.ch <- err
		close(l.ch)
	}
	return l.get()
}

// OpenLogs opens Raft's stores, or creates them. kind is LogStoreWAL or
// LogStoreBolt; when the directory has its log in the other kind, the log is
// first copied, compared entry by entry, and the identity switched. A crash on
// the way leaves the old log in use or the new one, whole in either case.
func (d *Dir) OpenLogs(kind string) (*Logs, error) {
	if kind != LogStoreWAL && kind != LogStoreBolt {
		return nil, fmt.Errorf("log store %q is not known; choose %s or %s", kind, LogStoreWAL, LogStoreBolt)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, os.ErrClosed
	case d.logs != nil:
		return nil, fmt.Errorf("the logs of %s are open already", d.path)
	}

	if recorded := d.id.LogStore; recorded != "" && recorded != kind {
		if err := d.convertLogs(recorded, kind); err != nil {
			return nil, fmt.Errorf("convert the Raft log from %s to %s: %w; the log is still in %s: start with --log-store %s, or mend the cause",
				recorded, kind, err, d.id.LogStore, d.id.LogStore)
		}
	}
	if err := d.removeLog(otherLogStore(kind)); err != nil { // left over by a conversion
		return nil, fmt.Errorf("remove the left-over log: %w", err)
	}
	l, err := d.openLogs(kind)
	if err != nil {
		return nil, err
	}
	if id := d.id; id.LogStore != kind {
		id.LogStore = kind
		if err := d.writeLocked(id); err != nil {
			l.log.db.Close()
			l.stable.db.Close()
			return nil, fmt.Errorf("record the log store in %s: %w", d.path, err)
		}
	}
	d.logs = l
	l.release = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.logs = nil
	}
	return l, nil
}

func (d *Dir) openLogs(kind string) (_ *Logs, err error) {
	bad := func(part string, err error) error {
		return &DirError{Path: d.path, Cause: part + " cannot be opened",
			Remedy: "check the disk; if the file is damaged, move the directory away and let the node join anew", Err: err}
	}
	l := &Logs{kind: kind, latch: newLatch()}
	l.latch.told = d.disk.fail
	stable, err := openStable(filepath.Join(d.path, stableFile))
	if err != nil {
		return nil, bad(stableFile, err)
	}
	defer func() {
		if err != nil {
			stable.Close()
		}
	}()
	if l.stable, err = newRaftStable(stable, l.latch, d.disk); err != nil {
		return nil, bad(stableFile, err)
	}
	db, err := d.openBackend(kind)
	if err != nil {
		return nil, bad(logStorePath(kind), err)
	}
	if l.log, err = newRaftLog(db, kind, l.latch, d.disk); err != nil {
		db.Close()
		return nil, bad(logStorePath(kind), err)
	}
	l.Log, l.Stable = l.log, l.stable
	return l, nil
}

// openBackend opens the log of a kind, or creates it.
func (d *Dir) openBackend(kind string) (logBackend, error) {
	path := filepath.Join(d.path, logStorePath(kind))
	if kind == LogStoreBolt {
		db, err := openBolt(path, func(*raftboltdb.BoltStore) error { return nil })
		if err != nil {
			return nil, err
		}
		return boltLog{db}, nil
	}
	return openWAL(path, d.walSegment, d.disk, d.log)
}

// freeSpace returns the bytes this process may still use on the disk of a path.
func freeSpace(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}

func logStorePath(kind string) string {
	if kind == LogStoreBolt {
		return boltLogFile
	}
	return walLogDir
}

func otherLogStore(kind string) string {
	if kind == LogStoreBolt {
		return LogStoreWAL
	}
	return LogStoreBolt
}
