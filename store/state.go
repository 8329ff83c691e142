package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/command"
)

// StateConfig says where the state lives and how much of it may wait in memory.
type StateConfig struct {
	// Dir is the data directory. It must exist and be used by one process only.
	Dir string
	// BufferBytes bounds the changes in memory before they are flushed into the
	// file; 48 MiB when zero. A larger buffer makes fewer, larger flushes and a
	// longer replay of the log after a crash. Together with a flush under way twice
	// as much may be held; then applying waits. A delta takes up to three times as
	// much until it has been flushed.
	BufferBytes int64
	// BufferAge bounds how long a change stays in memory only; 1 s when zero.
	// It costs one synced transaction per age while there are writes.
	BufferAge time.Duration
	// ScrubPeriod is how long one pass over everything in the file may take, which
	// looks for damage that no reader has met yet; 0 is never.
	ScrubPeriod time.Duration
	// MaxData is how many bytes of address space to reserve for the file; 64 GiB
	// when zero. A file that grows beyond it still works, but each further step
	// waits for all open views.
	MaxData int64
	// RewriteFree is how many bytes of the file must be free, and more than half
	// of it, before it is rewritten to a smaller one; 64 MiB when zero.
	RewriteFree int64
	// Disk, when given, is told of what is under way on the disk, and says how much
	// space there is.
	Disk *Disk
	// Log may be nil.
	Log hclog.Logger
}

func (c StateConfig) validate() (StateConfig, error) {
	c.BufferBytes = cmp.Or(c.BufferBytes, 48<<20)
	c.BufferAge = cmp.Or(c.BufferAge, time.Second)
	c.MaxData = cmp.Or(c.MaxData, 64<<30)
	c.RewriteFree = cmp.Or(c.RewriteFree, 64<<20)
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
	switch {
	case c.Dir == "":
		return c, errors.New("store: StateConfig.Dir is empty")
	case c.BufferBytes < 0 || c.BufferAge < 0 || c.MaxData < 0 || c.RewriteFree < 0 || c.ScrubPeriod < 0:
		return c, errors.New("store: sizes and ages of StateConfig must not be negative")
	}
	return c, nil
}

// State is the replicated state of a node: a bbolt file with layers of newer
// changes over it in memory. Batches add to the newest layer; the flusher writes
// layers into the file; views read both as one.
//
// The file is crash-safe at every moment: it holds the state at one Raft index,
// and that index, together. What was applied since is applied again from the
// log.
//
// Goroutines: runFlusher, runMarkerSync, runRewriter and runScrub live from OpenState to
// Close; a short one per swapped-out file closes it after its last view.
//
// Locks are taken in this order: applying, flushing, copying, mu.
type State struct {
	cfg    StateConfig
	log    hclog.Logger
	marker *marker
	// started is the marker as it was found, fixed at OpenState.
	started      uint64
	startedClean bool

	// applying is held by the batch, and by a swap.
	applying sync.Mutex
	arena    arena     // guarded by applying
	rolled   hash.Hash // guarded by applying

	// flushing is held from the freeze of a layer to its drop, and by a swap.
	flushing sync.Mutex

	// mu makes taking a view one step: it is held shared while generation and
	// file transaction are taken, and exclusively while gen is replaced.
	mu  sync.RWMutex
	gen atomic.Pointer[generation]
	// durable is what the file holds; it changes under mu.
	durable  atomic.Pointer[durableState]
	progress chan struct{} // guarded by mu; closed and replaced by announce
	closed   bool          // guarded by mu

	failure     atomic.Pointer[error]
	stuck       atomic.Pointer[stateFile] // the file that a flush found damaged
	damageFound chan struct{}             // holds one
	scrubbed    atomic.Int64              // Unix ns of the end of the last whole pass
	// wanted is the highest seq that someone waits for to become durable.
	wanted  atomic.Uint64
	kick    chan struct{}
	stop    chan struct{}
	running sync.WaitGroup

	applied, revised *waitlist
	watches          watches

	copies  copies
	flushed flushCounters
}

