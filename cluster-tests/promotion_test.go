package clustertests

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// fourRemote is threeSites with a second learner at east.
var fourRemote = append(slices.Clone(threeSites), spec{"e2", "east", false, command.RoleLearner})

// promote makes a site the home by the command line, as an operator would.
func (c *cluster) promote(at *node, site string) command.PromotionPlan {
	c.t.Helper()
	var plan command.PromotionPlan
	c.wait(20*time.Second, "a plan to promote "+site, func() bool {
		out, _, err := c.run(10*time.Second, at, "operator", "promote-site", site, "--json")
		return err == nil && json.Unmarshal([]byte(out), &plan) == nil
	})
	if plan.Started || plan.Confirm == "" {
		c.t.Fatalf("the plan is %+v", plan)
	}
	if _, errs, err := c.run(10*time.Second, at, "operator", "promote-site", site, "--confirm", plan.Confirm+"0"); err == nil || !strings.Contains(errs, "does not fit the plan") {
		c.t.Errorf("a wrong confirmation: %v, %s", err, errs)
	}
	if out, errs, err := c.run(60*time.Second, at, "operator", "promote-site", site, "--confirm", plan.Confirm); err != nil || !strings.Contains(out, "is home now") {
		c.t.Fatalf("promote %s: %v\n%s%s", site, err, out, errs)
	}
	return plan
}

// startAs starts a node that does not run in another role, with a member of the
// cluster to find it by.
func (c *cluster) startAs(n *node, role command.Role, home bool, join *node) {
	c.t.Helper()
	n.args = []string{"agent", "--node", n.name, "--site", n.site, "--role", string(role), "--join", join.raft,
		"--data-dir", n.data, "--http", n.http, "--raft", n.raft, "--fault-switch", n.fault}
	if home {
		n.args = append(n.args, "--home")
	}
	c.start(n)
}

