package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"golang.org/x/time/rate"

	"github.com/holdfast-db/holdfast/command"
)

// Handler answers what other nodes ask. Its methods run on many goroutines at
// once and return soon after their context ends, which it does when the caller
// gives up, the connection breaks, or the transport closes.
type Handler interface {
	// Call answers one request of the node from, as it introduced itself when it
	// connected; from.ClusterID may be empty. req belongs to the handler, which
	// may keep it; the answer is not touched after the return. An error
	// reaches the caller with its code; only that of ctx, once ctx has ended,
	// does not: whoever still waits then learns that the outcome is unknown.
	Call(ctx context.Context, from command.Hello, method uint8, req []byte) ([]byte, error)
	// Copy writes a copy stream to w, which buffers. The stream is complete at
	// the caller only when Copy returns nil. It may be silent for long: the caller
	// is kept waiting for 20 times Config.IdleTimeout. The caller may not stop
	// reading for an IdleTimeout.
	Copy(ctx context.Context, from command.Hello, req []byte, w io.Writer) error
}

// Transport carries everything between this node and others over one port. It
// is a raft.Transport whose server addresses are server ids.
type Transport struct {
	cfg       Config
	log       hclog.Logger
	self      string // Raft server id
	advertise string
	listener  net.Listener
	handler   Handler // set by Serve, before anything is accepted
	faults    faults
	copyLimit *rate.Limiter // nil: none
	copies    copyCounters

	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	tasks sync.WaitGroup // every goroutine of this package

	mu      sync.Mutex // guards what follows
	closed  bool
	serving bool
	conns   map[*conn]struct{} // all that are open, introduced or not
	peers   map[string]*peer   // by server id
	hints   map[string]string  // server id -> address
	seenAt  map[string]command.Hello
	wan     map[string]*rate.Limiter // by site, of bulk to it; nil: no limit

	callersMu sync.RWMutex
	callers   map[destination]*caller

	work    chan job     // to idle workers, see call.go
	idle    atomic.Int32 // workers waiting on it
	waiters sync.Pool

	// Raft's side, see raft.go and serve.go.
	consume   chan raft.RPC
	heartbeat atomic.Pointer[func(raft.RPC)]
	inject    injector
	lead      leadership
}

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
)

// Listen binds the port. Peers that connect wait until Serve; requests to other
// nodes work at once. The caller must Close the transport.
func Listen(cfg Config) (*Transport, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l, err := cfg.Listener(cfg.Listen)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("node port %s is in use: %w; stop the process that holds it or choose another address", cfg.Listen, err)
		}
		return nil, fmt.Errorf("node port %s: %w; choose an address of this machine", cfg.Listen, err)
	}
	advertise := cfg.Advertise
	if advertise == "" {
		advertise = l.Addr().String()
	}
	if err := dialable(advertise); err != nil {
		l.Close()
		if cfg.Advertise == "" {
			err = fmt.Errorf("node port %s: %w", cfg.Listen, err)
		}
		return nil, err
	}
	self := cfg.Hello()
	t := &Transport{
		cfg:       cfg,
		log:       cfg.Log,
		self:      self.ID,
		advertise: advertise,
		listener:  l,
		faults:    faults{self: self},
		copyLimit: newLimiter(cfg.CopyRate),
		conns:     make(map[*conn]struct{}),
		peers:     make(map[string]*peer),
		hints:     make(map[string]string),
		seenAt:    make(map[string]command.Hello),
		wan:       make(map[string]*rate.Limiter),
		callers:   make(map[destination]*caller),
		work:      make(chan job),
		waiters:   sync.Pool{New: newWaiter},
		consume:   make(chan raft.RPC),
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.lead.init(t.ctx)
	return t, nil
}

// Serve starts to accept connections and returns at once. It is called once.
func (t *Transport) Serve(h Handler) {
	t.mu.Lock()
	if t.serving {
		panic("transport: Serve called twice")
	}
	t.serving, t.handler = true, h
	t.mu.Unlock()
	t.spawn(t.accept)
}

// Addr is the address that is bound, host:port.
func (t *Transport) Addr() string { return t.listener.Addr().String() }

// Advertise is the address other nodes are told to dial, host:port.
func (t *Transport) Advertise() string { return t.advertise }

// Close ends everything: the port, all connections, held and stalled ones
// included, and all waiting calls. It returns when every goroutine of the
// transport is gone, so handlers must have honoured their contexts. It may be
// called more than once.
func (t *Transport) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	conns := make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		conns = append(conns, c)
	}
	t.mu.Unlock()
	var err error
	if first {
		t.stop()
		err = t.listener.Close()
		for _, c := range conns {
			c.Close()
		}
	}
	t.tasks.Wait()
	return err
}

// spawn runs f on a goroutine Close waits for. It reports false when the
// transport is closed, and f does not run.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.tasks.Go(f)
	return true
}

// accept is the goroutine of the listener.
func (t *Transport) accept() {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		nc, err := t.listener.Accept()
		if err != nil {
			if t.ctx.Err() != nil {
				return
			}
			// Out of file descriptors, say: the next one may do.
			t.log.Error("cannot accept a connection", "error", err)
			select {
			case <-time.After(pause):
			case <-t.ctx.Done():
				return
			}
			pause = min(2*pause, longestPause)
			continue
		}
		pause = firstPause
		c, ok := t.track(nc)
		if !ok {
			return
		}
		if !t.spawn(func() { t.serve(c) }) {
			c.Close()
			return
		}
	}
}

// serve is the goroutine of one accepted connection.
func (t *Transport) serve(c *conn) {
	defer c.Close()
	if err := t.welcome(c); err != nil {
		t.log.Debug("connection refused", "from", c.RemoteAddr(), "peer", c.remote.Name, "error", err)
		return
	}
	var err error
	switch c.purpose {
	case purposeRaft:
		err = t.serveRaft(c)
	case purposeCall:
		err = t.serveCalls(c)
	case purposeCopy:
		err = t.serveCopy(c)
	case purposeWatch:
		err = t.serveWatch(c)
	}
	if err != nil && t.ctx.Err() == nil {
		t.log.Debug("connection ended", "from", c.RemoteAddr(), "peer", c.remote.Name, "purpose", c.purpose, "error", err)
	}
}

// keepAlive finds dead hosts behind connections that are idle in both directions.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

// track takes charge of a new connection. When the transport is closed it
// closes it and reports false.
func (t *Transport) track(nc net.Conn) (*conn, bool) {
	if tc, ok := nc.(*net.TCPConn); ok {
		// Failures leave the defaults: slower, still right.
		_ = tc.SetNoDelay(true)
		_ = tc.SetKeepAliveConfig(keepAlive)
	}
	c := t.newConn(nc)
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		nc.Close()
		return nil, false
	}
	t.conns[c] = struct{}{}
	t.mu.Unlock()
	return c, true
}

// introduced gives a connection to its peer.
func (t *Transport) introduced(c *conn, hello command.Hello, addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peerLocked(hello.ID)
	if t.cfg.Faults && addr != "" {
		t.seenAt[addr] = hello
	}
	if hello.RaftAddr != "" {
		t.hints[hello.ID] = hello.RaftAddr
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hello, p.remote = hello, c.RemoteAddr().String()
	p.contact.Store(time.Now().UnixNano())
	if _, open := t.conns[c]; open { // else it was closed meanwhile
		p.conns[c] = struct{}{}
	}
	c.peer, c.far = p, t.farLocked(p, hello.Site)
}

// forget drops a closed connection from all tables.
func (t *Transport) forget(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	if p := c.peer; p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}
}