// durableState is what the state file holds.
type durableState struct {
	seq  uint64
	meta meta
}

type flushCounters struct {
	count, records, nanos atomic.Uint64
}

// OpenState opens or creates the state in cfg.Dir. A copy that was staged but
// not swapped in is dropped. Errors: command.ErrDamaged when the file is cut
// short or does not match its checksums.
func OpenState(cfg StateConfig) (*State, error) {
	cfg, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	s := &State{
		cfg: cfg, log: cfg.Log, rolled: sha256.New(),
		progress: make(chan struct{}), kick: make(chan struct{}, 1), stop: make(chan struct{}),
		applied: newWaitlist(), revised: newWaitlist(), damageFound: make(chan struct{}, 1),
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, incomingName)); err != nil {
		return nil, fmt.Errorf("remove unfinished copy: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, rewriteName)); err != nil {
		return nil, fmt.Errorf("remove unfinished rewrite: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, archivesName)); err != nil {
		return nil, fmt.Errorf("remove unfinished restore: %w", err)
	}
	file, m, members, err := openStateFile(filepath.Join(cfg.Dir, stateName), cfg.MaxData)
	if err != nil {
		return nil, err
	}
	if err := s.openMarker(m); err != nil {
		_ = file.db.Close()
		return nil, err
	}
	// The names of both files last as long as what they hold.
	if err := syncPath(cfg.Dir); err != nil {
		_ = file.db.Close()
		_ = s.marker.file.Close()
		return nil, fmt.Errorf("sync data directory: %w", err)
	}
	file.damage.attach(s.damageFound, s.log)
	file.disk = cfg.Disk
	s.gen.Store(&generation{active: newLayer(), meta: m, members: members, file: file})
	s.durable.Store(&durableState{meta: m})
	if err := s.takeKept(); err != nil {
		_ = file.db.Close()
		_ = s.marker.file.Close()
		return nil, err
	}
	s.running.Go(s.runFlusher)
	s.running.Go(s.runMarkerSync)
	s.running.Go(s.runRewriter)
	if cfg.ScrubPeriod > 0 {
		s.running.Go(s.runScrub)
	}
	return s, nil
}

func (s *State) openMarker(m meta) error {
	boot := thisBoot()
	mk, last, found, err := openMarker(filepath.Join(s.cfg.Dir, markerName), boot)
	if err != nil {
		return err
	}
	s.marker = mk
	mk.disk = s.cfg.Disk
	s.started = max(last.index, m.Applied)
	switch {
	case found:
		s.startedClean = last.clean || last.boot == boot
	default:
		s.startedClean = m.Applied == 0
	}
	if !s.startedClean {
		s.log.Warn("the machine stopped without warning: reads of this node may be older than ones it answered before",
			"known-index", s.started)
	}
	return nil
}

// Close flushes what is in memory, waits for open views to be closed and ends
// the goroutines. Batches and views asked for later get command.ErrStopping.
func (s *State) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.announce()
	s.mu.Unlock()
	close(s.stop)
	s.applied.close()
	s.revised.close()
	s.watches.wakeAll()
	s.running.Wait()
	if s.copies.receiving.TryLock() { // else the receiver does it
		s.dropIncoming()
		s.copies.receiving.Unlock()
	}
	_ = os.Remove(filepath.Join(s.cfg.Dir, archivesName)) // empty, unless a restore is cut short
	err := s.flushOnce()
	s.flushing.Lock() // a swap that was under way has ended
	defer s.flushing.Unlock()
	if rerr := s.retireWithin(s.gen.Load().file, 15*time.Second); err == nil {
		err = rerr
	}
	if merr := s.marker.close(err == nil); err == nil {
		err = merr
	}
	if err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

// retireWithin closes the file after its last view. A view that outlives the
// limit keeps the file mapped: to unmap it under a reader would end the process.
func (s *State) retireWithin(f *stateFile, limit time.Duration) error {
	done := make(chan error, 1)
	go func() {
		err := f.retire()
		s.copies.retiring.Wait()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("a view is still open after %v", limit)
	}
}

// Err is the error that made the store fail for good: a flush or a write of the
// marker did not succeed. Nothing can be applied any more; views still work.
// It is nil while all is well.
func (s *State) Err() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// failWith records the first error that ends the store's life and returns it.
func (s *State) failWith(err error) error {
	if s.failure.CompareAndSwap(nil, &err) {
		s.log.Error("state cannot be written any more", "error", err)
		s.cfg.Disk.fail(err)
		s.mu.Lock()
		s.announce()
		s.mu.Unlock()
	}
	return s.Err()
}

// announce wakes who waits for progress of the flusher. Needs mu.
func (s *State) announce() {
	close(s.progress)
	s.progress = make(chan struct{})
}

// usable says why the state file is not to be written any more; nil when it is.
func (s *State) usable() error {
	if err := s.Err(); err != nil {
		return err
	}
	if s.isClosed() {
		return command.ErrStopping
	}
	return nil
}

func (s *State) isClosed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.closed
}

