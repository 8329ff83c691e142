package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Pauses between two tries of held replication: a random time between the
// first two, or the third when the peer is there and will not talk.
const (
	shortestHold = 100 * time.Millisecond
	longestHold  = 250 * time.Millisecond
	refusedHold  = time.Second
	pausedHold   = time.Second // between two looks at a peer that is paused
)

// leadership is whether this node leads, with a context for each spell that
// ends when the node is told that it does not.
type leadership struct {
	mu     sync.Mutex
	parent context.Context
	leads  bool
	ctx    context.Context
	end    context.CancelFunc
}

func (l *leadership) init(parent context.Context) {
	l.parent = parent
	l.ctx, l.end = context.WithCancel(parent)
}

// spell gives a context that ends with the present spell and when the peer is
// disconnected, and whether this node leads.
func (l *leadership) spell(p *peer) (ctx context.Context, cancel context.CancelFunc, leads bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, end := context.WithCancel(l.ctx)
	stop := context.AfterFunc(p.ctx, end)
	return ctx, func() { stop(); end() }, l.leads
}

// SetLeading tells the transport whether this node leads.
//
// While it does, replication to a peer that cannot be reached waits instead of
// failing: Raft would answer failures with pauses of up to ten seconds that
// nothing cuts short. The request is tried again every 100 to 250 ms, and at
// once when the peer connects to this node; it fails when the peer is
// disconnected, with SetLeading(false), and with Close. Heartbeats are held only
// for a peer that says that it is paused, and votes never.
//
// Raft waits for its replication when it shuts down, so SetLeading(false) comes
// before that.
func (t *Transport) SetLeading(leads bool) {
	l := &t.lead
	l.mu.Lock()
	defer l.mu.Unlock()
	if !leads {
		l.end()
		l.ctx, l.end = context.WithCancel(l.parent)
	}
	l.leads = leads
}

// hold repeats a replication request that failed with err until it is answered.
// It returns err when nothing is to be waited for any more.
func (t *Transport) hold(to string, err error, try func(context.Context) error) error {
	var answered remoteError
	if errors.As(err, &answered) {
		return err
	}
	p := t.peer(to)
	ctx, cancel, leads := t.lead.spell(p)
	defer cancel()
	if !leads {
		return err
	}
	began := time.Now()
	t.log.Info("peer is away, replication to it waits", "peer", to, "error", err)
	back := p.returned()
	for {
		pause := shortestHold + rand.N(longestHold-shortestHold)
		var refused *RefusedError
		if errors.As(err, &refused) {
			pause = refusedHold
		}
		select {
		case <-back:
		case <-time.After(pause):
		case <-ctx.Done():
			if t.ctx.Err() != nil {
				return raft.ErrTransportShutdown
			}
			return err
		}
		back = p.returned() // before the try, so that no return is missed
		err = try(ctx)
		if err == nil || errors.As(err, &answered) {
			p.behind.Store(true)
			t.log.Info("peer is back, replication to it goes on", "peer", to, "after", time.Since(began))
			return err
		}
	}
}

// untilResumed waits while a peer says that it is paused, and returns nil when it
// does not any more, or cannot be asked: what it refused may be tried again. It asks
// with heartbeats of the term, which are small, once a second and when the peer
// connects to this node.
func (t *Transport) untilResumed(to string, header raft.RPCHeader, term uint64) error {
	p := t.peer(to)
	ctx, cancel, leads := t.lead.spell(p)
	defer cancel()
	if leads && !p.paused.Swap(true) {
		t.log.Info("peer is paused, replication to it waits", "peer", to)
	}
	for leads {
		back := p.returned() // before it is asked, so that no return is missed
		beat := raft.AppendEntriesRequest{RPCHeader: header, Term: term}
		err := t.request(ctx, to, raftBare, &beat, new(raft.AppendEntriesResponse))
		if !errors.Is(err, errPaused) {
			if err == nil {
				p.behind.Store(true)
			}
			if p.paused.Swap(false) && err == nil {
				t.log.Info("peer is paused no longer, replication to it goes on", "peer", to)
			}
			return nil
		}
		select {
		case <-back:
		case <-time.After(pausedHold):
		case <-ctx.Done():
			leads = false
		}
	}
	if t.ctx.Err() != nil {
		return raft.ErrTransportShutdown
	}
	return fmt.Errorf("%s is paused", to)
}

// Knock connects to a peer and hangs up: what it holds for this node as leader goes on
// at once.
func (t *Transport) Knock(ctx context.Context, id string) error {
	c, err := t.dialPeer(ctx, purposeRaft, id)
	if err != nil {
		return err
	}
	return c.Close()
}
