package clustertests

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
)

// scene is a disturbance of a three-site cluster under load. When it returns,
// the cluster is healed, judged and compared.
type scene struct {
	promise string
	disturb func(c *cluster, w *traffic)
}

var scenes = []scene{
	{"without any fault, everything holds", func(c *cluster, w *traffic) {
		w.awaitWrites(500)
	}},
	{"leader killed: another leads, nothing acknowledged is lost", func(c *cluster, w *traffic) {
		leader := c.waitLeader()
		c.kill(leader)
		killed := time.Now()
		w.awaitWrites(1)
		c.t.Logf("first write acknowledged %v after the kill", time.Since(killed).Round(time.Millisecond))
		w.awaitWrites(200)
		c.start(leader)
		c.waitReady(leader)
		w.awaitWrites(100)
	}},
	{"leader stopped: it hands over, and no request at another node fails", func(c *cluster, w *traffic) {
		leader := c.waitLeader()
		w.leave(leader)
		w.mu.Lock()
		clear(w.lost)
		w.mu.Unlock()
		c.stop(leader)
		w.awaitWrites(200)
		w.mu.Lock()
		for _, n := range c.others(leader) {
			if lost := w.lost[n.name]; len(lost) > 0 {
				c.t.Errorf("%d writes at %s failed during the handover, the first with: %s", len(lost), n, lost[0])
			}
		}
		w.mu.Unlock()
		w.env.ComeBack(w.node(leader))
		c.start(leader)
		c.waitReady(leader)
	}},
	pausedLeader,
	{"leader cut off: another leads, the old one refuses what it cannot promise", func(c *cluster, w *traffic) {
		leader := c.waitLeader()
		c.cutOff("node:" + leader.name)
		c.waitLeader(without(c.voters(), leader)...)
		w.awaitWrites(200)
		c.wait(5*time.Second, leader.name+" knows that it leads no longer", func() bool { s, ok := leader.status(); return ok && s.Mode != "leader" })
		demandAlone(c, leader)
		c.heal()
		c.wait(15*time.Second, leader.name+" answers consistent reads again", func() bool {
			a, err := read(leader, "none", "consistent")
			return err == nil && a.status == http.StatusNotFound
		})
		w.awaitReads(leader, 20)
	}},
	{"remote site cut off: it goes on serving, home goes on writing, it rejoins by itself", func(c *cluster, w *traffic) {
		e1 := c.node("e1")
		c.cutOff("east")
		c.wait(15*time.Second, "e1 says that it is cut off", func() bool { s, ok := e1.status(); return ok && s.Status == "cut-off" })
		w.awaitWrites(200)
		w.awaitReads(e1, 50)
		before, _ := e1.status()
		demandAlone(c, e1)
		w.awaitWrites(50)
		if after, _ := e1.status(); after.Applied != before.Applied || after.Staleness <= before.Staleness {
			c.t.Errorf("while cut off e1 went from revision %d, staleness %d ms to revision %d, staleness %d ms", before.Applied, before.Staleness, after.Applied, after.Staleness)
		}
		c.heal()
		c.wait(30*time.Second, "e1 is level again", func() bool { s, ok := e1.status(); return ok && s.Status == "level" && s.Applied > before.Applied })
		w.awaitReads(e1, 50)
	}},
	{"home cut off from all other sites: both go on with what they may", func(c *cluster, w *traffic) {
		c.cutOff("home")
		for _, n := range c.learners() {
			c.wait(15*time.Second, n.name+" says that it is cut off", func() bool { s, ok := n.status(); return ok && s.Status == "cut-off" })
		}
		w.awaitWrites(200)
		for _, n := range c.learners() {
			w.awaitReads(n, 50)
			demandAlone(c, n)
		}
		c.heal()
	}},
	{"majority of the voters killed: nothing is acknowledged, local reads go on", func(c *cluster, w *traffic) {
		leader := c.waitLeader()
		follower := without(c.voters(), leader)[0]
		c.kill(leader, follower)
		for _, n := range c.learners() {
			w.awaitReads(n, 50)
		}
		for _, n := range without(c.nodes, leader, follower) {
			demandAlone(c, n)
		}
		c.start(follower)
		w.awaitWrites(200)
		c.start(leader)
		c.waitReady(leader)
	}},
	{"each node killed in turn", func(c *cluster, w *traffic) {
		for _, n := range c.nodes {
			c.kill(n)
			w.awaitWrites(80)
			c.start(n)
			c.waitReady(n)
			w.awaitWrites(40)
		}
	}},
	{"all nodes killed at once: everything acknowledged is there again", func(c *cluster, w *traffic) {
		for range 2 {
			c.kill(c.nodes...)
			for _, n := range c.nodes {
				c.start(n)
			}
			for _, n := range c.nodes {
				c.waitReady(n)
			}
			w.awaitWrites(200)
		}
	}},
	{"a learner killed over and over while it catches up", func(c *cluster, w *traffic) {
		w1 := c.node("w1")
		for range 4 {
			c.kill(w1)
			w.awaitWrites(100)
			c.start(w1)
			c.waitReady(w1)
		}
		w.awaitReads(w1, 20)
	}},
}