func (s *State) nextProgress() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.progress
}

// View returns a consistent view of everything published so far.
func (s *State) View() (command.View, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (s *State) view() (*View, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, command.ErrStopping
	}
	g := s.gen.Load()
	tx, err := g.file.begin()
	if err != nil {
		return nil, err
	}
	v := &View{overlay: overlay{top: g.active, under: g.frozen, oldest: g.meta.Oldest, file: tx}, gen: g}
	if g.ahead {
		v.limit = g.meta.Revision
	}
	return v, nil
}

// beginTx opens a transaction of the file for a batch. It may be newer than the
// generation the batch began on, by layers that generation has in memory; and
// another file, with the same in it.
func (s *State) beginTx() (*fileTx, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, command.ErrStopping
	}
	return s.gen.Load().file.begin()
}

// Get returns the newest record of a key, as View().Get does, and without a
// view when the key is in memory. Errors: command.ErrKeyNotFound,
// command.ErrDamaged.
func (s *State) Get(key string) (command.Record, error) {
	g := s.gen.Load()
	c, ok := g.active.get(key)
	if !ok {
		c, ok = g.frozen.get(key)
	}
	if ok {
		if c.deleted {
			return command.Record{}, command.ErrKeyNotFound
		}
		return c.rec, nil
	}
	v, err := s.view()
	if err != nil {
		return command.Record{}, err
	}
	defer v.Close()
	return v.Get(key)
}

// Applied is the Raft index and term of the last entry that is visible in
// views. Only commands and configurations count.
func (s *State) Applied() (index, term uint64) {
	m := &s.gen.Load().meta
	return m.Applied, m.AppliedTerm
}

// Revision is the store's counter now.
func (s *State) Revision() uint64 { return s.gen.Load().meta.Revision }

func (s *State) appliedIndex() uint64 { return s.gen.Load().meta.Applied }

// Head is where the state stands; all of it belongs to one moment.
type Head struct {
	Applied, AppliedTerm uint64
	Revision             uint64
	// Lineage covers what steps revisions; compare it at equal Revision.
	Lineage command.Lineage
	// Hash covers what steps none; compare it at equal Applied.
	Hash    command.Lineage
	Cluster command.Cluster
}

// Head returns where the state stands now.
func (s *State) Head() Head {
	m := &s.gen.Load().meta
	return Head{
		Applied: m.Applied, AppliedTerm: m.AppliedTerm, Revision: m.Revision,
		Lineage: command.Lineage(m.Lineage), Hash: command.Lineage(m.Hash), Cluster: m.Cluster,
	}
}

// Members lists all members, ordered by ID, without opening a view.
func (s *State) Members() []command.Member { return memberList(s.gen.Load().members) }

// WaitApplied waits until the entry at index is visible in views. It returns at
// once when it is, else the context's error or command.ErrStopping.
func (s *State) WaitApplied(ctx context.Context, index uint64) error {
	return s.applied.wait(ctx, index, s.appliedIndex)
}

