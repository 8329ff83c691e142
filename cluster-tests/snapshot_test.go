package clustertests

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// archived puts so many keys in and archives them.
func archived(t *testing.T, c *cluster, n *node, keys int) (file, digest string) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var lines strings.Builder
	for i := range keys {
		value := make([]byte, r.IntN(2000))
		for k := range value {
			value[k] = byte(r.Uint32())
		}
		fmt.Fprintf(&lines, "{\"key\":\"key/%05d\",\"flags\":%d,\"value\":%q}\n", i, i, base64.StdEncoding.EncodeToString(value))
	}
	in := filepath.Join(t.TempDir(), "in.ndjson")
	if err := os.WriteFile(in, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "archive.snap")
	for _, args := range [][]string{{"kv", "import", in}, {"snapshot", "save", file}} {
		if _, errs, err := c.run(time.Minute, n, args...); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, errs)
		}
	}
	return file, exported(t, c, n)
}

// exported is all that a node holds, as it exports it.
func exported(t *testing.T, c *cluster, n *node) string {
	t.Helper()
	out, errs, err := c.run(time.Minute, n, "kv", "export", "--consistent")
	if err != nil {
		t.Fatalf("export: %v\n%s", err, errs)
	}
	return out
}

// Processes that are killed while an archive is put in place have afterwards what it
// holds, or what was there before, and all the same.
func TestNodesKilledDuringARestoreComeOutEqual(t *testing.T) {
	c := startCluster(t, threeSites)
	c.waitLeader()
	e1 := c.node("e1")
	c.waitLevel(10 * time.Second)
	file, want := archived(t, c, e1, 20_000)
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for round := range 3 {
		if w := put(c.waitLeader(), "later", fmt.Sprint(round), ""); !w.ok {
			t.Fatalf("put: %+v", w)
		}
		done := make(chan error, 1)
		go func() {
			_, errs, err := c.run(2*time.Minute, e1, "snapshot", "restore", file)
			if err != nil {
				err = fmt.Errorf("%w: %s", err, errs)
			}
			done <- err
		}()
		time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond) // anywhere in it
		victims := []*node{c.voters()[round], c.node("w1")}
		c.kill(victims...)
		for _, n := range victims {
			c.start(n)
		}
		if err := <-done; err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		c.waitLevel(time.Minute)
		for _, n := range append(c.voters(), c.learners()...) {
			if got := exported(t, c, n); got != want {
				t.Errorf("round %d: %s exports %d bytes, %d were archived", round, n, len(got), len(want))
			}
		}
	}
}

func TestALearnerThatIsCutOffCanBeArchived(t *testing.T) {
	c := startCluster(t, threeSites)
	leader, e1 := c.waitLeader(), c.node("e1")
	if w := put(leader, "kept", "1", ""); !w.ok {
		t.Fatalf("put: %+v", w)
	}
	c.waitLevel(10 * time.Second)
	c.cutOff("east")
	file := filepath.Join(t.TempDir(), "archive.snap")
	c.wait(30*time.Second, "an archive needs the leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), workload.Patience)
		defer cancel()
		status, body, err := get(ctx, e1, "/v1/snapshot")
		return err == nil && status == http.StatusInternalServerError && strings.Contains(string(body), "No cluster leader")
	})
	if _, errs, err := c.run(time.Minute, e1, "snapshot", "save", "--stale", file); err != nil {
		t.Fatalf("save: %v\n%s", err, errs)
	}
	out, errs, err := c.run(time.Minute, e1, "snapshot", "inspect", "--json", file)
	var info struct{ Keys uint64 }
	if err != nil || json.Unmarshal([]byte(out), &info) != nil || info.Keys != 1 {
		t.Errorf("inspect: %v\n%s%s", err, out, errs)
	}
	c.heal()
}
