package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// A life is what a node does to its data directory from its first start on, in
// steps. Tests break the disk under it, or take the power away, at any operation
// and compare what is left with what the steps had promised.
type life struct {
	steps []step
	// entry is the command entry at an index.
	entry func(index uint64) scriptEntry

	mu      sync.Mutex
	models  map[uint64]*model
	sources map[uint64]*State
}

func newLife(entry func(uint64) scriptEntry, steps ...step) *life {
	return &life{steps: steps, entry: entry, models: map[uint64]*model{}, sources: map[uint64]*State{}}
}

type step struct {
	name string
	do   func(n *living) error
	// then is what the world is once do has returned. While it runs, and when it
	// fails, each part of the world is as before, as then, or on the way.
	then func(w *world)
}

// living is a node with its directory open.
type living struct {
	t     *testing.T
	life  *life
	path  string
	dir   *Dir
	state *State
	logs  *Logs
	// free makes room on a disk that is full; nil where none is.
	free func()
}

// world is what was promised to be durable.
type world struct {
	starts  uint64
	cluster string
	epoch   uint64
	// The state is at one of the indices flushed to applied.
	flushed, applied uint64
	snapshot         uint64 // the Raft index it stands for at least
	marker           uint64 // likewise of the marker
	// The log holds the entries first to last, each of the term in terms.
	first, last uint64
	terms       map[uint64]uint64
	term        uint64
	voteTerm    uint64
	candidate   string
	peer        PeerSeen
}

func (w world) clone() world {
	terms := map[uint64]uint64{}
	for i, t := range w.terms {
		terms[i] = t
	}
	w.terms = terms
	return w
}

// worlds returns what is promised before each step, and after the last.
func (l *life) worlds() []world {
	all := []world{{}}
	for _, s := range l.steps {
		w := all[len(all)-1].clone()
		s.then(&w)
		all = append(all, w)
	}
	return all
}

// trial is a test within a test: what would end the test ends only the trial.
type trial struct {
	testing.TB
	problems []string
}

func (t *trial) Helper()      {}
func (t *trial) Failed() bool { return len(t.problems) > 0 }
func (t *trial) Error(a ...any) {
	t.problems = append(t.problems, strings.TrimSuffix(fmt.Sprintln(a...), "\n"))
}
func (t *trial) Errorf(f string, a ...any) { t.problems = append(t.problems, fmt.Sprintf(f, a...)) }
func (t *trial) Fatal(a ...any)            { t.Error(a...); runtime.Goexit() }
func (t *trial) Fatalf(f string, a ...any) { t.Errorf(f, a...); runtime.Goexit() }

// try runs what a test would, and returns its failure as an error.
func try(t testing.TB, fn func(t testing.TB)) error {
	trial := &trial{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(trial)
	}()
	<-done
	if len(trial.problems) > 0 {
		return errors.New(strings.Join(trial.problems, "; "))
	}
	return nil
}

// lifeSegment is so small that the log fills several.
const lifeSegment = 8 << 10

const lifeEntrySize = 400

// open starts the node, with what it finds.
func (n *living) open(kind string) error {
	id, ok, err := Inspect(n.path)
	if err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	if !ok {
		id = Identity{Format: identityFormat, ID: "n1-0123456789abcdef", Name: "n1", Site: "home"}
	}
	if n.dir, err = OpenDir(n.path, id, nil); err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	n.dir.walSegment = lifeSegment
	if n.state, err = OpenState(StateConfig{Dir: n.path, BufferAge: time.Hour, MaxData: 1 << 30}); err != nil {
		return fmt.Errorf("open state: %w", err)
	}
	if n.logs, err = n.dir.OpenLogs(kind); err != nil {
		return fmt.Errorf("open logs: %w", err)
	}
	return nil
}