// WaitRevision waits until rev is visible in views; else as WaitApplied.
func (s *State) WaitRevision(ctx context.Context, rev uint64) error {
	return s.revised.wait(ctx, rev, s.Revision)
}

// Stamp is the cluster time of the last applied command entry, and its wall
// time.
func (s *State) Stamp() (command.Stamp, time.Time) {
	m := &s.gen.Load().meta
	return m.Stamp, time.Unix(0, m.Wall)
}

// Configuration is the last Raft configuration the state has seen, and the
// index of its entry; 0 when there was none.
func (s *State) Configuration() (raft.Configuration, uint64) {
	m := &s.gen.Load().meta
	return m.configuration(), m.ConfIndex
}

func (m *meta) configuration() raft.Configuration {
	if len(m.Conf) == 0 {
		return raft.Configuration{}
	}
	return raft.DecodeConfiguration(m.Conf)
}

// raise makes the state stand for a Raft index above the last entry it saw, and
// for a configuration. Neither ever goes back.
func (m *meta) raise(index, term uint64, conf []byte, confIndex uint64) (raised bool) {
	if index > m.RaftIndex {
		m.RaftIndex, m.RaftTerm, raised = index, term, true
	}
	if confIndex > m.ConfIndex && confIndex <= m.RaftIndex {
		m.ConfIndex, m.Conf, raised = confIndex, conf, true
	}
	return raised
}

// Marker is the highest index that was handed to the state before the last
// stop, as found by OpenState: before it answers reads, a node applies its own
// log that far. clean is false when the machine lost power (or the marker), so
// that reads may have gone further than index.
func (s *State) Marker() (index uint64, clean bool) { return s.started, s.startedClean }

// Certify notes the wall-clock moment at which the present state was known to
// be fresh. It is stored beside the marker: it survives a crash of the process
// at once, and a loss of power after the next sync in the background.
func (s *State) Certify(wall time.Time) {
	_ = s.marked(s.marker.setWall(wall.UnixNano())) // kept as the store's error
}

// marked passes on the outcome of a write to the marker. Any but that of a
// closed one ends the store's life.
func (s *State) marked(err error) error {
	if err == nil || errors.Is(err, command.ErrStopping) {
		return err
	}
	return s.failWith(fmt.Errorf("write commit marker: %w", err))
}

// LastCertified is the newest moment given to Certify, also before a restart;
// zero when there never was one.
func (s *State) LastCertified() time.Time {
	if wall := s.marker.lastWall(); wall != 0 {
		return time.Unix(0, wall)
	}
	return time.Time{}
}

// publish makes a batch the newest generation.
func (s *State) publish(b *Batch) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return command.ErrStopping
	}
	g := s.gen.Load()
	n := &generation{seq: g.seq + 1, active: b.top, frozen: g.frozen, meta: b.meta, members: b.members, file: g.file}
	if g.active != b.base.active {
		// The layer the batch began on has been frozen meanwhile. Since batches
		// come one at a time, the active one is still empty.
		n.active = newLayer()
		for _, c := range b.top.history[b.own:] {
			n.active.add(c)
		}
	}
	n.meta.raise(b.meta.Applied, b.meta.AppliedTerm, nil, 0)
	n.meta.raise(g.meta.RaftIndex, g.meta.RaftTerm, g.meta.Conf, g.meta.ConfIndex)
	first := n.active.since.IsZero()
	if first {
		n.active.since = time.Now()
	}
	s.gen.Store(n)
	s.mu.Unlock()
	s.applied.advance(n.meta.Applied)
	s.revised.advance(n.meta.Revision)
	s.watches.wake(b.top.history[b.own:])
	if first || n.active.bytes >= s.cfg.BufferBytes {
		s.nudge()
	}
	return nil
}

