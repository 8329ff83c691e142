//go:build linux

package sim

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// conn is one end of a connection. One goroutine may read and one write at a time;
// anybody may close it or set deadlines.
type conn struct {
	p             *process
	in, out       *pipe
	local, remote address
	once          sync.Once
}

var _ net.Conn = (*conn)(nil)

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b, c.p)
	return n, c.error("read", err)
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b, c.p)
	return n, c.error("write", err)
}

func (c *conn) error(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.end(nil)
	return nil
}

// end closes this end; the other one then reads to the end and is told why, nil: EOF.
func (c *conn) end(why error) {
	c.once.Do(func() {
		delay := c.release()
		c.out.finish(why, delay)
		c.in.abandon(delay)
	})
}

// vanish is end on a host without power: nobody hears of it.
func (c *conn) vanish() {
	c.once.Do(func() {
		c.release()
		c.out.vanish()
	})
}

// release drops this end from the tables of the network, and returns how long it takes
// to tell the other one something.
func (c *conn) release() (delay time.Duration) {
	n := c.p.h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(c.p.h.ends, c)
	if n.ends[c.in]--; n.ends[c.in] == 0 {
		delete(n.ends, c.in)
	}
	if n.ends[c.out]--; n.ends[c.out] == 0 {
		delete(n.ends, c.out)
	}
	return n.delay(c.p.h, c.out.to, 64)
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	return c.in.deadline(&c.in.readBy, c.in.readable, t)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.out.deadline(&c.out.writeBy, c.out.writable, t)
}

// segment is what one write sent.
type segment struct {
	data []byte
	at   time.Time // when it arrives
}

// pipe is one direction of a connection: from the writer's send buffer over the line
// into the reader's.
type pipe struct {
	net      *network
	from, to *host
	back     *pipe // the other direction, which carries what is acknowledged here

	// One token each when the reader, or the writer, has to look again.
	readable, writable chan struct{}
	readTimer          *time.Timer // the reader's, and
	writeTimer         *time.Timer // the writer's

	mu              *sync.Mutex // of both directions; guards what follows
	queue           []segment
	bytes           int // in queue
	unacknowledged  int // read, but the writer does not know
	readBy, writeBy time.Time
	last            time.Time // when what was sent last arrives
	blocked         bool
	since           time.Time // when that began, or the reader's host lost its power
	gone            bool      // the writer's end is closed
	ended           bool      // and says so: nothing comes behind queue
	end             error     // what the reader is told then; nil: EOF
	endAt           time.Time
	closed          bool      // the reader's end is closed
	brokenAt        time.Time // from then on the writer knows why that is; zero: it does not know
	broken          error
	deserted        bool // the reader's host has lost its power
}

