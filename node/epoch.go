package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// An epoch of the cluster begins when a site is made the new home, since the old one
// is lost. Nobody is there to decide it in the log: the seed, one node of that site,
// begins it in its own state, behind the last entry of its log, drops that log, and is
// the only voter. All of that happens at a start, before there is a Raft.
//
// Whoever lives in an earlier epoch learns of it at the first contact, since every
// introduction names the epochs that its sender knows, and stops taking part at once.
// Has it nothing that the new home lacks, it drops its log, too, and enters the epoch
// at a start in the same process; what is left of its state is a prefix of the seed's.
// Else it is fenced: it serves stale reads and waits for its operator.

// levelLimit bounds how long a seed tries to get what the member has whose log goes
// furthest. After that it is again what it was.
const levelLimit = time.Minute

// settleLimit bounds a flush of the state.
const settleLimit = time.Minute

// turn takes the node into the epoch that it was ordered, or has learned, to enter. It
// is a step of New: the log has been applied up to the commit marker.
func (n *Node) turn(ctx context.Context) error {
	switch p := n.parts.Identity.Promotion(); {
	case p == nil:
		return n.follow(ctx)
	case !p.Sealed:
		if err := n.catchUpWith(ctx, *p); err != nil {
			n.log.Error("the promotion is given up: this node could not get what goes furthest", "from", p.Source, "error", err)
			return n.parts.Identity.SetPromotion(nil)
		}
		if err := n.seal(*p); err != nil {
			return err
		}
		return &Restart{"it has all that the new home is to go on with"}
	default:
		return n.becomeHome(ctx, *p)
	}
}

// seal makes a promotion one that is completed, whatever happens. The log ends where
// it says.
func (n *Node) seal(p command.Promotion) error {
	p.Sealed, p.Committed = true, n.parts.State.Revision()
	return n.parts.Identity.SetPromotion(&p)
}

// becomeHome begins the epoch here. After a crash at any point it does the rest. A seed
// that was away when it was to begin, and meets a home that began meanwhile, gives up.
func (n *Node) becomeHome(ctx context.Context, p command.Promotion) error {
	if cluster, members, err := n.table(); err != nil {
		return err
	} else if cluster.Epoch < p.Epoch {
		if n.overtaken(ctx, members) {
			n.log.Error("the promotion is given up: another site has become home meanwhile", "epoch", p.Epoch)
			if err := n.parts.Identity.SetPromotion(nil); err != nil {
				return err
			}
			return &Restart{"another site has become home meanwhile"}
		}
		if err := n.beginEpoch(ctx, p); err != nil {
			return fmt.Errorf("begin epoch %d: %w", p.Epoch, err)
		}
	}
	if err := n.dropShortLog(); err != nil {
		return err
	}
	_, term, err := n.lastHeld()
	if err != nil {
		return err
	}
	// No vote was given above it, and none will be below.
	if voted, err := n.parts.Stable.GetUint64(stableTerm); err != nil || voted < term {
		if err := n.parts.Stable.SetUint64(stableTerm, term); err != nil {
			return err
		}
	}
	if err := n.parts.Identity.EnterEpoch(p.Epoch, true); err != nil {
		return err
	}
	n.log.Warn("this node is the seed of a new home", "site", n.cfg.Self.Site, "epoch", p.Epoch, "revision", n.parts.State.Revision())
	return nil
}

// overtaken reports whether a member that can be reached lives in a later epoch.
func (n *Node) overtaken(ctx context.Context, members []command.Member) bool {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	later := make(chan bool, len(members))
	for _, m := range members {
		go func() {
			if m.ID == n.id {
				later <- false
				return
			}
			_, err := n.parts.Transport.CallAddr(ctx, m.RaftAddr, methodPing, nil)
			var refusal interface{ OfPeer() bool }
			later <- errors.Is(err, command.ErrStaleEpoch) && errors.As(err, &refusal) && !refusal.OfPeer()
		}()
	}
	for range members {
		if <-later {
			return true
		}
	}
	return false
}

// stableTerm is Raft's own name for the current term.
var stableTerm = []byte("CurrentTerm")

// beginEpoch applies all of the log, also what is not known to be committed, since it
// may have been acknowledged, and begins the epoch behind it.
func (n *Node) beginEpoch(ctx context.Context, p command.Promotion) error {
	index, term, err := n.lastHeld()
	if err != nil {
		return err
	}
	if err := n.applyLog(index); err != nil {
		return err
	}
	highest := term
	if voted, err := n.parts.Stable.GetUint64(stableTerm); err == nil {
		highest = max(highest, voted)
	}
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	return n.parts.State.BeginEpoch(ctx, command.EpochStart{
		Fork: command.Fork{
			Epoch: p.Epoch, Site: n.cfg.Self.Site, Index: index, Term: term, Committed: p.Committed, At: n.cfg.Clock.Wall().UTC(),
		},
		Term: highest + 1, Voter: n.id,
	})
}

