package transport

import (
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// far is how replication and copies travel to a peer at another site: within
// Config.WANRate, together with all that goes to that site, and with no more on its
// way than the link carries soon. Heartbeats, votes and calls share the link and
// are not to wait behind megabytes in some router's buffer.
type far struct {
	limit  *rate.Limiter // of the site; nil: none
	window *window       // of the peer
}

// farLocked is how bulk travels to a peer of a site; nil: as it is, the site is this
// node's own. Called with mu held.
func (t *Transport) farLocked(p *peer, site string) *far {
	if site == t.faults.self.Site {
		return nil
	}
	limit, ok := t.wan[site]
	if !ok {
		limit = newLimiter(t.cfg.WANRate)
		t.wan[site] = limit
	}
	return &far{limit: limit, window: &p.window}
}

// writeBulk writes what may be held up. It takes any time, and fails when nothing
// moved for idle.
func (c *conn) writeBulk(b []byte, idle time.Duration) (done int, err error) {
	if c.far == nil {
		return writeMoving(c, b, idle)
	}
	for done < len(b) && err == nil {
		piece := b[done:min(len(b), done+c.far.piece())]
		if err = c.turn(len(piece)); err == nil {
			err = c.room(len(piece), idle)
		}
		if err == nil {
			var n int
			n, err = writeMoving(c, piece, idle)
			done += n
		}
	}
	return done, err
}

// piece is how much is written at once.
func (f *far) piece() int {
	n := f.window.piece()
	if f.limit != nil {
		n = min(n, f.limit.Burst())
	}
	return n
}

// turn waits until the site may be sent so many bytes more.
func (c *conn) turn(bytes int) error {
	if c.far.limit == nil {
		return nil
	}
	r := c.far.limit.ReserveN(time.Now(), bytes)
	wait := time.NewTimer(r.Delay())
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-c.done:
		r.Cancel()
		return net.ErrClosed
	}
}

// room waits until so many bytes more fit into the window. There is always room for
// a piece when nothing is on its way.
func (c *conn) room(bytes int, idle time.Duration) error {
	w := c.far.window
	limited := false
	moved, least := time.Now(), -1
	for pause := time.Millisecond; ; pause = min(2*pause, 16*time.Millisecond) {
		left, ok := unacked(c)
		if !ok {
			return nil
		}
		if left == 0 || left+bytes <= w.bytes() {
			break
		}
		limited = true
		if least < 0 || left < least {
			moved, least = time.Now(), left
		} else if time.Since(moved) > idle {
			return os.ErrDeadlineExceeded
		}
		select {
		case <-time.After(pause):
		case <-c.done:
			return net.ErrClosed
		}
	}
	if now, shortest, ok := roundTrips(c); ok {
		w.judge(time.Now(), now, shortest, limited)
	}
	return nil
}

const (
	// firstWindow is what a link is trusted with at first; leastWindow still moves
	// 40 KB/s over 200 ms; mostWindow is more than Raft ever has on its way.
	firstWindow = 32 << 10
	leastWindow = 8 << 10
	mostWindow  = 16 << 20
	// The largest piece, and the smallest: a few packets.
	mostPiece  = 128 << 10
	leastPiece = 4 << 10
	// longQueue is by how much bulk may lengthen the way of others over the link:
	// what makes a round trip longer than its shortest is waiting in a queue, and
	// mostly behind bulk.
	longQueue = 150 * time.Millisecond
)

// shortest is the shortest round trip lately: how far a peer is, without the queues.
// The zero value knows none.
type shortest struct {
	mu sync.Mutex
	d  time.Duration // guarded by mu, as at
	at time.Time
}

// shortestKept is for how long the shortest round trip is believed: routes change.
const shortestKept = 10 * time.Minute

// note takes one round trip and returns the shortest.
func (s *shortest) note(at time.Time, d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.d == 0 || d < s.d || at.Sub(s.at) > shortestKept {
		s.d, s.at = d, at
	}
	return s.d
}

// below reports whether it is known, and below d.
func (s *shortest) below(d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.d > 0 && s.d < d
}

// window bounds the bytes on their way to a peer by the delay they cause. TCP by
// itself fills whatever buffers there are on the way, and on a slow line these may
// hold what it carries in a minute. It doubles with each round trip until a queue
// shows, is halved when one is long, and grows by an eighth then.
type window struct {
	shortest shortest
	mu       sync.Mutex
	size     int // guarded by mu, as all below; 0: none was needed yet
	met      bool
	changed  time.Time
}

func (w *window) bytes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size == 0 {
		w.size = firstWindow
	}
	return w.size
}

func (w *window) piece() int { return min(max(w.bytes()/4, leastPiece), mostPiece) }

// judge moves the window by a connection's round trips: now and the shortest. limited:
// somebody had to wait for room.
func (w *window) judge(at time.Time, now, shortest time.Duration, limited bool) {
	queue := now - w.shortest.note(at, shortest)
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.Sub(w.changed) < now {
		return // what changed last does not show yet
	}
	switch {
	case queue > longQueue:
		w.size, w.met, w.changed = max(w.size/2, leastWindow), true, at
	case queue > longQueue/2 || !limited:
	case w.met:
		w.size, w.changed = min(w.size+w.size/8, mostWindow), at
	default:
		w.size, w.changed = min(2*w.size, mostWindow), at
	}
}
