package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

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
	case command.CopyFull:
		m, err = s.receiveFull(in, &h)
	case command.CopyDelta:
		m, err = s.receiveDelta(in, &h)
	case command.CopyRange:
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
		sp.close()
	}
	s.copies.partial, s.copies.spool, s.copies.staged = nil, nil, nil
	if err := os.RemoveAll(filepath.Join(s.cfg.Dir, incomingName)); err != nil {
		s.log.Warn("remove unfinished copy", "error", err) // OpenState removes it too
	}
}
