package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// After the introduction a call connection carries frames in both directions:
//
//	length of what follows the header (4) | kind (1) | method (1) | id (8) | ...
//
// A request's body is preceded by the milliseconds its caller waits (4), 0 for
// ever.
const (
	frameHeader    = 14
	requestHeader  = frameHeader + 4
	kindOffset     = 4
	maxCall        = 64 << 20  // bytes of a request or an answer
	bufferLimit    = 1 << 20   // unsent bytes from which senders wait
	keepBuffer     = 256 << 10 // larger write buffers go back to the collector
	readBufferSize = 32 << 10
)

type frameKind uint8

const (
	frameVoid    frameKind = 0 // withdrawn before it was sent
	frameRequest frameKind = 1
	frameAnswer  frameKind = 2
	frameError   frameKind = 3
	frameCancel  frameKind = 4
	framePing    frameKind = 5
	framePong    frameKind = 6
)

type frame struct {
	kind   frameKind
	method uint8
	id     uint64
	body   []byte // belongs to the reader of the frame
}

var (
	errLinkGone   = errors.New("connection is closed")
	errSilent     = errors.New("peer is silent")
	errIdle       = errors.New("connection was idle")
	errTooLarge   = fmt.Errorf("message exceeds %d MiB", maxCall>>20)
	errDisconnect = errors.New("connection lost")
)

// link is a connection that carries frames. Any number of goroutines append
// frames to one buffer; a single writer hands the kernel all that has gathered.
// Each end pings, so each end hears the other within an interval whatever bulk
// is on its way.
type link struct {
	*conn
	epoch time.Time // ping stamps count from here

	heard atomic.Uint64 // reads that brought something
	wake  chan struct{} // to the writer: the buffer is no longer empty

	mu      sync.Mutex // guards what follows
	buf     []byte     // not yet given to the kernel
	spare   []byte     // the other buffer, when the writer does not hold it
	base    uint64     // position of buf[0] in the stream
	room    chan struct{}
	err     error  // why the link is dead; nothing is appended any more
	maySent uint64 // once dead: the peer can have seen no frame that ends behind this
}

func newLink(c *conn) *link {
	return &link{conn: c, epoch: time.Now(), wake: make(chan struct{}, 1)}
}

// put appends a frame and gives its place in the stream. It waits while too much
// is unsent. Called with mu held; it may let go of mu meanwhile.
func (l *link) put(ctx context.Context, kind frameKind, method uint8, id uint64, wait uint32, body []byte) (start, end uint64, err error) {
	for l.err == nil && len(l.buf) > bufferLimit {
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		select {
		case <-room:
		case <-l.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		l.mu.Lock()
		if err != nil {
			return 0, 0, err
		}
	}
	if l.err != nil {
		return 0, 0, l.err
	}
	if len(l.buf) == 0 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	start = l.base + uint64(len(l.buf))
	n := len(body)
	if kind == frameRequest {
		n += 4
	}
	b := binary.BigEndian.AppendUint32(l.buf, uint32(n))
	b = append(b, byte(kind), method)
	b = binary.BigEndian.AppendUint64(b, id)
	if kind == frameRequest {
		b = binary.BigEndian.AppendUint32(b, wait)
	}
	l.buf = append(b, body...)
	return start, l.base + uint64(len(l.buf)), nil
}

// withdraw makes a frame void if it is still here and reports whether it was.
// Called with mu held.
func (l *link) withdraw(start uint64) bool {
	if start < l.base {
		return false
	}
	l.buf[start-l.base+kindOffset] = byte(frameVoid)
	return true
}

// write is the link's writer: one goroutine, until the link is dead. beat is
// called at each ping interval and may end it.
func (l *link) write(beat func() error) error {
	ticker := time.NewTicker(l.t.cfg.PingInterval)
	defer ticker.Stop()
	// Silence is counted in beats, not in clock time: after a suspension the
	// reader gets its chance before the peer is given up.
	patience := int(l.t.cfg.DeadAfter / l.t.cfg.PingInterval)
	var silent int
	var heard uint64
	for {
		select {
		case <-l.done:
			return net.ErrClosed
		case <-l.wake:
		case <-ticker.C:
			if now := l.heard.Load(); now != heard {
				heard, silent = now, 0
			} else if silent++; silent >= patience {
				return errSilent
			}
			if err := beat(); err != nil {
				return err
			}
			l.ping()
		}
		for {
			// Whoever is ready to run adds its frame to this write first. Alone on
			// the connection that costs nothing; with sixteen callers it saves two
			// writes of three.
			runtime.Gosched()
			l.mu.Lock()
			b := l.buf
			if len(b) == 0 {
				l.mu.Unlock()
				break
			}
			l.buf, l.spare = l.spare, nil
			l.base += uint64(len(b))
			if l.room != nil {
				close(l.room)
				l.room = nil
			}
			l.mu.Unlock()

			n, err := l.flush(b)
			l.mu.Lock()
			if err != nil {
				if l.err == nil {
					l.err = err
					l.maySent = l.base - uint64(len(b)-n)
				}
				l.mu.Unlock()
				return err
			}
			if cap(b) <= keepBuffer {
				l.spare = b[:0]
			}
			l.mu.Unlock()
		}
	}
}

// flush writes b, giving up when the kernel takes nothing for DeadAfter.
func (l *link) flush(b []byte) (done int, err error) {
	for done < len(b) {
		if err := l.SetWriteDeadline(time.Now().Add(l.t.cfg.DeadAfter)); err != nil {
			return done, err
		}
		n, err := l.Write(b[done:min(len(b), done+keepBuffer)])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// fail makes the link dead, for the first reason given.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
		l.maySent = l.base // what the writer holds may be on its way
	}
	l.mu.Unlock()
	l.Close()
}

func (l *link) ping() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) <= bufferLimit { // more of it shows that we are alive as well
		_, _, _ = l.put(context.Background(), framePing, 0, uint64(time.Since(l.epoch)), 0, nil)
	}
}

// control handles the frames that keep a link alive and reports whether f was one.
func (l *link) control(f frame) bool {
	switch f.kind {
	case framePing:
		l.mu.Lock()
		if len(l.buf) <= bufferLimit {
			_, _, _ = l.put(context.Background(), framePong, 0, f.id, 0, nil)
		}
		l.mu.Unlock()
	case framePong:
		if rtt := time.Since(l.epoch) - time.Duration(f.id); rtt > 0 {
			l.peer.measured(rtt)
		}
	case frameVoid:
	default:
		return false
	}
	return true
}

// frames reads frames until the connection ends or fn fails.
func (l *link) frames(fn func(frame) error) error {
	r := bufio.NewReaderSize(countReads{l}, readBufferSize)
	var h [frameHeader]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(h[:])
		f := frame{kind: frameKind(h[kindOffset]), method: h[kindOffset+1], id: binary.BigEndian.Uint64(h[kindOffset+2:])}
		if n > maxCall+4 {
			return fmt.Errorf("frame of %d bytes: %w", n, errTooLarge)
		}
		if n > 0 {
			f.body = make([]byte, n)
			if _, err := io.ReadFull(r, f.body); err != nil {
				return err
			}
		}
		if l.control(f) {
			continue
		}
		if err := fn(f); err != nil {
			return err
		}
	}
}

// countReads notes each read, for the silence count.
type countReads struct{ l *link }

func (c countReads) Read(b []byte) (int, error) {
	n, err := c.l.conn.Read(b)
	if n > 0 {
		c.l.heard.Add(1)
	}
	return n, err
}