// close ends the node, whatever its condition, and in reasonable time.
func (n *living) close() error {
	was := *n
	n.logs, n.state, n.dir = nil, nil, nil
	done := make(chan error, 1)
	go func() {
		var errs []error
		if was.logs != nil {
			errs = append(errs, was.logs.Close())
		}
		if was.state != nil {
			errs = append(errs, was.state.Close())
		}
		if was.dir != nil {
			errs = append(errs, was.dir.Close())
		}
		done <- errors.Join(errs...)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		n.t.Error("the node cannot be stopped")
		return nil
	}
}

// The steps.

func start(kind string) step {
	return step{"start with " + kind, func(n *living) error { return n.open(kind) }, func(w *world) { w.starts++ }}
}

func stop() step {
	return step{"stop", (*living).close, func(w *world) { w.flushed, w.marker = w.applied, w.applied }}
}

func join(cluster string, epoch uint64) step {
	return step{fmt.Sprint("note epoch ", epoch), func(n *living) error { return n.dir.SetCluster(cluster, epoch) },
		func(w *world) { w.cluster, w.epoch = cluster, epoch }}
}

func appendLog(first, last, term uint64) step {
	return step{fmt.Sprintf("append %d to %d", first, last), func(n *living) error {
		var batch []*raft.Log
		for i := first; i <= last; i++ {
			batch = append(batch, testEntry(i, term, lifeEntrySize))
		}
		return n.logs.Log.StoreLogs(batch)
	}, func(w *world) {
		if w.first == 0 {
			w.first = first
		}
		w.last = last
		for i := first; i <= last; i++ {
			w.terms[i] = term
		}
	}}
}

func dropLog(first, last uint64) step {
	return step{fmt.Sprintf("drop %d to %d from the log", first, last),
		func(n *living) error { return n.logs.Log.DeleteRange(first, last) },
		func(w *world) {
			switch {
			case first <= w.first && last >= w.last:
				w.first, w.last = 0, 0
			case first <= w.first:
				w.first = last + 1
			default:
				w.last = first - 1
			}
		}}
}

func newTerm(term uint64) step {
	return step{fmt.Sprint("term ", term), func(n *living) error {
		if err := n.logs.Stable.SetUint64([]byte(raftCurrentTerm), term); err != nil {
			return err
		}
		return n.logs.Err() // a term that cannot be stored is kept, and nothing else is done
	}, func(w *world) { w.term = term }}
}

func voteFor(term uint64, candidate string) step {
	return step{"vote for " + candidate, func(n *living) error {
		if err := n.logs.Stable.SetUint64([]byte(raftLastVoteTerm), term); err != nil {
			return err
		}
		return n.logs.Stable.Set([]byte(raftLastVoteCand), []byte(candidate))
	}, func(w *world) { w.voteTerm, w.candidate = term, candidate }}
}

func seePeer(starts uint64) step {
	seen := PeerSeen{Starts: starts}
	return step{"see a peer", func(n *living) error { return n.logs.SetPeer("peer", seen) }, func(w *world) { w.peer = seen }}
}

const (
	// birth is the index at which the cluster comes to be.
	birth = 1
	// barrier is an index that is no command's: entries of Raft itself.
	barrier = 41
)

func apply(last uint64) step {
	return step{fmt.Sprint("apply to ", last), func(n *living) error {
		return try(n.t, func(t testing.TB) { n.life.apply(t, n.state, last) })
	}, func(w *world) { w.applied = last }}
}

// apply applies the entries up to an index, in small batches.
func (l *life) apply(t testing.TB, s *State, last uint64) {
	t.Helper()
	var batch []scriptEntry
	for index := s.appliedIndex() + 1; index <= last; index++ {
		switch index {
		case birth:
			b := s.Begin()
			b.Entry(index, 1, 0, time.Unix(int64(index), 0))
			b.SetCluster(command.Cluster{ID: "c"})
			b.Step()
			if err := b.Publish(); err != nil {
				t.Fatal(err)
			}
		case barrier:
		default:
			batch = append(batch, l.entry(index))
		}
		if len(batch) == 5 || index == last && len(batch) > 0 {
			applyScript(t, s, batch...)
			batch = nil
		}
	}
}

