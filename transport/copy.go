package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-db/holdfast/command"
)

// A copy connection carries one request (length (4), bytes) and then the stream
// in chunks:
//
//	kind (1) | length of the body (3) | CRC-32C of all but itself (4) | body
//
// The sender decides for each chunk whether it is compressed. The checksum is
// that of the bytes on the wire, so nothing damaged reaches the decoder.
const (
	chunkHeader = 8
	// chunkSize is the most a chunk carries and the most it takes on the wire:
	// what a receiver allocates, whatever it is sent. Smaller chunks make loopback
	// slower, larger ones gain nothing.
	chunkSize  = 256 << 10
	maxCopyAsk = 1 << 20
	endSize    = 8
)

// chunkKind says what the body of a chunk is.
type chunkKind uint8

const (
	chunkPlain chunkKind = 1 // bytes of the stream
	chunkZstd  chunkKind = 2 // bytes of the stream, as one zstd frame
	chunkAlive chunkKind = 3 // empty: the sender has nothing to send yet
	chunkEnd   chunkKind = 4 // the bytes of the whole stream (8); nothing follows
	chunkError chunkKind = 5 // the error that ended the stream; nothing follows
)

// A copy stream that ends before its end is one of these; what was read from it
// until then was verified.
var (
	// ErrCorrupt reports a copy stream whose bytes do not match their checksum.
	ErrCorrupt = errors.New("copy stream is corrupt")
	// ErrCutOff reports a copy stream whose connection broke.
	ErrCutOff = errors.New("copy stream was cut off")
	// ErrIdle reports a copy stream on which nothing moved for
	// Config.IdleTimeout.
	ErrIdle = errors.New("copy stream was idle")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal fills in the header of a chunk, its first chunkHeader bytes.
func seal(chunk []byte, kind chunkKind) {
	binary.BigEndian.PutUint32(chunk, uint32(kind)<<24|uint32(len(chunk)-chunkHeader))
	binary.BigEndian.PutUint32(chunk[4:], chunkSum(chunk[:4], chunk[chunkHeader:]))
}

func chunkSum(head, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, body)
}

// FetchCopy asks a node for a copy stream. It returns when the first bytes are
// there, or the refusal of the peer's handler, with its code. Read yields only
// bytes whose checksum was right, and io.EOF means that all of it was read. A
// stream that ends otherwise says why: ErrCorrupt, ErrCutOff, ErrIdle, or the
// error of the peer's handler with its code. It ends with ctx; Close releases it
// at any time.
func (t *Transport) FetchCopy(ctx context.Context, to string, req []byte) (io.ReadCloser, error) {
	c, err := t.dialPeer(ctx, purposeCopy, to)
	if err != nil {
		return nil, t.orStopping(err)
	}
	return t.fetch(ctx, c, req)
}

// FetchCopyAddr is FetchCopy from whichever node of this cluster answers at addr.
func (t *Transport) FetchCopyAddr(ctx context.Context, addr string, req []byte) (io.ReadCloser, error) {
	c, err := t.dial(ctx, purposeCopy, "", addr)
	if err != nil {
		return nil, t.orStopping(err)
	}
	return t.fetch(ctx, c, req)
}

func (t *Transport) orStopping(err error) error {
	if t.ctx.Err() != nil {
		return command.ErrStopping
	}
	return err
}

func (t *Transport) fetch(ctx context.Context, c *conn, req []byte) (io.ReadCloser, error) {
	if len(req) > maxCopyAsk {
		c.Close()
		return nil, fmt.Errorf("copy request of %d bytes is too large", len(req))
	}
	s := &copyReader{c: c, ctx: ctx, count: copyMeter{&c.peer.copies.received, &t.copies.received}}
	s.count.begin()
	s.end = sync.OnceFunc(s.count.end)
	s.stop = context.AfterFunc(ctx, func() { c.Close() })
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(req)), uint32(len(req)))
	_, err := writeMoving(c, append(b, req...), t.cfg.IdleTimeout)
	if err == nil {
		err = s.next()
	}
	if err != nil && err != io.EOF {
		s.Close()
		return nil, s.reason(err)
	}
	s.err = err
	return s, nil
}

// copyReader is the receiving end of a copy stream.
type copyReader struct {
	c     *conn
	ctx   context.Context
	stop  func() bool
	count copyMeter
	end   func() // of the count, once

	chunk []byte // verified and not yet read
	body  []byte // of a chunk, as it came
	plain []byte // of a compressed chunk
	zstd  *zstd.Decoder
	total uint64 // bytes verified
	err   error  // what follows chunk
}

