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
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// A copy is the history in order, then everything else. It is a stream of
//
//	magic (8) | frames
//
// and each frame is
//
//	type (1) | length (4) | payload
//
// A history frame holds a historyPage, the state frame the JSON of copyState.
// The end frame holds how many changes and bytes came before it, and their
// CRC-32C: a stream without it is cut off.
const (
	copyMagic = "HFCOPY1\n"

	frameHistory = 'H'
	frameState   = 'S'
	frameEnd     = 'E'

	copyPage    = 256 << 10 // bytes of history read under one view
	copyEndSize = 8 + 8 + 4
	// stageBytes is how much history goes into one transaction of the staged
	// file: more makes better use of each page written.
	stageBytes = 32 << 20
)

// copyState is all of a state but its history.
type copyState struct {
	Meta    meta     `json:"meta"`
	Members []member `json:"members"`
}

// CopyStats says what a received copy holds.
type CopyStats struct {
	Records  uint64 // changes of history
	Bytes    uint64 // of the stream
	Revision uint64
	// Index is the Raft index the copy stands for.
	Index   uint64
	Elapsed time.Duration
}

// copies is the state's dealings with copies of other nodes.
type copies struct {
	receiving sync.Mutex // held by ReceiveCopy

	mu      sync.Mutex
	staged  *meta              // complete in incoming/, not swapped in yet
	created *raft.SnapshotMeta // the snapshot Raft is about to restore

	retiring sync.WaitGroup // files swapped out that views still use
}

// copyRounds bounds how often WriteCopy goes after what was written meanwhile.
const copyRounds = 8

// WriteCopy writes a full copy of one consistent state to w. The state is at
// least as new as the call. It may take any time: w is never waited for while a
// view is open. What is applied meanwhile is sent in further rounds as long as
// they get shorter, so that the copy is nearly current when it ends.
func (s *State) WriteCopy(ctx context.Context, w io.Writer) error {
	out := &copyWriter{w: bufio.NewWriterSize(w, 64<<10)}
	if err := s.writeCopy(ctx, out); err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	return nil
}

func (s *State) writeCopy(ctx context.Context, out *copyWriter) error {
	out.raw([]byte(copyMagic))
	g := s.gen.Load()
	origin := g.file
	var page historyPage
	for round, before := 1, uint64(0); ; round++ {
		sent, start := out.records, time.Now()
		for {
			if err := s.copyPage(origin, page.last, g.meta.Revision, &page); err != nil {
				return err
			}
			if page.records == 0 {
				break
			}
			out.records += uint64(page.records)
			out.frame(frameHistory, page.data)
			if err := errors.Join(ctx.Err(), out.err); err != nil {
				return err
			}
		}
		sent = out.records - sent
		if time.Since(start) < time.Second || round == copyRounds || round > 1 && sent > before/2 {
			break
		}
		before, g = sent, s.gen.Load()
	}
	state, err := json.Marshal(copyState{Meta: g.meta, Members: g.members})
	if err != nil {
		return err
	}
	out.frame(frameState, state)
	return out.end()
}

// copyPage reads the next page of history under a view of its own.
func (s *State) copyPage(origin *stateFile, after position, through uint64, page *historyPage) error {
	v, err := s.view()
	if err != nil {
		return err
	}
	defer v.Close()
	if v.gen.file != origin {
		return errors.New("the state was replaced meanwhile")
	}
	return v.historyAfter(after, through, copyPage, page)
}

// copyWriter writes a stream and sums it up. After an error it does nothing.
type copyWriter struct {
	w       *bufio.Writer
	records uint64
	bytes   uint64
	sum     uint32
	err     error
}

func (c *copyWriter) raw(b []byte) {
	if c.err != nil {
		return
	}
	c.bytes += uint64(len(b))
	c.sum = crc32.Update(c.sum, castagnoli, b)
	_, c.err = c.w.Write(b)
}

func (c *copyWriter) frame(kind byte, payload []byte) {
	head := [5]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	c.raw(head[:])
	c.raw(payload)
}

func (c *copyWriter) end() error {
	e := binary.BigEndian.AppendUint64(nil, c.records)
	e = binary.BigEndian.AppendUint64(e, c.bytes)
	e = binary.BigEndian.AppendUint32(e, c.sum)
	c.frame(frameEnd, e)
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}

// copyReader is the inverse of copyWriter.
type copyReader struct {
	r     *bufio.Reader
	bytes uint64
	sum   uint32
	buf   []byte
}

