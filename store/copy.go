package store

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// A copy is a stream of
//
//	magic (8) | frames
//
// and each frame is
//
//	type (1) | length of the payload (4) | CRC-32C of the two and the payload (4) | payload
//
// First comes the header. A delta goes on with pages of history, a full copy
// with the history up to a revision, the anchor; with pointers, in the order of
// their keys; and with the history after the anchor. A repair has what was asked
// for of either. Then comes the state frame,
// which holds all that is neither, and the end frame, which holds how many
// changes, keys and bytes came before it: a stream without it is cut off.
//
// What was taken of a stream that breaks off is kept, and the next request asks
// for the rest.
const (
	copyMagic = "HFCOPY2\n"

	frameHeader   = 'C' // copyHeader
	frameHistory  = 'H' // a page of history
	framePointers = 'P' // a page of pointers
	frameState    = 'S' // copyState
	frameEnd      = 'E'

	frameHeadSize = 1 + 4 + 4
	copyEndSize   = 8 + 8 + 8
	// frameMax is far above what a page may hold with one change in it.
	frameMax = 64 << 20
)

// copyRequest says what a state has, so that another one can tell what it lacks.
type copyRequest struct {
	Format int `json:"format"`
	// Full asks for everything, whatever the state has.
	Full     bool   `json:"full,omitempty"`
	Cluster  string `json:"cluster"`
	Revision uint64 `json:"revision"`
	Lineage  digest `json:"lineage"` // at Revision
	Applied  uint64 `json:"applied"`
	// Least and Most, when Most is not 0, bound what a delta takes in memory there:
	// the answer is such a delta or none.
	Least int64 `json:"least,omitempty"`
	Most  int64 `json:"most,omitempty"`
	// Resume is how far a full copy had come when it broke off.
	Resume *copyResume `json:"resume,omitempty"`
	// Repair asks for what is damaged, and if that cannot be had, for everything.
	Repair *repairAsk `json:"repair,omitempty"`
}

// copyResume is where a full copy goes on.
type copyResume struct {
	Anchor  uint64     `json:"anchor"`
	Lineage digest     `json:"lineage"` // at Anchor
	Stage   buildStage `json:"stage"`
	NextRev uint64     `json:"next_rev"` // NextRev and NextK: where history goes on
	NextK   uint32     `json:"next_k"`
	Key     []byte     `json:"key"` // the last that came
	// Reach is the highest revision that anything taken so far belongs to.
	Reach uint64 `json:"reach"`
	// Compaction is how far the senders had got with dropping records: the least
	// of them. Dropped is the highest point any of them dropped records for.
	Compaction local  `json:"compaction"`
	Dropped    uint64 `json:"dropped"`
}

// copyHeader says what a stream holds.
type copyHeader struct {
	Kind   string `json:"kind"` // as in CopyStats
	Format int    `json:"format"`
	// Revision is what a delta follows, and of a full copy the anchor. Lineage is
	// that of the revision.
	Revision uint64 `json:"revision"`
	Lineage  digest `json:"lineage"`
	// Resumed: the full copy goes on where the request said.
	Resumed    bool  `json:"resumed,omitempty"`
	Compaction local `json:"compaction"`
}

// copyState is all of a state but its history.
type copyState struct {
	Meta    meta     `json:"meta"`
	Members []member `json:"members"`
}

// CopyStats says what a received copy brought.
type CopyStats struct {
	Kind     string // command.CopyDelta, CopyRange or CopyFull
	Records  uint64 // changes of history that came, after a break only the rest
	Bytes    uint64 // of the stream
	Revision uint64 // of the copy
	// Index is the Raft index the copy stands for.
	Index   uint64
	Elapsed time.Duration
}

// copies is the state's dealings with copies of other nodes.
type copies struct {
	receiving sync.Mutex // held by ReceiveCopy

	mu      sync.Mutex
	staged  *meta              // complete in incoming/, not swapped in yet
	partial *builder           // of a full copy that broke off; taken out while it goes on
	spool   *spool             // of a delta that broke off; likewise
	created *raft.SnapshotMeta // the snapshot Raft is about to restore

	// kept is what the kept delta leads to, nil when there is none. It is changed
	// with flushing held.
	kept atomic.Pointer[durableState]

	held     atomic.Int64 // who needs the file's records kept: see holdCompaction
	dropping sync.Mutex   // held while records are being dropped

	rewriting sync.Mutex     // held by rewrite
	retiring  sync.WaitGroup // files swapped out that views still use
}

