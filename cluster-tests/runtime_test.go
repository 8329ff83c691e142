package clustertests

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// rig is a running cluster as TestJepsen uses it, whatever it runs on. Its methods
// but those of fault.Target fail the test by themselves.
type rig interface {
	fault.Target
	// clients are its nodes as workloads see them.
	clients() []*workload.Node
	// recover waits until all nodes are ready and stand at one revision with one
	// lineage. Nothing is broken any more when it is called.
	recover(within time.Duration)
	// watch has losses of power told: nodes have forgotten what they had not synced.
	watch(forgets func(node string))
	// directory holds its logs and data, and stays if the test fails.
	directory() string
}

// platform is a way to run clusters.
type platform struct {
	name string
	// most bounds the rounds in which all faults are to act, where a round takes long;
	// 0 for no bound.
	most int
	// lacks says why it cannot be had here; "" when it can.
	lacks func() string
	// fixed is the one cluster it runs; nil where any may be drawn.
	fixed *setup
	// start starts a cluster that ends with the test t: inspected, and without a trace
	// unless the test has failed. Disks of its own, if it has some, last as long as the
	// test disks.
	start func(t, disks testing.TB, s setup) rig
}

// setup is what a cluster of TestJepsen is made of, drawn from a seed.
type setup struct {
	nodes    []spec
	logStore string
	flags    []string // of every agent
	disks    bool     // each node has a disk of its own, where the runtime has some
	// trips are the round trips between home and the other sites, where the runtime
	// has lines.
	trips map[string]time.Duration
}

func (s setup) String() string {
	names := make([]string, len(s.nodes))
	for i, n := range s.nodes {
		names[i] = fmt.Sprint(n.name, "/", n.site)
	}
	return strings.Join(slices.Concat([]string{strings.Join(names, " "), "log store " + s.logStore}, s.flags), ", ")
}

// hasSpare says whether a member stands in for dead voters.
func (s setup) hasSpare() bool {
	return slices.ContainsFunc(membersOf(nodesOf(s.nodes)), func(m fault.Member) bool { return m.Spare })
}

func nodesOf(specs []spec) []*node {
	nodes := make([]*node, len(specs))
	for i, s := range specs {
		nodes[i] = &node{spec: s}
	}
	return nodes
}

// runtimes are all there are on this system.
var runtimes = []platform{netnsRuntime, loopbackRuntime, composeRuntime}

// loopbackRuntime runs nodes as processes that share the loopback interface, cut off from
// each other by the product's own fault switch. It needs nothing.
var loopbackRuntime = platform{
	name:  "loopback",
	lacks: func() string { return "" },
	start: func(t, _ testing.TB, s setup) rig { return s.processes(t) },
}

// processes starts the cluster as processes.
func (s setup) processes(t testing.TB, more ...option) *cluster {
	c := startCluster(t, s.nodes, append(more, withClocksIfPossible, withLogStore(s.logStore), withFlags(s.flags...))...)
	if s.hasSpare() {
		c.pilot("--dead-server-time", "1s")
	}
	return c
}

func (c *cluster) clients() []*workload.Node { return clientsOf(c.nodes) }

func (c *cluster) watch(func(string)) {} // it loses none

func (c *cluster) directory() string { return c.dir }

func (c *cluster) recover(within time.Duration) {
	c.t.Helper()
	until := time.Now().Add(within)
	for _, n := range c.nodes {
		c.wait(time.Until(until), n.name+" is ready again", func() bool {
			if !n.running() {
				c.t.Fatalf("%s ended by itself: %v\n%s", n, n.state, lastLines(n.log, 5))
			}
			ok, _ := n.ready()
			return ok
		})
	}
	c.waitLevel(time.Until(until), c.nodes...)
	for _, n := range c.nodes {
		n.mu.Lock()
		died := n.died
		n.mu.Unlock()
		if len(died) > 0 {
			c.t.Errorf("%s ended by itself while it was under faults: %v", n, died)
		}
	}
}
