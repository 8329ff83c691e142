package clustertests

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// server is what the node that is asked says of a member; false when it knows
// none of that name.
func (c *cluster) server(asked *node, name string) (command.Server, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	status, body, err := get(ctx, asked, "/v1/sites")
	var sites []command.Site
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &sites) != nil {
		return command.Server{}, false
	}
	for _, site := range sites {
		for _, s := range site.Servers {
			if s.Name == name {
				return s, true
			}
		}
	}
	return command.Server{}, false
}

// waitVoters waits until exactly these vote, and gives their names.
func (c *cluster) waitVoters(asked *node, names ...string) {
	c.t.Helper()
	slices.Sort(names)
	c.wait(20*time.Second, fmt.Sprintf("%v vote", names), func() bool {
		var voting []string
		for _, n := range c.nodes {
			if s, ok := c.server(asked, n.name); ok && s.Voter {
				voting = append(voting, n.name)
			}
		}
		slices.Sort(voting)
		return slices.Equal(voting, names)
	})
}

// pilot changes the setting of autopilot by the command line.
func (c *cluster) pilot(args ...string) {
	c.t.Helper()
	if _, stderr, err := c.run(20*time.Second, c.node("n1"), append([]string{"operator", "autopilot", "set-config"}, args...)...); err != nil {
		c.t.Fatalf("set-config %q: %v\n%s", args, err, stderr)
	}
}

// With a spare a cluster of three survives the loss of two voters, one after the other. When
// they are back they vote again, and the spare does not.
func TestASpareStandsInForADeadVoter(t *testing.T) {
	c := startCluster(t, append(slices.Clone(voters), spec{"s1", "home", true, command.RoleSpare}, spec{"e1", "east", false, command.RoleLearner}))
	w := c.load()
	defer w.stop()
	c.pilot("--dead-server-time", "1s")
	w.awaitWrites(100)
	e1, first := c.node("e1"), c.waitLeader()
	c.kill(first)
	left := without(c.voters(), first)
	c.waitVoters(e1, left[0].name, left[1].name, "s1")
	second := c.waitLeader(c.others(first)...)
	c.kill(second)
	c.waitLeader(c.others(first, second)...)
	w.awaitWrites(100)
	out, stderr, err := c.run(20*time.Second, e1, "operator", "autopilot", "state")
	if err != nil || !strings.Contains(out, "report") || !strings.Contains(out, "spare") {
		t.Errorf("autopilot state: %v\n%s%s", err, out, stderr)
	}
	c.start(first)
	c.start(second)
	c.waitVoters(e1, "n1", "n2", "n3")
	w.awaitWrites(100)
	w.judge()
}

// The same identity at another address, then another identity under the same name; and a
// learner that was removed while it was away.
func TestMembersMoveComeBackEmptyAndComeBackFromOblivion(t *testing.T) {
	c := startCluster(t, threeSites)
	leader := c.waitLeader()
	n, e1, w1 := without(c.voters(), leader)[0], c.node("e1"), c.node("w1")
	before, _ := c.server(leader, n.name)

	// It moves to another address, which is a name and no number.
	c.kill(n, e1)
	c.pilot("--cleanup-dead-servers", "--learner-cleanup-time", "1s")
	n.raft = freePort(t)
	_, port, err := net.SplitHostPort(n.raft)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("localhost", port)
	n.args = append(c.agentArgs(n), "--advertise-raft", address)
	c.start(n)
	c.waitReady(n)
	c.wait(20*time.Second, "all sites know the new address", func() bool {
		s, ok := c.server(w1, n.name)
		return ok && s.Address == address && s.ID == before.ID && s.Voter
	})
	c.waitLevel(20*time.Second, leader, n)

	// Its disk is lost.
	c.kill(n)
	c.wipe(n)
	c.start(n)
	c.wait(20*time.Second, n.name+" votes as a new member", func() bool {
		s, ok := c.server(leader, n.name)
		return ok && s.ID != before.ID && s.Voter
	})
	c.wait(20*time.Second, "leadership goes to "+n.name, func() bool {
		_, _, err := c.run(20*time.Second, w1, "operator", "transfer-leader", "--id", n.name)
		return err == nil
	})
	if w := put(w1, "after/the-move", "v", ""); !w.ok {
		t.Errorf("put: %+v", w)
	}

	// The learner that was away.
	c.wait(20*time.Second, "e1 is removed", func() bool { _, ok := c.server(n, "e1"); return !ok })
	c.start(e1)
	c.wait(20*time.Second, "e1 is a member again", func() bool { _, ok := c.server(n, "e1"); return ok })
	c.waitLevel(20*time.Second, n, e1)
}
