package node

import (
	"errors"
	"fmt"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// rememberPeers notes what each member has been seen to hold, so that a disk
// that is rolled back later is noticed (Check).
func (n *Node) rememberPeers() {
	n.reports.mu.Lock()
	seen := make(map[string]uint64, len(n.reports.byID))
	for id, r := range n.reports.byID {
		seen[id] = r.Applied
	}
	n.reports.mu.Unlock()
	n.remembering.Lock()
	defer n.remembering.Unlock()
	known := n.parts.Logs.Peers()
	for id, applied := range seen {
		p := known[id]
		if applied > p.LastIndex {
			p.LastIndex = applied
			if err := n.parts.Logs.SetPeer(id, p); err != nil {
				n.log.Warn("could not remember a peer", "id", id, "error", err)
			}
		}
	}
}

// Check judges a peer at connect: whether its disk went back. A peer that
// started less often, or holds less, than was seen of it may have forgotten a
// vote or a write it acknowledged. A start is counted durably before anybody hears of
// it, so two starts with one number are those of a disk and of an older copy of it.
//
// Only a new process can have gone back, so each incarnation is judged once, at
// its first connection. Later introductions may overtake one another: one that
// was written before and arrives after says less, and means nothing.
func (n *Node) Check(peer command.Hello) error {
	if peer.Starts == 0 {
		return nil // it only asks, and has not opened its data directory yet
	}
	if n.judgedBefore(peer) || planted.Bug("rolled-back-let-in") {
		return nil
	}
	// Else each try to connect would leave a goroutine and a connection behind, for as
	// long as the disk hangs.
	if d := n.Disk(); d.State.Down() {
		return fmt.Errorf("%s cannot be judged: the disk of %s is %s", peer.Name, n.cfg.Self.Name, d.State)
	}
	n.remembering.Lock()
	defer n.remembering.Unlock()
	if n.judgedBefore(peer) {
		return nil
	}
	seen := n.parts.Logs.Peers()[peer.ID]
	if peer.Starts < seen.Starts || peer.LastIndex < seen.LastIndex {
		return command.ErrWentBack.With("%s was seen at start %d with entry %d, now it is at start %d with entry %d",
			peer.Name, seen.Starts, seen.LastIndex, peer.Starts, peer.LastIndex)
	}
	if peer.Starts == seen.Starts && seen.Incarnation != "" && peer.Incarnation != seen.Incarnation {
		return command.ErrWentBack.With("%s was seen at start %d, and this is another start %d: its disk is an older copy of what was started then",
			peer.Name, seen.Starts, peer.Starts)
	}
	if err := n.parts.Logs.SetPeer(peer.ID, command.PeerSeen{Starts: peer.Starts, Incarnation: peer.Incarnation, LastIndex: max(peer.Applied, seen.LastIndex)}); err != nil {
		return fmt.Errorf("remember %s: %w", peer.Name, err)
	}
	n.seen.Lock()
	defer n.seen.Unlock()
	n.seen.incarnation[peer.ID] = peer.Incarnation
	return nil
}

// judgedBefore reports whether this run of a peer has been judged. It does not wait for
// the disk: whoever connects again must not be kept out while that hangs.
func (n *Node) judgedBefore(peer command.Hello) bool {
	n.seen.Lock()
	defer n.seen.Unlock()
	return n.seen.incarnation[peer.ID] == peer.Incarnation
}

// Refused is told why a peer would not talk to this node. A peer that knows more
// of this node than its disk does is right, whoever it is: the node ends.
func (n *Node) Refused(reason error) {
	if errors.Is(reason, command.ErrWentBack) {
		n.Fail(reason, true)
	}
}
