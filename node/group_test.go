package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// fakeApply is Raft as the group sees it: each entry takes some time and every
// command's result names the entry and its place in it.
type fakeApply struct {
	mu      sync.Mutex
	entries []command.Entry
	takes   time.Duration
	err     error
	void    bool // nothing of an entry is carried out
}

type fakeFuture struct {
	response any
	err      error
	done     <-chan time.Time
}

func (f *fakeFuture) Error() error {
	if f.done != nil {
		<-f.done
		f.done = nil
	}
	return f.err
}
func (f *fakeFuture) Response() any { return f.response }
func (f *fakeFuture) Index() uint64 { return 0 }

func (a *fakeApply) apply(b []byte) raft.ApplyFuture {
	e, err := command.DecodeEntry(b)
	if err != nil {
		panic(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.entries = append(a.entries, e)
	results := make([]command.Result, len(e.Commands))
	for i := range results {
		results[i] = command.Result{OK: true, Revision: uint64(len(a.entries)*10_000 + i)}
		if a.void {
			results[i] = command.Result{Err: command.ErrNotLeader}
		}
	}
	return &fakeFuture{response: results, err: a.err, done: time.After(a.takes)}
}

func newTestGroup(a *fakeApply, inFlight int) *group {
	g := &group{apply: a.apply, inFlight: inFlight, stamp: func() (command.Stamp, time.Time) { return 7, time.Unix(9, 0) }}
	g.lead(testTerm)
	return g
}

const testTerm = 5

// lastID numbers the writes of these tests.
var lastID atomic.Uint64

func putOf(key string, size int) write {
	id := command.ID{Run: 1, Seq: lastID.Add(1)}
	return write{term: testTerm, id: id, encoded: command.AppendWithID(nil, id, &command.Put{Key: key, Value: make([]byte, size)})}
}

func TestGroupSharesEntriesAndKeepsResultsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeApply{takes: time.Millisecond}
		g := newTestGroup(a, 2)
		var mu sync.Mutex
		seen := map[uint64]bool{}
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				res, err := g.submit(t.Context(), putOf("k", 10))
				if err != nil || !res.OK {
					t.Errorf("submit: %+v, %v", res, err)
				}
				mu.Lock()
				defer mu.Unlock()
				if seen[res.Revision] {
					t.Errorf("two writes got the result %d", res.Revision)
				}
				seen[res.Revision] = true
			})
		}
		wg.Wait()
		if len(a.entries) > 6 {
			t.Errorf("500 writes at one moment took %d entries", len(a.entries))
		}
		for _, e := range a.entries {
			if e.Term != testTerm || e.Stamp != 7 || !e.Wall.Equal(time.Unix(9, 0)) {
				t.Errorf("entry has term %d, stamp %v, wall %v", e.Term, e.Stamp, e.Wall)
			}
		}
	})
}

func TestGroupSendsALoneWriteAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGroup(&fakeApply{}, 2)
		began := time.Now()
		if _, err := g.submit(t.Context(), putOf("k", 1)); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("a lone write was delayed by %v", d)
		}
	})
}

// A second client must not wait for the first one's round trip, and a crowd must not be
// split into entries that each cost a sync.
func TestGroupSendsTheNextEntryWhenAsManyWaitAsAreOnTheirWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeApply{takes: time.Second}
		g := newTestGroup(a, 3)
		write := func(n, size int) {
			for range n {
				go g.submit(t.Context(), putOf("k", size))
				synctest.Wait()
			}
		}
		sizes := func() (of []int) {
			a.mu.Lock()
			defer a.mu.Unlock()
			for _, e := range a.entries {
				of = append(of, len(e.Commands))
			}
			return of
		}
		expect := func(when string, want ...int) {
			t.Helper()
			if got := sizes(); !slices.Equal(got, want) {
				t.Errorf("%s: entries of %v writes, not %v", when, got, want)
			}
		}
		write(1, 1)
		expect("the first", 1)
		time.Sleep(100 * time.Millisecond)
		write(2, 1)
		expect("one on its way, two more", 1, 1)
		write(1, 1)
		expect("as many wait as are on their way", 1, 1, 2)
		write(5, 1)
		expect("three entries are under way", 1, 1, 2)
		time.Sleep(time.Second - 100*time.Millisecond) // the first is back
		synctest.Wait()
		expect("five wait, three are on their way", 1, 1, 2, 5)
		write(4, 1)
		time.Sleep(100 * time.Millisecond) // the second and third are
		synctest.Wait()
		expect("four wait, five are on their way", 1, 1, 2, 5)
		write(1, command.MaxEntry)
		expect("what waits fills an entry", 1, 1, 2, 5, 4)
		time.Sleep(time.Minute)
		synctest.Wait()
		expect("at the end", 1, 1, 2, 5, 4, 1)
	})
}

func TestGroupBoundsTheBytesOfAnEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeApply{takes: time.Millisecond}
		g := newTestGroup(a, 1)
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				if _, err := g.submit(t.Context(), putOf("k", 100<<10)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() { // larger than any entry should be, alone in one
			if _, err := g.submit(t.Context(), putOf("k", 2*command.MaxEntry)); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		for i, e := range a.entries {
			size := 0
			for _, c := range e.Commands {
				size += len(c.(*command.Put).Value)
			}
			if size > command.MaxEntry && len(e.Commands) > 1 {
				t.Errorf("entry %d has %d commands and %d bytes", i, len(e.Commands), size)
			}
		}
	})
}