func flush() step {
	return step{"flush", func(n *living) error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*spaceRetry)
		defer cancel()
		return n.state.Flush(ctx)
	}, func(w *world) { w.flushed = w.applied }}
}

func syncMarker() step {
	return step{"sync the marker", func(n *living) error { return n.state.marker.sync() }, func(w *world) { w.marker = w.applied }}
}

// compact waits until the flusher has dropped what is superfluous; it promises
// nothing, and waits longer than this when it has found no space.
func compact() step {
	return step{"compact", func(n *living) error {
		deadline := time.Now().Add(time.Second)
		for n.state.compactDue() && n.state.Err() == nil && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		return nil
	}, func(*world) {}}
}

func snapshot(index uint64) step {
	return step{fmt.Sprint("snapshot at ", index), func(n *living) error {
		sink, err := n.state.Snapshots().Create(1, index, 1, raft.Configuration{}, 0, nil)
		if err != nil {
			return err
		}
		return sink.Close()
	}, func(w *world) { w.snapshot, w.flushed = index, w.applied }}
}

// receiveHalf receives a full copy of the state at an index until it breaks off.
func receiveHalf(index uint64) step {
	return step{"receive half of a copy", func(n *living) error {
		stream := answer(n.t, n.life.source(n.t, index), n.state.CopyRequest(true))
		_, err := n.state.ReceiveCopy(context.Background(), bytes.NewReader(stream[:len(stream)/2]))
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		return err
	}, func(*world) {}}
}

// receive receives a full copy, or the rest of it, and has Raft announce it.
func receive(index uint64) step {
	return step{"receive a copy", func(n *living) error {
		stream := answer(n.t, n.life.source(n.t, index), n.state.CopyRequest(true))
		if st, err := n.state.ReceiveCopy(context.Background(), bytes.NewReader(stream)); err != nil {
			return err
		} else if st.Kind != command.CopyFull {
			n.t.Errorf("received a copy of kind %s", st.Kind)
		}
		return try(n.t, func(t testing.TB) { announce(t, n.state, index, raft.Configuration{}, 0) })
	}, func(*world) {}}
}

func receiveDelta(index uint64) step {
	return step{"receive a delta", func(n *living) error {
		stream := answer(n.t, n.life.source(n.t, index), n.state.CopyRequest(false))
		if n.free != nil { // a delta that is being put in place waits for room, as long as it takes
			defer time.AfterFunc(time.Second, n.free).Stop()
		}
		st, err := n.state.ReceiveCopy(context.Background(), bytes.NewReader(stream))
		if err == nil && st.Kind != command.CopyDelta {
			n.t.Errorf("received a copy of kind %s", st.Kind)
		}
		return err
	}, func(w *world) { w.flushed, w.applied = index, index }}
}

func rewrite() step {
	return step{"rewrite", func(n *living) error { return n.state.rewrite() }, func(*world) {}}
}

func swap(index uint64) step {
	return step{"swap in a copy", func(n *living) error { return n.state.SwapCopy(false) },
		func(w *world) { w.flushed, w.applied, w.snapshot = index, index, index }}
}

// source is another node's state, which is at an index.
func (l *life) source(t *testing.T, index uint64) *State {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sources[index]; s != nil {
		return s
	}
	s := openTestState(t, StateConfig{})
	t.Cleanup(func() { delete(l.sources, index) }) // before it is closed
	l.apply(t, s, index)
	l.sources[index] = s
	return s
}

// modelAt is what the state is at an index.
func (l *life) modelAt(index uint64) *model {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.models[index]; m != nil {
		return m
	}
	m := newModel()
	for i := uint64(1); i <= index; i++ {
		switch i {
		case birth:
			m.past = append(m.past, m.now()) // a revision without keys
		case barrier:
		default:
			m.apply(l.entry(i))
		}
	}
	l.models[index] = m
	return m
}

