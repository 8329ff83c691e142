package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// callIdle is how long a call connection may go unused before it is closed.
const callIdle = 5 * time.Minute

// destination is whom a call is for: a node by id, or whoever is at an address.
type destination struct{ id, addr string }

func (d destination) String() string {
	if d.id != "" {
		return d.id
	}
	return d.addr
}

// Call asks the node with the given server id and returns its answer, which
// belongs to the caller. Calls share one connection for each peer; answers may
// overtake one another.
//
// An error of the peer's handler comes back with its code. When the request may
// have reached the peer but no answer came, errors.Is(err,
// command.ErrOutcomeUnknown) holds; any other error of the transport's own means
// that the request was never sent. A ctx that ended is visible through errors.Is
// in both cases. req is not kept.
func (t *Transport) Call(ctx context.Context, to string, method uint8, req []byte) ([]byte, error) {
	return t.call(ctx, destination{id: to}, method, req)
}

// CallAddr is Call to whichever node answers at addr, for a node that knows no
// ids yet.
func (t *Transport) CallAddr(ctx context.Context, addr string, method uint8, req []byte) ([]byte, error) {
	return t.call(ctx, destination{addr: addr}, method, req)
}

func (t *Transport) call(ctx context.Context, to destination, method uint8, req []byte) ([]byte, error) {
	if len(req) > maxCall {
		return nil, fmt.Errorf("call %v: %w", to, errTooLarge)
	}
	c := t.caller(to)
	for try := 1; ; try++ {
		l, err := c.link(ctx)
		if err != nil {
			return nil, err
		}
		answer, err := l.call(ctx, method, req)
		if !errors.Is(err, errLinkGone) {
			return answer, err
		}
		// It died before it took the request: dial anew.
		c.live.CompareAndSwap(l, nil)
		if try == 3 {
			return nil, err
		}
	}
}

// caller holds the one call connection to a destination, and the dial for it
// that is under way.
type caller struct {
	t    *Transport
	to   destination
	live atomic.Pointer[callLink]

	mu   sync.Mutex
	dial *dialing // guarded by mu
}

type dialing struct {
	done chan struct{} // closed when link or err is set
	link *callLink
	err  error
}

func (t *Transport) caller(to destination) *caller {
	t.callersMu.RLock()
	c, ok := t.callers[to]
	t.callersMu.RUnlock()
	if ok {
		return c
	}
	t.callersMu.Lock()
	defer t.callersMu.Unlock()
	if c, ok = t.callers[to]; !ok {
		c = &caller{t: t, to: to}
		t.callers[to] = c
	}
	return c
}

// link returns the live connection, or joins the one dial for it.
func (c *caller) link(ctx context.Context) (*callLink, error) {
	if l := c.live.Load(); l != nil {
		return l, nil
	}
	c.mu.Lock()
	if l := c.live.Load(); l != nil {
		c.mu.Unlock()
		return l, nil
	}
	d := c.dial
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		if !c.t.spawn(func() { c.connect(d) }) {
			c.mu.Unlock()
			return nil, command.ErrStopping
		}
		c.dial = d
	}
	c.mu.Unlock()
	select {
	case <-d.done:
		return d.link, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("call %v: not connected: %w", c.to, ctx.Err())
	}
}

// connect dials, tells who waits, and becomes the reader of the connection.
func (c *caller) connect(d *dialing) {
	conn, err := c.reach()
	if err == nil {
		d.link = newCallLink(conn, c.to)
		if !c.t.spawn(func() { d.link.fail(d.link.write(d.link.beat)) }) {
			conn.Close()
			d.link, err = nil, command.ErrStopping
		}
	}
	if err != nil && c.t.ctx.Err() != nil {
		err = command.ErrStopping
	}
	d.err = err
	c.mu.Lock()
	c.live.Store(d.link)
	c.dial = nil
	c.mu.Unlock()
	close(d.done)
	if err != nil {
		return
	}
	d.link.fail(d.link.frames(d.link.answered))
	c.live.CompareAndSwap(d.link, nil)
	d.link.abandon()
}