// rejoin runs holdfast rejoin for a node that does not run.
func (c *cluster) rejoin(n, at *node) (r struct {
	Changes, Keys, First, Last, Common, Revision uint64
	File                                         string
}) {
	c.t.Helper()
	out, errs, err := c.run(30*time.Second, at, "rejoin", "--data-dir", n.data, "--join", at.raft, "--json")
	if err != nil {
		c.t.Fatalf("rejoin %s: %v\n%s%s", n, err, out, errs)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// votes reports whether a node is a voter, as another one has it.
func votes(n, as *node) bool {
	var v struct {
		Servers []struct {
			Node  string
			Voter bool
		}
	}
	code, body, err := get(context.Background(), as, "/v1/operator/raft/configuration?stale")
	if err != nil || code != http.StatusOK || json.Unmarshal(body, &v) != nil {
		return false
	}
	for _, s := range v.Servers {
		if s.Node == n.name {
			return s.Voter
		}
	}
	return false
}

// The home site is cut off and goes on; east becomes home. At the first contact the old
// home is fenced, and what it wrote alone is set aside before its nodes come back.
func TestASiteBecomesHomeAndTheOldOneIsFencedAndComesBack(t *testing.T) {
	c := startCluster(t, fourRemote)
	n1, e1, e2, w1 := c.node("n1"), c.node("e1"), c.node("e2"), c.node("w1")
	for i := range 20 {
		if w := put(n1, fmt.Sprintf("k/%d", i), "before", ""); !w.ok {
			t.Fatalf("put: %+v", w)
		}
	}
	c.waitLevel(10 * time.Second)
	for site, want := range map[string]string{"east": "is not lost", "nowhere": "there is no site"} {
		if _, errs, err := c.run(10*time.Second, e1, "operator", "promote-site", site); err == nil || !strings.Contains(errs, want) {
			t.Errorf("promote %s: %v, %s; want %q", site, err, errs, want)
		}
	}

	c.cutOff("home")
	var late []string
	for i := range 7 {
		late = append(late, fmt.Sprintf("late/%d", i))
		if w := put(n1, late[i], "at the old home", ""); !w.ok {
			t.Fatalf("put at the old home: %+v", w)
		}
	}
	c.waitLevel(10*time.Second, c.node("n1"), c.node("n2"), c.node("n3"))
	plan := c.promote(w1, "east") // by way of another site
	if plan.HomeSite != "home" || plan.Epoch != 2 || len(plan.Unreachable) != 3 {
		t.Errorf("the plan was %+v", plan)
	}
	seed := c.node(plan.Seed)
	if w := put(w1, "k/0", "after", ""); !w.ok || w.revision <= 1<<32 {
		t.Errorf("put by way of west: %+v", w)
	}
	c.waitLevel(20*time.Second, e1, e2, w1)

	c.heal()
	old := []*node{n1, c.node("n2"), c.node("n3")}
	for _, n := range old {
		c.wait(20*time.Second, n.name+" is fenced", func() bool {
			code, body, err := get(context.Background(), n, "/readyz")
			return err == nil && code == http.StatusServiceUnavailable && strings.Contains(string(body), "another site has become home")
		})
		if w := put(n, "late/7", "refused", ""); w.ok || w.status != http.StatusInternalServerError {
			t.Errorf("put at %s: %+v", n, w)
		}
		if a, err := read(n, "late/6", "stale"); err != nil || len(a.entries) != 1 {
			t.Errorf("stale read at %s: %+v, %v", n, a, err)
		}
	}
	for _, n := range old {
		c.stop(n)
		r := c.rejoin(n, e1)
		var keys []string
		for _, line := range asideLines(t, r.File) {
			keys = append(keys, line.Key)
			if value := "at the old home"; line.Op != "put" || string(line.Value) != value {
				t.Errorf("%s set aside %+v", n, line)
			}
		}
		if !slices.Equal(keys, late) || r.Changes != uint64(len(late)) {
			t.Errorf("%s set aside %q; want %q: %+v", n, keys, late, r)
		}
		c.startAs(n, command.RoleLearner, false, e1)
	}
	c.waitLevel(30 * time.Second)

	// The other node of the site becomes a voter, and the seed stays one when it is
	// started as before.
	other := e2
	if seed == e2 {
		other = e1
	}
	c.stop(other)
	c.startAs(other, command.RoleVoter, true, seed)
	c.wait(20*time.Second, other.name+" votes", func() bool { return votes(other, w1) })
	if out, errs, err := c.run(20*time.Second, seed, "snapshot", "save", filepath.Join(t.TempDir(), "new-home.snap")); err != nil {
		t.Errorf("an archive of the new home: %v\n%s%s", err, out, errs)
	}
	c.stop(seed)
	if out, errs, err := c.run(20*time.Second, seed, "check", seed.data); err != nil {
		t.Errorf("a check of the seed: %v\n%s%s", err, out, errs)
	}
	c.start(seed)
	c.waitReady(seed)
	c.waitLeader(e1, e2)
	if !votes(seed, w1) {
		t.Errorf("%s votes no longer", seed)
	}
	if w := put(n1, "k/1", "by way of the old home", ""); !w.ok {
		t.Errorf("put: %+v", w)
	}
}

// asideLine is a line of a file of changes that were set aside.
type asideLine struct {
	Revision uint64
	Op, Key  string
	Value    []byte
}

func asideLines(t *testing.T, path string) (lines []asideLine) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var l asideLine
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

// The home site is destroyed. West has more than east, which becomes home all the same.
func TestALostHomeIsReplacedWithTheDataThatGoesFurthest(t *testing.T) {
	c := startCluster(t, threeSites)
	n1, e1, w1 := c.node("n1"), c.node("e1"), c.node("w1")
	if w := put(n1, "a", "both have it", ""); !w.ok {
		t.Fatalf("put: %+v", w)
	}
	c.waitLevel(10 * time.Second)
	c.cutOff("east")
	for i := range 30 {
		if w := put(n1, fmt.Sprintf("west/%d", i), "only west has it", ""); !w.ok {
			t.Fatalf("put: %+v", w)
		}
	}
	c.waitLevel(10*time.Second, n1, w1)
	c.kill(n1, c.node("n2"), c.node("n3"))
	c.heal()
	plan := c.promote(e1, "east")
	if plan.Seed != "e1" || plan.Source != "w1" {
		t.Errorf("the plan was %+v", plan)
	}
	c.waitLevel(20*time.Second, e1, w1)
	if keys, err := keysUnder(e1, "west/", "consistent"); err != nil || len(keys) != 30 {
		t.Errorf("the new home has %d keys that only west had, %v", len(keys), err)
	}
	// What comes back with nothing of its own needs no rejoin, but another role.
	for _, name := range []string{"n1", "n2", "n3"} {
		c.startAs(c.node(name), command.RoleLearner, false, e1)
	}
	c.waitLevel(30 * time.Second)
}