// lastHeld is the index and the term of the last entry that this node holds, in its
// log or in what its state stands for.
func (n *Node) lastHeld() (index, term uint64, err error) {
	snapshots, err := n.parts.Snapshots.List()
	if err != nil {
		return 0, 0, fmt.Errorf("read the state's index: %w", err)
	}
	for _, s := range snapshots {
		index, term = s.Index, s.Term
	}
	if applied, at := n.parts.State.Applied(); applied > index {
		index, term = applied, at
	}
	_, last, err := n.parts.Logs.Bounds()
	if err != nil {
		return 0, 0, fmt.Errorf("read the log's bounds: %w", err)
	}
	if last > index {
		var l raft.Log
		if err := n.parts.Log.GetLog(last, &l); err != nil {
			return 0, 0, err
		}
		index, term = last, l.Term
	}
	return index, term, nil
}

// follow enters a later epoch that this node has learned of, if it holds nothing that
// the home of that epoch lacks; else it is noted to be fenced.
func (n *Node) follow(ctx context.Context) error {
	_, epoch := n.parts.Identity.Cluster()
	forks := n.parts.Identity.Forks()
	fork, later := command.ForkAfter(forks, epoch)
	if !later {
		return nil
	}
	index, term, err := n.lastHeld()
	if err != nil {
		return err
	}
	if !fork.Has(index, term) {
		n.apart.Store(&parting{n.fencedBy(fork)})
		n.left <- struct{}{}
		return nil
	}
	// What was applied was committed, so it is part of what the new home has; the rest
	// of the log was never acknowledged, or is there as well.
	if err := n.dropLog(ctx); err != nil {
		return err
	}
	for _, f := range forks {
		epoch = max(epoch, f.Epoch)
	}
	if err := n.parts.Identity.EnterEpoch(epoch, false); err != nil {
		return err
	}
	n.log.Warn("this node follows a new home", "site", fork.Site, "epoch", epoch)
	return nil
}

// dropLog drops the whole log, once what was applied of it is durable in the state.
func (n *Node) dropLog(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	if err := n.parts.State.Flush(ctx); err != nil {
		return fmt.Errorf("make the state durable: %w", err)
	}
	if err := n.parts.Logs.Reset(); err != nil {
		return fmt.Errorf("drop the log: %w", err)
	}
	return nil
}

// parting is why a node that learned of a later epoch takes part no longer.
type parting struct{ err error }

// parted is why this node does not take part in its epoch any more, nil while it does.
func (n *Node) parted() error {
	if p := n.apart.Load(); p != nil {
		return p.err
	}
	return nil
}

func (n *Node) fencedBy(fork command.Fork) error {
	_, epoch := n.parts.Identity.Cluster()
	return command.ErrFenced.With("%s is home since %s, in epoch %d; %s lives in epoch %d and holds what that home never saw",
		fork.Site, fork.At.Format(time.RFC3339), fork.Epoch, n.cfg.Self.Name, epoch)
}

// Newer is told of the epochs that another node knows. If this node lives in an
// earlier one, that is durable on return, and it votes, leads and writes no more.
func (n *Node) Newer(forks []command.Fork) {
	n.learning.Lock()
	defer n.learning.Unlock()
	_, epoch := n.parts.Identity.Cluster()
	fork, later := command.ForkAfter(forks, epoch)
	if !later || n.apart.Load() != nil {
		return
	}
	index, term, err := n.lastHeld()
	p := &parting{n.fencedBy(fork)}
	follows := err == nil && fork.Has(index, term)
	if follows {
		p.err = command.ErrStopping.With("it enters epoch %d, in which %s is home", fork.Epoch, fork.Site)
	}
	n.apart.Store(p)
	if err := n.parts.Identity.SetForks(command.AllForks(forks, n.parts.Identity.Forks())); err != nil {
		n.log.Error("it is not noted that another site has become home", "error", err)
	}
	n.log.Warn("another site has become home", "site", fork.Site, "epoch", fork.Epoch, "own-epoch", epoch)
	n.left <- struct{}{} // has room: it is sent once
}

// parting waits until this node takes part no longer, since another site has become
// home. Who follows the new home starts again.
func (n *Node) parting() {
	select {
	case <-n.left:
	case <-n.stop:
		return
	}
	n.changed.notify()
	if !errors.Is(n.parted(), command.ErrFenced) {
		_ = n.shutdownRaft() // no vote in an epoch that is over, while it stops
		n.Restart("another site has become home, and this node enters its epoch")
		return
	}
	n.fence()
	n.tellOthers()
}