func (c *caller) reach() (*conn, error) {
	if c.to.id != "" {
		return c.t.dialPeer(c.t.ctx, purposeCall, c.to.id)
	}
	return c.t.dial(c.t.ctx, purposeCall, "", c.to.addr)
}

// callLink is the dialling end of a call connection.
type callLink struct {
	*link
	to destination

	// Guarded by link.mu:
	next    uint64
	waiting map[uint64]*waiter
	used    bool // since the last beat
	idle    time.Duration
}

// waiter is one call that waits for its answer. It is reused, by the same transport
// only: a channel must not pass from one test's virtual time to another's.
type waiter struct {
	start, end uint64        // place of the request in the stream
	done       chan struct{} // holds one token once the outcome is set
	answer     []byte
	err        error
}

func newWaiter() any { return &waiter{done: make(chan struct{}, 1)} }

func newCallLink(c *conn, to destination) *callLink {
	return &callLink{link: newLink(c), to: to, waiting: make(map[uint64]*waiter)}
}

// call sends one request and waits for its outcome. errLinkGone: the link was
// dead before.
func (l *callLink) call(ctx context.Context, method uint8, req []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("call %v: not sent: %w", l.to, err)
	}
	w := l.t.waiters.Get().(*waiter)
	l.mu.Lock()
	id := l.next
	l.next++
	var err error
	w.start, w.end, err = l.put(ctx, frameRequest, method, id, remaining(ctx), req)
	if err != nil {
		l.mu.Unlock()
		l.t.waiters.Put(w)
		if ctx.Err() == nil {
			err = errLinkGone
		}
		return nil, fmt.Errorf("call %v: not sent: %w", l.to, err)
	}
	l.waiting[id] = w
	l.used = true
	l.mu.Unlock()

	select {
	case <-w.done:
	case <-ctx.Done():
		if err := l.giveUp(ctx, id, w); err != nil {
			l.t.waiters.Put(w)
			return nil, err
		}
		<-w.done // the answer came at the same moment
	}
	answer, err := w.answer, w.err
	w.answer, w.err = nil, nil
	l.t.waiters.Put(w)
	return answer, err
}

// giveUp stops waiting because ctx ended. Nil: the outcome is there.
func (l *callLink) giveUp(ctx context.Context, id uint64, w *waiter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[id] != w {
		return nil
	}
	delete(l.waiting, id)
	if l.err != nil && w.end > l.maySent || l.err == nil && l.withdraw(w.start) {
		return fmt.Errorf("call %v: not sent: %w", l.to, ctx.Err())
	}
	if len(l.buf) <= bufferLimit {
		_, _, _ = l.put(ctx, frameCancel, 0, id, 0, nil)
	}
	return unknown(l.to, ctx.Err())
}

func unknown(to destination, err error) error {
	return fmt.Errorf("call %v: %w: %w", to, command.ErrOutcomeUnknown, err)
}

// remaining is how long ctx still runs in milliseconds, rounded up; 0 for ever.
func remaining(ctx context.Context) uint32 {
	at, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	ms := (time.Until(at) + time.Millisecond - 1) / time.Millisecond
	return uint32(min(max(ms, 1), math.MaxUint32))
}

// answered hands an answer to its caller.
func (l *callLink) answered(f frame) error {
	l.mu.Lock()
	w, ok := l.waiting[f.id]
	delete(l.waiting, f.id)
	l.mu.Unlock()
	if !ok {
		return nil // its caller gave up
	}
	switch f.kind {
	case frameAnswer:
		w.answer = f.body
	case frameError:
		w.err = command.DecodeError(f.body)
	default:
		w.err = unknown(l.to, fmt.Errorf("answer of unknown kind %d", f.kind))
	}
	w.done <- struct{}{}
	return nil
}

// abandon fails all that wait on a dead link.
func (l *callLink) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, w := range l.waiting {
		delete(l.waiting, id)
		switch {
		case w.end <= l.maySent:
			w.err = unknown(l.to, fmt.Errorf("%w: %w", errDisconnect, l.err))
		case l.t.ctx.Err() != nil:
			w.err = command.ErrStopping
		default:
			w.err = fmt.Errorf("call %v: not sent: %w: %w", l.to, errDisconnect, l.err)
		}
		w.done <- struct{}{}
	}
}

