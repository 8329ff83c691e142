package node

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// transferLimit bounds a transfer that was asked for: a voter that does not take over
// in this time is not asked again.
const transferLimit = 3 * time.Second

// TransferLeader hands leadership to a voter, given by id or name, or, when none
// is given, to the one that suits best. It returns when that voter leads.
// Writes that arrive meanwhile wait, and go to the new leader.
//
// Errors: command.ErrNoTarget, the member cannot lead, is not level or did not take
// over; command.ErrNoLeader.
func (n *Node) TransferLeader(ctx context.Context, to string) error {
	_, err := n.atLeader(ctx, methodTransfer, []byte(to), n.answerTransfer)
	return err
}

func (n *Node) answerTransfer(ctx context.Context, to []byte) ([]byte, error) {
	if n.raft.State() != raft.Leader {
		return nil, command.ErrNotLeader
	}
	target, err := n.transferTarget(ctx, string(to))
	if err != nil {
		return nil, err
	}
	if target == n.id {
		return nil, nil // it leads already
	}
	if others, _ := n.voters(); len(others) == 0 {
		return nil, command.ErrNoTarget.With("there is no other voter")
	}
	ctx, cancel := context.WithTimeout(ctx, transferLimit)
	defer cancel()
	return nil, n.handOver(ctx, target)
}

// transferTarget finds the voter meant by an id or a name; empty means any. What
// could not take over at once is refused here: Raft itself would depose the leader
// for a learner, or for a member that lacks entries.
func (n *Node) transferTarget(ctx context.Context, to string) (id string, err error) {
	if to == "" {
		return "", nil
	}
	// A new leader has heard from nobody yet.
	for deadline := time.Now().Add(2 * reportGrace); ; {
		h, err := n.judgeHealth()
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(h.Members, func(m command.MemberHealth) bool { return m.ID == to || m.Name == to })
		if i < 0 {
			return "", command.ErrNoTarget.With("id %q was not found in the Raft configuration", to)
		}
		switch m := h.Members[i]; {
		case !m.Voter:
			return "", command.ErrNoTarget.With("%s is not a voter", m.Name)
		case m.Disk == command.DiskFull && n.Disk().State != command.DiskFull:
			// It would refuse writes, and hand back.
			return "", command.ErrNoTarget.With("the disk of %s is full", m.Name)
		case m.Healthy:
			return m.ID, nil
		case time.Now().After(deadline):
			return "", command.ErrNoTarget.With("%s is not healthy", m.Name)
		}
		if err := pause(ctx); err != nil {
			return "", err
		}
	}
}

// Leave is StepDown for a node that is about to stop: it will not be made leader again
// while it finishes what it has to.
func (n *Node) Leave(ctx context.Context) error {
	n.leaving.Store(true)
	return n.StepDown(ctx)
}

// StepDown hands leadership to another voter, if this node leads, and returns when
// there is a new leader. Writes that are under way are finished first, and those
// that arrive meanwhile wait and go to the new leader: none fails.
func (n *Node) StepDown(ctx context.Context) error {
	if n.raft.State() != raft.Leader {
		return nil
	}
	if others, _ := n.voters(); len(others) == 0 {
		return nil // nobody to hand over to
	}
	if err := n.stuck(); err != nil {
		return err
	}
	for n.raft.State() == raft.Leader {
		if err := n.handOver(ctx, ""); !errors.Is(err, command.ErrNotLeader) {
			return err
		}
	}
	return nil // somebody else leads
}