func TestGroupSaysWhetherAFailedWriteMayHaveHappened(t *testing.T) {
	for _, c := range []struct {
		err, want error
	}{
		{raft.ErrNotLeader, command.ErrNotLeader},
		{raft.ErrLeadershipTransferInProgress, command.ErrNotLeader},
		{raft.ErrLeadershipLost, command.ErrOutcomeUnknown},
		{raft.ErrRaftShutdown, command.ErrOutcomeUnknown},
		{errors.New("disk"), command.ErrOutcomeUnknown},
	} {
		g := newTestGroup(&fakeApply{err: c.err}, 1)
		if _, err := g.submit(t.Context(), putOf("k", 1)); !errors.Is(err, c.want) {
			t.Errorf("%v becomes %v, want %v", c.err, err, c.want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		g := newTestGroup(&fakeApply{takes: time.Hour}, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.submit(ctx, putOf("k", 1)); !errors.Is(err, command.ErrOutcomeUnknown) {
			t.Errorf("a write without an answer in time: %v", err)
		}
		if err := g.drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestDrainFinishesWhatIsUnderWayAndLetsNothingIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeApply{takes: 50 * time.Millisecond}
		g := newTestGroup(a, 1)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := g.submit(t.Context(), putOf("k", 1)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		wg.Go(func() {
			if err := g.drain(t.Context()); err != nil {
				t.Error(err)
			}
			if n := len(a.entries); n != 2 {
				t.Errorf("drained after %d entries, want 2", n)
			}
		})
		synctest.Wait()
		if _, err := g.submit(t.Context(), putOf("k", 1)); !errors.Is(err, command.ErrNotLeader) {
			t.Errorf("submit while draining: %v", err)
		}
		wg.Wait()
	})
}

// Under another term a write would come after others than its sender thinks.
func TestAWriteGoesIntoEntriesOfItsTermOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeApply{takes: time.Second}
		g := newTestGroup(a, 1)
		var wg sync.WaitGroup
		first, waiting := putOf("first", 1), putOf("waiting", 1)
		wg.Go(func() {
			if _, err := g.submit(t.Context(), first); err != nil {
				t.Errorf("in flight: %v", err)
			}
		})
		synctest.Wait()
		refused := false
		wg.Go(func() {
			_, err := g.submit(t.Context(), waiting)
			refused = errors.Is(err, command.ErrNotLeader)
		})
		synctest.Wait()
		g.end()
		synctest.Wait()
		if !refused {
			t.Error("a write that was pending when the term ended is kept")
		}
		g.lead(testTerm + 1)
		if _, err := g.submit(t.Context(), putOf("late", 1)); !errors.Is(err, command.ErrNotLeader) {
			t.Errorf("meant for the term before: %v", err)
		}
		now := putOf("now", 1)
		now.term = testTerm + 1
		if _, err := g.submit(t.Context(), now); err != nil {
			t.Errorf("meant for this term: %v", err)
		}
		wg.Wait()
		if len(a.entries) != 2 || a.entries[0].Term != testTerm || a.entries[1].Term != testTerm+1 {
			t.Errorf("entries: %+v", a.entries)
		}
	})
}

// Raft may lose its leadership, and win it again, before it takes an entry in.
func TestAnEntryThatCameIntoTheLogInAnotherTermHasNotHappened(t *testing.T) {
	g := newTestGroup(&fakeApply{void: true}, 1)
	if _, err := g.submit(t.Context(), putOf("k", 1)); !errors.Is(err, command.ErrNotLeader) {
		t.Errorf("submit: %v", err)
	}
}

func TestAWriteThatIsAskedForIsDecidedOrNeverLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeApply{takes: time.Second}
		g := newTestGroup(a, 1)
		w, late := putOf("k", 1), putOf("late", 1)
		decided := false
		go func() {
			if _, err := g.submit(t.Context(), w); err != nil {
				t.Error(err)
			}
			decided = true
		}()
		synctest.Wait()
		if err := g.settle(t.Context(), testTerm, w.id); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if !decided {
			t.Error("a write in flight was called decided")
		}
		if err := g.settle(t.Context(), testTerm, late.id); err != nil {
			t.Error(err)
		}
		if _, err := g.submit(t.Context(), late); !errors.Is(err, command.ErrNotLeader) {
			t.Errorf("a write that was called lost is let in: %v", err)
		}
		for _, term := range []uint64{0, testTerm - 1, testTerm + 1} {
			if err := g.settle(t.Context(), term, late.id); !errors.Is(err, command.ErrNotLeader) {
				t.Errorf("settled for term %d: %v", term, err)
			}
		}
		a.err = raft.ErrLeadershipLost
		if _, err := g.submit(t.Context(), putOf("k", 1)); !errors.Is(err, command.ErrOutcomeUnknown) {
			t.Error(err)
		}
		synctest.Wait()
		if err := g.settle(t.Context(), testTerm, late.id); !errors.Is(err, command.ErrNotLeader) {
			t.Errorf("settled although an entry of the term is in doubt: %v", err)
		}
	})
}

func BenchmarkGroup(b *testing.B) {
	results := make([]command.Result, maxGroup)
	g := &group{inFlight: 3, stamp: func() (command.Stamp, time.Time) { return 0, time.Time{} }}
	g.apply = func(e []byte) raft.ApplyFuture {
		d, err := command.DecodeEntry(e)
		return &fakeFuture{response: results[:len(d.Commands)], err: err}
	}
	g.lead(testTerm)
	w := putOf("key", 100)
	b.ReportAllocs()
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := g.submit(b.Context(), w); err != nil {
				b.Error(err)
			}
		}
	})
}