// nudge makes the flusher look what is due.
func (s *State) nudge() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// holdBack waits while more than twice the buffer's bound is in memory, or once that
// beside a delta.
func (s *State) holdBack() error {
	for {
		progress := s.nextProgress()
		g := s.gen.Load()
		held, delta := g.active.bytes, g.active.delta
		if g.frozen != nil {
			held += g.frozen.bytes
			delta += g.frozen.delta
		}
		if held <= max(2*s.cfg.BufferBytes, delta+s.cfg.BufferBytes) || s.Err() != nil || g.file == s.stuck.Load() {
			return nil
		}
		s.nudge()
		select {
		case <-progress:
		case <-s.stop:
			return nil
		}
	}
}

// Flush makes everything published so far durable in the state file. It returns
// when that is so, or with the store's error, the context's, or
// command.ErrStopping.
func (s *State) Flush(ctx context.Context) error {
	seq := s.gen.Load().seq
	for {
		progress := s.nextProgress()
		if s.durable.Load().seq >= seq {
			return nil
		}
		if err := s.Err(); err != nil {
			return err
		}
		for w := s.wanted.Load(); w < seq && !s.wanted.CompareAndSwap(w, seq); w = s.wanted.Load() {
		}
		s.nudge()
		select {
		case <-progress:
		case <-s.stop:
			return command.ErrStopping
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// runFlusher writes layers into the file when they are due, and drops superfluous
// records in between, until stop. After a failure it does nothing more.
func (s *State) runFlusher() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	compactor := compactor{s: s}
	for !s.isClosed() {
		timer.Stop()
		wait := time.Duration(-1)
		if due, ok := s.flushDue(); ok && due <= 0 {
			_ = s.flushOnce() // kept as the store's error
			continue
		} else if ok {
			wait = due
		}
		if due, ok := compactor.due(); ok && due <= 0 {
			compactor.step()
			continue
		} else if ok && (wait < 0 || due < wait) {
			wait = due
		}
		if wait >= 0 {
			timer.Reset(wait)
		}
		select {
		case <-s.kick:
		case <-timer.C:
		case <-s.stop:
			return
		}
	}
}

// flushDue is the time until the next flush; ok is false when nothing waits.
func (s *State) flushDue() (due time.Duration, ok bool) {
	g, durable := s.gen.Load(), s.durable.Load().seq
	switch {
	case s.Err() != nil || g.seq == durable || g.file == s.stuck.Load():
		return 0, false
	case s.wanted.Load() > durable || g.active.bytes >= s.cfg.BufferBytes || g.active.since.IsZero():
		return 0, true
	default:
		return s.cfg.BufferAge - time.Since(g.active.since), true
	}
}

// flushOnce writes what has been published into the file.
// On return it is durable, or the store has failed.
func (s *State) flushOnce() error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	if err := s.Err(); err != nil {
		return err
	}
	if s.gen.Load().frozen != nil {
		// The flush before gave up for want of space when the store was stopped.
		// What the file lacks is in the Raft log.
		return errUnflushed
	}
	// Freeze. A view that took the generation before has also taken its file
	// transaction, since mu was held for both: no view can see a file that is
	// newer than its layers.
	s.mu.Lock()
	g := s.gen.Load()
	if g.seq == s.durable.Load().seq {
		s.mu.Unlock()
		return nil
	}
	freezing := *g
	freezing.frozen, freezing.active = g.active, newLayer()
	s.gen.Store(&freezing)
	s.announce()
	s.mu.Unlock()

	start := time.Now()
	if err := s.writeOnceThereIsSpace(g); err != nil {
		return err
	}
	s.flushed.count.Add(1)
	s.flushed.records.Add(uint64(len(g.active.history)))
	s.flushed.nanos.Add(uint64(time.Since(start)))

	// Drop. Views taken from here on find in the file what the layer held.
	s.mu.Lock()
	dropped := *s.gen.Load()
	dropped.frozen = nil
	s.gen.Store(&dropped)
	s.durable.Store(&durableState{seq: g.seq, meta: g.meta})
	s.announce()
	s.mu.Unlock()
	s.dropKept(g.seq)
	return nil
}

var errUnflushed = errors.New("the last changes are not in the state file, for want of space; the next start applies them from the log")

// diskFull reports whether there was no space, or none for this user.
func diskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, ErrNoSpace)
}

