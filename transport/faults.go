package transport

import (
	"context"
	"slices"
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
	from, to     []string      // nodes cut off in one direction, as seen from here
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
	return among(c.nodes, a) || among(c.nodes, b)
}

func among(nodes []string, who command.Hello) bool {
	return slices.Contains(nodes, who.Name) || slices.Contains(nodes, who.ID)
}

// direction is a way between this node and a peer that a cut may sever.
type direction func(c *cut, self, peer command.Hello) bool

func inward(c *cut, self, peer command.Hello) bool {
	return c.blocks(self, peer) || c != nil && self.ID != peer.ID && among(c.from, peer)
}

func outward(c *cut, self, peer command.Hello) bool {
	return c.blocks(self, peer) || c != nil && self.ID != peer.ID && among(c.to, peer)
}

// either is for connections yet to be made, which need both.
func either(c *cut, self, peer command.Hello) bool {
	return inward(c, self, peer) || outward(c, self, peer)
}

func (f *faults) blocks(d direction, peer command.Hello) bool {
	c := f.cut.Load()
	return c != nil && peer.ID != "" && d(c, f.self, peer)
}

// SetCut sets the fault switch: from now on this node and the peers the tokens
// sever it from exchange nothing. A token is the name of a site, which is cut
// off from all other sites, or "node:" and the name of a node, which is cut off
// from all others. "from:" and a name cut off what comes from that node to this
// one, "to:" what goes from this one to it; what travels the other way arrives on
// connections that exist, and new ones cannot be made. No tokens heal everything.
// Without Config.Faults nothing happens.
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
			switch kind, name, _ := strings.Cut(token, ":"); kind {
			case "node":
				next.nodes = append(next.nodes, name)
			case "from":
				next.from = append(next.from, name)
			case "to":
				next.to = append(next.to, name)
			default:
				next.sites = append(next.sites, token)
			}
		}
	}
	if old := t.faults.cut.Swap(next); old != nil {
		close(old.over)
	}
	t.log.Info("fault switch set", "cut", tokens)
}

// healed waits until the peer is not cut off, in either direction.
func (f *faults) healed(ctx context.Context, peer command.Hello) error {
	for f.blocks(either, peer) {
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