// wholeLife does all that a node does to its directory.
func wholeLife() *life {
	return newLife(crashEntry,
		start(LogStoreWAL), join("c", 1), newTerm(2), voteFor(2, "a"),
		appendLog(1, 20, 2), apply(10), flush(), apply(20), syncMarker(), flush(),
		appendLog(21, 41, 2), apply(40), snapshot(barrier), compact(), dropLog(1, 30),
		appendLog(42, 60, 2), dropLog(50, 60), newTerm(3), voteFor(3, "b"), appendLog(50, 65, 3),
		apply(60), seePeer(1), stop(),
		start(LogStoreWAL), join("c", 2), apply(65), receiveHalf(100), receive(100), swap(100), dropLog(31, 65),
		appendLog(101, 112, 3), apply(110), flush(), stop(),
		start(LogStoreBolt), appendLog(113, 120, 3), apply(118), flush(), compact(), dropLog(101, 105),
		newTerm(4), voteFor(4, "a"), seePeer(2), dropLog(119, 120), appendLog(119, 121, 4), apply(121), stop(),
		start(LogStoreWAL), appendLog(122, 125, 4), apply(125), receiveDelta(140), apply(143), rewrite(), apply(145), stop(),
	)
}

// largeLife flushes more than fits into one transaction, and drops as much from
// history, so that the file is ahead of what it claims for most of the time.
func largeLife() *life {
	const many = flushChanges + 500
	keys := func(first int) (list []string) {
		for i := range many {
			list = append(list, fmt.Sprintf("%06d", (first+i*7919)%(2*many)))
		}
		return list
	}
	entry := func(index uint64) scriptEntry {
		e := scriptEntry{index: index}
		for part := range slices.Chunk(keys(int(index)), 1000) {
			e.commands = append(e.commands, scriptCommand{op: "put", keys: part, val: fmt.Sprint(index)})
		}
		switch index {
		case 3:
			e.commands = append(e.commands, scriptCommand{op: "compact"})
		case 4:
			e.commands = append(e.commands, scriptCommand{op: "tree", keys: []string{"00"}})
		}
		return e
	}
	return newLife(entry, start(LogStoreBolt), apply(2), flush(), apply(3), flush(), compact(), receiveDelta(4), rewrite(), stop())
}

// live takes the steps until one fails, and returns how many did not. after, when
// set, is called after each.
func (n *living) live(after func(steps int)) (steps int, err error) {
	for i, s := range n.life.steps {
		if err := s.do(n); err != nil {
			return i, fmt.Errorf("%s: %w", s.name, err)
		}
		if after != nil {
			after(i + 1)
		}
	}
	return len(n.life.steps), nil
}

// want starts the node that is in a directory and compares it with what was
// promised before a step of its life, and after it: the step may have been done
// in part.
func (l *life) want(t *testing.T, path string, before, after world) {
	t.Helper()
	n := &living{t: t, life: l, path: path}
	id, found, err := Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	kind := id.LogStore
	if kind == "" {
		kind = LogStoreWAL
	}
	if err := n.open(kind); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
		if !t.Failed() {
			inspect(t, path)
		}
	}()

	if !found && before.starts > 0 || id.Starts < before.starts ||
		id.Epoch != before.epoch && id.Epoch != after.epoch || id.ClusterID != before.cluster && id.ClusterID != after.cluster {
		t.Fatalf("identity %+v, found: %v", id, found)
	}
	n.wantLog(before, after)
	n.wantStable(before, after)

	index, _ := n.state.Applied()
	if (index < before.flushed || index > before.applied) && (index < after.flushed || index > after.applied) {
		t.Fatalf("the state is at %d, not from %d to %d or from %d to %d", index, before.flushed, before.applied, after.flushed, after.applied)
	}
	if m := l.modelAt(index); len(m.touched) < 1000 {
		m.check(t, n.state, rand.New(rand.NewPCG(index, 1)))
	} else {
		m.checkContents(t, n.state)
	}
	if known, _ := n.state.Marker(); known < before.marker || known < index {
		t.Fatalf("the marker is at %d, not at %d; the state at %d", known, before.marker, index)
	}
	if list, err := n.state.Snapshots().List(); before.snapshot > 0 && (err != nil || len(list) != 1 || list[0].Index < before.snapshot) {
		t.Fatalf("snapshots %v, %v; the state was to stand for %d", list, err, before.snapshot)
	}
}

