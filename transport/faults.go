package transport

import (
	"context"
	"strings"
	"sync/atomic"

	"github.com/holdfast-db/holdfast/command"
)

// faults is the switch that severs this node from others without root and
// without their noticing: nothing is reset, everything just stops.
type faults struct {
	self command.Hello
	cut  atomic.Pointer[cut] // nil: nothing is cut
}

// cut is one setting of the switch; immutable.
type cut struct {
	sites, nodes []string
	over         chan struct{} // closed when another setting takes its place
}

// blocks says whether traffic between two nodes is severed: when exactly one of
// them is inside a cut site, or either is a cut node. A node is never severed
// from itself.
func (c *cut) blocks(a, b command.Hello) bool {
	if c == nil || a.ID == b.ID {
		return false
	}
	for _, s := range c.sites {
		if (a.Site == s) != (b.Site == s) {
			return true
		}
	}
	for _, n := range c.nodes {
		if a.Name == n || a.ID == n || b.Name == n || b.ID == n {
			return true
		}
	}
	return false
}

func (f *faults) blocks(peer command.Hello) bool {
	c := f.cut.Load()
	return c != nil && peer.ID != "" && c.blocks(f.self, peer)
}

// SetCut sets the fault switch: from now on this node and the peers the tokens
// sever it from exchange nothing. A token is the name of a site, which is cut
// off from all other sites, or "node:" and the name of a node, which is cut off
// from all others. No tokens heal everything. Without Config.Faults nothing
// happens.
//
// A cut is silent. Reads and writes stall, and what arrives is held back, until
// the cut is healed or their deadline passes; dials hang until their timeout;
// a connection accepted from a cut peer stalls before its hello is answered. If
// healed in time, no byte is lost or out of order. Set it on both sides: a
// single side cannot hold back what it never sees.
func (t *Transport) SetCut(tokens []string) {
	if !t.cfg.Faults {
		if len(tokens) > 0 {
			t.log.Warn("fault switch is not enabled, nothing is cut", "tokens", tokens)
		}
		return
	}
	var next *cut
	if len(tokens) > 0 {
		next = &cut{over: make(chan struct{})}
		for _, token := range tokens {
			if name, ok := strings.CutPrefix(token, "node:"); ok {
				next.nodes = append(next.nodes, name)
			} else {
				next.sites = append(next.sites, token)
			}
		}
	}
	if old := t.faults.cut.Swap(next); old != nil {
		close(old.over)
	}
	t.log.Info("fault switch set", "cut", tokens)
}

// healed waits until the peer is not cut off.
func (f *faults) healed(ctx context.Context, peer command.Hello) error {
	for f.blocks(peer) {
		c := f.cut.Load()
		if c == nil {
			return nil
		}
		select {
		case <-c.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
