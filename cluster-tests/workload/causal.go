package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Causal is clients that go from node to node and carry with them the revision of the
// last answer they got, as min_index. The promises: whatever node such a client asks,
// in whatever mode, it reads what it wrote before, sees nothing older than what it saw
// before, and what it writes comes after what it read. Without the revision it may see
// older things, but not at a node that has shown it newer ones.
type Causal struct{}

// NewCausal makes the workload.
func NewCausal() *Causal { return &Causal{} }

// Name implements Workload.
func (*Causal) Name() string { return "causal" }

// Setup implements Workload.
func (*Causal) Setup(context.Context, *Env) error { return nil }

// causalKeys are as many as all clients share.
const causalKeys = 4

func causalKey(i int) string { return fmt.Sprint("causal/", i) }

// Clients implements Workload: of five requests one writes, three carry the revision
// along, and one does not.
func (c *Causal) Clients(ctx context.Context, e *Env) {
	e.each(max(2, e.Clients/2), func(id int) {
		r := e.Rand(c.Name(), id)
		var token uint64
		e.loop(ctx, r, e.Nodes, func(n *Node, seq int) bool {
			key := causalKey(r.IntN(causalKeys))
			dice := r.IntN(5)
			if dice == 0 {
				outcome, got := e.write(ctx, c.Name(), id, n, "put", Write{Key: key, Value: fmt.Sprintf("%d.%d", id, seq)})
				token = max(token, got.Revision)
				return outcome == history.Decided
			}
			read := Read{Key: key, Mode: anyMode(r, n)}
			if dice > 1 {
				read.MinIndex = token
			}
			seen, ok := e.read(ctx, c.Name(), id, n, read)
			if dice > 1 {
				token = max(token, seen.Applied)
			}
			return ok
		})
	})
}

// anyMode is one in which a node can be asked, mostly one in which it answers by itself.
func anyMode(r *rand.Rand, n *Node) ReadMode {
	switch r.IntN(4) {
	case 0:
		return Consistent
	case 1:
		if n.Voter {
			return Default
		}
		return Copied
	}
	return Stale
}

// Finish implements Workload: the last word on every key, at every node.
func (c *Causal) Finish(ctx context.Context, e *Env) error {
	var token uint64
	for i := range causalKeys {
		for _, n := range e.Nodes {
			seen, ok := e.read(ctx, c.Name(), e.Clients, n, Read{Key: causalKey(i), Mode: Stale, MinIndex: token})
			if !ok {
				return fmt.Errorf("%s does not say what it has of %s", n, causalKey(i))
			}
			token = max(token, seen.Applied)
		}
	}
	return nil
}

// Check implements Workload.
func (*Causal) Check(ops []history.Op) []Anomaly {
	all := accesses(ops)
	return slices.Concat(broken(ops), nonPrefix(all), goingBack(all), unordered(all))
}

// unordered looks for what breaks the order of one client's requests.
func unordered(all []access) (found []Anomaly) {
	// latest is by client the access that knew of the highest revision so far.
	latest := map[int]access{}
	knows := func(a access) uint64 {
		if a.kind == readOp {
			return a.seen.Applied
		}
		return a.written.Revision
	}
	for _, a := range all {
		before, any := latest[a.Client]
		switch {
		case a.kind == readOp && a.seen.Applied < a.read.MinIndex:
			found = append(found, anomaly("min_index ignored", fmt.Sprintf("%d was asked for, %d answered", a.read.MinIndex, a.seen.Applied), before.Op, a.Op))
		case any && a.changed() && a.written.Revision <= knows(before):
			found = append(found, anomaly("write before what was read", fmt.Sprintf("it has revision %d, and the client knew of %d", a.written.Revision, knows(before)), before.Op, a.Op))
		}
		if a.Outcome == history.Decided && (!any || knows(a) > knows(before)) {
			latest[a.Client] = a
		}
	}
	return found
}