// checkContents is check for states too large for it.
func (m *model) checkContents(t *testing.T, s *State) {
	t.Helper()
	now := uint64(len(m.past) - 1)
	if s.Revision() != now {
		t.Fatalf("revision %d, not %d", s.Revision(), now)
	}
	for _, rev := range []uint64{max(m.oldest, 1), now} {
		var got []command.Record
		err := s.Export(context.Background(), "", rev, func(rec command.Record) error {
			got = append(got, rec)
			return nil
		})
		if now > 0 && (err != nil || !sameRecords(got, m.under(rev, "", ""))) {
			t.Fatalf("the contents at revision %d of %d differ: %v", rev, now, err)
		}
	}
}

func (n *living) wantLog(before, after world) {
	n.t.Helper()
	first, last, err := n.logs.Bounds()
	if err != nil {
		n.t.Fatal(err)
	}
	is := func(w world) bool { return first == w.first && last == w.last }
	begun := before.first
	if begun == 0 {
		begun = after.first
	}
	if appended := first == begun && last >= before.last && last <= after.last; !is(before) && !is(after) && !appended {
		n.t.Fatalf("the log holds %d to %d, not %d to %d or %d to %d", first, last, before.first, before.last, after.first, after.last)
	}
	for i := first; i <= last && last > 0; i++ {
		var e raft.Log
		if err := n.logs.Log.GetLog(i, &e); err != nil {
			n.t.Fatalf("entry %d of %d to %d: %v", i, first, last, err)
		}
		if e.Term != before.terms[i] && e.Term != after.terms[i] || !sameEntry(&e, testEntry(i, e.Term, lifeEntrySize)) {
			n.t.Fatalf("entry %d is of term %d, not %d or %d, or damaged", i, e.Term, before.terms[i], after.terms[i])
		}
	}
}

func (n *living) wantStable(before, after world) {
	n.t.Helper()
	absent := func(err error) bool { return err != nil && err.Error() == "not found" }
	term, err := n.logs.Stable.GetUint64([]byte(raftCurrentTerm))
	if err != nil && !absent(err) || term != before.term && term != after.term {
		n.t.Fatalf("term %d, %v; not %d or %d", term, err, before.term, after.term)
	}
	r := n.logs.stable.stored.Load()
	is := func(w world) bool { return r.VoteTerm == w.voteTerm && string(r.Candidate) == w.candidate }
	if !is(before) && !is(after) {
		n.t.Fatalf("vote for %q in term %d; not for %q in %d or %q in %d", r.Candidate, r.VoteTerm,
			before.candidate, before.voteTerm, after.candidate, after.voteTerm)
	}
	if seen := n.logs.Peers()["peer"]; seen != before.peer && seen != after.peer {
		n.t.Fatalf("peer seen %v; not %v or %v", seen, before.peer, after.peer)
	}
}

// Exhaustive runs are asked for by a variable: they take minutes.
const (
	everyOperationVar = "HOLDFAST_TEST_EVERY_OPERATION"
	faultSeedVar      = "HOLDFAST_TEST_FAULT_SEED"
)

// faultSeed seeds the choice of operations, differently each time.
func faultSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(faultSeedVar); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s=%d; %s=1 tries every operation", faultSeedVar, seed, everyOperationVar)
	return seed
}

// someOf returns, in order, so many of the numbers from first to last, or all of
// them when asked for.
func someOf(r *rand.Rand, first, last, most int) (list []int) {
	if testing.Short() {
		most = (most + 3) / 4
	}
	n := last - first + 1
	if os.Getenv(everyOperationVar) != "" || most > n {
		most = n
	}
	list = r.Perm(n)[:most]
	slices.Sort(list)
	for i := range list {
		list[i] += first
	}
	return list
}
