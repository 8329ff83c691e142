package store

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// A state file takes the place of another one when a full copy has come, an archive
// is restored, or a smaller file has been made of it.

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
	if err := s.usable(); err != nil {
		return err
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
	if err := s.install(file); err != nil {
		return err
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

// install gives a complete, durable file the name of the state's. On an error the
// file is closed; one that comes after the exchange is final, since nobody knows which
// of the two a loss of power would leave. Needs flushing: until the name is durable,
// nothing may be written that the old file lacks.
func (s *State) install(file *stateFile) error {
	err := os.Rename(file.db.Path(), filepath.Join(s.cfg.Dir, stateName))
	if err == nil {
		if err = syncPath(s.cfg.Dir); err != nil {
			err = s.failWith(err)
		}
	}
	if err != nil {
		_ = file.db.Close()
	}
	return err
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
	next.disk = s.cfg.Disk
	f.damage.retire()
	s.copies.retiring.Go(func() {
		if err := f.retire(); err != nil {
			s.log.Warn("close replaced state file", "error", err)
		}
	})
}
