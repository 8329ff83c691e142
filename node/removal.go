package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// RemovePeer takes a member out of the cluster for good, given by id or by node
// address: it learns of it if it runs, and cannot come back under its old
// identity. A leader that is to be removed hands over first. What is begun and cannot
// be finished, whichever leader can finishes later.
//
// Errors: command.ErrNoTarget, there is no such member, or without it the voters
// that are left would have no healthy majority; command.ErrNoLeader.
func (n *Node) RemovePeer(ctx context.Context, id, address string) error {
	r := removal{ID: id, Address: address}
	return n.withLeader(ctx, func(ctx context.Context, leader string) error {
		req, err := encode(r)
		if err != nil {
			return err
		}
		_, err = n.callOn(ctx, leader, methodRemove, req, n.answerRemove)
		r.Again = r.Again || errors.Is(err, command.ErrOutcomeUnknown)
		return askAgain(err)
	})
}

type removal struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	// Again: it was asked for before, and the answer was lost. So who is no member has
	// been removed.
	Again bool `json:"again,omitempty"`
}

func (n *Node) answerRemove(ctx context.Context, req []byte) ([]byte, error) {
	return serve(req, func(r removal) ([]byte, error) { return nil, n.remove(ctx, r) })
}

func (n *Node) remove(ctx context.Context, r removal) error {
	unlock, err := n.lockMembers(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := n.judgeHealth()
	if err != nil {
		return err
	}
	// First what another leader began: who is to go counts no longer.
	if err := n.expel(ctx); err != nil {
		return err
	}
	i := slices.IndexFunc(h.Members, func(m command.MemberHealth) bool {
		return r.ID != "" && m.ID == r.ID || r.Address != "" && m.Address == r.Address
	})
	if i < 0 && r.Again {
		return nil
	}
	if i < 0 {
		what := fmt.Sprintf("id %q", r.ID)
		if r.ID == "" {
			what = fmt.Sprintf("address %q", r.Address)
		}
		return command.ErrNoTarget.With("%s was not found in the Raft configuration", what)
	}
	m := h.Members[i]
	if err := n.canSpare(ctx, m.ID); err != nil {
		return err
	}
	if m.ID == n.id {
		if err := n.handOver(ctx, ""); err != nil {
			return err
		}
		return command.ErrNotLeader // the new leader will do it
	}
	n.log.Info("removing a member", "name", m.Name, "id", m.ID)
	// The members table first: while the member is still sent the log it learns that
	// it is to go, and does not ask for votes later.
	res, err := n.Propose(ctx, &command.MemberRemove{ID: m.ID, Barred: true})
	if err != nil {
		return err
	}
	n.awaitReport(ctx, m.ID, res.Revision)
	return n.expel(ctx)
}

// expel takes who is a member no longer out of Raft's configuration. It may be another
// leader that began it. Needs joining.
func (n *Node) expel(ctx context.Context) error {
	cluster, members, err := n.table()
	if err != nil || cluster.ID == "" { // the table is not filled yet
		return err
	}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		id := string(s.ID)
		member := slices.ContainsFunc(members, func(m command.Member) bool { return m.ID == id })
		if member || id == n.id { // which ends by itself
			continue
		}
		if err := n.canSpare(ctx, id); err != nil {
			return err
		}
		if err := raftError(n.wait(n.raft.RemoveServer(s.ID, 0, n.cfg.Wait))); err != nil {
			return err
		}
		n.parts.Transport.Disconnect(id)
	}
	return nil
}

// goOnRemoving finishes the removals that a leader which was lost had begun, if this
// node leads now.
func (n *Node) goOnRemoving() {
	if n.raft.State() != raft.Leader {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Wait)
	defer cancel()
	unlock, err := n.lockMembers(ctx)
	if err != nil {
		return
	}
	defer unlock()
	if err := n.expel(ctx); err != nil {
		n.log.Warn("a member that was removed is still in Raft's configuration", "error", err)
	}
}

// removeDead removes a member that has been dead for as long as the setting of autopilot
// says. It is not barred: should it come back, it enters by itself.
func (p *pilot) removeDead(ctx context.Context, id string) error {
	unlock, err := p.n.lockMembers(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	pilot, err := p.n.autopilot()
	if err != nil {
		return err
	}
	srv, known := p.KnownServers()[raft.ServerID(id)]
	others, left := p.n.voters()
	for _, other := range others {
		if other != id {
			left++
		}
	}
	if !known || !p.n.leads(p.term) || !removable(&pilot, srv, left) {
		return nil // it has come back, or something else has changed
	}
	if err := p.n.canSpare(ctx, id); err != nil {
		return err
	}
	st, _ := standingOf(srv)
	p.n.log.Info("removing a member that has been dead for long", "name", srv.Name, "id", id, "silent", st.silent.Round(time.Second))
	if _, err := p.n.Propose(ctx, &command.MemberRemove{ID: id}); err != nil {
		return err
	}
	return p.n.expel(ctx)
}

// awaitReport waits, for two seconds at most, until a member has a revision or is
// gone.
func (n *Node) awaitReport(ctx context.Context, id string, revision uint64) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		r, ok := n.reports.get(id)
		if !ok || r.Revision >= revision || n.cfg.Clock.Steady()-r.at > reportGrace {
			return
		}
		if pause(ctx) != nil {
			return
		}
	}
}
