package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// After the introduction a watch connection carries nothing but pings of the side
// that dialled,
//
//	stamp (8)
//
// and what the other side says of itself in answer to each:
//
//	stamp (8) | term (8) | leads (1) | length (2) | why it is unfit (length)
const (
	pingSize = 8
	pongSize = 8 + 8 + 1 + 2
	maxUnfit = 512 // bytes of a reason
)

// longPause is how many beats a process was stopped for if its silence counts from
// the beginning.
const longPause = 4

// Watch follows the life of a peer's process until ctx ends, and calls tell with
// what it knows whenever that changes, once at a time; tell must not block. It
// returns when there will be no further call.
//
// It keeps a connection of its own to the peer, which is never behind bulk, pings
// every beat, and dials anew at once when it is lost. Silence is judged by all that
// arrives from the peer on any connection, so that packets lost on one are no
// silence. The process that is watched is the one that had introduced itself last
// when the watch began, or else the first that answers.
func (t *Transport) Watch(ctx context.Context, id string, beat time.Duration, tell func(command.Pulse)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	p := t.peer(id)
	p.mu.Lock()
	w := &watch{t: t, peer: p, beat: beat, process: p.hello.Incarnation, tell: tell}
	p.mu.Unlock()
	ended := make(chan struct{})
	if !t.spawn(func() { defer close(ended); w.attend(ctx) }) {
		return
	}
	w.count(ctx)
	<-ended
}

// watch is one Watch that runs.
type watch struct {
	t    *Transport
	peer *peer
	beat time.Duration
	tell func(command.Pulse)

	mu      sync.Mutex
	process string        // guarded by mu; the incarnation that is watched
	pulse   command.Pulse // guarded by mu
}

// update changes what is known, and tells it if that made a difference.
func (w *watch) update(change func(p *command.Pulse)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.pulse
	if change(&w.pulse); w.pulse != old {
		w.tell(w.pulse)
	}
}

// count counts beats of silence, on the goroutine of Watch.
func (w *watch) count(ctx context.Context) {
	timer := time.NewTimer(w.beat)
	defer timer.Stop()
	last, heard := time.Now(), w.peer.received.Load()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		now, before := time.Now(), heard
		heard = w.peer.received.Load()
		// A beat that comes late shows that this process was held up: what the peer sent
		// meanwhile may still wait to be read. It does not count; after a long pause
		// nothing does that was before.
		took := now.Sub(last)
		last = now
		w.update(func(p *command.Pulse) {
			switch {
			case heard != before, took > longPause*w.beat:
				p.Missed = 0
			case took <= 2*w.beat:
				p.Missed++
			}
		})
		timer.Reset(w.beat) // from now: two beats are never closer than that
	}
}

// attend keeps the connection, on a goroutine of its own.
func (w *watch) attend(ctx context.Context) {
	shortest := max(w.beat/8, time.Millisecond)
	pause := shortest
	for ctx.Err() == nil {
		c, refused, err := w.dial(ctx)
		if err == nil {
			pause = shortest
			w.met(c.remote.Incarnation)
			w.listen(ctx, c)
			continue
		}
		if refused {
			w.update(func(p *command.Pulse) { p.Refused = true })
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, max(w.beat, shortest))
	}
}

// dial connects to the peer. refused: wherever it may be, nothing listens there.
func (w *watch) dial(ctx context.Context) (c *conn, refused bool, err error) {
	addrs := w.t.addresses(w.peer.id)
	refused = len(addrs) > 0
	err = fmt.Errorf("no address of %s is known", w.peer.id)
	for _, addr := range addrs {
		if c, err = w.t.dial(ctx, purposeWatch, w.peer.id, addr); err == nil {
			return c, false, nil
		}
		refused = refused && errors.Is(err, syscall.ECONNREFUSED)
	}
	return nil, refused, err
}

// met notes which process has answered.
func (w *watch) met(incarnation string) {
	w.update(func(p *command.Pulse) {
		if w.process == "" {
			w.process = incarnation
		}
		if incarnation == w.process {
			p.Refused = false
		} else {
			p.Replaced = true
		}
	})
}

// listen pings and takes the answers until the connection ends. One that has become
// useless, though the peer is heard on others, ends after Config.DeadAfter.
func (w *watch) listen(ctx context.Context, c *conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	epoch := time.Now()
	if !w.t.spawn(func() { c.ping(w.beat, epoch) }) {
		return
	}
	r := bufio.NewReader(c)
	for {
		if err := c.SetReadDeadline(time.Now().Add(w.t.cfg.DeadAfter)); err != nil {
			return
		}
		stamp, said, err := readPong(r)
		if err != nil {
			return
		}
		if rtt := time.Since(epoch) - time.Duration(stamp); rtt > 0 {
			c.peer.measured(rtt)
		}
		w.update(func(p *command.Pulse) {
			if !p.Replaced {
				p.Said = said
			}
		})
	}
}

// ping writes a ping every beat until the connection ends.
func (c *conn) ping(beat time.Duration, epoch time.Time) {
	defer c.Close()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	var b [pingSize]byte
	for {
		binary.BigEndian.PutUint64(b[:], uint64(time.Since(epoch)))
		if err := c.SetWriteDeadline(time.Now().Add(c.t.cfg.DeadAfter)); err != nil {
			return
		}
		if _, err := c.Write(b[:]); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-c.done:
			return
		}
	}
}

// serveWatch answers the pings of one connection.
func (t *Transport) serveWatch(c *conn) error {
	var ping [pingSize]byte
	var out []byte
	for {
		if err := c.SetDeadline(time.Now().Add(t.cfg.IdleTimeout)); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, ping[:]); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		var said command.Condition
		if t.cfg.Condition != nil {
			said = t.cfg.Condition()
		}
		out = appendPong(out[:0], binary.BigEndian.Uint64(ping[:]), said)
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
}

func appendPong(b []byte, stamp uint64, said command.Condition) []byte {
	unfit := said.Unfit[:min(len(said.Unfit), maxUnfit)]
	b = binary.BigEndian.AppendUint64(b, stamp)
	b = binary.BigEndian.AppendUint64(b, said.Term)
	b = appendBool(b, said.Leads)
	b = binary.BigEndian.AppendUint16(b, uint16(len(unfit)))
	return append(b, unfit...)
}

func readPong(r io.Reader) (stamp uint64, said command.Condition, err error) {
	var b [pongSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, said, err
	}
	said.Term, said.Leads = binary.BigEndian.Uint64(b[8:]), b[16] != 0
	n := binary.BigEndian.Uint16(b[17:])
	if n > maxUnfit {
		return 0, said, fmt.Errorf("reason of %d bytes", n)
	}
	unfit := make([]byte, n)
	if _, err := io.ReadFull(r, unfit); err != nil {
		return 0, said, err
	}
	said.Unfit = string(unfit)
	return binary.BigEndian.Uint64(b[:]), said, nil
}
