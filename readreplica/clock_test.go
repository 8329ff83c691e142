package readreplica

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// pacedNode is a member of a cluster in which one write is acknowledged in each
// millisecond of true time, so that a revision says how old a state is. Questions and
// what is applied take their time.
type pacedNode struct {
	*fakeNode
	began time.Time
	clock movedClock
	mu    sync.Mutex
	rand  *rand.Rand // guarded by mu
}

func (n *pacedNode) Clock() node.Clock { return &n.clock }

// movedClock is true time, less what its steady clock did not see, and with its wall
// clock set ahead or back. It may be moved while it is read.
type movedClock struct{ unseen, ahead atomic.Int64 }

func (c *movedClock) Steady() time.Duration {
	return time.Duration(time.Now().UnixNano() - c.unseen.Load())
}

func (c *movedClock) Wall() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (n *pacedNode) upTo(d time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Duration(n.rand.Int64N(int64(d)))
}

// written is the newest revision that was acknowledged before a moment.
func (n *pacedNode) written(at time.Time) uint64 {
	return uint64(max(at.Sub(n.began), 0) / time.Millisecond)
}

func (n *pacedNode) AskIndex(context.Context, bool) (node.Point, error) {
	asOf := node.Now(&n.clock)
	time.Sleep(n.upTo(20 * time.Millisecond))
	if !n.reachable.Load() {
		return node.Point{}, command.ErrNoLeader
	}
	index := n.written(time.Now())
	time.Sleep(n.upTo(20 * time.Millisecond))
	return node.Point{Index: index, AsOf: asOf}, nil
}

func (n *pacedNode) Probe(ctx context.Context, _ time.Duration, _ bool) (node.Point, error) {
	return n.AskIndex(ctx, true)
}

func (n *pacedNode) Await(_ context.Context, p node.Point) error {
	time.Sleep(n.upTo(400 * time.Millisecond))
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state.applied.Load() < p.Index {
		n.state.applied.Store(p.Index)
		n.state.revision.Store(p.Index)
	}
	return nil
}

// disturbed is what the clocks of a host go through, one thing at a time. Either its
// steady clock or its wall clock tells the truth; a host that hides time from both is
// outside the promise.
var disturbed = map[string]func(n *pacedNode){
	"the wall clock is set back and ahead": func(n *pacedNode) {
		n.clock.ahead.Add(int64(n.upTo(4*time.Hour) - 2*time.Hour))
	},
	"the steady clock stands still in a suspended host": func(n *pacedNode) {
		d := n.upTo(3 * time.Second)
		time.Sleep(d)
		n.clock.unseen.Add(int64(d))
	},
	"the wall clock is set ahead, and the steady clock stands still": func(n *pacedNode) {
		d := n.upTo(3 * time.Second)
		time.Sleep(d)
		n.clock.unseen.Add(int64(d))
		n.clock.ahead.Add(int64(n.upTo(time.Second)))
	},
}

// An answer holds every write acknowledged before the request was sent, less the
// staleness it names, or the bound it was given.
func TestNoClockMakesACopyCallItselfFresherThanItIs(t *testing.T) {
	for name, disturb := range disturbed {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &pacedNode{fakeNode: newFake(true), began: time.Now(), rand: rand.New(rand.NewPCG(1, uint64(len(name))))}
				time.Sleep(time.Hour)
				r := New(Config{}, n)
				r.Start()
				defer r.Stop()
				time.Sleep(time.Second)
				answered, refused := 0, 0
				for range 2000 {
					switch n.upTo(4) {
					case 0:
						disturb(n)
					case 1:
						n.reachable.Store(n.upTo(3) > 0)
					}
					time.Sleep(n.upTo(time.Second))
					o, bound := stale, n.upTo(2*time.Second)
					if n.upTo(2) == 0 {
						o.MaxStale = bound
					}
					sent, seen := time.Now(), uint64(0)
					info, err := r.Read(t.Context(), o, func(v command.View) error {
						seen = v.Revision()
						time.Sleep(n.upTo(800 * time.Millisecond))
						return nil
					})
					if errors.Is(err, command.ErrTooStale) {
						refused++
						continue
					}
					if answered++; err != nil || !info.StalenessKnown {
						t.Fatalf("%+v, %v", info, err)
					}
					if before := sent.Add(-info.Staleness); seen < n.written(before) {
						t.Fatalf("an answer that says it is %v old lacks what was written %v before it was asked for",
							info.Staleness, sent.Sub(n.began)-time.Duration(seen)*time.Millisecond)
					}
					if before := sent.Add(-bound); o.MaxStale > 0 && seen < n.written(before) {
						t.Fatalf("an answer that was to be at most %v old lacks what was written %v before it was asked for",
							bound, sent.Sub(n.began)-time.Duration(seen)*time.Millisecond)
					}
				}
				if answered < 1000 || refused < 50 {
					t.Errorf("%d reads were answered, %d refused", answered, refused)
				}
			})
		})
	}
}
