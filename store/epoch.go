package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// When a site is made the new home, an epoch of the cluster begins: in the state of
// one node, behind the last entry of its log, and not by way of the log, which nobody
// is there to decide. All other members take it over with a copy. Keys, sessions and
// history go on; revisions leap, so that none is given twice, here and at an old home
// that was not quite dead.

// epochLeap is by how much revisions leap where an epoch begins, for each epoch since
// the one of the state: a home between the two may have been lost with all it gave.
const epochLeap = 1 << 32

// BeginEpoch begins an epoch in this state, durably on return, and in one step: after
// a crash the state is the one before, with all that it held, or this one. The voters and spares of the old home
// leave the members, and Raft's configuration, which then stands two entries behind the last
// one of the log. An epoch that has begun already is not begun again.
func (s *State) BeginEpoch(ctx context.Context, e command.EpochStart) error {
	if s.Head().Cluster.Epoch < e.Fork.Epoch {
		// The commit marker goes ahead of the file, behind the log's end. What was never
		// flushed would pass for lost then.
		if err := s.Flush(ctx); err != nil {
			return err
		}
		if err := s.beginEpoch(e); err != nil {
			return fmt.Errorf("begin epoch %d: %w", e.Fork.Epoch, err)
		}
	}
	return s.Flush(ctx)
}

func (s *State) beginEpoch(e command.EpochStart) error {
	b := s.Begin()
	defer b.Discard()
	voter, ok := b.Member(e.Voter)
	if !ok {
		return command.ErrNoTarget.With("%s is not a member", e.Voter)
	}
	f := e.Fork
	if b.meta.RaftIndex > f.Index || b.Applied() > f.Index {
		return fmt.Errorf("the state is at entry %d, behind the last of the log, %d", max(b.meta.RaftIndex, b.Applied()), f.Index)
	}
	f.Revision, f.Lineage, f.Begins = b.Revision(), command.Lineage(b.meta.Lineage), b.Revision()+epochLeap*(f.Epoch-b.Cluster().Epoch)
	stamp, _ := b.Stamp()
	b.Entry(f.Index+1, e.Term, stamp, f.At)
	b.meta.Forks = append(slices.Clone(b.meta.Forks), f)
	b.meta.Revision = f.Begins - 1 // which the next one follows
	cluster := b.Cluster()
	cluster.Epoch, cluster.HomeSite = f.Epoch, f.Site
	b.SetCluster(cluster)
	voter.Role = command.RoleVoter
	b.SetMember(voter)
	conf := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(e.Voter), Address: raft.ServerAddress(e.Voter)}}}
	old := b.meta.configuration()
	for _, m := range b.Members() {
		i := slices.IndexFunc(old.Servers, func(v raft.Server) bool { return string(v.ID) == m.ID })
		switch {
		case m.ID == e.Voter:
		case m.Role != command.RoleLearner || i >= 0 && old.Servers[i].Suffrage == raft.Voter:
			b.RemoveMember(m.ID)
		case i >= 0:
			conf.Servers = append(conf.Servers, old.Servers[i])
		}
	}
	b.Step()
	b.Configuration(f.Index+2, e.Term, conf)
	return b.Publish()
}

// Forks are where the epochs of the cluster behind the first began, in order.
func (s *State) Forks() []command.Fork { return s.gen.Load().meta.Forks }

// next is the revision that follows another one.
func (m *meta) next(rev uint64) uint64 {
	for i := range m.Forks {
		if f := &m.Forks[i]; rev >= f.Revision && rev < f.Begins {
			return f.Begins
		}
	}
	return rev + 1
}

// given returns command.ErrCompacted for a revision that was never given in this
// history. Whoever knows it saw it at a home that had been given up.
func (m *meta) given(rev uint64) error {
	for i := range m.Forks {
		if f := &m.Forks[i]; rev > f.Revision && rev < f.Begins {
			return command.ErrCompacted.With("revision %d was given by a home that %s took the place of; history went on from %d to %d", rev, f.Site, f.Revision, f.Begins)
		}
	}
	return nil
}
