package node

import (
	"context"
	"errors"
	"sync"
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
	}
	return &fakeFuture{response: results, err: a.err, done: time.After(a.takes)}
}

func newTestGroup(a *fakeApply, inFlight int) *group {
	g := &group{apply: a.apply, inFlight: inFlight, stamp: func() (command.Stamp, time.Time) { return 7, time.Unix(9, 0) }}
	g.unlock()
	return g
}

func encodedPut(key string, size int) []byte {
	return command.Append(nil, &command.Put{Key: key, Value: make([]byte, size)})
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
				res, err := g.submit(t.Context(), encodedPut("k", 10))
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
			if e.Stamp != 7 || !e.Wall.Equal(time.Unix(9, 0)) {
				t.Errorf("entry has stamp %v, wall %v", e.Stamp, e.Wall)
			}
		}
	})
}

func TestGroupSendsALoneWriteAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGroup(&fakeApply{}, 2)
		began := time.Now()
		if _, err := g.submit(t.Context(), encodedPut("k", 1)); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("a lone write was delayed by %v", d)
		}
	})
}

func TestGroupBoundsTheBytesOfAnEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeApply{takes: time.Millisecond}
		g := newTestGroup(a, 1)
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				if _, err := g.submit(t.Context(), encodedPut("k", 100<<10)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() { // larger than any entry should be, alone in one
			if _, err := g.submit(t.Context(), encodedPut("k", 2*command.MaxEntry)); err != nil {
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
		if _, err := g.submit(t.Context(), encodedPut("k", 1)); !errors.Is(err, c.want) {
			t.Errorf("%v becomes %v, want %v", c.err, err, c.want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		g := newTestGroup(&fakeApply{takes: time.Hour}, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.submit(ctx, encodedPut("k", 1)); !errors.Is(err, command.ErrOutcomeUnknown) {
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
				if _, err := g.submit(t.Context(), encodedPut("k", 1)); err != nil {
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
		if _, err := g.submit(t.Context(), encodedPut("k", 1)); !errors.Is(err, command.ErrNotLeader) {
			t.Errorf("submit while draining: %v", err)
		}
		wg.Wait()
	})
}
