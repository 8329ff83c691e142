package clustertests

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// client speaks to one node.
func (n *node) client(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Addresses: []string{n.http}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// term is Raft's at a node.
func (n *node) term(t testing.TB) string {
	t.Helper()
	self, _, err := n.client(t).Self(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return self.Stats["raft"]["term"]
}

// row is how the leader sees a learner, asked of any node.
func row(t testing.TB, asked *node, name string) command.Replica {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	code, body, err := get(ctx, asked, "/v1/replicas")
	var all []command.Replica
	if err != nil || code != http.StatusOK || json.Unmarshal(body, &all) != nil {
		t.Fatalf("replicas at %s: %d %s, %v", asked, code, body, err)
	}
	for _, r := range all {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("%s is not among %+v", name, all)
	return command.Replica{}
}

// A paused learner serves what x, leaves the voters alone, and is level soon after
// it is resumed.
func TestPausedLearnerKeepsStillOverACrash(t *testing.T) {
	c := startCluster(t, threeSites)
	e1, w1 := c.node("e1"), c.node("w1")
	leader := c.waitLeader()
	term := leader.term(t)
	if w := put(leader, "k", "before", "await=all"); !w.ok {
		t.Fatalf("%+v", w)
	}
	if s, _, err := e1.client(t).PauseReplica(t.Context()); err != nil || s.Status != "paused" || s.Running {
		t.Fatalf("pause: %+v, %v", s, err)
	}
	c.wait(5*time.Second, "the leader sees it", func() bool { return row(t, w1, "e1").Status == "paused" })
	sizes := map[*node]int64{}
	for _, n := range c.nodes {
		sizes[n] = size(t, n.log)
	}
	load := c.load()
	load.awaitWrites(200)
	for _, restarted := range []bool{false, true} {
		if restarted {
			c.kill(e1)
			c.start(e1)
			c.waitReady(e1)
			c.wait(5*time.Second, "the leader sees it again", func() bool { return row(t, w1, "e1").Status == "paused" })
		}
		if a, err := read(e1, "k", "stale"); err != nil || a.status != http.StatusOK || a.stalenessKnown == restarted {
			t.Errorf("restarted %v: stale read: %+v, %v", restarted, a, err)
		}
		for _, query := range []string{"consistent", "stale&min_index=1000000&wait=1m", "max_stale=1ms"} {
			began := time.Now()
			a, err := read(e1, "k", query)
			if err != nil || a.status != http.StatusServiceUnavailable || time.Since(began) > time.Second {
				t.Errorf("restarted %v: %s: %+v, %v, after %v", restarted, query, a, err, time.Since(began))
			}
		}
	}
	load.stop()
	if now := c.waitLeader(); now != leader || now.term(t) != term {
		t.Errorf("%s led in term %s, now %s in term %s", leader, term, now, now.term(t))
	}
	for n, had := range sizes {
		if n == e1 {
			continue
		}
		text := since(t, n.log, had)
		if strings.Contains(text, "[ERROR]") || strings.Count(text, "\n") > 20 {
			t.Errorf("%s wrote while a learner was paused:\n%s", n, text)
		}
	}
	r := row(t, w1, "e1")
	if r.Lag.Entries == 0 || r.Lag.Bytes == 0 || r.TransferredBytes == 0 || r.RemoteAddress == "" {
		t.Errorf("%+v", r)
	}
	began := time.Now()
	if _, _, err := e1.client(t).ResumeReplica(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.waitLevel(10 * time.Second)
	t.Logf("level %v after it was resumed", time.Since(began))
	c.wait(5*time.Second, "the leader sees it", func() bool { r := row(t, w1, "e1"); return r.Status == "level" && r.Lag.Entries == 0 })
	load.judge()
}

func size(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// since is what a file has beyond a size it had.
func since(t testing.TB, path string, had int64) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[min(had, int64(len(b))):])
}

// A slow line: a learner behind one is fed at the rate that is set, and a value that
// takes seconds arrives, while the leader goes on hearing from it and home writes on.
func TestLargeValueReachesALearnerThatIsFedSlowly(t *testing.T) {
	c := startCluster(t, threeSites, func(c *cluster) { c.extra = append(c.extra, "--wan-rate", "128KiB", "--max-value", "1MiB") })
	n1, e1 := c.node("n1"), c.node("e1")
	noise := make([]byte, 512<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	began := time.Now()
	w := put(n1, "large", string(noise), "")
	if !w.ok || time.Since(began) > 2*time.Second {
		t.Fatalf("at home it took %v: %+v", time.Since(began), w)
	}
	for i := range 20 {
		if w := put(n1, fmt.Sprint("small", i), "x", ""); !w.ok {
			t.Fatalf("%+v", w)
		}
	}
	for e1Applied := uint64(0); e1Applied < w.revision; {
		s, ok := e1.status()
		if !ok || s.Status == "cut-off" {
			t.Fatalf("while it is fed: %+v, %v", s, ok)
		}
		if e1Applied = s.Applied; time.Since(began) > 30*time.Second {
			t.Fatalf("not there after %v: %+v", time.Since(began), s)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("512 KiB were there after %v at 128 KiB/s", took)
	}
	c.waitLevel(20 * time.Second)
}