// CopyRequest is what this state asks another one for: what it lacks, or with
// full everything. After a copy that broke off it asks for the rest, and for
// everything again when the sender cannot go on with it.
func (s *State) CopyRequest(full bool) []byte {
	m := &s.gen.Load().meta
	req := copyRequest{
		Format: stateFormat, Full: full, Cluster: m.Cluster.ID,
		Revision: m.Revision, Lineage: m.Lineage, Applied: m.Applied,
	}
	if found := s.gen.Load().file.damage.ranges(); len(found) > 0 && !full {
		req.Repair = s.repairRequest()
		req.Full = req.Repair == nil
	}
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	if b := s.copies.partial; b != nil {
		req.Resume = b.resume()
	} else if sp := s.copies.spool; sp != nil && !full && sp.through.rev > m.Revision {
		req.Revision, req.Lineage = sp.through.rev, sp.through.lineage
	}
	return mustJSON(req)
}

// leapLeast is the size in memory of a delta that the log does as well.
const leapLeast = 8 << 20

// LeapRequest is CopyRequest for a delta that is much but fits into memory, and for
// nothing else. It is nil when the state is empty or damaged.
func (s *State) LeapRequest() []byte {
	g := s.gen.Load()
	m := &g.meta
	if m.Revision == 0 || len(g.file.damage.ranges()) > 0 {
		return nil
	}
	return mustJSON(copyRequest{
		Format: stateFormat, Cluster: m.Cluster.ID, Revision: m.Revision, Lineage: m.Lineage, Applied: m.Applied,
		Least: leapLeast, Most: s.keepable() / 8 * 7, // more comes while it is sent
	})
}

// copyWriter writes a stream and counts. After an error it does nothing.
type copyWriter struct {
	ctx           context.Context
	w             *bufio.Writer
	records, keys uint64
	bytes         uint64
	err           error
	told          interface{ CopyKind(kind string) } // nil: does not ask
}

func newCopyWriter(ctx context.Context, w io.Writer) *copyWriter {
	told, _ := w.(interface{ CopyKind(kind string) })
	return &copyWriter{ctx: ctx, w: bufio.NewWriterSize(w, 64<<10), told: told}
}

func (c *copyWriter) raw(b []byte) {
	if c.err == nil {
		c.bytes += uint64(len(b))
		_, c.err = c.w.Write(b)
	}
}

func (c *copyWriter) frame(kind byte, payload []byte) error {
	if c.err == nil {
		c.err = c.ctx.Err()
	}
	var head [frameHeadSize]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	binary.BigEndian.PutUint32(head[5:], frameSum(head[:5], payload))
	c.raw(head[:])
	c.raw(payload)
	return c.err
}

func frameSum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, payload)
}

func (c *copyWriter) json(kind byte, v any) { _ = c.frame(kind, mustJSON(v)) }

func (c *copyWriter) header(h *copyHeader) {
	if c.told != nil {
		c.told.CopyKind(h.Kind)
	}
	c.raw([]byte(copyMagic))
	c.json(frameHeader, h)
}

func (c *copyWriter) writeHistory(page []byte, records uint64) error {
	c.records += records
	return c.frame(frameHistory, page)
}

func (c *copyWriter) writePointers(page []byte, keys uint64) error {
	c.keys += keys
	return c.frame(framePointers, page)
}

func (c *copyWriter) end() error {
	e := binary.BigEndian.AppendUint64(nil, c.records)
	e = binary.BigEndian.AppendUint64(e, c.keys)
	e = binary.BigEndian.AppendUint64(e, c.bytes)
	if c.frame(frameEnd, e) == nil {
		c.err = c.w.Flush()
	}
	return c.err
}

