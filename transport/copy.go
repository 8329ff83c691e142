package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// A copy connection carries one request (length (4), bytes) and then the stream
// in chunks:
//
//	length (4) | CRC-32C of the bytes (4) | bytes
//
// ended by a mark or an error, whose length field is one no chunk has.
const (
	chunkHeader  = 8
	chunkSize    = 64 << 10
	maxChunk     = 1 << 20
	maxCopyAsk   = 1 << 20
	chunkEnd     = 0xFFFFFFFF // followed by the bytes of the stream (8)
	chunkFailure = 0xFFFFFFFE // followed by the length of an encoded error (4) and the error
	endMark      = chunkHeader + 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt reports a copy stream whose bytes do not match their checksum.
var ErrCorrupt = errors.New("copy stream is corrupt")

// FetchCopy asks a node for a copy stream. It returns when the first bytes are
// there, or the refusal of the peer's handler, with its code. Read yields only
// bytes whose checksum was right: a damaged chunk is ErrCorrupt, a stream that
// ends before its end mark is io.ErrUnexpectedEOF, one on which nothing moves
// for Config.IdleTimeout fails with a timeout, and io.EOF means that all of it
// was read. The stream ends with ctx; Close releases it at any time.
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
	s := &copyReader{c: c, ctx: ctx, r: bufio.NewReaderSize(idleReader{c}, chunkSize+chunkHeader)}
	s.stop = context.AfterFunc(ctx, func() { c.Close() })
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(req)), uint32(len(req)))
	err := c.SetWriteDeadline(time.Now().Add(t.cfg.IdleTimeout))
	if err == nil {
		_, err = c.Write(append(b, req...))
	}
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
	c    *conn
	ctx  context.Context
	stop func() bool
	r    *bufio.Reader

	chunk []byte // verified and not yet read
	buf   []byte // what chunk is part of
	total uint64
	err   error // what follows chunk
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
	return s.c.Close()
}

// reason adds to an error whence it came.
func (s *copyReader) reason(err error) error {
	var coded *command.Error
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF || errors.As(err, &coded):
		return err
	case s.c.t.ctx.Err() != nil:
		return command.ErrStopping
	case s.ctx.Err() != nil:
		err = s.ctx.Err()
	}
	return fmt.Errorf("copy from %s: %w", s.c.remote.Name, err)
}

// next reads a chunk. io.EOF: the end mark was there.
func (s *copyReader) next() error {
	var h [chunkHeader]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		return cutShort(err)
	}
	n, sum := binary.BigEndian.Uint32(h[:]), binary.BigEndian.Uint32(h[4:])
	switch {
	case n == chunkEnd:
		var total [8]byte
		if _, err := io.ReadFull(s.r, total[:]); err != nil {
			return cutShort(err)
		}
		if got := binary.BigEndian.Uint64(total[:]); got != s.total || crc32.Checksum(total[:], castagnoli) != sum {
			return fmt.Errorf("%w: it ends after %d bytes and should have %d", ErrCorrupt, s.total, got)
		}
		return io.EOF
	case n == chunkFailure:
		if sum > maxChunk {
			return fmt.Errorf("%w: error of %d bytes", ErrCorrupt, sum)
		}
		b := make([]byte, sum)
		if _, err := io.ReadFull(s.r, b); err != nil {
			return cutShort(err)
		}
		return command.DecodeError(b)
	case n == 0 || n > maxChunk:
		return fmt.Errorf("%w: chunk of %d bytes", ErrCorrupt, n)
	}
	if cap(s.buf) < int(n) {
		s.buf = make([]byte, max(n, chunkSize))
	}
	chunk := s.buf[:n]
	if _, err := io.ReadFull(s.r, chunk); err != nil {
		return cutShort(err)
	}
	if crc32.Checksum(chunk, castagnoli) != sum {
		return fmt.Errorf("%w: wrong checksum after %d bytes", ErrCorrupt, s.total)
	}
	s.chunk = chunk
	s.total += uint64(n)
	return nil
}

// cutShort says that an end here comes too early.
func cutShort(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// idleReader gives each read of a connection IdleTimeout.
type idleReader struct{ c *conn }

func (r idleReader) Read(b []byte) (int, error) {
	if err := r.c.SetReadDeadline(time.Now().Add(r.c.t.cfg.IdleTimeout)); err != nil {
		return 0, err
	}
	return r.c.Read(b)
}

// copyWriter is the sending end of a copy stream: it gathers chunks.
type copyWriter struct {
	c     *conn
	buf   []byte // header and bytes of the chunk being gathered
	total uint64
	err   error
}

// Write implements io.Writer.
func (w *copyWriter) Write(b []byte) (int, error) {
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

// flush sends the chunk gathered so far.
func (w *copyWriter) flush() {
	bytes := w.buf[chunkHeader:]
	if len(bytes) == 0 || w.err != nil {
		return
	}
	binary.BigEndian.PutUint32(w.buf, uint32(len(bytes)))
	binary.BigEndian.PutUint32(w.buf[4:], crc32.Checksum(bytes, castagnoli))
	w.total += uint64(len(bytes))
	w.send(w.buf)
	w.buf = w.buf[:chunkHeader]
}

func (w *copyWriter) send(b []byte) {
	if w.err == nil {
		w.err = w.c.SetWriteDeadline(time.Now().Add(w.c.t.cfg.IdleTimeout))
	}
	if w.err == nil {
		_, w.err = w.c.Write(b)
	}
}

// finish ends the stream: with its mark, or with the handler's error.
func (w *copyWriter) finish(err error) error {
	if err != nil {
		e := command.EncodeError(err)
		b := binary.BigEndian.AppendUint32(nil, chunkFailure)
		b = binary.BigEndian.AppendUint32(b, uint32(len(e)))
		w.send(append(b, e...))
		return err
	}
	w.flush()
	var b [endMark]byte
	binary.BigEndian.PutUint32(b[:], chunkEnd)
	binary.BigEndian.PutUint64(b[chunkHeader:], w.total)
	binary.BigEndian.PutUint32(b[4:], crc32.Checksum(b[chunkHeader:], castagnoli))
	w.send(b[:])
	return w.err
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
	if !watching {
		return net.ErrClosed
	}
	w := &copyWriter{c: c, buf: make([]byte, chunkHeader, chunkHeader+chunkSize)}
	return w.finish(t.handler.Copy(ctx, c.remote, req, w))
}
