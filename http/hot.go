package http

import (
	"context"
	"errors"
	"io"
	"net"
	nethttp "net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// lookAfter is how long a hot request is under way when its connection is first looked
// at for the client's going away, which ends the request's context. To look costs more
// than most requests.
const lookAfter = 100 * time.Millisecond

// hot are the connections that have brought nothing but hot requests so far: those that
// read or write one key and do not wait for others. Of such a request most of the cost
// would be net/http's, which sets five deadlines, starts a goroutine, makes a dozen
// maps, contexts and buffers, and parses more than there is. So a connection is first
// served by a loop that knows a small part of HTTP/1.1 (hothead.go), in which there is
// nothing to get wrong, and answers with the handlers of the API. With the first
// request that is not of this part the connection goes to net/http, as if it had just
// come, and stays there.
type hot struct {
	// answer has what answers the requests of a method.
	answer map[string]answerer

	mu      sync.Mutex
	conns   map[*hotConn]struct{} // guarded by mu
	closing atomic.Bool           // set with mu held; then there are no more
	serving sync.WaitGroup
}

// hotListener accepts connections for the loop. It returns none to net/http, which
// gets those that are for it from Server.returned, but the errors, for it to deal with.
type hotListener struct {
	net.Listener
	s *Server
}

func (l hotListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.s.startHot(conn)
	}
}

// hotConn is one connection. All of it but busy belongs to the goroutine that serves
// it, and for a while to the one that looks.
type hotConn struct {
	s    *Server
	conn net.Conn
	// in[from:to] was read and not used yet.
	in       [hotHeadSize]byte
	from, to int
	// busy is set by who has the connection: the loop, when a request has come, or
	// the end of the server, which then closes it.
	busy atomic.Bool
	// first: there was no request yet.
	first bool

	head hotHead
	// r is each request in its turn. It has what handlers of keys look at: method, URL,
	// the header fields that they read, length and body, context.
	r      *nethttp.Request
	cancel context.CancelFunc
	// unread is how much of the body the handler has not read.
	unread int64

	// readBy is the deadline of reads that the connection has, writeBy that of writes,
	// and bodyBy the one that reads of the body are to have. To set a deadline costs
	// about as much as to parse a head, so it is put off until it matters.
	readBy, bodyBy, writeBy time.Time

	// timer has look called. It is made for the first request.
	timer *time.Timer
	// looking guards over: the request that is looked after has ended.
	looking sync.Mutex
	over    bool
	looked  chan struct{} // gets one when look has ended
	armed   bool          // timer was set for this request
	gone    bool          // the client has hung up
}

// startHot serves a connection.
func (s *Server) startHot(conn net.Conn) {
	c := &hotConn{s: s, conn: conn, first: true}
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(s.requests)
	c.r = (&nethttp.Request{
		URL: &url.URL{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	s.hot.mu.Lock()
	defer s.hot.mu.Unlock()
	if s.hot.closing.Load() {
		c.cancel()
		_ = conn.Close()
		return
	}
	s.hot.conns[c] = struct{}{}
	s.hot.serving.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("connection failed", "panic", p, "stack", string(debug.Stack()))
				_ = c.conn.Close()
			}
			c.cancel()
			s.hot.mu.Lock()
			delete(s.hot.conns, c)
			s.hot.mu.Unlock()
		}()
		c.serve()
	})
}