// copyReader is the inverse of copyWriter.
type copyReader struct {
	ctx           context.Context
	stop          <-chan struct{}
	r             *bufio.Reader
	records, keys uint64
	bytes         uint64
	broken        error // of the stream itself
}

func (s *State) newCopyReader(ctx context.Context, r io.Reader) *copyReader {
	return newCopyReader(ctx, s.stop, r)
}

func newCopyReader(ctx context.Context, stop <-chan struct{}, r io.Reader) *copyReader {
	return &copyReader{ctx: ctx, stop: stop, r: bufio.NewReaderSize(r, 64<<10)}
}

// take reads n bytes and appends them to b. Memory grows with what arrives, not
// with what a header claims.
func (c *copyReader) take(b []byte, n int) ([]byte, error) {
	for n > 0 {
		step := min(n, max(cap(b)-len(b), 1<<20))
		have := len(b)
		b = append(b, make([]byte, step)...)
		if _, err := io.ReadFull(c.r, b[have:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			c.broken = err
			return b, err
		}
		n -= step
		c.bytes += uint64(step)
	}
	return b, nil
}

// frame reads a frame, and its payload into buf.
func (c *copyReader) frame(buf []byte) (kind byte, payload []byte, err error) {
	select {
	case <-c.stop:
		c.broken = command.ErrStopping
	default:
		c.broken = c.ctx.Err()
	}
	if c.broken != nil {
		return 0, nil, c.broken
	}
	head, err := c.take(make([]byte, 0, frameHeadSize), frameHeadSize)
	if err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > frameMax {
		return 0, nil, command.ErrDamaged.With("copy: frame of %d bytes", n)
	}
	if payload, err = c.take(buf[:0], int(n)); err != nil {
		return 0, nil, err
	}
	if binary.BigEndian.Uint32(head[5:]) != frameSum(head[:5], payload) {
		return 0, nil, command.ErrDamaged.With("copy: checksum of a frame")
	}
	return head[0], payload, nil
}

func (c *copyReader) header() (h copyHeader, err error) {
	magic, err := c.take(nil, len(copyMagic))
	if err != nil {
		return h, err
	}
	if string(magic) != copyMagic {
		return h, errors.New("the stream is not a copy this build understands")
	}
	kind, payload, err := c.frame(nil)
	switch {
	case err != nil:
		return h, err
	case kind != frameHeader:
		return h, command.ErrDamaged.With("copy: it begins with frame %q", kind)
	}
	if err := json.Unmarshal(payload, &h); err != nil {
		return h, command.ErrDamaged.With("copy: header: %v", err)
	}
	return h, checkFormat(h.Format)
}

// pageTaker takes the pages that come, verifies them and does something with them.
type pageTaker interface {
	buffer() []byte             // memory for a page
	history(page []byte) error  // the page becomes the taker's
	pointers(page []byte) error // likewise
}

// body reads all that follows the header. Everything that the taker was given
// has been verified by it; state is nil unless the stream is complete.
func (c *copyReader) body(to pageTaker) (state *copyState, err error) {
	for {
		before := c.bytes
		kind, payload, err := c.frame(to.buffer())
		if err != nil {
			return nil, err
		}
		switch {
		case kind == frameHistory && state == nil:
			c.records += countChanges(payload)
			err = to.history(payload)
		case kind == framePointers && state == nil:
			c.keys += countPointers(payload)
			err = to.pointers(payload)
		case kind == frameState && state == nil:
			state = &copyState{}
			if err := json.Unmarshal(payload, state); err != nil {
				return nil, command.ErrDamaged.With("copy: state: %v", err)
			}
		case kind == frameEnd && state != nil:
			if len(payload) != copyEndSize || binary.BigEndian.Uint64(payload) != c.records ||
				binary.BigEndian.Uint64(payload[8:]) != c.keys || binary.BigEndian.Uint64(payload[16:]) != before {
				return nil, command.ErrDamaged.With("copy: it is not as long as it says")
			}
			return state, nil
		default:
			err = command.ErrDamaged.With("copy: unexpected frame %q", kind)
		}
		if err != nil {
			return nil, err
		}
	}
}
