package store

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

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

// Kinds of copies.
const (
	copyDelta = "delta"
	copyRange = "range"
	copyFull  = "full"
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
	Kind   string `json:"kind"`
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
	Kind     string // "delta", "range" or "full"
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

// copyWriter writes a stream and counts. After an error it does nothing.
type copyWriter struct {
	ctx           context.Context
	w             *bufio.Writer
	records, keys uint64
	bytes         uint64
	err           error
}

func newCopyWriter(ctx context.Context, w io.Writer) *copyWriter {
	return &copyWriter{ctx: ctx, w: bufio.NewWriterSize(w, 64<<10)}
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

// ReceiveCopy takes in what WriteCopy sends and verifies it. A delta is in place
// when it returns, durably and in one step for whoever reads. A full copy is
// staged in the data directory as a complete, durable state file, and no view
// sees it before SwapCopy; a copy staged before is gone.
//
// One copy is received at a time. The context is looked at between pieces: who
// cancels it also closes r. What was taken of a stream that breaks off is kept by
// this process, and CopyRequest then asks for the rest.
//
// A stream that ends early is io.ErrUnexpectedEOF; one that does not match its
// checksums is command.ErrDamaged; a delta that does not follow from this state is
// command.ErrDiverged, and changes nothing.
func (s *State) ReceiveCopy(ctx context.Context, r io.Reader) (CopyStats, error) {
	if !s.copies.receiving.TryLock() {
		return CopyStats{}, errors.New("receive copy: another copy is being received")
	}
	defer s.copies.receiving.Unlock()
	stats, err := s.receiveCopy(ctx, r)
	if s.isClosed() {
		s.dropIncoming() // Close may have found it in use
	}
	if err != nil {
		return CopyStats{}, fmt.Errorf("receive copy: %w", err)
	}
	return stats, nil
}

func (s *State) receiveCopy(ctx context.Context, r io.Reader) (stats CopyStats, err error) {
	start := time.Now()
	in := s.newCopyReader(ctx, r)
	h, err := in.header()
	if err != nil {
		return stats, err
	}
	var m *meta
	switch h.Kind {
	case copyFull:
		m, err = s.receiveFull(in, &h)
	case copyDelta:
		m, err = s.receiveDelta(in, &h)
	case copyRange:
		m, err = s.receiveRange(in, &h)
	default:
		err = fmt.Errorf("the stream is a copy of kind %q, which this build does not know", h.Kind)
	}
	if err != nil {
		return stats, err
	}
	return CopyStats{
		Kind: h.Kind, Records: in.records, Bytes: in.bytes, Revision: m.Revision, Index: m.RaftIndex, Elapsed: time.Since(start),
	}, nil
}

// receiveFull builds a state file from a full copy, or goes on building it.
func (s *State) receiveFull(in *copyReader, h *copyHeader) (*meta, error) {
	b, err := s.takePartial(h)
	if err != nil {
		return nil, err
	}
	b.start()
	state, err := in.body(b)
	if derr := b.drain(); derr != nil {
		err = derr
	}
	if err == nil {
		err = b.complete(state)
	}
	if err == nil {
		err = s.stage(b, &state.Meta)
	}
	switch {
	case err == nil:
		return &state.Meta, nil
	case err == in.broken:
		s.copies.mu.Lock()
		s.copies.partial = b
		s.copies.mu.Unlock()
	default:
		_ = b.close()
		s.dropIncoming()
	}
	return nil, err
}

// takePartial returns the builder a stream goes on with, or a new one. Whatever
// else was coming in is dropped.
func (s *State) takePartial(h *copyHeader) (*builder, error) {
	s.copies.mu.Lock()
	b := s.copies.partial
	if h.Resumed {
		s.copies.partial = nil
	}
	s.copies.mu.Unlock()
	if h.Resumed {
		if b == nil || b.from.Revision != h.Revision || b.from.Lineage != h.Lineage {
			if b != nil {
				_ = b.close()
			}
			s.dropIncoming()
			return nil, errors.New("the stream goes on with another copy")
		}
		b.joinedBy(&h.Compaction)
		return b, nil
	}
	s.dropIncoming()
	folder := filepath.Join(s.cfg.Dir, incomingName)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	return newBuilder(filepath.Join(folder, stateName+".part"), h, s.cfg.MaxData)
}

// stage makes a complete file the staged copy.
func (s *State) stage(b *builder, m *meta) error {
	if err := b.close(); err != nil {
		return err
	}
	folder := filepath.Join(s.cfg.Dir, incomingName)
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	if err := os.Rename(b.path, filepath.Join(folder, stateName)); err != nil {
		return err
	}
	if err := syncPath(folder); err != nil {
		return err
	}
	s.copies.staged = m
	return nil
}

// dropIncoming drops whatever was taken of copies and is not in place. A receiver
// must not be at work, or be the caller.
func (s *State) dropIncoming() {
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	if b := s.copies.partial; b != nil {
		_ = b.close()
	}
	if sp := s.copies.spool; sp != nil {
		_ = sp.file.Close()
	}
	s.copies.partial, s.copies.spool, s.copies.staged = nil, nil, nil
	if err := os.RemoveAll(filepath.Join(s.cfg.Dir, incomingName)); err != nil {
		s.log.Warn("remove unfinished copy", "error", err) // OpenState removes it too
	}
}

// SwapCopy puts the staged copy in place of the state, durably and in one step.
// Views that are open go on reading the old state; all later ones see the copy.
// It waits for the batch in progress.
//
// The copy must stand for the index of the snapshot Raft has announced (see
// Snapshots), whose index, term and configuration are put in place with it;
// without such a snapshot, for what the state has applied. When the state itself
// holds that much, by a delta or otherwise, a staged copy that holds no more is
// dropped and only index, term and configuration are taken over: both are prefixes
// of one history, and reads never go back.
//
// With force the state is known to be wrong, and the copy takes its place even if
// it holds less; then alone reads go back. Raft does not hand over again what it
// has applied before: the caller applies what lies between from its log.
//
// On an error before the files are exchanged, the old state stays as it was and
// the copy stays staged.
func (s *State) SwapCopy(force bool) error {
	if !force {
		if created := s.takeSuperfluous(); created != nil {
			return s.settle(*created)
		}
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	if err := s.swapCopy(force); err != nil {
		return fmt.Errorf("swap in copy: %w", err)
	}
	return nil
}

// takeSuperfluous returns the snapshot Raft has announced when the state holds
// all that it stands for, and drops the copy staged for it.
func (s *State) takeSuperfluous() *raft.SnapshotMeta {
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	staged, created, now := s.copies.staged, s.copies.created, &s.gen.Load().meta
	switch {
	case created == nil || now.Applied == 0:
		return nil
	case staged == nil:
		if now.RaftIndex < created.Index {
			return nil
		}
	case staged.Applied > now.Applied || staged.RaftIndex < created.Index || staged.Cluster.ID != now.Cluster.ID:
		return nil
	default:
		_ = os.RemoveAll(filepath.Join(s.cfg.Dir, incomingName)) // OpenState removes it too
	}
	s.copies.staged, s.copies.created = nil, nil
	return created
}

func (s *State) swapCopy(force bool) error {
	if err := s.Err(); err != nil {
		return err
	}
	if s.isClosed() {
		return command.ErrStopping
	}
	staged, created := s.copies.staged, s.copies.created
	if staged == nil {
		return command.ErrNotReady.With("no copy is staged")
	}
	m, now := *staged, s.gen.Load()
	if now.meta.Cluster.ID != "" && m.Cluster.ID != now.meta.Cluster.ID {
		return command.ErrWrongCluster.With("the copy is of %q, this state of %q", m.Cluster.ID, now.meta.Cluster.ID)
	}
	need := now.meta.Applied
	switch {
	case force:
		need, created = 0, nil
	case created != nil:
		need = created.Index
		m.raise(created.Index, created.Term, raft.EncodeConfiguration(created.Configuration), created.ConfigurationIndex)
	}
	if staged.RaftIndex < need {
		return command.ErrNotReady.With("the staged copy stands for index %d, %d is needed", staged.RaftIndex, need)
	}

	folder := filepath.Join(s.cfg.Dir, incomingName)
	if err := s.exchange(filepath.Join(folder, stateName), m); err != nil {
		return err
	}
	_ = os.RemoveAll(folder)
	s.copies.staged = nil
	if created != nil {
		s.copies.created = nil
	}
	return nil
}

// exchange makes a complete state file, with m in place of its meta, the state. On
// an error before that the state is as it was. Needs applying and flushing.
func (s *State) exchange(from string, m meta) error {
	now := s.gen.Load()
	file, _, members, err := openStateFile(from, s.cfg.MaxData)
	if err != nil {
		return err
	}
	file.origin = now.file.origin + 1
	if err := file.update(func(tx *bbolt.Tx, _ *local) error { return putMeta(tx, m, nil, false) }); err != nil {
		_ = file.db.Close()
		return err
	}
	if err := os.Rename(from, filepath.Join(s.cfg.Dir, stateName)); err != nil {
		_ = file.db.Close()
		return err
	}
	// It is the state now. An error from here on leaves the node unsure of what it
	// would find after a loss of power.
	if err := syncPath(s.cfg.Dir); err != nil {
		_ = file.db.Close()
		return s.failWith(err)
	}
	// The marker does not go back with force either: after a crash the node applies
	// its log as far as it had answered from.
	if err := s.marked(s.marker.setIndex(max(m.Applied, now.meta.Applied))); err != nil {
		_ = file.db.Close()
		return err
	}
	s.replace(&generation{active: newLayer(), meta: m, members: members, file: file})
	return nil
}

// replace makes n, which is durable, the state. Needs applying and flushing.
func (s *State) replace(n *generation) {
	s.mu.Lock()
	old := s.gen.Load()
	n.seq = old.seq + 1
	s.gen.Store(n)
	s.durable.Store(&durableState{seq: n.seq, meta: n.meta})
	s.announce()
	s.mu.Unlock()
	s.applied.advance(n.meta.Applied)
	s.revised.advance(n.meta.Revision)
	s.dropKept(n.seq)
	s.watches.wakeAll()
	s.retireLater(old.file, n.file)
}

// retireLater closes a file that no new view opens, since another has taken its
// place, after its last one.
func (s *State) retireLater(f, next *stateFile) {
	next.damage.attach(s.damageFound, s.log)
	f.damage.retire()
	s.copies.retiring.Go(func() {
		if err := f.retire(); err != nil {
			s.log.Warn("close replaced state file", "error", err)
		}
	})
}