// without are nodes but those named.
func without(nodes []*node, but ...*node) []*node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return slices.Contains(but, n) })
}

// demandAlone asks a node without a path to a leader for what it must refuse
// and for what it must still give.
func demandAlone(c *cluster, n *node) {
	c.t.Helper()
	type request struct {
		what, method, path string
		status             int
		text               string
	}
	requests := []request{
		{"a write", http.MethodPut, "/v1/kv/alone", http.StatusInternalServerError, "No cluster leader"},
		{"a consistent read", http.MethodGet, "/v1/kv/alone?consistent", http.StatusInternalServerError, "No cluster leader"},
		{"a read within a bound it does not keep", http.MethodGet, "/v1/kv/alone?max_stale=1ms", http.StatusServiceUnavailable, ""},
		{"a stale read", http.MethodGet, "/v1/kv/journal/?keys&stale", http.StatusOK, "journal/"},
		{"the topology", http.MethodGet, "/v1/sites", http.StatusOK, "w1"},
	}
	var wg sync.WaitGroup
	for _, r := range requests {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*workload.Patience)
			defer cancel()
			began := time.Now()
			status, body, _, err := call(ctx, n, r.method, r.path, nil)
			switch {
			case err != nil:
				c.t.Errorf("%s, alone, gave no answer to %s: %v", n, r.what, err)
			case status != r.status || !strings.Contains(string(body), r.text):
				c.t.Errorf("%s, alone, answered %s with %d %.200q, want %d with %q", n, r.what, status, body, r.status, r.text)
			case time.Since(began) > 9*time.Second:
				c.t.Errorf("%s, alone, answered %s only after %v", n, r.what, time.Since(began))
			}
		})
	}
	wg.Wait()
}

func TestThreeSitesUnderLoad(t *testing.T) {
	for i, s := range scenes {
		onLogStores(t, i, s.promise, func(t *testing.T, logStore option) {
			c := startCluster(t, threeSites, logStore)
			w := c.load()
			defer w.stop()
			w.awaitWrites(200)
			s.disturb(c, w)
			w.judge()
		})
	}
}

// A log store can be changed from one start to the next: the log is carried
// over, and no vote or entry is forgotten.
func TestLogStoreChangesAcrossARestart(t *testing.T) {
	c := startCluster(t, threeSites, withLogStore("wal"))
	w := c.load()
	defer w.stop()
	w.awaitWrites(300)
	for _, n := range c.nodes {
		c.stop(n)
		i := slices.Index(n.args, "wal")
		n.args[i] = "boltdb"
		c.start(n)
		c.waitReady(n)
		w.awaitWrites(50)
	}
	w.judge()
}

// A learner whose disk was lost comes back with an empty directory and gets a
// full copy.
func TestLearnerWithEmptyDiskJoinsAnew(t *testing.T) {
	c := startCluster(t, threeSites)
	w := c.load()
	defer w.stop()
	w.awaitWrites(300)
	e1 := c.node("e1")
	c.kill(e1)
	c.wipe(e1)
	w.awaitWrites(100)
	c.start(e1)
	c.waitReady(e1)
	w.awaitReads(e1, 20)
	if s, ok := e1.status(); !ok || s.Mode != string(command.RoleLearner) {
		t.Errorf("e1 came back as %q", s.Mode)
	}
	// The new copy is at least as new as the leader was when it joined, so the
	// judges hold its reads against those of the lost one, too.
	w.judge()
}
