//go:build linux

package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What TCP does on Linux, as far as it shows.
const (
	firstRTO = 200 * time.Millisecond // of data; doubled with each retransmission
	maxRTO   = 120 * time.Second
	firstSYN = time.Second // until a connection request is sent again; doubled, too
	// keepAlive is how long a line may be dead until an idle connection over it is:
	// what transport sets.
	keepAlive = 25 * time.Second
	// userTimeout is when one ends whose bytes are not acknowledged.
	userTimeout = 15 * time.Minute
	backlog     = 128
	// window is how many bytes may be under way on a connection: written here and not
	// read there.
	window = 256 << 10
)

// line is the way from one site to another.
type line struct {
	latency time.Duration // one way
	jitter  time.Duration // up to so much more
	rate    int           // bytes per second, 0: no limit
	loss    float64       // of segments; each costs a retransmission
}

// and is two lines one after the other.
func (l line) and(o line) line {
	rate := min(l.rate, o.rate)
	if rate == 0 {
		rate = max(l.rate, o.rate)
	}
	return line{l.latency + o.latency, l.jitter + o.jitter, rate, 1 - (1-l.loss)*(1-o.loss)}
}

// direction is what can be blocked.
type direction struct{ from, to string }

// network carries bytes between hosts as TCP does, in the time of the bubble it was
// made in. What TCP hides stays hidden: lost packets come late, and in order.
type network struct {
	mu      sync.Mutex
	rand    *rand.Rand            // guarded by mu
	hosts   map[string]*host      // guarded by mu
	lines   func(a, b *host) line // of a network without faults
	bad     map[string]line       // guarded by mu: what is added on the way to and from a site
	blocked map[direction]bool    // guarded by mu
	ends    map[*pipe]int         // guarded by mu: of all connections, how many ends are open
}

func newNetwork(seed uint64, lines func(a, b *host) line) *network {
	return &network{
		rand: rand.New(rand.NewPCG(seed, 0x6e65740a)), hosts: map[string]*host{}, lines: lines, bad: map[string]line{},
		blocked: map[direction]bool{}, ends: map[*pipe]int{},
	}
}

// host is a machine on the network, with one process at a time.
type host struct {
	net        *network
	name, site string
	up         atomic.Bool // it has power

	// Guarded by network.mu:
	listeners map[string]*listener
	ends      map[*conn]struct{}
	port      int
	process   *process // nil: none
}

// process is what owns ports and connections of a host; they end with it.
type process struct {
	h    *host
	dead atomic.Bool
	// stopped is closed when the process that is paused goes on; nil: it runs.
	stopped atomic.Pointer[chan struct{}]
}

func (n *network) addHost(name, site string) *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &host{net: n, name: name, site: site, listeners: map[string]*listener{}, ends: map[*conn]struct{}{}, port: 32768}
	h.up.Store(true)
	n.hosts[name] = h
	return h
}

// begin starts a process on a host that has none.
func (h *host) begin() *process {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.process = &process{h: h}
	return h.process
}

// address is a host and port.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// listener is a port that a process has taken.
type listener struct {
	p      *process
	addr   string
	coming chan *conn
	closed chan struct{}
	once   sync.Once
}

func (p *process) listen(addr string) (net.Listener, error) {
	h, n := p.h, p.h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	name, _, err := net.SplitHostPort(addr)
	switch {
	case err != nil || name != h.name:
		return nil, opError("listen", addr, syscall.EADDRNOTAVAIL)
	case p.dead.Load():
		return nil, opError("listen", addr, syscall.ENETDOWN)
	case h.listeners[addr] != nil:
		return nil, opError("listen", addr, syscall.EADDRINUSE)
	}
	l := &listener{p: p, addr: addr, coming: make(chan *conn, backlog), closed: make(chan struct{})}
	h.listeners[addr] = l
	return l, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.coming:
		l.p.runs()
		return c, nil
	case <-l.closed:
		return nil, opError("accept", l.addr, net.ErrClosed)
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	n := l.p.h.net
	n.mu.Lock()
	if l.p.h.listeners[l.addr] == l {
		delete(l.p.h.listeners, l.addr)
	}
	n.mu.Unlock()
	l.once.Do(func() { close(l.closed) })
	for { // whom nobody will accept any more
		select {
		case c := <-l.coming:
			c.end(syscall.ECONNRESET)
		default:
			return nil
		}
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return address(l.addr) }

func opError(op, addr string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: address(addr), Err: err}
}

// runs returns when the process is not paused.
func (p *process) runs() {
	for {
		stopped := p.stopped.Load()
		if stopped == nil {
			return
		}
		<-*stopped
	}
}

