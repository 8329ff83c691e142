package transport

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/time/rate"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// beatsPerIdle is how often in an IdleTimeout a sender looks whether it must
	// show that it is alive: silence lasts two beats at most.
	beatsPerIdle = 3
	// longestSilence is after how many IdleTimeouts without a byte from the handler
	// a sender no longer shows that it is alive, so that the receiver goes elsewhere
	// when the handler hangs on a dead disk.
	longestSilence = 20
	// piecesPerSecond is how finely Config.CopyRate is dealt out: coarse enough to
	// be cheap, and so fine that no other connection waits long behind a piece and
	// that very many streams get their turn within an IdleTimeout.
	piecesPerSecond = 64
	// unsentBytes is how much a copy connection leaves in the kernel beyond what is
	// on its way. Left to itself the kernel takes megabytes at once, and then nothing
	// until a third of them has gone: on a slow link an IdleTimeout could pass, and
	// it would take long to see that it is slow. This much keeps 10 Gbit/s busy.
	unsentBytes = 2 * chunkSize
)

// newLimiter shares bytesPerSecond among all streams that ask it; nil is no limit.
// Streams get pieces of at most the burst in the order in which they ask, each
// asking for one at a time, hence equal shares; what one stream cannot use, the
// others get.
func newLimiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(min(max(bytesPerSecond/piecesPerSecond, 1), chunkHeader+chunkSize)))
}

// serveCopy answers the one request of a copy connection.
func (t *Transport) serveCopy(c *conn) error {
	r := idleReader{c}
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > maxCopyAsk {
		return fmt.Errorf("copy request of %d bytes", n)
	}
	req := make([]byte, n)
	if _, err := io.ReadFull(r, req); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	// The caller says nothing more, so the end of reading is its end.
	watching := t.spawn(func() {
		defer cancel()
		var b [1]byte
		_, _ = c.Read(b[:])
	})
	w := newCopyWriter(ctx, c)
	if !watching || !t.spawn(w.keepAlive) {
		return net.ErrClosed
	}
	if err := limitUnsent(c, unsentBytes); err != nil {
		t.log.Debug("copy connection keeps the system's buffer", "peer", c.remote.Name, "error", err)
	}
	w.count.begin()
	defer w.count.end()
	return w.finish(t.handler.Copy(ctx, c.remote, req, w))
}

// copyWriter is the sending end of a copy stream: it gathers chunks.
type copyWriter struct {
	ctx   context.Context // ends with the caller
	c     *conn
	limit *rate.Limiter // nil: none
	count copyMeter

	mu     sync.Mutex // guards what follows
	buf    []byte     // header and bytes of the chunk being gathered
	packed []byte     // header and bytes of a compressed chunk
	zstd   *zstd.Encoder
	pace   pace
	total  uint64 // bytes sent
	err    error  // nothing is sent any more
	sent   bool   // something was since the last beat
	silent int    // beats since the last Write
}

func newCopyWriter(ctx context.Context, c *conn) *copyWriter {
	return &copyWriter{
		ctx:   ctx,
		c:     c,
		limit: c.t.copyLimit,
		count: copyMeter{&c.peer.copies.sent, &c.t.copies.sent},
		buf:   make([]byte, chunkHeader, chunkHeader+chunkSize),
	}
}

// Write implements io.Writer.
func (w *copyWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = 0
	var done int
	for done < len(b) && w.err == nil {
		n := min(len(b)-done, chunkHeader+chunkSize-len(w.buf))
		w.buf = append(w.buf, b[done:done+n]...)
		done += n
		if len(w.buf) == chunkHeader+chunkSize {
			w.flush()
		}
	}
	return done, w.err
}

// flush sends the chunk gathered so far. Called with mu held.
func (w *copyWriter) flush() {
	n := len(w.buf) - chunkHeader
	if n == 0 || w.err != nil {
		return
	}
	began := time.Now()
	chunk, kind := w.buf, chunkPlain
	if w.pace.packed {
		if packed := w.pack(w.buf[chunkHeader:]); float64(len(packed)) <= worthwhile*float64(len(w.buf)) {
			chunk, kind = packed, chunkZstd
		}
	}
	w.send(chunk, kind)
	w.pace.took(n, time.Since(began))
	if w.err == nil {
		w.total += uint64(n)
		w.count.payload(n)
	}
	w.buf = w.buf[:chunkHeader]
}

// pack compresses the bytes of a chunk and leaves room for the header.
func (w *copyWriter) pack(b []byte) []byte {
	if w.zstd == nil {
		// Without a stream it has no goroutines, so that it need not be closed. Its
		// options are constants, so that there is no error.
		w.zstd, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(chunkSize), zstd.WithEncoderCRC(false))
		w.packed = make([]byte, chunkHeader, chunkHeader+w.zstd.MaxEncodedSize(chunkSize))
	}
	return w.zstd.EncodeAll(b, w.packed)
}