// newPipes makes both directions of a connection.
func newPipes(n *network, a, b *host) (ab, ba *pipe) {
	mu := new(sync.Mutex)
	pipeOf := func(from, to *host) *pipe {
		p := &pipe{net: n, from: from, to: to, mu: mu, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
			readTimer: time.NewTimer(0), writeTimer: time.NewTimer(0)}
		p.readTimer.Stop()
		p.writeTimer.Stop()
		return p
	}
	ab, ba = pipeOf(a, b), pipeOf(b, a)
	ab.back, ba.back = ba, ab
	return ab, ba
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wait waits for a signal until a moment, or without end if that is zero.
func wait(c <-chan struct{}, t *time.Timer, until time.Time) {
	if until.IsZero() {
		<-c
		return
	}
	t.Reset(time.Until(until))
	select {
	case <-c:
	case <-t.C:
	}
	t.Stop()
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func passed(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

// deadline sets one of the pipe's.
func (p *pipe) deadline(by *time.Time, look chan struct{}, t time.Time) error {
	p.mu.Lock()
	*by = t
	p.mu.Unlock()
	signal(look)
	return nil
}

// read reads, once the process runs. A deadline that has passed ends it before that:
// who sets one to end a read waits for that, it may be with a lock, and time would stand
// still for whoever waits for the lock.
func (p *pipe) read(b []byte, reader *process) (int, error) {
	for {
		if stopped := reader.stopped.Load(); stopped != nil {
			if p.overdue() {
				return 0, os.ErrDeadlineExceeded
			}
			select {
			case <-*stopped:
			case <-p.readable:
			}
			continue
		}
		n, next, err := p.tryRead(b)
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		wait(p.readable, p.readTimer, next)
	}
}

// overdue says whether the deadline for reading has passed.
func (p *pipe) overdue() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return passed(p.readBy, time.Now())
}

// tryRead reads what has arrived. If there is nothing yet, neither bytes nor an error,
// it says when to look again; zero: at a signal.
func (p *pipe) tryRead(b []byte) (n int, next time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	var dead time.Time // when this end finds out that the line, or the other end, is
	if p.back.broken != syscall.EPIPE {
		dead = p.back.brokenAt
	}
	switch {
	case p.closed:
		return 0, next, net.ErrClosed
	case passed(p.readBy, now):
		return 0, next, os.ErrDeadlineExceeded
	case passed(dead, now):
		return 0, next, p.back.broken
	case p.blocked:
	case len(p.queue) > 0:
		for len(p.queue) > 0 && n < len(b) && passed(p.queue[0].at, now) {
			s := &p.queue[0]
			m := copy(b[n:], s.data)
			n += m
			if s.data = s.data[m:]; len(s.data) == 0 {
				p.queue = p.queue[1:]
			}
		}
		if n > 0 {
			p.bytes -= n
			if p.back.blocked {
				p.unacknowledged += n
			}
			signal(p.writable)
			return n, next, nil
		}
		next = p.queue[0].at
	case p.ended && passed(p.endAt, now):
		if p.end != nil {
			return 0, next, p.end
		}
		return 0, next, io.EOF
	case p.ended:
		next = p.endAt
	}
	return 0, earlier(earlier(next, p.readBy), dead), nil
}

func (p *pipe) write(b []byte, writer *process) (done int, err error) {
	for {
		writer.runs()
		p.net.mu.Lock()
		delay := p.net.delay(p.from, p.to, len(b)-done)
		p.net.mu.Unlock()
		n, next, err := p.tryWrite(b[done:], delay)
		done += n
		if err != nil || done == len(b) {
			return done, err
		}
		wait(p.writable, p.writeTimer, next)
	}
}

// tryWrite sends as much as there is room for. Where some is left it says when to look
// again; zero: at a signal.
func (p *pipe) tryWrite(b []byte, delay time.Duration) (n int, next time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case p.gone:
		return 0, next, net.ErrClosed
	case passed(p.writeBy, now):
		return 0, next, os.ErrDeadlineExceeded
	case passed(p.brokenAt, now):
		return 0, next, p.broken
	case p.closed && !p.deserted:
		return len(b), next, nil // into the void
	}
	if n = min(window-p.bytes-p.unacknowledged, len(b)); n > 0 {
		p.last = later(p.last, now.Add(delay))
		p.queue = append(p.queue, segment{append([]byte(nil), b[:n]...), p.last})
		p.bytes += n
		if len(p.queue) == 1 {
			signal(p.readable)
		}
		if p.deserted && p.hostIsUp() {
			p.breakLocked(now.Add(2*delay), syscall.ECONNRESET)
		}
		return n, earlier(p.writeBy, p.brokenAt), nil
	}
	return 0, earlier(p.writeBy, p.brokenAt), nil
}

// breakLocked: from a moment on the writer knows that nobody reads.
func (p *pipe) breakLocked(at time.Time, why error) {
	if p.brokenAt.IsZero() || at.Before(p.brokenAt) {
		p.brokenAt, p.broken = at, why
	}
	signal(p.writable)
	signal(p.back.readable)
}

// finish closes the writer's end. The reader learns of it behind all that was sent.
func (p *pipe) finish(why error, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone, p.ended, p.end = true, true, why
	p.endAt = later(p.last, time.Now().Add(delay))
	signal(p.readable)
	signal(p.writable)
}

// abandon closes the reader's end. The writer learns of it when it writes again.
func (p *pipe) abandon(back time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.queue, p.bytes = true, nil, 0
	if !p.back.blocked {
		p.breakLocked(time.Now().Add(back), syscall.EPIPE)
	}
	signal(p.readable)
}

// vanish ends both of a host's ends of a connection without a word.
func (p *pipe) vanish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.back.closed, p.back.deserted, p.back.since = true, true, time.Now()
	p.back.expireLocked()
	signal(p.writable)
	signal(p.back.readable)
}

// rebooted: the reader's host has power again. It knows nothing of this connection, and
// says so when it is asked.
func (p *pipe) rebooted(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deserted && p.bytes > 0 {
		p.breakLocked(p.retransmission().Add(delay), syscall.ECONNRESET)
	}
}

// retransmission is when bytes are sent again that were first sent about when the line
// was lost.
func (p *pipe) retransmission() time.Time {
	now, at := time.Now(), p.since
	for rto := firstRTO; ; rto = min(2*rto, maxRTO) {
		if at = at.Add(rto); at.After(now) {
			return at
		}
	}
}

// setBlocked: packets of this direction are lost from now on, or pass again.
func (p *pipe) setBlocked(blocked bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked == blocked {
		return
	}
	p.blocked = blocked
	if blocked {
		p.since = time.Now()
		p.expireLocked()
		return
	}
	again := p.retransmission()
	for i := range p.queue {
		p.queue[i].at = later(p.queue[i].at, again)
	}
	if len(p.queue) > 0 {
		p.last = later(p.last, again)
	}
	if p.ended {
		p.endAt = later(p.endAt, again)
	}
	p.back.unacknowledged = 0
	if p.back.closed && !p.back.deserted {
		p.back.breakLocked(again, syscall.EPIPE)
	}
	signal(p.readable)
	signal(p.back.writable)
}

// expireLocked has both ends find out in the end that the line is dead, unless it is
// good again by then: soon by keep-alive while nothing is on its way, else late.
func (p *pipe) expireLocked() {
	since := p.since
	var look func(after time.Duration)
	look = func(after time.Duration) {
		time.AfterFunc(after, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			switch {
			case p.since != since || !p.blocked && !p.deserted:
			case p.bytes > 0 && after < userTimeout:
				look(userTimeout)
			default:
				p.breakLocked(time.Now(), syscall.ETIMEDOUT)
				p.back.breakLocked(time.Now(), syscall.ETIMEDOUT)
			}
		})
	}
	look(keepAlive)
}

func (p *pipe) hostIsUp() bool { return p.to.up.Load() }
