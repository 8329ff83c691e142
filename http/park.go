package http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	nethttp "net/http"
	"os"
	"sync"
	"time"
)

// parkAfter is how long a blocking query sleeps before it is parked. Those that are
// busy never are.
const parkAfter = 5 * time.Second

// errParked ends the handler of a query that was parked; there is no reply to give.
var errParked = errors.New("parked")

// parked is the connection of a blocking query that has slept for a while. For a
// request under way, net/http holds goroutines and buffers of 20 KiB; to have
// thousands of them sleep, their connections are taken out of it, with the request
// in the few bytes it came in. When there may be news the connection comes back, and
// the request with it, as if the client had just sent it.
type parked struct {
	replayed
	// pending is of the query that was parked, which takes it when it comes back.
	pending pending
	// came is called when the query is under way again, or its connection closed.
	came func()
}

// Close implements net.Conn.
func (p *parked) Close() error {
	p.came()
	return p.Conn.Close()
}

// withParked tells the requests of a connection that it was parked.
func withParked(ctx context.Context, c net.Conn) context.Context {
	if p, ok := c.(*parked); ok {
		return context.WithValue(ctx, parkedKey{}, p)
	}
	return ctx
}

// parkedKey is under which a request's context holds its connection, if that has been
// parked. headKey is there in a request that was HEAD.
type (
	parkedKey struct{}
	headKey   struct{}
)

// park takes the request's connection out of net/http until it is to look again, and
// reports whether it could. Then the handler must end, and stop is called later.
func (x *exchange) park(changed, leaderless <-chan struct{}, stop func()) bool {
	w, ok := x.w.(interface{ Unwrap() nethttp.ResponseWriter })
	if !ok {
		return false
	}
	// What cannot be said again as it was is left alone.
	_, ok = w.Unwrap().(nethttp.Hijacker)
	if !ok || x.r.ContentLength != 0 || x.r.Context().Value(headKey{}) != nil {
		return false
	}
	s := x.s // x ends with its handler
	s.parkable.Lock()
	defer s.parkable.Unlock()
	if s.stopping.Err() != nil {
		return false
	}
	conn, rw, err := nethttp.NewResponseController(x.w).Hijack()
	if err != nil {
		return false
	}
	next, _ := rw.Reader.Peek(rw.Reader.Buffered()) // of a client that does not wait for its answer
	p := &parked{
		replayed: replayed{Conn: conn, again: append(request(x.r), next...)},
		pending:  x.pending, came: sync.OnceFunc(s.coming.Done),
	}
	s.coming.Add(1)
	if before, ok := conn.(interface{ unread() *replayed }); ok {
		p.Conn, p.again = before.unread().Conn, append(p.again, before.unread().again...)
	}
	x.parked = true
	s.metrics.inFlight.Add(1)
	s.parking.Go(func() {
		defer s.metrics.inFlight.Add(-1)
		defer stop()
		s.hold(p, changed, leaderless)
	})
	return true
}

// request is what a client may have sent to make r.
func request(r *nethttp.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\r\nHost: %s\r\n", r.Method, r.RequestURI, r.Proto, r.Host)
	_ = r.Header.Write(&b)
	b.WriteString("\r\n")
	return b.Bytes()
}

// hold holds a parked connection for as long as there is nothing to tell, and gives
// it back, or closes it when the client is gone or the server has stopped.
func (s *Server) hold(p *parked, changed, leaderless <-chan struct{}) {
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		var b [1]byte
		var n int
		n, err = p.Conn.Read(b[:])
		p.again = append(p.again, b[:n]...)
	}()
	over := time.NewTimer(time.Until(p.pending.over))
	defer over.Stop()
	select {
	case <-ended:
	case <-changed:
	case <-leaderless:
	case <-over.C:
	case <-s.stopping.Done():
	}
	_ = p.SetReadDeadline(time.Unix(1, 0)) // ends the read; an error of the connection shows there
	<-ended
	_ = p.SetReadDeadline(time.Time{})
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		select {
		case s.returned.conns <- p:
			return
		case <-s.returned.over.Done():
		}
	}
	_ = p.Close()
}

// awaitReturned waits until the queries that are back are under way, or ctx ends.
func (s *Server) awaitReturned(ctx context.Context) {
	came := make(chan struct{})
	go func() { s.coming.Wait(); close(came) }()
	select {
	case <-came:
	case <-ctx.Done():
	}
}

// replayed is a connection of which something was read that is to be read again.
type replayed struct {
	net.Conn
	// again is to be read before what the connection brings.
	again []byte
}

func (r *replayed) Read(b []byte) (int, error) {
	if len(r.again) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.again)
	if r.again = r.again[n:]; len(r.again) == 0 {
		r.again = nil
	}
	return n, nil
}

// CloseWrite ends what is sent, where the connection can: net/http does so before it
// closes one whose client is still sending.
func (r *replayed) CloseWrite() error {
	if c, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

func (r *replayed) unread() *replayed { return r }

// returned is the listener by which connections come to net/http that were read
// elsewhere, until it is over.
type returned struct {
	conns chan net.Conn
	over  context.Context
	end   context.CancelFunc
	// served is closed when net/http has taken the last.
	served chan struct{}
}

func newReturned() returned {
	r := returned{conns: make(chan net.Conn), served: make(chan struct{})}
	r.over, r.end = context.WithCancel(context.Background())
	return r
}

func (l returned) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.over.Done():
		return nil, net.ErrClosed
	}
}

func (l returned) Close() error   { return nil }
func (l returned) Addr() net.Addr { return &net.TCPAddr{} }