// beat ends a connection that nobody uses.
func (l *callLink) beat() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used || len(l.waiting) > 0 {
		l.used, l.idle = false, 0
		return nil
	}
	if l.idle += l.t.cfg.PingInterval; l.idle >= callIdle {
		l.err, l.maySent = errIdle, l.base
		return errIdle
	}
	return nil
}

// maxServed bounds the calls of one connection that are being answered.
const maxServed = 1 << 14

// servedLink is the accepting end of a call connection.
type servedLink struct {
	*link
	ctx context.Context // ends with the connection

	calls map[uint64]context.CancelFunc // being answered; guarded by link.mu
}

// job is one request for a worker.
type job struct {
	l      *servedLink
	ctx    context.Context
	cancel context.CancelFunc
	id     uint64
	method uint8
	req    []byte
}

// serveCalls reads requests until the connection ends.
func (t *Transport) serveCalls(c *conn) error {
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	l := &servedLink{link: newLink(c), ctx: ctx, calls: make(map[uint64]context.CancelFunc)}
	if !t.spawn(func() { l.fail(l.write(func() error { return nil })) }) {
		return nil
	}
	err := l.frames(l.asked)
	l.fail(err)
	return err
}

// asked starts to answer a request, or stops.
func (l *servedLink) asked(f frame) error {
	switch f.kind {
	case frameCancel:
		l.mu.Lock()
		cancel := l.calls[f.id]
		l.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		return nil
	case frameRequest:
	default:
		return fmt.Errorf("frame of unknown kind %d", f.kind)
	}
	if len(f.body) < requestHeader-frameHeader {
		return errors.New("request is cut short")
	}
	j := job{l: l, id: f.id, method: f.method, req: f.body[4:]}
	if ms := binary.BigEndian.Uint32(f.body); ms > 0 {
		j.ctx, j.cancel = context.WithTimeout(l.ctx, time.Duration(ms)*time.Millisecond)
	} else {
		j.ctx, j.cancel = context.WithCancel(l.ctx)
	}
	l.mu.Lock()
	busy := len(l.calls) >= maxServed
	if !busy {
		l.calls[f.id] = j.cancel
	}
	l.mu.Unlock()
	if busy {
		j.cancel()
		l.answer(f.id, frameError, command.EncodeError(fmt.Errorf("more than %d calls at once", maxServed)))
		return nil
	}
	// An idle worker has its stack already.
	select {
	case l.t.work <- j:
		return nil
	default:
	}
	if !l.t.spawn(func() { l.t.worker(j) }) {
		j.cancel()
	}
	return nil
}

// keepIdle is how many workers wait for more when they are done.
const keepIdle = 64

// worker answers calls, of any connection.
func (t *Transport) worker(j job) {
	for {
		j.serve(t.handler)
		j = job{}
		if t.idle.Add(1) > keepIdle {
			t.idle.Add(-1)
			return
		}
		select {
		case j = <-t.work:
			t.idle.Add(-1)
		case <-t.ctx.Done():
			return
		}
	}
}

func (j *job) serve(h Handler) {
	answer, err := h.Call(j.ctx, j.l.remote, j.method, j.req)
	// A handler that was interrupted has not decided anything: its caller gave
	// up, or is to see the connection end and take the outcome for unknown.
	interrupted := j.ctx.Err() != nil && errors.Is(err, j.ctx.Err())
	kind := frameAnswer
	if err == nil && len(answer) > maxCall {
		err = errTooLarge
	}
	if err != nil {
		kind, answer = frameError, command.EncodeError(err)
	}
	j.l.mu.Lock()
	delete(j.l.calls, j.id)
	j.l.mu.Unlock()
	j.cancel()
	if !interrupted {
		j.l.answer(j.id, kind, answer)
	}
}

func (l *servedLink) answer(id uint64, kind frameKind, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// An answer that finds the link dead has nowhere to go.
	_, _, _ = l.put(l.ctx, kind, 0, id, 0, body)
}
