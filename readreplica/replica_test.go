package readreplica

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// fakeNode is a member as a replica sees it, in virtual time.
type fakeNode struct {
	Node      // what a test does not set up must not be called
	learner   bool
	reachable atomic.Bool // the leader answers
	asks      atomic.Int64
	diverged  atomic.Uint64
	paused    atomic.Bool
	clock     fakeClock
	state     fakeState

	mu       sync.Mutex
	caughtUp command.CatchUp // guarded by mu
	applied  chan struct{}   // guarded by mu; Await returns once it is closed
}

type fakeClock struct {
	began     time.Time
	suspended time.Duration // time the steady clock did not see
	wallShift time.Duration
}

func (c *fakeClock) Steady() time.Duration { return time.Since(c.began) - c.suspended }
func (c *fakeClock) Wall() time.Time       { return time.Now().Add(c.wallShift) }

type fakeState struct {
	node.State
	mu        sync.Mutex
	certified time.Time // guarded by mu
	revision  atomic.Uint64
	applied   atomic.Uint64
	oldest    atomic.Uint64
	damaged   atomic.Pointer[[]command.Damage]
}

func (s *fakeState) OldestRevision() uint64 { return s.oldest.Load() }

func (s *fakeState) Damaged() []command.Damage {
	if d := s.damaged.Load(); d != nil {
		return *d
	}
	return nil
}

func (s *fakeState) Certify(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certified = t
}

func (s *fakeState) LastCertified() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.certified
}

func (s *fakeState) Revision() uint64          { return s.revision.Load() }
func (s *fakeState) Applied() (uint64, uint64) { return s.applied.Load(), 1 }

func (s *fakeState) WaitRevision(ctx context.Context, r uint64) error {
	for s.revision.Load() < r {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

type fakeView struct {
	command.View
	revision, oldest uint64
}

func (v fakeView) Revision() uint64       { return v.revision }
func (v fakeView) OldestRevision() uint64 { return v.oldest }
func (v fakeView) Close()                 {}

func (n *fakeNode) Paused() bool { return n.paused.Load() }

func (n *fakeNode) Resume(context.Context) error { n.paused.Store(false); return nil }

func newFake(learner bool) *fakeNode {
	n := &fakeNode{learner: learner, clock: fakeClock{began: time.Now().Add(-time.Hour)}}
	n.reachable.Store(true)
	n.level()
	return n
}

// behind makes Await wait until level is called.
func (n *fakeNode) behind() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied = make(chan struct{})
}

func (n *fakeNode) level() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.applied == nil {
		n.applied = make(chan struct{})
	}
	select {
	case <-n.applied:
	default:
		close(n.applied)
	}
}

func (n *fakeNode) ask() (node.Point, error) {
	n.asks.Add(1)
	if !n.reachable.Load() {
		return node.Point{}, command.ErrNoLeader
	}
	return node.Point{Index: 100, AsOf: node.Now(&n.clock)}, nil
}

func (n *fakeNode) AskIndex(context.Context, bool) (node.Point, error) { return n.ask() }
func (n *fakeNode) Probe(context.Context, time.Duration, bool) (node.Point, error) {
	return n.ask()
}
func (n *fakeNode) Await(ctx context.Context, _ node.Point) error {
	n.mu.Lock()
	applied := n.applied
	n.mu.Unlock()
	select {
	case <-applied:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
func (n *fakeNode) View() (command.View, error) {
	return fakeView{revision: n.state.Revision(), oldest: n.state.OldestRevision()}, nil
}
func (n *fakeNode) Diverged() uint64                   { return n.diverged.Load() }
func (n *fakeNode) State() node.State                  { return &n.state }
func (n *fakeNode) Clock() node.Clock                  { return &n.clock }
func (n *fakeNode) Self() command.Member               { return command.Member{Name: "e1", Site: "east"} }
func (n *fakeNode) Learner() bool                      { return n.learner }
func (n *fakeNode) KnowsLeader() bool                  { return n.reachable.Load() }
func (n *fakeNode) LastContact() (time.Duration, bool) { return 0, n.reachable.Load() }
func (n *fakeNode) CatchUp() command.CatchUp {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.caughtUp
}
func (n *fakeNode) CaughtUp(c command.CatchUp) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.caughtUp = c
}
func (n *fakeNode) Failure() error             { return nil }
func (n *fakeNode) Status() command.NodeStatus { return command.NodeStatus{State: "Learner"} }

func nothing(command.View) error { return nil }

// started runs fn with a replica that probes, in virtual time.
func started(t *testing.T, learner bool, fn func(t *testing.T, n *fakeNode, r *Replica)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newFake(learner)
		r := New(Config{}, n)
		r.Start()
		synctest.Wait()
		fn(t, n, r)
		n.level()
		r.Stop()
	})
}