// fence ends this node's part in Raft for good.
func (n *Node) fence() {
	n.Fail(n.parted(), false)
	_ = n.shutdownRaft() // Fail has said why
}

// tellPause is between two tries to reach who has not been told.
const tellPause = time.Second

// tellOthers introduces this node to all members it knows, anew, until each has
// heard, so that one contact with the new home fences all of the old one.
func (n *Node) tellOthers() {
	_, members, err := n.table()
	if err != nil {
		n.log.Warn("the other members are not told of the new home", "error", err)
		return
	}
	told := map[string]bool{n.id: true}
	for {
		for _, m := range members {
			if told[m.ID] {
				continue
			}
			n.parts.Transport.Disconnect(m.ID) // an introduction comes first on a connection
			ctx, cancel := context.WithTimeout(n.ctx, tellPause)
			_, err := n.parts.Transport.CallAddr(ctx, m.RaftAddr, methodPing, nil)
			cancel()
			var refused interface{ OfPeer() bool }
			told[m.ID] = err == nil || errors.As(err, &refused)
		}
		if len(told) > len(members) {
			return
		}
		select {
		case <-time.After(tellPause):
		case <-n.stop:
			return
		}
	}
}

// catchUpWith makes this node's log end as the one of p's source does. What comes is what
// its leader would have sent, so a node that goes no further is still what it was.
func (n *Node) catchUpWith(ctx context.Context, p command.Promotion) error {
	ctx, cancel := context.WithTimeout(ctx, levelLimit)
	defer cancel()
	index, term, err := n.lastHeld()
	if err != nil || index == p.Index && term == p.Term {
		return err
	}
	for {
		err := n.takeTail(ctx, p)
		if err == nil {
			break
		}
		if errors.Is(err, command.ErrStaleEpoch) {
			return err // the source follows another home
		}
		n.log.Warn("what goes furthest is not here yet", "from", p.Source, "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return err
		}
	}
	index, term, err = n.lastHeld()
	if err == nil && (index != p.Index || term != p.Term) {
		err = fmt.Errorf("%s ended with entry %d of term %d, now this log ends with %d of term %d", p.Source, p.Index, p.Term, index, term)
	}
	return err
}

// tail asks a member for its log from an entry on.
type tail struct {
	From uint64 `json:"from"`
}

// tailPage answers it, with the first entries.
type tailPage struct {
	// First and Last bound the member's log.
	First   uint64      `json:"first"`
	Last    uint64      `json:"last"`
	Entries []*raft.Log `json:"entries"`
}

const tailBytes = 1 << 20 // of one page

func (n *Node) answerTail(t tail) (page tailPage, err error) {
	if page.First, page.Last, err = n.parts.Logs.Bounds(); err != nil || t.From < page.First {
		return page, err
	}
	size := 0
	for i := t.From; i <= page.Last && size < tailBytes; i++ {
		l := new(raft.Log)
		if err := n.parts.Log.GetLog(i, l); err != nil {
			return page, err
		}
		page.Entries = append(page.Entries, l)
		size += len(l.Data)
	}
	return page, nil
}

// takeTail puts the source's log in the place of this node's, behind what the state
// stands for, with a copy first when the source's log does not reach back that far.
func (n *Node) takeTail(ctx context.Context, p command.Promotion) error {
	holds, err := n.holds()
	if err != nil {
		return err
	}
	page, err := ask[tailPage](ctx, n.parts.Transport, p.SourceAddr, methodTail, tail{From: holds + 1})
	if err != nil {
		return err
	}
	if page.First > holds+1 || page.Last < holds+1 && p.Index > holds {
		if err := n.healFrom(ctx, p.SourceAddr); err != nil {
			return err
		}
		if err := n.dropShortLog(); err != nil {
			return err
		}
		if holds, err = n.holds(); err != nil {
			return err
		}
		if page, err = ask[tailPage](ctx, n.parts.Transport, p.SourceAddr, methodTail, tail{From: holds + 1}); err != nil {
			return err
		}
	}
	// The state alone, which holds nothing that was not committed, is what both logs
	// have in common for certain.
	if err := n.dropLog(ctx); err != nil {
		return err
	}
	for next := holds + 1; next <= p.Index; {
		if len(page.Entries) == 0 || page.Entries[0].Index != next {
			return fmt.Errorf("the log of %s has no entry %d", p.Source, next)
		}
		if err := n.parts.Log.StoreLogs(page.Entries); err != nil {
			return err
		}
		if next = page.Entries[len(page.Entries)-1].Index + 1; next <= p.Index {
			if page, err = ask[tailPage](ctx, n.parts.Transport, p.SourceAddr, methodTail, tail{From: next}); err != nil {
				return err
			}
		}
	}
	return nil
}
