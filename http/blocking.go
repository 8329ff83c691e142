package http

import (
	"math/rand/v2"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// usualBlock is how long a read with an index blocks unless it says for how
	// long; at most it is longestWait.
	usualBlock = 5 * time.Minute
	// jitterParts of a wait, at random, are added to it, so that clients that began
	// together do not come back together. Clients give up soon after that.
	jitterParts = 16
	// usualBuffer is what a reply is made in at first.
	usualBuffer = 1 << 10
)

// pending is how long a blocking query has waited and may wait.
type pending struct {
	began, over time.Time
	// revision is that of the first look.
	revision uint64
}

// block is Read for a read that blocks: when the client names the index it knows,
// the reply waits until the one that evaluate sets is above it, but at most as long
// as the client wishes; then it says how things are. t is what evaluate looks at.
//
// evaluate may return early when the client knows the index it has set. Each look is
// a Read of its own under o, so an answer that was waited for is as good as any.
func (x *exchange) block(t command.Target, o command.ReadOptions, evaluate func(command.View) error, index *uint64) (info command.ReadInfo, err error) {
	if x.known, err = x.q.index(); err != nil {
		return info, err
	}
	if x.known == 0 {
		return x.s.node.Read(x.r.Context(), o, evaluate)
	}
	return x.blockRead(t, o, evaluate, index)
}

// blockRead is apart from block, since what it keeps on the heap is not for reads
// that do not block.
func (x *exchange) blockRead(t command.Target, o command.ReadOptions, evaluate func(command.View) error, index *uint64) (info command.ReadInfo, err error) {
	err = x.untilNews(t, o.Mode != command.ReadStale, func() (uint64, error) {
		info, err = x.s.node.Read(x.r.Context(), o, evaluate)
		fill(&x.pending.revision, info.Revision)
		if err == nil && x.knows(*index) && info.Oldest > x.pending.revision {
			// History begins behind what the client has seen: an archive was restored,
			// and what was changed by that need not show in the index.
			x.known = 0
			info, err = x.s.node.Read(x.r.Context(), o, evaluate)
		}
		return *index, err
	})
	return info, err
}

// knows reports whether an answer of this index is not news to the client, and the
// reply still waits for some.
func (x *exchange) knows(index uint64) bool { return x.known > 0 && max(index, 1) <= x.known }

// untilNews calls look, which returns an index, until the client does not know it.
// It looks again at each change of t, and a last time when the wait is over or the
// server stops. While nothing changes, all that a client costs is its connection. led: there is no news
// without a leader, and look fails then.
func (x *exchange) untilNews(t command.Target, led bool, look func() (index uint64, err error)) error {
	wait, err := x.q.waiting()
	if err != nil {
		return err
	}
	fill(&wait, usualBlock)
	x.pending = pending{began: x.start, over: x.start.Add(wait + rand.N(wait/jitterParts+1))}
	if p, ok := x.r.Context().Value(parkedKey{}).(*parked); ok && !p.pending.over.IsZero() {
		x.pending, p.pending = p.pending, pending{}
		p.came()
		x.start = x.pending.began
	}
	for again := true; again && err == nil; {
		again, err = x.lookAndSleep(t, led, look)
	}
	return err
}

// lookAndSleep looks once, sleeps when there is nothing new, and reports whether to
// look again.
func (x *exchange) lookAndSleep(t command.Target, led bool, look func() (uint64, error)) (again bool, err error) {
	stopping := x.s.stopping.Err() != nil
	if stopping || time.Until(x.pending.over) <= 0 {
		x.known = 0 // anything is news
	}
	if stopping {
		x.lastOfConn()
	}
	if stopping && led && !x.s.knowsLeader() {
		return false, command.ErrStopping // nobody to be asked for an answer
	}
	changed, stop := x.s.node.Watch(t)
	var leaderless <-chan struct{}
	if led {
		leaderless = x.s.leaderless.next()
	}
	index, err := look()
	if err == nil && x.knows(index) {
		x.resetReply()
		x.out = nil
		left := time.Until(x.pending.over)
		var woken bool
		woken, err = x.sleep(changed, leaderless, min(left, parkAfter))
		if err == nil && !woken && left > parkAfter {
			if x.park(changed, leaderless, stop) {
				return false, errParked
			}
			_, err = x.sleep(changed, leaderless, left-parkAfter)
		}
		x.out = make([]byte, 0, usualBuffer)
		again = true
	}
	stop()
	return again, err
}

// sleep waits for a reason to look again, and reports whether there was one in time.
func (x *exchange) sleep(changed, leaderless <-chan struct{}, most time.Duration) (woken bool, err error) {
	over := time.NewTimer(most)
	defer over.Stop()
	select {
	case <-changed:
		return true, nil
	case <-leaderless:
		return true, nil
	case <-over.C:
		return false, nil
	case <-x.r.Context().Done():
		return false, x.r.Context().Err()
	case <-x.s.stopping.Done():
		return true, nil
	}
}
