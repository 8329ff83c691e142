package node

import (
	"context"
	"sync"

	"github.com/holdfast-db/holdfast/command"
)

// reign ends what waits for the answer of a leader that is known to have been followed
// by another: one that fell silent would keep it waiting.
type reign struct {
	mu     sync.Mutex
	leader string             // guarded by mu; the last one known
	ctx    context.Context    // guarded by mu; ends when there is another
	end    context.CancelFunc // guarded by mu
}

// of gives a context that ends when another leader than that one is known.
func (r *reign) of(leader string) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leader != leader || r.ctx == nil {
		if r.end != nil {
			r.end()
		}
		r.leader = leader
		r.ctx, r.end = context.WithCancel(context.Background())
	}
	return r.ctx
}

// callLeader asks the leader. It fails with command.ErrNotLeader when another one is
// known before it has answered, so that request must be one that may be made twice.
func (n *Node) callLeader(ctx context.Context, leader string, method uint8, req []byte) ([]byte, error) {
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	reign := n.reign.of(leader)
	defer context.AfterFunc(reign, cancel)()
	answer, err := n.parts.Transport.Call(short, leader, method, req)
	if err != nil && reign.Err() != nil && ctx.Err() == nil {
		return nil, command.ErrNotLeader.With("%s leads no longer", leader)
	}
	return answer, err
}

// followed does what is due when Raft knows a leader: nothing waits for another one,
// and what became of the writes that were handed to that is found out.
func (n *Node) followed(leader string) {
	if leader == "" {
		return
	}
	n.reign.of(leader)
	if leader != n.id && n.own.waits() {
		n.loop(n.hasten)
	}
}

// hasten has this node apply what its new leader has committed, of which it would
// otherwise learn with the next entry or commit interval only. Once the first entry of the
// leader's term is applied here, it is known what became of writes handed to others.
func (n *Node) hasten() {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.RoundTimeout)
	defer cancel()
	if p, err := n.AskIndex(ctx, false); err == nil {
		_ = n.Await(ctx, p) // then the log brings it
	}
}