// endHot closes each connection as soon as there is no request on it, and all of them
// when ctx ends, whose error it then returns.
func (s *Server) endHot(ctx context.Context) error {
	s.hot.mu.Lock()
	s.hot.closing.Store(true)
	for c := range s.hot.conns {
		if c.busy.CompareAndSwap(false, true) {
			_ = c.conn.Close()
		}
	}
	s.hot.mu.Unlock()
	ended := make(chan struct{})
	go func() { s.hot.serving.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	s.hot.mu.Lock()
	defer s.hot.mu.Unlock()
	for c := range s.hot.conns {
		_ = c.conn.Close()
	}
	return ctx.Err()
}

// serve answers requests until one is not hot, or the connection ends.
func (c *hotConn) serve() {
	for {
		switch c.next() {
		case unfinished:
			_ = c.conn.Close()
			return
		case misfits:
			c.giveAway()
			return
		case fits:
			if !c.answer() {
				_ = c.conn.Close()
				return
			}
		}
	}
}

// giveAway has net/http serve the connection from here on.
func (c *hotConn) giveAway() {
	_ = c.conn.SetDeadline(time.Time{})
	select {
	case c.s.returned.conns <- &replayed{Conn: c.conn, again: slices.Clone(c.in[c.from:c.to])}:
	case <-c.s.returned.over.Done():
		_ = c.conn.Close()
	}
}

// next reads the head of the next request. It is unfinished if the connection is to be
// closed: it broke, its time is up, or the server ends.
func (c *hotConn) next() fit {
	// By so many bytes net/http tells a request from an idle connection.
	least, limit := 4, c.s.cfg.IdleTimeout
	first := c.first
	if first {
		least, limit, c.first = 1, c.s.cfg.ReadHeaderTimeout, false
	}
	var by time.Time
	if c.to-c.from < least {
		by = time.Now().Add(limit)
		c.busy.Store(false)
		for c.to-c.from < least {
			if c.s.hot.closing.Load() || c.fill(by) != nil {
				return unfinished
			}
		}
		if !c.busy.CompareAndSwap(false, true) {
			return unfinished
		}
		if !first { // the time for a head begins; that of the first one has begun
			by = time.Time{}
		}
	}
	for {
		size, f := c.head.parse(c.in[c.from:c.to])
		if f == fits {
			c.from += size
		}
		if f != unfinished {
			return f
		}
		if by.IsZero() {
			by = time.Now().Add(c.s.cfg.ReadHeaderTimeout)
		}
		if c.to-c.from == len(c.in) {
			return misfits
		}
		if err := c.fill(by); errors.Is(err, os.ErrDeadlineExceeded) {
			return unfinished
		} else if err != nil {
			return misfits // net/http meets the same, and knows what to say
		}
	}
}

// fill reads more into in until a moment. A deadline that the connection has, and that
// is earlier, stays until it is met: so a busy connection has none set for each request.
func (c *hotConn) fill(by time.Time) error {
	if c.from > 0 {
		c.to = copy(c.in[:], c.in[c.from:c.to])
		c.from = 0
	}
	for {
		if c.readBy.IsZero() || c.readBy.After(by) {
			c.setReadBy(by)
		}
		n, err := c.conn.Read(c.in[c.to:])
		c.to += n
		switch {
		case n > 0:
			return nil // an error comes again
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(by):
			c.readBy = time.Time{}
		case err != nil:
			return err
		}
	}
}

func (c *hotConn) setReadBy(t time.Time) {
	if !c.readBy.Equal(t) {
		c.readBy = t
		_ = c.conn.SetReadDeadline(t)
	}
}

// answer answers the request whose head was parsed, and reports whether there may be
// another.
func (c *hotConn) answer() (goOn bool) {
	r, w := c.r, hotReplies.Get().(*hotReply)
	w.c = c
	r.Method, r.ContentLength, r.Body = c.head.method, c.head.length, nethttp.NoBody
	r.URL.Path, r.URL.RawQuery, _ = strings.Cut(string(c.head.target), "?")
	for _, f := range c.head.kept {
		if r.Header == nil {
			r.Header = nethttp.Header{}
		}
		r.Header[f.name] = append(r.Header[f.name], string(f.value))
	}
	if c.unread = c.head.length; c.unread > 0 {
		r.Body = c
	} else {
		c.lookSoon()
	}
	goOn = c.s.hot.answer[r.Method](w, r) && w.finish()
	c.lookNoMore()
	clear(r.Header)
	w.release()
	return goOn && !c.gone
}

// Read implements io.Reader for the body of the request under way.
func (c *hotConn) Read(p []byte) (n int, err error) {
	if c.unread == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.unread)]
	if c.from < c.to {
		n = copy(p, c.in[c.from:c.to])
		c.from += n
	} else {
		c.setReadBy(c.bodyBy)
		if n, err = c.conn.Read(p); err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	if c.unread -= int64(n); c.unread == 0 {
		c.lookSoon()
		return n, io.EOF
	}
	return n, err
}

// Close implements io.Closer.
func (c *hotConn) Close() error { return nil }

// lookSoon has the connection looked at if its request, which has come whole, takes
// long.
func (c *hotConn) lookSoon() {
	c.armed = true
	if c.timer == nil {
		c.looked = make(chan struct{}, 1)
		c.timer = time.AfterFunc(lookAfter, c.look)
		return
	}
	c.timer.Reset(lookAfter)
}

// look reads what the client sends next, which may be its going away.
func (c *hotConn) look() {
	defer func() { c.looked <- struct{}{} }()
	c.looking.Lock()
	over := c.over
	if !over {
		c.setReadBy(time.Time{})
	}
	c.looking.Unlock()
	if over || c.to == len(c.in) {
		return
	}
	n, err := c.conn.Read(c.in[c.to:])
	c.to += n
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.gone = true
		c.cancel()
	}
}

// lookNoMore ends a look that was, or is, under way.
func (c *hotConn) lookNoMore() {
	if !c.armed {
		return
	}
	c.armed = false
	if c.timer.Stop() {
		return
	}
	c.looking.Lock()
	c.over = true
	c.setReadBy(time.Unix(1, 0))
	c.looking.Unlock()
	<-c.looked
	c.over = false
}