// take reads n bytes. They are valid until the next call. Memory grows with what
// arrives, not with what a header claims.
func (c *copyReader) take(n int) ([]byte, error) {
	c.buf = c.buf[:0]
	for len(c.buf) < n {
		step := min(n-len(c.buf), 1<<20)
		have := len(c.buf)
		c.buf = append(c.buf, make([]byte, step)...)
		if _, err := io.ReadFull(c.r, c.buf[have:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	c.bytes += uint64(n)
	c.sum = crc32.Update(c.sum, castagnoli, c.buf)
	return c.buf, nil
}

func (c *copyReader) frame() (kind byte, payload []byte, err error) {
	head, err := c.take(5)
	if err != nil {
		return 0, nil, err
	}
	kind = head[0]
	payload, err = c.take(int(binary.BigEndian.Uint32(head[1:])))
	return kind, payload, err
}

// ReceiveCopy reads a full copy from r, verifies it and stages it in the data
// directory as a complete state file. On return it is durable, but no view sees
// it before SwapCopy; a copy staged before is gone. One copy is received at a
// time. The context is looked at between pieces: who cancels it also closes r.
//
// A stream that ends early is io.ErrUnexpectedEOF; one that does not match its
// checksums is command.ErrDamaged.
func (s *State) ReceiveCopy(ctx context.Context, r io.Reader) (CopyStats, error) {
	if !s.copies.receiving.TryLock() {
		return CopyStats{}, errors.New("receive copy: another copy is being received")
	}
	defer s.copies.receiving.Unlock()
	stats, err := s.receiveCopy(ctx, r)
	if err != nil {
		return CopyStats{}, fmt.Errorf("receive copy: %w", err)
	}
	return stats, nil
}

func (s *State) receiveCopy(ctx context.Context, r io.Reader) (_ CopyStats, err error) {
	start := time.Now()
	folder := filepath.Join(s.cfg.Dir, incomingName)
	s.copies.mu.Lock()
	s.copies.staged = nil
	err = os.RemoveAll(folder)
	s.copies.mu.Unlock()
	if err != nil {
		return CopyStats{}, err
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return CopyStats{}, err
	}
	unfinished := filepath.Join(folder, stateName+".part")
	defer func() {
		if err != nil {
			_ = os.RemoveAll(folder)
		}
	}()
	stage, err := newStage(unfinished)
	if err != nil {
		return CopyStats{}, err
	}
	in := &copyReader{r: bufio.NewReaderSize(r, 64<<10)}
	m, err := stage.fill(ctx, s.stop, in)
	if cerr := stage.db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return CopyStats{}, err
	}
	if err := syncPath(unfinished); err != nil {
		return CopyStats{}, err
	}
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	if err := os.Rename(unfinished, filepath.Join(folder, stateName)); err != nil {
		return CopyStats{}, err
	}
	if err := syncPath(folder); err != nil {
		return CopyStats{}, err
	}
	s.copies.staged = m
	return CopyStats{
		Records: stage.records, Bytes: in.bytes, Revision: m.Revision, Index: m.RaftIndex, Elapsed: time.Since(start),
	}, nil
}

// stage builds a state file from a copy.
type stage struct {
	stateFile
	layer   *layer
	arena   arena
	last    position
	lineage command.Lineage // of last.rev
	records uint64
}

func newStage(path string) (*stage, error) {
	// Unsynced until the end: a half-made file is thrown away.
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		FreelistType: bbolt.FreelistMapType, NoSync: true, NoGrowSync: true, NoStatistics: true,
		InitialMmapSize: 1 << 30,
	})
	if err != nil {
		return nil, err
	}
	st := &stage{stateFile: stateFile{db: db}, layer: newLayer()}
	if _, _, err := st.load(); err != nil {
		_ = db.Close()
		return nil, err
	}
	return st, nil
}