// Read implements io.Reader.
func (s *copyReader) Read(b []byte) (int, error) {
	for len(s.chunk) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if err := s.next(); err != nil {
			s.err = s.reason(err)
		}
	}
	n := copy(b, s.chunk)
	s.chunk = s.chunk[n:]
	return n, nil
}

// Close implements io.Closer.
func (s *copyReader) Close() error {
	s.stop()
	s.end()
	return s.c.Close()
}

// reason makes of what ended the stream what the caller is told.
func (s *copyReader) reason(err error) error {
	var coded *command.Error
	switch {
	case err == io.EOF || errors.As(err, &coded):
		return err
	case s.c.t.ctx.Err() != nil:
		return command.ErrStopping
	case s.ctx.Err() != nil:
		err = s.ctx.Err()
	case !errors.Is(err, ErrCorrupt):
		err = broken(s.c, s.total, err)
	}
	return fmt.Errorf("copy from %s: %w", s.c.remote.Name, err)
}

// broken says of a network error after so many bytes of a stream what it is.
func broken(c *conn, bytes uint64, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w for %v after %d bytes: %w", ErrIdle, c.t.cfg.IdleTimeout, bytes, err)
	}
	return fmt.Errorf("%w after %d bytes: %w", ErrCutOff, bytes, err)
}

// next reads chunks until it has one with bytes of the stream. io.EOF: the end
// mark was there.
func (s *copyReader) next() error {
	for len(s.chunk) == 0 {
		kind, body, err := s.receive()
		if err != nil {
			return err
		}
		switch kind {
		case chunkPlain:
			s.chunk = body
		case chunkZstd:
			if s.chunk, err = s.unpack(body); err != nil {
				return fmt.Errorf("%w: after %d bytes: %w", ErrCorrupt, s.total, err)
			}
		case chunkAlive:
			continue
		case chunkEnd:
			if len(body) != endSize || binary.BigEndian.Uint64(body) != s.total {
				return fmt.Errorf("%w: it ends after %d bytes and should have another length", ErrCorrupt, s.total)
			}
			return io.EOF
		case chunkError:
			return command.DecodeError(body)
		default:
			return fmt.Errorf("%w: chunk of unknown kind %d after %d bytes", ErrCorrupt, kind, s.total)
		}
		if len(s.chunk) == 0 {
			return fmt.Errorf("%w: chunk of nothing after %d bytes", ErrCorrupt, s.total)
		}
	}
	s.total += uint64(len(s.chunk))
	s.count.payload(len(s.chunk))
	return nil
}

// receive reads one chunk and verifies its checksum. The body is good until the
// next call.
func (s *copyReader) receive() (chunkKind, []byte, error) {
	var h [chunkHeader]byte
	if err := s.fill(h[:]); err != nil {
		return 0, nil, err
	}
	head := binary.BigEndian.Uint32(h[:])
	kind, n := chunkKind(head>>24), int(head&0xFFFFFF)
	if n > chunkSize {
		return 0, nil, fmt.Errorf("%w: chunk of %d bytes", ErrCorrupt, n)
	}
	if s.body == nil && n > 0 {
		s.body = make([]byte, chunkSize)
	}
	body := s.body[:n]
	if err := s.fill(body); err != nil {
		return 0, nil, err
	}
	if chunkSum(h[:4], body) != binary.BigEndian.Uint32(h[4:]) {
		return 0, nil, fmt.Errorf("%w: wrong checksum after %d bytes", ErrCorrupt, s.total)
	}
	return kind, body, nil
}

// fill reads b from the connection, each read of which gets IdleTimeout.
func (s *copyReader) fill(b []byte) error {
	n, err := io.ReadFull(idleReader{s.c}, b)
	s.count.wire(n)
	if err == io.EOF {
		return io.ErrUnexpectedEOF // the end mark comes before the end
	}
	return err
}

// unpack decompresses the body of a chunk. However much it claims to hold, no
// more than chunkSize is made room for.
func (s *copyReader) unpack(body []byte) ([]byte, error) {
	if s.zstd == nil {
		// With one decoder and no stream it has no goroutines, so that it need not
		// be closed.
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(chunkSize), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, err
		}
		s.zstd, s.plain = d, make([]byte, 0, chunkSize)
	}
	return s.zstd.DecodeAll(body, s.plain)
}

// idleReader gives each read of a connection IdleTimeout.
type idleReader struct{ c *conn }

func (r idleReader) Read(b []byte) (int, error) {
	if err := r.c.SetReadDeadline(time.Now().Add(r.c.t.cfg.IdleTimeout)); err != nil {
		return 0, err
	}
	return r.c.Read(b)
}