// spaceRetry is how often a flush that found no space is tried again.
const spaceRetry = time.Second

// writeOnceThereIsSpace writes a frozen layer into the file. While the disk is
// full, changes gather in memory, up to twice the buffer's bound; then applying
// waits.
func (s *State) writeOnceThereIsSpace(g *generation) error {
	done := 0
	err := s.onceThereIsSpace(func() error {
		return g.file.flush(g.active, &g.meta, g.members, g.active.members, &done)
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, command.ErrStopping):
		return errUnflushed
	case errors.Is(err, command.ErrDamaged):
		// Nothing more goes into this file. Changes gather in memory until another
		// one takes its place.
		s.stuck.Store(g.file)
		return g.file.damage.note(damagedFile(err))
	default:
		return s.failWith(fmt.Errorf("flush state: %w", err))
	}
}

// onceThereIsSpace writes to the state file. A full disk is not a broken one: the
// transaction that found it so has been rolled back, and write is called again
// until there is space, or with command.ErrStopping until the state is closed.
func (s *State) onceThereIsSpace(write func() error) error {
	for told := false; ; {
		err := s.cfg.Disk.room()
		if err == nil {
			err = write()
		}
		switch {
		case err == nil:
			if told {
				s.log.Info("there is space again: the state is written")
			}
			return nil
		case !diskFull(err):
			return err
		case !told:
			s.log.Error("the disk is full: the state waits for space", "error", err)
			told = true
		}
		select {
		case <-time.After(spaceRetry):
		case <-s.stop:
			return command.ErrStopping
		}
	}
}

// runMarkerSync syncs the marker every BufferAge, until stop.
func (s *State) runMarkerSync() {
	tick := time.NewTicker(s.cfg.BufferAge)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.marker.sync(); err != nil {
				_ = s.failWith(fmt.Errorf("sync commit marker: %w", err))
			}
		case <-s.stop:
			return
		}
	}
}

// StateStats are figures of the state for metrics.
type StateStats struct {
	Keys           uint64 // live keys
	HistoryRecords uint64 // changes kept, in file and memory
	Revision       uint64
	OldestRevision uint64
	BufferBytes    int64 // changes in memory that are not durable in the file
	BufferRecords  int
	FileBytes      int64 // length of the state file
	Flushes        uint64
	FlushedRecords uint64
	FlushTime      time.Duration // sum over all flushes
	DurableIndex   uint64        // Raft index the state file stands for
	Scrubbed       time.Time     // when everything had been read last; zero when never
}

// Stats returns figures for metrics. It is cheap.
func (s *State) Stats() StateStats {
	g := s.gen.Load()
	st := StateStats{
		Keys: g.meta.Keys - g.meta.SystemKeys, HistoryRecords: g.file.local().Records, Revision: g.meta.Revision, OldestRevision: g.meta.Oldest,
		BufferBytes: g.active.bytes, BufferRecords: len(g.active.history),
		Flushes: s.flushed.count.Load(), FlushedRecords: s.flushed.records.Load(), FlushTime: time.Duration(s.flushed.nanos.Load()),
		DurableIndex: s.durable.Load().meta.RaftIndex,
	}
	st.HistoryRecords += uint64(len(g.active.history))
	if g.frozen != nil {
		st.BufferBytes += g.frozen.bytes
		st.BufferRecords += len(g.frozen.history)
		st.HistoryRecords += uint64(len(g.frozen.history))
	}
	if at := s.scrubbed.Load(); at != 0 {
		st.Scrubbed = time.Unix(0, at)
	}
	if info, err := os.Stat(filepath.Join(s.cfg.Dir, stateName)); err == nil {
		st.FileBytes = info.Size()
	}
	return st
}