// fill reads the whole stream into the file.
func (st *stage) fill(ctx context.Context, stop <-chan struct{}, in *copyReader) (*meta, error) {
	if magic, err := in.take(len(copyMagic)); err != nil {
		return nil, err
	} else if string(magic) != copyMagic {
		return nil, errors.New("the stream is not a copy this build understands")
	}
	var state *copyState
	for {
		select {
		case <-stop:
			return nil, command.ErrStopping
		default:
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		before, sum := in.bytes, in.sum
		kind, payload, err := in.frame()
		if err != nil {
			return nil, err
		}
		switch {
		case kind == frameHistory && state == nil:
			err = st.history(payload)
		case kind == frameState && state == nil:
			state = &copyState{}
			if err = json.Unmarshal(payload, state); err != nil {
				err = command.ErrDamaged.With("copy: state: %v", err)
			}
		case kind == frameEnd && state != nil:
			if len(payload) != copyEndSize || binary.BigEndian.Uint64(payload) != st.records ||
				binary.BigEndian.Uint64(payload[8:]) != before || binary.BigEndian.Uint32(payload[16:]) != sum {
				return nil, command.ErrDamaged.With("copy: the sum over the stream does not match")
			}
			return &state.Meta, st.finish(state)
		default:
			err = command.ErrDamaged.With("copy: unexpected frame %q", kind)
		}
		if err != nil {
			return nil, err
		}
	}
}

// history takes one page in.
func (st *stage) history(page []byte) error {
	err := eachChange(page, func(at position, enc []byte) error {
		if !st.last.less(at) {
			return command.ErrDamaged.With("copy: revision %d.%d follows %d.%d", at.rev, at.k, st.last.rev, st.last.k)
		}
		c := &change{}
		if err := c.decode(at, st.arena.copy(enc), ""); err != nil {
			return err
		}
		st.last = at
		if at.k == 0 {
			st.lineage = c.lineage()
		}
		st.records++
		st.layer.add(c)
		return nil
	})
	if err == nil && st.layer.bytes >= stageBytes {
		err = st.spill(nil)
	}
	return err
}

func (st *stage) spill(state *copyState) error {
	layer := st.layer
	st.layer, st.arena = newLayer(), arena{}
	if state == nil {
		return st.write(layer, nil, nil, false)
	}
	return st.write(layer, &state.Meta, state.Members, true)
}

// finish writes what came last, and syncs the file.
func (st *stage) finish(state *copyState) error {
	m := &state.Meta
	switch {
	case m.Format > stateFormat:
		return fmt.Errorf("state format %d is newer than this build, which knows %d; use a newer holdfast", m.Format, stateFormat)
	case m.History != st.records || st.last.rev > m.Revision:
		return command.ErrDamaged.With("copy: %d changes up to revision %d, the state tells of %d up to %d",
			st.records, st.last.rev, m.History, m.Revision)
	case st.last.rev == m.Revision && st.last.rev > 0 && st.lineage != command.Lineage(m.Lineage):
		return command.ErrDamaged.With("copy: lineage of revision %d", m.Revision)
	}
	if err := st.spill(state); err != nil {
		return err
	}
	return st.db.Sync()
}

// SwapCopy puts the staged copy in place of the state, durably and in one step.
// Views that are open go on reading the old state; all later ones see the copy.
// It waits for the batch in progress.
//
// The copy must stand for at least minIndex. Without an argument it must stand
// for the index of the snapshot Raft has announced (see Snapshots), whose index,
// term and configuration are put in place with it; without such a snapshot, for
// what the state has applied. A copy that holds no more than the state does is
// dropped, and only index, term and configuration are taken over: both are
// prefixes of one history, and reads never go back.
//
// On an error before the files are exchanged, the old state stays as it was and
// the copy stays staged.
func (s *State) SwapCopy(minIndex ...uint64) error {
	if len(minIndex) == 0 {
		if created := s.dropSuperfluousCopy(); created != nil {
			return s.settle(*created)
		}
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	if err := s.swapCopy(minIndex); err != nil {
		return fmt.Errorf("swap in copy: %w", err)
	}
	return nil
}

// dropSuperfluousCopy drops the staged copy if the state holds all that is in
// it, and returns the snapshot it was meant for.
func (s *State) dropSuperfluousCopy() *raft.SnapshotMeta {
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	staged, created, now := s.copies.staged, s.copies.created, &s.gen.Load().meta
	if staged == nil || created == nil || now.Applied == 0 || staged.Applied > now.Applied ||
		staged.RaftIndex < created.Index || staged.Cluster.ID != now.Cluster.ID {
		return nil
	}
	s.copies.staged, s.copies.created = nil, nil
	_ = os.RemoveAll(filepath.Join(s.cfg.Dir, incomingName)) // OpenState removes it too
	return created
}

func (s *State) swapCopy(minIndex []uint64) error {
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
	m, now := *staged, &s.gen.Load().meta
	if now.Cluster.ID != "" && m.Cluster.ID != now.Cluster.ID {
		return command.ErrWrongCluster.With("the copy is of %q, this state of %q", m.Cluster.ID, now.Cluster.ID)
	}
	need := now.Applied
	switch {
	case len(minIndex) > 0:
		need = minIndex[0]
		for _, i := range minIndex[1:] {
			need = max(need, i)
		}
	case created != nil:
		need = created.Index
		m.raise(created.Index, created.Term, raft.EncodeConfiguration(created.Configuration), created.ConfigurationIndex)
	}
	if staged.RaftIndex < need {
		return command.ErrNotReady.With("the staged copy stands for index %d, %d is needed", staged.RaftIndex, need)
	}

	folder := filepath.Join(s.cfg.Dir, incomingName)
	from, to := filepath.Join(folder, stateName), filepath.Join(s.cfg.Dir, stateName)
	file, _, members, err := openStateFile(from, s.cfg.MaxData)
	if err != nil {
		return err
	}
	if err := file.write(nil, &m, nil, false); err != nil {
		_ = file.db.Close()
		return err
	}
	if err := os.Rename(from, to); err != nil {
		_ = file.db.Close()
		return err
	}
	// The copy is the state now. An error from here on leaves the node unsure
	// of what it would find after a loss of power.
	if err := syncPath(s.cfg.Dir); err != nil {
		_ = file.db.Close()
		return s.failWith(err)
	}
	if err := s.marked(s.marker.setIndex(m.Applied)); err != nil {
		_ = file.db.Close()
		return err
	}
	_ = os.RemoveAll(folder)
	s.copies.staged, s.copies.created = nil, nil
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
	s.copies.retiring.Go(func() {
		if err := old.file.retire(); err != nil {
			s.log.Warn("close replaced state file", "error", err)
		}
	})
}
