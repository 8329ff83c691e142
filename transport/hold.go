package transport

import (
	"context"
	"errors"
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
// disconnected, with SetLeading(false), and with Close. Heartbeats and votes are
// never held.
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
