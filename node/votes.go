package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// errOutdated: what autopilot decided was decided of another configuration.
var errOutdated = errors.New("the configuration has changed meanwhile")

// reconfigure makes one change of Raft's configuration for autopilot, if this node still
// leads in its term and the configuration is still the one it decided by. change gets
// the index of the configuration, so that a change of another leader wins; nil: there is
// nothing to change.
func (p *pilot) reconfigure(ctx context.Context, change func(index uint64) (raft.Future, error)) error {
	unlock, err := p.n.lockMembers(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if !p.n.leads(p.term) {
		return command.ErrNotLeader
	}
	if !p.upToDate() {
		return errOutdated
	}
	_, index := p.n.parts.State.Configuration() // Raft's own future has no index
	f, err := change(index)
	if err != nil || f == nil {
		return err
	}
	return raftError(p.n.wait(f))
}

// upToDate reports whether autopilot has seen who votes now.
func (p *pilot) upToDate() bool {
	voters, self := p.n.voters()
	seen := p.auto.GetState().Voters
	return len(seen) == len(voters)+self && !slices.ContainsFunc(voters, func(id string) bool { return !slices.Contains(seen, raft.ServerID(id)) })
}

// giveVote makes a member a voter. Nothing else in Holdfast does, after the cluster
// was formed: whoever decides, only members of the home site that asked for it and
// have caught up are made voters here.
func (p *pilot) giveVote(ctx context.Context, id string) error {
	return p.reconfigure(ctx, func(index uint64) (raft.Future, error) {
		s, ok := p.n.server(id)
		if ok && s.Suffrage == raft.Voter {
			return nil, nil
		}
		name, err := p.eligible(id)
		if err != nil || !ok {
			return nil, err
		}
		if voters, answer := p.n.electorate(ctx, id, ""); answer < voters/2+1 {
			return nil, command.ErrNoTarget.With("with %s, %d of %d voters answer, which is no majority", id, answer, voters)
		}
		p.n.log.Info("member has caught up and becomes a voter", "name", name, "id", id)
		return p.n.raft.AddVoter(s.ID, s.Address, index, p.n.cfg.Wait), nil
	})
}

// eligible returns the name of a member that may be made a voter now, and
// command.ErrNoTarget when it may not.
func (p *pilot) eligible(id string) (name string, err error) {
	cluster, members, err := p.n.table()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(members, func(m command.Member) bool { return m.ID == id })
	switch {
	case i < 0:
		return "", command.ErrNoTarget.With("%s is not a member", id)
	case !members[i].Role.MayVote(), members[i].Site != cluster.HomeSite:
		return "", command.ErrNoTarget.With("%s is a %s at site %s and never votes", members[i].Name, members[i].Role, members[i].Site)
	case !p.n.level(id):
		return "", command.ErrNoTarget.With("%s is not level", members[i].Name)
	}
	return members[i].Name, nil
}

// takeVote makes a voter a non-voter. It stays a member, and can vote again.
func (p *pilot) takeVote(ctx context.Context, id string) error {
	return p.reconfigure(ctx, func(index uint64) (raft.Future, error) {
		if !p.n.isVoter(id) {
			return nil, nil
		}
		if id == p.n.id {
			return nil, command.ErrNoTarget.With("%s leads", id)
		}
		if err := p.n.canSpare(ctx, id); err != nil {
			return nil, err
		}
		p.n.log.Info("member votes no longer", "id", id)
		return p.n.raft.DemoteVoter(raft.ServerID(id), index, p.n.cfg.Wait), nil
	})
}

// canSpare returns command.ErrNoTarget when a member is a voter without which no
// majority of the voters would answer.
func (n *Node) canSpare(ctx context.Context, id string) error {
	if !n.isVoter(id) {
		return nil
	}
	if voters, answer := n.electorate(ctx, "", id); answer < voters/2+1 {
		return command.ErrNoTarget.With("without %s, %d of %d voters answer, which is no majority", id, answer, voters)
	}
	return nil
}

// electorate counts the voters, with one more and without one of them, and how many are
// there now and follow this leader, up to a majority. One whose disk has failed may
// answer, but acknowledges nothing.
func (n *Node) electorate(ctx context.Context, with, without string) (voters, answer int) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.RoundTimeout)
	defer cancel()
	others, self := n.voters()
	if without == n.id {
		self = 0
	}
	others = slices.DeleteFunc(others, func(other string) bool { return other == without })
	if with != "" {
		others = append(others, with)
	}
	voters, answer = len(others)+self, self
	others = slices.DeleteFunc(others, func(other string) bool {
		r, ok := n.reports.get(other)
		return ok && r.Disk == command.DiskFailed
	})
	answers, term := make(chan error, len(others)), n.raft.CurrentTerm()
	for _, id := range others {
		go func() { answers <- n.followsInto(ctx, id, term) }()
	}
	for i := 0; i < len(others) && answer < voters/2+1; i++ {
		if <-answers == nil {
			answer++
		}
	}
	return voters, answer
}

// followsInto asks a voter for its term until that is this one, or ctx ends. A leader may
// be asked to take a vote in its first moments, as by an operator who removes the leader
// before it, or right after a cut has healed: a voter that was not needed to elect it
// hears of the term a moment later, and one that was cut off answers a moment later.
// Only a later term is final.
func (n *Node) followsInto(ctx context.Context, id string, term uint64) error {
	for {
		err := n.askTerm(ctx, id, term)
		if err == nil || errors.Is(err, errNewerTerm) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(n.beat()):
		}
	}
}
