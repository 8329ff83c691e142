package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdfast-db/holdfast/command"
)

// To put a delta into the state file takes longer than everything else about it,
// since its keys lie all over the file. So one that fits the buffer is kept as a
// stream of its own instead, durably, and visible as what is applied is: in a layer
// over the file. The next flush, which is due at once, writes the layer, and the
// kept delta goes. A start that finds one takes it in again: what it had shown is
// there, though neither the state file nor the log has it.

// keep makes a delta durable that leads from own to the state. Its changes are
// those of the layer.
func (s *State) keep(ctx context.Context, own revisionMark, l *layer, state copyState) (err error) {
	path := filepath.Join(s.cfg.Dir, incomingName, keptName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, dataFileMode)
	if err != nil {
		return err
	}
	out := newCopyWriter(ctx, f)
	out.header(&copyHeader{Kind: command.CopyDelta, Format: stateFormat, Revision: own.rev, Lineage: own.lineage})
	var page []byte
	for n, i := uint64(0), 0; i < len(l.history); i++ {
		page = appendChange(page, l.history[i].at, l.history[i].enc)
		if n++; len(page) >= copyPage || i+1 == len(l.history) {
			_ = out.writeHistory(page, n) // an error stays
			page, n = page[:0], 0
		}
	}
	out.json(frameState, state)
	err = out.end()
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("keep a delta: %w", err)
	}
	if err := os.Rename(path, filepath.Join(s.cfg.Dir, keptName)); err != nil {
		return err
	}
	if err := syncPath(s.cfg.Dir); err != nil { // a start may find it or not
		return s.failWith(fmt.Errorf("keep a delta: %w", err))
	}
	return nil
}

// takeKept takes in the delta that was kept before the last stop and that may not
// have got into the state file. One that does not fit, as another state has taken
// the place of the one it was for, is dropped. A damaged one is ErrDamaged: reads
// would go back without it.
func (s *State) takeKept() error {
	f, err := os.Open(filepath.Join(s.cfg.Dir, keptName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	in := s.newCopyReader(context.Background(), f)
	h, err := in.header()
	if err == nil {
		_, err = s.receiveDelta(in, &h)
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = command.ErrDamaged.With("it is cut short")
	case errors.Is(err, command.ErrDiverged), errors.Is(err, command.ErrWrongCluster):
		s.log.Warn("a delta that was kept does not belong to the state", "error", err)
		err = nil
	}
	if err == nil && s.copies.kept.Load() == nil { // the file holds it, or never will
		err = os.Remove(f.Name())
	}
	if err != nil {
		s.dropIncoming()
		return fmt.Errorf("take in the delta kept in %s: %w", keptName, err)
	}
	s.started = max(s.started, s.appliedIndex())
	return nil
}

// dropKept drops the kept delta once the state file holds what was published up to
// seq. Needs flushing.
func (s *State) dropKept(seq uint64) {
	if k := s.copies.kept.Load(); k == nil || seq < k.seq {
		return
	}
	s.copies.kept.Store(nil)
	if err := os.Remove(filepath.Join(s.cfg.Dir, keptName)); err != nil {
		s.log.Warn("remove a delta that the state file holds", "error", err) // the next start does it
	}
}

// verifyKept reads a kept delta and returns the state it leads to.
func verifyKept(path string) (m meta, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	in := newCopyReader(context.Background(), nil, f)
	h, err := in.header()
	if err != nil {
		return m, err
	}
	sp := spoolTo(io.Discard, revisionMark{h.Revision, h.Lineage})
	state, err := in.body(sp)
	if err != nil {
		return m, err
	}
	return state.Meta, sp.complete(&state.Meta)
}
