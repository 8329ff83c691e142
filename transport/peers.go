package transport

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// PeerInfo is what this node has seen of one peer on the wire.
type PeerInfo struct {
	// Connected: at least one connection to or from the peer is open.
	Connected bool
	// LastContact is when bytes of the peer last arrived; zero when never.
	LastContact time.Time
	// RTT is the smoothed round trip of pings; zero when not known yet.
	RTT time.Duration
	// RemoteAddr is the far end of the newest connection, host:port.
	RemoteAddr string
	// BytesSent and BytesReceived count all purposes since this process started
	// or the peer was disconnected, without introductions.
	BytesSent     uint64
	BytesReceived uint64
	// CopiesSent and CopiesReceived count the copy streams exchanged with the peer.
	CopiesSent     CopyCount
	CopiesReceived CopyCount
	// EntriesSent counts the log entries the peer has taken of this node as leader.
	EntriesSent uint64
	// Paused: the peer has told this node as leader that it takes no replication.
	Paused bool
	// Packed counts what of the replication sent to it was compressed.
	Packed PackCount
	// Hello is how the peer last introduced itself.
	Hello command.Hello
}

// peer is all that is kept about one node, under its Raft server id.
type peer struct {
	id     string
	ctx    context.Context // ends with Disconnect: what waits for this peer gives up
	forget context.CancelFunc

	sent, received atomic.Uint64
	copies         copyCounters
	contact        atomic.Int64 // unix nanoseconds
	rtt            atomic.Int64 // nanoseconds, smoothed
	shortest       shortest     // round trip
	entries        atomic.Uint64
	paused         atomic.Bool // by its last answer to replication
	packs          packCounter
	shrinkage      shrinkage
	pace           replicationPace
	window         window      // of bulk on its way, when it is at another site
	behind         atomic.Bool // replication was held for it, and no pipeline was asked for since

	mu     sync.Mutex // guards what follows; taken after Transport.mu, never before
	hello  command.Hello
	remote string
	conns  map[*conn]struct{}
	idle   []*raftConn   // Raft connections nobody uses now, the warmest last
	back   chan struct{} // closed and replaced when the peer connects
}

func newPeer(ctx context.Context, id string) *peer {
	p := &peer{id: id, conns: make(map[*conn]struct{}), back: make(chan struct{})}
	p.ctx, p.forget = context.WithCancel(ctx)
	return p
}

// announce tells those who hold replication for a peer that it is back.
func (p *peer) announce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.back)
	p.back = make(chan struct{})
}

// returned gives a channel that is closed when the peer next connects to this
// node.
func (p *peer) returned() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.back
}

// measured folds one round trip into the smoothed one.
func (p *peer) measured(rtt time.Duration) {
	p.shortest.note(time.Now(), rtt)
	if old := p.rtt.Load(); old > 0 {
		rtt = time.Duration(old) + (rtt-time.Duration(old))/8
	}
	p.rtt.Store(int64(max(rtt, 1)))
}

func (p *peer) info() PeerInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := PeerInfo{
		Connected:      len(p.conns) > 0,
		RTT:            time.Duration(p.rtt.Load()),
		RemoteAddr:     p.remote,
		BytesSent:      p.sent.Load(),
		BytesReceived:  p.received.Load(),
		EntriesSent:    p.entries.Load(),
		Paused:         p.paused.Load(),
		Packed:         p.packs.count(),
		Hello:          p.hello,
		CopiesSent:     p.copies.sent.count(),
		CopiesReceived: p.copies.received.count(),
	}
	if at := p.contact.Load(); at != 0 {
		i.LastContact = time.Unix(0, at)
	}
	return i
}

// Peers tells, by Raft server id, what is known of every node this one has met
// or was asked to reach.
func (t *Transport) Peers() map[string]PeerInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[string]PeerInfo, len(t.peers))
	for id, p := range t.peers {
		all[id] = p.info()
	}
	return all
}

// Link tells what is known of the way to one node.
func (t *Transport) Link(id string) command.Link {
	t.mu.Lock()
	p, ok := t.peers[id]
	t.mu.Unlock()
	if !ok {
		return command.Link{}
	}
	i := p.info()
	return command.Link{
		Connected: i.Connected, LastContact: i.LastContact, RemoteAddr: i.RemoteAddr,
		BytesSent: i.BytesSent, EntriesSent: i.EntriesSent, Paused: i.Paused,
	}
}

// peer returns the record of a node, making it when it is new.
func (t *Transport) peer(id string) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peerLocked(id)
}

func (t *Transport) peerLocked(id string) *peer {
	p, ok := t.peers[id]
	if !ok {
		p = newPeer(t.ctx, id)
		t.peers[id] = p
	}
	return p
}

// Learn notes where a node may be reached. The hint is used when Resolve does
// not know the id, and when what Resolve says fails. Every introduction leaves
// one too.
func (t *Transport) Learn(id, addr string) {
	if id == "" || addr == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hints[id] = addr
}

// addresses lists where to look for a node, the best first.
func (t *Transport) addresses(id string) []string {
	var addrs []string
	if t.cfg.Resolve != nil {
		if a, ok := t.cfg.Resolve(id); ok && a != "" {
			addrs = append(addrs, a)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if a, ok := t.hints[id]; ok && (len(addrs) == 0 || addrs[0] != a) {
		addrs = append(addrs, a)
	}
	return addrs
}

// Disconnect forgets a peer that was removed: its connections in both
// directions are closed, and calls and replication held for it fail. Whether it
// may connect again is for Config.Check to say.
func (t *Transport) Disconnect(id string) {
	t.mu.Lock()
	p, ok := t.peers[id]
	delete(t.peers, id)
	delete(t.hints, id)
	t.mu.Unlock()
	if !ok {
		return
	}
	p.forget()
	p.mu.Lock()
	conns := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}