// handOver gives leadership to a voter, "" for the one that suits best, and returns
// when it leads. Writes under way are finished first; those that arrive meanwhile
// wait and go to the new leader: none fails. A voter has one election timeout to
// take over, and a busy one misses it: so it is tried until ctx ends, with the writes
// let in in between.
//
// Errors: command.ErrNotLeader, this node leads no longer, and not by what it did
// here; command.ErrNoTarget, nobody took over.
func (n *Node) handOver(ctx context.Context, to string) error {
	select {
	case n.handing <- struct{}{}: // one at a time: the next would let writes in again
		defer func() { <-n.handing }()
	case <-ctx.Done():
		return command.ErrNoTarget.With("another transfer is under way")
	case <-n.stop:
		return command.ErrStopping
	}
	declined := map[string]bool{}
	for n.raft.State() == raft.Leader {
		target := to
		if target == "" {
			target = n.successor(declined)
		}
		err := n.handTo(ctx, target)
		if err == nil {
			return n.awaitLeader(ctx, to)
		}
		n.log.Info("leadership was not taken over, it is tried again", "by", target, "error", err)
		declined[target] = true
		if pause(ctx) != nil {
			return command.ErrNoTarget.With("%s did not take over: %v", cmp.Or(target, "no voter"), err)
		}
	}
	return command.ErrNotLeader
}

// handTo tries once to give leadership to a voter; "" leaves the choice to Raft.
// Unless it returns nil this node goes on as it was.
func (n *Node) handTo(ctx context.Context, target string) error {
	err := n.group.drain(ctx)
	if err == nil {
		transfer := n.raft.LeadershipTransfer
		if target != "" {
			transfer = func() raft.Future {
				return n.raft.LeadershipTransferToServer(raft.ServerID(target), raft.ServerAddress(target))
			}
		}
		err = n.waitUntil(ctx, transfer())
	}
	if err == nil || n.raft.State() != raft.Leader {
		n.counts.handOvers.Add(1)
		return nil
	}
	n.group.unlock()
	return err
}

// awaitLeader returns when it is known who leads after a transfer, and whether it is
// the voter that was meant; "" means any but this one. Errors: command.ErrNotLeader,
// it is not; command.ErrNoLeader.
func (n *Node) awaitLeader(ctx context.Context, want string) error {
	for {
		changed := n.changed.wait()
		switch id := n.leaderID(); {
		case id == "", id == n.id && n.raft.State() != raft.Leader: // not yet, or still the old news
		case id == want, want == "" && id != n.id:
			return nil
		default:
			return command.ErrNotLeader.With("%s has won the election, not %s", id, cmp.Or(want, "another voter"))
		}
		select {
		case <-changed:
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return command.ErrNoLeader.With("leadership was handed over, but no new leader is known yet")
		}
	}
}

// successor is the voter that suits best to lead next: of those that are fit one whose
// disk is well, if there is one, with the highest priority, then the most complete
// one. Those that have declined come last. "" when none is known to be fit.
func (n *Node) successor(declined map[string]bool) string {
	fit := n.fitVoters()
	if len(fit) == 0 {
		return n.notDown(declined)
	}
	return slices.MinFunc(fit, func(a, b successor) int {
		switch {
		case declined[a.id] && !declined[b.id]:
			return 1
		case declined[b.id] && !declined[a.id]:
			return -1
		}
		if a.well != b.well {
			if a.well {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(b.lastIndex, a.lastIndex), strings.Compare(a.id, b.id))
	}).id
}

// notDown is a voter to choose when none is known to be fit, yet one that Raft might
// choose is known not to be: it goes by the log alone. Else "", and Raft chooses.
func (n *Node) notDown(declined map[string]bool) string {
	others, _ := n.voters()
	heirs := n.heirs()
	if len(heirs) == len(others) {
		return ""
	}
	for _, id := range heirs {
		if !declined[id] {
			return id
		}
	}
	return ""
}

// successor is a voter that could lead instead of this node.
type successor struct {
	id        string
	priority  int
	lastIndex uint64
	well      bool // its disk is
}

// fitVoters are the other voters that could take over at once, as this leader knows
// them: they reported just now, hold nearly all of the log, and can write to it. Their
// contents are not known to be wrong.
func (n *Node) fitVoters() []successor {
	h, err := n.judgeHealth()
	if err != nil {
		return nil
	}
	var fit []successor
	for _, m := range h.Members {
		if r, reported := n.reports.get(m.ID); reported && m.Voter && m.Healthy && r.differs == 0 && !r.Disk.Down() && m.ID != n.id {
			fit = append(fit, successor{id: m.ID, priority: r.Priority, lastIndex: m.LastIndex, well: r.Disk.Well()})
		}
	}
	return fit
}