// send completes a chunk and writes it, in pieces where there is a limit. Called
// with mu held.
func (w *copyWriter) send(chunk []byte, kind chunkKind) {
	seal(chunk, kind)
	for w.sent = true; len(chunk) > 0 && w.err == nil; {
		piece := chunk
		if w.limit != nil {
			piece = chunk[:min(len(chunk), w.limit.Burst())]
			if err := w.limit.WaitN(w.ctx, len(piece)); err != nil {
				w.fail(err)
				return
			}
		}
		n, err := w.c.writeBulk(piece, w.c.t.cfg.IdleTimeout)
		w.count.wire(n)
		if err != nil {
			w.fail(err)
		}
		chunk = chunk[n:]
	}
}

func (w *copyWriter) fail(err error) {
	w.err = fmt.Errorf("copy to %s: %w", w.c.remote.Name, broken(w.c, w.total, err))
}

// keepAlive is the goroutine that lets the receiver wait for a handler that is
// silent while it works: it sends what there is, or shows that we are alive.
func (w *copyWriter) keepAlive() {
	ticker := time.NewTicker(w.c.t.cfg.IdleTimeout / beatsPerIdle)
	defer ticker.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-ticker.C:
			w.beat()
		}
	}
}

func (w *copyWriter) beat() {
	if !w.mu.TryLock() {
		return // a chunk is on its way, for as long as that takes: sign enough
	}
	defer w.mu.Unlock()
	w.silent++
	if !w.sent && w.err == nil && w.silent < longestSilence*beatsPerIdle {
		if len(w.buf) > chunkHeader {
			w.flush()
		} else {
			w.send(make([]byte, chunkHeader), chunkAlive)
		}
	}
	w.sent = false
}

// finish ends the stream: with its mark, or with the handler's error.
func (w *copyWriter) finish(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.flush()
	}
	switch {
	case w.err != nil: // there is nobody to tell
	case err != nil && w.ctx.Err() != nil: // we stop, or the caller did: no error of the handler's own
	case err != nil:
		w.send(append(make([]byte, chunkHeader), command.EncodeError(err)...), chunkError)
	default:
		w.send(binary.BigEndian.AppendUint64(make([]byte, chunkHeader), w.total), chunkEnd)
	}
	if err == nil {
		err = w.err
	}
	w.err = net.ErrClosed // no beat after the end
	return err
}

const (
	// slowLink is what a MiB costs on a link that is not worth any packing while
	// it costs less: 52 MB/s. One core packs 200 MB/s of records and more. Well
	// below that, packing takes a part of a core and makes a copy several times as
	// fast; above, a leader has better uses for its cores.
	slowLink = 20 * time.Millisecond
	// worthwhile is what packing must save: of the size, to send a chunk packed; of
	// the time, to go on with it.
	worthwhile = 0.9
	// A cost is measured over paceWindow bytes of the stream, or paceLeast when
	// these took as long as paceWindow does on a slow link.
	paceWindow = 4 << 20
	paceLeast  = 1 << 20
	// paceSpell is after how many bytes sent in one way the cost of the other is
	// measured again.
	paceSpell = 64 << 20
)

// pace decides whether a stream is packed. It measures what a MiB of the stream
// costs either way, in time to pack it and to hand it to the kernel as fast as the
// link and Config.CopyRate let it; so data that does not shrink and a sender that has
// no time for it show as well as the link does.
type pace struct {
	packed                bool
	plainCost, packedCost time.Duration // cost of a MiB; 0: not known
	spell                 int           // bytes since packed changed
	bytes                 int           // in the present window
	busy                  time.Duration // with them
}

// took notes how long so many bytes of the stream took.
func (p *pace) took(bytes int, d time.Duration) {
	p.spell += bytes
	p.bytes += bytes
	p.busy += d
	if p.bytes < paceLeast || p.bytes < paceWindow && p.busy < slowLink*paceWindow>>20 {
		return
	}
	this, other := &p.plainCost, &p.packedCost
	if p.packed {
		this, other = other, this
	}
	*this = time.Duration(float64(p.busy) / float64(p.bytes) * (1 << 20))
	if p.spell >= paceSpell {
		*other, p.spell = 0, 0
	}
	// What is not known is tried: as 0, either looks better than the other.
	packed := p.plainCost >= slowLink && float64(p.packedCost) < worthwhile*float64(p.plainCost)
	if packed != p.packed {
		p.packed, p.spell = packed, 0
	}
	p.bytes, p.busy = 0, 0
}