// dial connects to an address, until ctx ends.
func (p *process) dial(ctx context.Context, addr string) (net.Conn, error) {
	n := p.h.net
	fail := func(err error) (net.Conn, error) { return nil, opError("dial", addr, err) }
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fail(err)
	}
	for wait := firstSYN; ; wait *= 2 {
		p.runs()
		n.mu.Lock()
		to := n.hosts[name]
		if p.dead.Load() {
			n.mu.Unlock()
			return fail(syscall.ENETDOWN)
		}
		if to == nil {
			n.mu.Unlock()
			return fail(&net.DNSError{Err: "no such host", Name: name, IsNotFound: true})
		}
		there, back := n.delay(p.h, to, 64), n.delay(to, p.h, 64)
		open := n.openLocked(p.h, to) && n.openLocked(to, p.h) && to.up.Load()
		n.mu.Unlock()
		if open {
			if err := rest(ctx, there); err != nil {
				return fail(err)
			}
			c, err := p.connect(to, addr)
			if rerr := rest(ctx, back); rerr != nil || err != nil {
				if c != nil {
					c.end(syscall.ECONNRESET)
				}
				if rerr != nil {
					err = rerr
				}
			}
			switch {
			case err == nil:
				return c, nil
			case !errors.Is(err, errNoRoom):
				return fail(err)
			}
		}
		if err := rest(ctx, wait); err != nil {
			return fail(err)
		}
	}
}

var errNoRoom = errors.New("the queue of new connections is full")

// connect makes a connection at the moment its request arrives.
func (p *process) connect(to *host, addr string) (*conn, error) {
	n := p.h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	l := to.listeners[addr]
	switch {
	case p.dead.Load():
		return nil, syscall.ENETDOWN
	case !to.up.Load():
		return nil, errNoRoom // nobody says a word
	case l == nil:
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	p.h.port++
	from := address(net.JoinHostPort(p.h.name, strconv.Itoa(p.h.port)))
	ab, ba := newPipes(n, p.h, to)
	a := &conn{p: p, in: ba, out: ab, local: from, remote: address(addr)}
	b := &conn{p: l.p, in: ab, out: ba, local: address(addr), remote: from}
	select {
	case l.coming <- b:
	default:
		return nil, errNoRoom
	}
	p.h.ends[a], to.ends[b] = struct{}{}, struct{}{}
	n.ends[ab], n.ends[ba] = 2, 2
	ab.setBlocked(!n.openLocked(p.h, to))
	ba.setBlocked(!n.openLocked(to, p.h))
	return a, nil
}

// rest waits, unless ctx ends.
func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// delay is how long bytes take from one host to another now. mu is held.
func (n *network) delay(from, to *host, bytes int) time.Duration {
	if from == to {
		return 0
	}
	l := n.lines(from, to)
	if from.site != to.site {
		l = l.and(n.bad[from.site]).and(n.bad[to.site])
	}
	d := l.latency
	if l.jitter > 0 {
		d += time.Duration(n.rand.Int64N(int64(l.jitter)))
	}
	if l.rate > 0 {
		d += time.Duration(bytes) * time.Second / time.Duration(l.rate)
	}
	for rto := firstRTO; l.loss > 0 && rto < maxRTO && n.rand.Float64() < l.loss; rto *= 2 {
		d += rto
	}
	return d
}

func (n *network) openLocked(from, to *host) bool {
	return from == to || !n.blocked[direction{from.name, to.name}]
}

// block replaces what is blocked: packets of each of these directions are lost.
func (n *network) block(directions []direction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.blocked)
	for _, d := range directions {
		n.blocked[d] = true
	}
	for p := range n.ends {
		p.setBlocked(!n.openLocked(p.from, p.to))
	}
}

// setLine makes the line of a site so much worse; the zero line: not at all.
func (n *network) setLine(site string, l line) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bad[site] = l
}

// kill ends the process of a host at once. The host's system lives on: it says to
// peers that their connections have ended.
func (h *host) kill() { h.end(false) }

// losePower ends the whole host at once. Nobody is told.
func (h *host) losePower() { h.end(true) }

func (h *host) end(silent bool) {
	n := h.net
	n.mu.Lock()
	if h.process != nil {
		h.process.dead.Store(true)
		h.process.goOn()
		h.process = nil
	}
	h.up.Store(!silent)
	listeners, ends := slices.Collect(maps.Values(h.listeners)), slices.Collect(maps.Keys(h.ends))
	reset := n.rand.IntN(2) == 0
	n.mu.Unlock()
	for _, c := range ends {
		switch {
		case silent:
			c.vanish()
		case reset:
			c.end(syscall.ECONNRESET)
		default:
			c.end(nil)
		}
	}
	for _, l := range listeners {
		_ = l.Close()
	}
}

// boot gives a host power, if it has none: who still speaks on an old connection is told that
// there is none.
func (h *host) boot() {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.up.Swap(true) {
		return
	}
	for p := range n.ends {
		if p.to == h {
			p.rebooted(n.delay(h, p.from, 64))
		}
	}
}

// pause holds up all that a process sends and receives, goOn lets it pass. See
// Cluster.Pause for what that is a model of.
func (p *process) pause() {
	stopped := make(chan struct{})
	p.stopped.CompareAndSwap(nil, &stopped)
}

func (p *process) goOn() {
	if stopped := p.stopped.Swap(nil); stopped != nil {
		close(*stopped)
	}
}

// String names the direction.
func (d direction) String() string { return fmt.Sprintf("%s>%s", d.from, d.to) }
