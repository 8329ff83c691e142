package clustertests

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// traffic is what scenes run under: registers and journals, on all nodes of a cluster,
// and what else a scene is about.
type traffic struct {
	c        *cluster
	env      *workload.Env
	register *workload.Register
	run      *workload.Run

	acknowledged atomic.Int64 // writes

	mu     sync.Mutex
	served map[string]int      // reads answered by node
	lost   map[string][]string // node -> writes that were not decided
}

// load starts the clients, those of more workloads too.
func (c *cluster) load(more ...workload.Workload) *traffic {
	c.t.Helper()
	t := &traffic{c: c, register: workload.NewRegister(), served: map[string]int{}, lost: map[string][]string{}}
	recorded := history.New()
	recorded.Observe = t.count
	t.env = c.seenByClients(recorded)
	var err error
	all := append([]workload.Workload{t.register, workload.NewJournal()}, more...)
	if t.run, err = workload.Start(context.Background(), t.env, all...); err != nil {
		c.t.Fatal(err)
	}
	return t
}

// seenByClients is the cluster as workloads see it.
func (c *cluster) seenByClients(recorded *history.History) *workload.Env {
	e := &workload.Env{History: recorded, Seed: uint64(time.Now().UnixNano()), Clients: 6}
	for _, n := range c.nodes {
		e.Nodes = append(e.Nodes, n.api())
	}
	return e
}

// count keeps the tallies of registers and journals.
func (t *traffic) count(o history.Op) {
	if o.Workload != "register" && o.Workload != "journal" {
		return
	}
	read := o.Name == "read"
	if !read && o.Outcome == history.Decided {
		t.acknowledged.Add(1)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !read:
		t.lost[o.Node] = append(t.lost[o.Node], o.String())
	case o.Outcome == history.Decided:
		t.served[o.Node]++
	}
}

// awaitWrites waits until that many more writes are acknowledged.
func (t *traffic) awaitWrites(more int64) {
	t.c.t.Helper()
	target := t.acknowledged.Load() + more
	t.c.wait(30*time.Second, fmt.Sprintf("%d more writes are acknowledged", more), func() bool { return t.acknowledged.Load() >= target })
}

// awaitReads waits until a node has answered that many more reads.
func (t *traffic) awaitReads(n *node, more int) {
	t.c.t.Helper()
	count := func() int {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.served[n.name]
	}
	target := count() + more
	t.c.wait(30*time.Second, fmt.Sprintf("%d more reads are answered by %s", more, n), func() bool { return count() >= target })
}

// node is a node as the clients see it.
func (t *traffic) node(n *node) *workload.Node {
	for _, known := range t.env.Nodes {
		if known.Name == n.name {
			return known
		}
	}
	panic(n.name + " is not under load")
}

// leave has clients leave a node alone, and waits until none waits for it.
func (t *traffic) leave(n *node) {
	t.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), workload.Patience)
	defer cancel()
	if t.env.Leave(ctx, t.node(n)); ctx.Err() != nil {
		t.c.t.Fatalf("clients go on waiting for %s", n)
	}
}

// stop ends the clients and waits for them.
func (t *traffic) stop() { t.run.Stop() }

// judge stops the clients, brings the cluster back to full strength and holds
// everything against what the clients saw.
func (t *traffic) judge() {
	t.c.t.Helper()
	t.stop()
	t.c.inspect()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := workload.CheckLevel(ctx, t.env.Nodes); err != nil {
		t.c.t.Error(err)
	}
	found, err := t.run.Judge(context.Background())
	if err != nil {
		t.c.t.Error(err)
	}
	for _, a := range found {
		t.c.t.Errorf("%.20000s", a)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	failed, reads := 0, 0
	for _, n := range t.c.nodes {
		failed += len(t.lost[n.name])
		reads += t.served[n.name]
	}
	t.c.t.Logf("%d writes acknowledged, %d refused or unknown, %d reads", t.acknowledged.Load(), failed, reads)
}
