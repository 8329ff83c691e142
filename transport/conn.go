package transport

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// conn is one connection. Until the introduction is over it belongs to nobody;
// then it counts for its peer. At most one goroutine reads and one writes.
type conn struct {
	net.Conn
	t       *Transport
	purpose purpose
	remote  command.Hello // what the peer said at connect time
	peer    *peer         // nil before the introduction
	far     *far          // how bulk travels; nil: the peer is at this node's site
	packs   bool          // the peer understands compressed replication
	written atomic.Uint64 // bytes the system has taken

	done  chan struct{} // closed by Close
	close sync.Once

	// Only with the fault switch:
	readBy, writeBy deadline
	held            []byte       // read from the kernel during a cut, owed to the reader
	heldErr         error        // what the kernel said after held
	stalled         atomic.Int32 // operations waiting for the cut to end
}

// deadline is what net.Conn knows and does not tell, for stalled operations.
type deadline struct {
	at    atomic.Int64 // unix nanoseconds, 0 none
	moved chan struct{}
}

func (d *deadline) set(at time.Time) {
	var n int64
	if !at.IsZero() {
		n = at.UnixNano()
	}
	d.at.Store(n)
	select {
	case d.moved <- struct{}{}:
	default:
	}
}

func (t *Transport) newConn(nc net.Conn) *conn {
	c := &conn{Conn: nc, t: t, done: make(chan struct{})}
	if t.cfg.Faults {
		c.readBy.moved = make(chan struct{}, 1)
		c.writeBy.moved = make(chan struct{}, 1)
	}
	return c
}

// Close ends the connection and all that waits on it. It is safe to call from
// anywhere and more than once.
func (c *conn) Close() error {
	var err error
	c.close.Do(func() {
		close(c.done)
		err = c.Conn.Close()
		c.t.forget(c)
	})
	return err
}

func (c *conn) Read(b []byte) (n int, err error) {
	if c.t.cfg.Faults {
		n, err = c.readFaulty(b)
	} else {
		n, err = c.Conn.Read(b)
	}
	if n > 0 && c.peer != nil {
		c.peer.received.Add(uint64(n))
		c.peer.contact.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *conn) Write(b []byte) (n int, err error) {
	if c.t.cfg.Faults {
		n, err = c.writeFaulty(b)
	} else {
		n, err = c.Conn.Write(b)
	}
	c.written.Add(uint64(max(n, 0)))
	if n > 0 && c.peer != nil {
		c.peer.sent.Add(uint64(n))
	}
	return n, err
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(at time.Time) error {
	if c.t.cfg.Faults {
		c.readBy.set(at)
		c.writeBy.set(at)
	}
	return c.Conn.SetDeadline(at)
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(at time.Time) error {
	if c.t.cfg.Faults {
		c.readBy.set(at)
	}
	return c.Conn.SetReadDeadline(at)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(at time.Time) error {
	if c.t.cfg.Faults {
		c.writeBy.set(at)
	}
	return c.Conn.SetWriteDeadline(at)
}

// faultChunk is the most that is handed to the kernel between two looks at the
// fault switch.
const faultChunk = 64 << 10

// readFaulty reads, and holds back what arrived while the peer is cut off: data
// as well as the end of the connection, since a severed wire carries neither.
func (c *conn) readFaulty(b []byte) (int, error) {
	if len(c.held) == 0 && c.heldErr == nil {
		n, err := c.Conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) || !c.t.faults.blocks(inward, c.remote) {
			return n, err
		}
		c.held, c.heldErr = append([]byte(nil), b[:n]...), err
	}
	// A reader that set no deadline still has to learn in the end that its
	// connection is gone: as late as it would of a silent one.
	var limit time.Duration
	if c.heldErr != nil {
		limit = c.t.cfg.DeadAfter
	}
	if err := c.stall(inward, &c.readBy, limit); err != nil {
		return 0, err
	}
	n := copy(b, c.held)
	if c.held = c.held[n:]; len(c.held) > 0 {
		return n, nil
	}
	err := c.heldErr
	c.held, c.heldErr = nil, nil
	return n, err
}

// writeFaulty writes in pieces, none of them while the peer is cut off.
func (c *conn) writeFaulty(b []byte) (int, error) {
	var done int
	for {
		if err := c.stall(outward, &c.writeBy, 0); err != nil {
			return done, err
		}
		n, err := c.Conn.Write(b[done:min(len(b), done+faultChunk)])
		done += n
		if err != nil || done == len(b) {
			return done, err
		}
	}
}

// stall waits while that direction is cut off: until it is healed (nil), the deadline
// passes, the limit passes where there is no deadline, or the connection is
// closed.
func (c *conn) stall(way direction, by *deadline, limit time.Duration) error {
	if !c.t.faults.blocks(way, c.remote) {
		return nil
	}
	c.stalled.Add(1)
	defer c.stalled.Add(-1)
	var latest time.Time
	if limit > 0 {
		latest = time.Now().Add(limit)
	}
	for {
		cut := c.t.faults.cut.Load()
		if !way(cut, c.t.faults.self, c.remote) {
			return nil
		}
		at := latest
		if n := by.at.Load(); n != 0 {
			at = time.Unix(0, n)
		}
		var expired <-chan time.Time
		if !at.IsZero() {
			left := time.Until(at)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			expired = time.After(left)
		}
		select {
		case <-cut.over:
		case <-by.moved:
		case <-expired:
		case <-c.done:
			return net.ErrClosed
		}
	}
}