var stale = command.ReadOptions{Mode: command.ReadStale}

func TestStalenessGrowsFromTheMomentTheLeaderWasAsked(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		n.reachable.Store(false)
		time.Sleep(10 * time.Second)
		info, err := r.Read(t.Context(), stale, nothing)
		if err != nil || !info.StalenessKnown || info.Staleness != 10*time.Second {
			t.Errorf("%+v, %v", info, err)
		}
	})
}

// Until the leader's index is applied here, its answer proves nothing.
func TestACertificateCountsOnceItsIndexIsApplied(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		n.behind()
		time.Sleep(3 * time.Second)
		info, err := r.Read(t.Context(), stale, nothing)
		if err != nil || info.Staleness != 3*time.Second {
			t.Errorf("while behind: %+v, %v", info, err)
		}
		n.level()
		synctest.Wait()
		info, err = r.Read(t.Context(), stale, nothing)
		if err != nil || info.Staleness > DefaultProbeInterval {
			t.Errorf("once level: %+v, %v", info, err)
		}
	})
}

func TestACopyThatSleptOrWhoseClockWasSetBackDoesNotCallItselfFresh(t *testing.T) {
	for name, disturb := range map[string]func(*fakeClock){
		"the host was suspended":       func(c *fakeClock) { c.suspended = time.Hour; c.wallShift = 0 },
		"the wall clock was set back":  func(c *fakeClock) { c.wallShift = -24 * time.Hour },
		"the wall clock was set ahead": func(c *fakeClock) { c.wallShift = time.Minute },
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newFake(true)
			r := New(Config{}, n)
			r.probeOnce()
			synctest.Wait()
			time.Sleep(2 * time.Hour)
			disturb(&n.clock)
			info, err := r.Read(t.Context(), stale, nothing)
			if err != nil || info.Staleness < 2*time.Hour {
				t.Errorf("%s: %+v, %v", name, info, err)
			}
		})
	}
}

func TestReadsOfALearnerAskNobodyUnlessTold(t *testing.T) {
	for _, c := range []struct {
		learner bool
		mode    command.ReadMode
		asks    int64
	}{
		{true, command.ReadDefault, 0}, {true, command.ReadStale, 0}, {true, command.ReadConsistent, 1},
		{false, command.ReadDefault, 1}, {false, command.ReadStale, 0}, {false, command.ReadConsistent, 1},
	} {
		started(t, c.learner, func(t *testing.T, n *fakeNode, r *Replica) {
			before := n.asks.Load()
			if _, err := r.Read(t.Context(), command.ReadOptions{Mode: c.mode}, nothing); err != nil {
				t.Error(err)
			}
			if got := n.asks.Load() - before; got != c.asks {
				t.Errorf("learner %v, mode %d: the leader was asked %d times, want %d", c.learner, c.mode, got, c.asks)
			}
		})
	}
}

func TestALearnerThatAsksTheLeaderAnswersDefaultReadsAsAVoterDoes(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		r.cfg.AskLeader = true
		for mode, asks := range map[command.ReadMode]int64{command.ReadDefault: 1, command.ReadStale: 0} {
			before := n.asks.Load()
			if _, err := r.Read(t.Context(), command.ReadOptions{Mode: mode}, nothing); err != nil {
				t.Error(err)
			}
			if got := n.asks.Load() - before; got != asks {
				t.Errorf("mode %d: the leader was asked %d times, want %d", mode, got, asks)
			}
		}
	})
}

func TestABoundedReadIsJudgedAfterItWasEvaluated(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		bounded := command.ReadOptions{Mode: command.ReadStale, MaxStale: time.Second}
		runs := 0
		info, err := r.Read(t.Context(), bounded, func(command.View) error {
			if runs++; runs == 1 {
				time.Sleep(2 * time.Second) // too old by the time it is there
			}
			return nil
		})
		if err != nil || runs != 2 || info.Staleness > time.Second {
			t.Errorf("one slow evaluation: %d runs, %+v, %v", runs, info, err)
		}
		if _, err := r.Read(t.Context(), bounded, func(command.View) error { time.Sleep(2 * time.Second); return nil }); !errors.Is(err, command.ErrTooStale) {
			t.Errorf("always slow: %v", err)
		}
	})
}

func TestABoundedReadAsksTheLeaderOrFails(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		n.reachable.Store(false)
		time.Sleep(time.Minute)
		bounded := command.ReadOptions{Mode: command.ReadStale, MaxStale: time.Second}
		if _, err := r.Read(t.Context(), bounded, nothing); !errors.Is(err, command.ErrTooStale) {
			t.Errorf("without a leader: %v", err)
		}
		n.reachable.Store(true)
		info, err := r.Read(t.Context(), bounded, nothing)
		if err != nil || info.Staleness > time.Second {
			t.Errorf("with a leader: %+v, %v", info, err)
		}
	})
}

func TestACopyThatWasNeverCompleteServesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFake(true)
		n.reachable.Store(false)
		r := New(Config{}, n)
		if _, err := r.Read(t.Context(), stale, nothing); !errors.Is(err, command.ErrNotReady) {
			t.Errorf("a copy that never met a leader: %v", err)
		}
		n.reachable.Store(true)
		if _, err := r.Read(t.Context(), stale, nothing); err != nil {
			t.Errorf("the first contact makes it complete: %v", err)
		}
	})
}

func TestAfterARestartWhileCutOffTheAgeIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFake(true)
		n.reachable.Store(false)
		fresh := time.Now().Add(-time.Hour)
		n.state.Certify(fresh)
		r := New(Config{}, n)
		info, err := r.Read(t.Context(), stale, nothing)
		if err != nil || info.StalenessKnown || !info.FreshAsOf.Equal(fresh) || info.LastContact < time.Hour {
			t.Errorf("%+v, %v", info, err)
		}
		if _, err := r.Read(t.Context(), command.ReadOptions{Mode: command.ReadStale, MaxStale: 24 * time.Hour}, nothing); !errors.Is(err, command.ErrTooStale) {
			t.Errorf("a bound on an unknown age: %v", err)
		}
	})
}

func TestAReadWaitsForItsRevision(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		time.AfterFunc(time.Second, func() { n.state.revision.Store(7) })
		o := command.ReadOptions{Mode: command.ReadStale, MinRevision: 7}
		if info, err := r.Read(t.Context(), o, nothing); err != nil || info.Revision != 7 {
			t.Errorf("%+v, %v", info, err)
		}
		o.MinRevision, o.Wait = 8, 3*time.Second
		began := time.Now()
		info, err := r.Read(t.Context(), o, nothing)
		if !errors.Is(err, command.ErrRevisionNotReached) || time.Since(began) != 3*time.Second || info.Revision != 7 {
			t.Errorf("after %v: %+v, %v", time.Since(began), info, err)
		}
	})
}

func TestErrorsOfTheEvaluationComeBackUnchanged(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		want := errors.New("mine")
		if _, err := r.Read(t.Context(), stale, func(command.View) error { return want }); err != want {
			t.Errorf("got %v", err)
		}
	})
}

func TestTheReturnAfterAnAbsenceIsRecordedAsACatchUpByLog(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		n.reachable.Store(false)
		n.state.applied.Store(40)
		time.Sleep(time.Minute)
		n.behind()
		n.reachable.Store(true)
		time.Sleep(2 * time.Second)
		n.level()
		synctest.Wait()
		got := r.ReplicaStatus().LastCatchUp
		if got.Kind != command.CatchUpLog || got.Records != 60 || got.Seconds < 1 || got.Seconds > 2 {
			t.Errorf("60 entries in some 2 s after a minute away: %+v", got)
		}
		n.state.applied.Store(90)
		time.Sleep(time.Minute)
		if again := r.ReplicaStatus().LastCatchUp; again != got {
			t.Errorf("an ordinary write was recorded as %+v", again)
		}
	})
}

func TestStatusFollowsTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFake(true)
		n.reachable.Store(false)
		r := New(Config{}, n)
		r.Start()
		want := func(moment, status string, failed bool) {
			t.Helper()
			synctest.Wait()
			if s := r.ReplicaStatus(); s.Status != status || (s.FailedRequests > 0) != failed || s.Mode != "learner" || !s.Running {
				t.Errorf("%s: %+v, want %s", moment, s, status)
			}
		}
		want("at once", "starting", true)
		time.Sleep(2 * DefaultContactLimit)
		want("without ever a contact", "cut-off", true)
		n.reachable.Store(true)
		time.Sleep(DefaultProbeInterval)
		want("in contact", "level", false)
		n.behind()
		time.Sleep(4 * DefaultProbeInterval)
		want("behind", "catching-up", false)
		n.level()
		want("level again", "level", false)
		n.reachable.Store(false)
		time.Sleep(2 * DefaultContactLimit)
		want("cut", "cut-off", true)
		if s := r.ReplicaStatus(); s.SecondsSinceLastSuccess < int64(DefaultContactLimit/time.Second) || s.Staleness < DefaultContactLimit.Milliseconds() {
			t.Errorf("cut for %v: %+v", 2*DefaultContactLimit, s)
		}
		r.Stop()
	})
}

