package node_test

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// patientCluster is three voters in which nothing that was asked of a silent leader
// ends, and no commit is heard of, within the test by itself.
func patientCluster(t *testing.T) *cluster {
	c := &cluster{t: t, members: map[string]*member{}}
	for _, m := range c.firstVoters() {
		m.probe, m.deadAfter = time.Hour, time.Hour
		m.edit = func(cfg *node.Config) {
			cfg.CommitInterval, cfg.RoundTimeout, cfg.Wait = time.Hour, 15*time.Second, 15*time.Second
		}
	}
	for _, m := range c.members {
		m.start()
	}
	for _, m := range c.members {
		m.waitJoined()
	}
	return c
}

// It is under way at a follower when the leader falls silent, and nobody writes at the
// new leader. What is heard of that must be enough.
func TestWhatWaitsForASilentLeaderGoesToItsSuccessor(t *testing.T) {
	for what, request := range map[string]func(*member) error{
		"a write": func(m *member) error { _, err := m.put("b", "2"); return err },
		"a read": func(m *member) error {
			_, err := m.read("a", command.ReadOptions{Mode: command.ReadConsistent})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			for range 5 {
				if waitedForASilentLeader(t, request) {
					return
				}
			}
			t.Fatal("it was the one asked that came to lead, each time: this shows nothing")
		})
	}
}

// waitedForASilentLeader makes a request that is under way as the leader falls silent, and
// returns false if the member that was asked came to lead, so that it showed nothing.
func waitedForASilentLeader(t *testing.T, request func(*member) error) (shown bool) {
	c := patientCluster(t)
	leader, followers := c.leader(), c.followers()
	leader.mustPut("a", "1")
	next, m := followers[0], followers[1] // of equally complete logs the first by id
	for _, f := range followers {
		if _, err := f.read("a", command.ReadOptions{Mode: command.ReadConsistent}); err != nil {
			t.Fatal(err) // and the connection is open
		}
	}
	leader.cutFrom(followers...)
	began := time.Now()
	if err := request(m); err != nil {
		t.Errorf("at %s: %v", m.name, err)
	}
	took := time.Since(began)
	if next.n.Load().Raft().State() != raft.Leader {
		leader.heal()
		return false
	}
	if took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	leader.heal()
	return true
}
