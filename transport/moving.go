package transport

import (
	"errors"
	"os"
	"time"
)

// What moves over a slow link may take any time; what stands still is given up.
// Whether bytes move is seen by what the peer's system has acknowledged, since the
// local one takes megabytes at once and sends them when it can.

// acked is how many of the bytes written the peer's system has; ok is false where
// that cannot be told.
func (c *conn) acked() (bytes uint64, ok bool) {
	written := c.written.Load()
	left, ok := unacked(c)
	return written - min(uint64(left), written), ok
}

// writeMoving writes all of b, however long that takes; it fails when nothing
// moved for idle.
func writeMoving(c *conn, b []byte, idle time.Duration) (done int, err error) {
	acked, known := c.acked()
	for {
		if err := c.SetWriteDeadline(time.Now().Add(idle)); err != nil {
			return done, err
		}
		n, err := c.Write(b[done:])
		done += n
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return done, err
		}
		now, _ := c.acked()
		if n == 0 && (!known || now <= acked) {
			return done, err
		}
		acked = now
	}
}

// answerReader reads answers. It waits for as long as what was asked is still on
// its way and moves, and for idle after that. It is used by one goroutine.
type answerReader struct {
	c    *conn
	idle time.Duration
}

// Read implements io.Reader.
func (r *answerReader) Read(b []byte) (int, error) {
	step := min(r.idle, r.c.t.cfg.Timeout)
	acked, known := r.c.acked()
	for moved := time.Now(); ; {
		if err := r.c.SetReadDeadline(time.Now().Add(step)); err != nil {
			return 0, err
		}
		n, err := r.c.Read(b)
		if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if now, _ := r.c.acked(); known && now > acked {
			acked, moved = now, time.Now()
		} else if time.Since(moved) >= r.idle {
			return 0, err
		}
	}
}