// Contents that are not the leader's are shown to nobody, however little the
// reader asks for.
func TestADivergedCopyAnswersNoRead(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		n.diverged.Store(7)
		before := n.state.LastCertified()
		for _, o := range []command.ReadOptions{{}, stale, {Mode: command.ReadConsistent}, {Mode: command.ReadStale, MaxStale: time.Hour}, {Mode: command.ReadStale, MinRevision: 1 << 40}} {
			if _, err := r.Read(t.Context(), o, func(command.View) error { t.Error("it was evaluated"); return nil }); !errors.Is(err, command.ErrDiverged) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := r.ReplicaStatus(); s.Status != "diverged" || s.Diverged != 7 {
			t.Errorf("%+v", s)
		}
		if now := n.state.LastCertified(); !now.Equal(before) {
			t.Errorf("wrong contents were certified at %v", now)
		}
		n.diverged.Store(0)
		time.Sleep(DefaultProbeInterval)
		synctest.Wait()
		if _, err := r.Read(t.Context(), stale, nothing); err != nil || r.ReplicaStatus().Status != "level" {
			t.Errorf("repaired: %v, %+v", err, r.ReplicaStatus())
		}
	})
}

// What is not damaged is still served.
func TestADamagedCopySaysSoAndServesTheRest(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		bad := []command.Damage{{Table: "history", Problem: "checksum"}}
		n.state.damaged.Store(&bad)
		if s := r.ReplicaStatus(); s.Status != "damaged" || len(s.Damaged) != 1 {
			t.Errorf("%+v", s)
		}
		if _, err := r.Read(t.Context(), stale, nothing); err != nil {
			t.Error(err)
		}
	})
}

func TestAnswersAndRefusalsNameTheOldestRevision(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		n.state.revision.Store(9)
		n.state.oldest.Store(4)
		if info, err := r.Read(t.Context(), stale, nothing); err != nil || info.Oldest != 4 {
			t.Errorf("%+v, %v", info, err)
		}
		refused := func(command.View) error { return command.ErrCompacted }
		if info, err := r.Read(t.Context(), stale, refused); !errors.Is(err, command.ErrCompacted) || info.Oldest != 4 {
			t.Errorf("%+v, %v", info, err)
		}
	})
}

// A copy that was taken brought the node further than the log after it.
func TestACopyTakenDuringAnAbsenceStaysOnRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFake(true)
		r := New(Config{}, n)
		full := command.CatchUp{Kind: command.CopyFull, Records: 1000}
		n.CaughtUp(full)
		r.Start()
		synctest.Wait()
		if got := r.ReplicaStatus().LastCatchUp; got != full {
			t.Errorf("after the first certificate: %+v", got)
		}
		n.reachable.Store(false)
		time.Sleep(time.Minute)
		delta := command.CatchUp{Kind: command.CopyDelta, Records: 10}
		n.CaughtUp(delta)
		n.reachable.Store(true)
		time.Sleep(DefaultProbeInterval)
		synctest.Wait()
		if got := r.ReplicaStatus().LastCatchUp; got != delta {
			t.Errorf("after a return by delta: %+v", got)
		}
		r.Stop()
	})
}

func TestAPausedCopyAsksNobodyAndRefusesAtOnceWhatNeedsTheLeader(t *testing.T) {
	started(t, true, func(t *testing.T, n *fakeNode, r *Replica) {
		n.paused.Store(true)
		n.state.revision.Store(7)
		time.Sleep(10 * time.Second)
		asked := n.asks.Load()
		time.Sleep(10 * time.Second)
		if now := n.asks.Load(); now != asked {
			t.Errorf("it asked %d times", now-asked)
		}
		info, err := r.Read(t.Context(), stale, nothing)
		if err != nil || info.Staleness < 10*time.Second {
			t.Errorf("%+v, %v", info, err)
		}
		began := time.Now()
		if _, err := r.Read(t.Context(), command.ReadOptions{Mode: command.ReadStale, MinRevision: 8}, nothing); !errors.Is(err, command.ErrPaused) {
			t.Errorf("a revision it lacks: %v", err)
		}
		if _, err := r.Read(t.Context(), command.ReadOptions{Mode: command.ReadStale, MinRevision: 7}, nothing); err != nil {
			t.Errorf("a revision it has: %v", err)
		}
		if time.Since(began) > 0 {
			t.Error("it waited")
		}
		if s := r.ReplicaStatus(); s.Running || s.Status != "paused" {
			t.Errorf("%+v", s)
		}
		if err := r.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := r.ReplicaStatus(); !s.Running || s.Status != "catching-up" {
			t.Errorf("as it is resumed: %+v", s)
		}
		synctest.Wait()
		if info, err := r.Read(t.Context(), stale, nothing); err != nil || info.Staleness > 0 {
			t.Errorf("once it is resumed: %+v, %v", info, err)
		}
	})
}
