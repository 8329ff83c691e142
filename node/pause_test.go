package node_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
)

// sees waits until the leader's row of a learner is as ok wants it.
func (c *cluster) sees(learner *member, what string, ok func(command.Replica) bool) (r command.Replica) {
	c.t.Helper()
	eventually(c.t, what, func() bool {
		all, err := c.leader().replica.Replicas(c.t.Context())
		if err != nil || len(all) != 1 || all[0].Name != learner.name || all[0].Site != learner.cfg.Self.Site {
			return false
		}
		r = all[0]
		return ok(r)
	})
	return r
}

// showsItself is a member's own line in what it shows of the sites.
func (m *member) showsItself() (self command.Server) {
	m.t.Helper()
	sites, _, err := m.n.Load().Sites(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, site := range sites {
		for _, s := range site.Servers {
			if s.ID == m.id.ID {
				self = s
			}
		}
	}
	return self
}

func TestAPausedLearnerServesWhatItHasAndDisturbsNobody(t *testing.T) {
	c := newCluster(t, nil)
	e := c.add("e1", "east", command.RoleLearner)
	c.write("k", "before")
	c.level()
	eventually(t, "e1 knows that its copy is complete", func() bool { return e.n.Load().Status().Ready })
	c.sees(e, "the leader knows it too", func(r command.Replica) bool { return r.AppliedIndex > 0 })
	leader := c.leader()
	term := leader.n.Load().Status().Term
	for _, voter := range []*member{leader, c.followersOf(leader)[0]} {
		if err := voter.replica.Pause(t.Context()); !errors.Is(err, command.ErrNotLearner) {
			t.Errorf("a voter was paused: %v", err)
		}
		if err := voter.replica.Resume(t.Context()); !errors.Is(err, command.ErrNotLearner) {
			t.Errorf("a voter was resumed: %v", err)
		}
	}
	if err := e.replica.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := e.showsItself(); s.State != "paused" {
		t.Errorf("it calls itself %+v", s)
	}
	row := c.sees(e, "the leader sees that e1 is paused", func(r command.Replica) bool { return r.Status == "paused" })
	if row.RemoteAddress == "" || row.LastSeenTimestamp == "" || row.TransferredBytes == 0 || row.TransferredEntries == 0 || row.LastRequest == "" {
		t.Errorf("%+v", row)
	}
	var at uint64
	for i := range 50 {
		at = c.leader().mustPut("k", fmt.Sprint(i))
	}
	check := func(staleKnown bool) {
		t.Helper()
		v, info, err := e.readInfo("k", command.ReadOptions{Mode: command.ReadStale})
		if err != nil || v != "before" || info.StalenessKnown != staleKnown {
			t.Errorf("stale read: %q, %+v, %v", v, info, err)
		}
		began := time.Now()
		for what, do := range map[string]func() error{
			"consistent": func() error { _, err := e.read("k", command.ReadOptions{Mode: command.ReadConsistent}); return err },
			"own writes": func() error {
				_, err := e.read("k", command.ReadOptions{Mode: command.ReadStale, MinRevision: at})
				return err
			},
			"bounded": func() error {
				_, err := e.read("k", command.ReadOptions{Mode: command.ReadStale, MaxStale: 1})
				return err
			},
			"write":       func() error { _, err := e.put("k", "x"); return err },
			"other's row": func() error { _, err := e.replica.Replicas(t.Context()); return err },
		} {
			if err := do(); !errors.Is(err, command.ErrPaused) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the refusals took %v", took)
		}
		if s := e.replica.ReplicaStatus(); s.Running || s.Status != "paused" || s.Mode != "learner" {
			t.Errorf("%+v", s)
		}
		if s := e.n.Load().Status(); !s.Ready {
			t.Errorf("it serves, and says %q", s.NotReadyBecause)
		}
	}
	check(true)
	e.stop()
	e.start()
	c.sees(e, "the leader sees that e1 is paused after its restart", func(r command.Replica) bool { return r.Status == "paused" })
	check(false)
	row = c.sees(e, "what it lacks is known", func(r command.Replica) bool { return r.Lag.Entries >= 50 })
	if row.Lag.Bytes == 0 || row.AppliedIndex == 0 || row.Log.Distance <= 0 {
		t.Errorf("%+v", row)
	}
	if now := c.leader(); now != leader || now.n.Load().Status().Term != term {
		t.Errorf("%s led in term %d, now %s in term %d", leader.name, term, now.name, now.n.Load().Status().Term)
	}

	began := time.Now()
	if err := e.replica.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, err := e.read("k", command.ReadOptions{Mode: command.ReadStale, MinRevision: at}); err != nil || v != "49" {
		t.Errorf("after it was resumed: %q, %v", v, err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v until it had what it missed", took)
	}
	c.sees(e, "e1 is level", func(r command.Replica) bool { return r.Status == "level" && r.Lag.Entries == 0 && r.Lag.Seconds >= 0 })
	eventually(t, "e1 calls itself level", func() bool { s := e.replica.ReplicaStatus(); return s.Running && s.Status == "level" })
}

// TestAPausedLearnerIsGivenNoCopyUntilItIsResumed, neither by the leader nor at its
// start, and takes what changed then.
func TestAPausedLearnerIsGivenNoCopyUntilItIsResumed(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) { cfg.LogRetention = 1 })
	e := c.add("e1", "east", command.RoleLearner)
	for _, o := range c.members { // raft-wal goes on reading what it has dropped
		o.stop()
		o.logStore = store.LogStoreBolt
		o.start()
	}
	c.write("k", "before")
	c.level()
	if err := e.replica.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 600 {
		c.write(fmt.Sprint("k", i%50), fmt.Sprint(i))
	}
	for _, o := range c.others(e) {
		if err := o.n.Load().Raft().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	row := c.sees(e, "the log has gone on", func(r command.Replica) bool { return r.Log.Distance < 0 })
	if !row.Log.Warning || row.Status != "paused" {
		t.Errorf("%+v", row)
	}
	e.stop()
	e.start()
	if v, err := e.read("k", command.ReadOptions{Mode: command.ReadStale}); err != nil || v != "before" {
		t.Errorf("%q, %v", v, err)
	}
	c.sees(e, "the leader sees that e1 is paused", func(r command.Replica) bool { return r.Status == "paused" })
	if got := e.n.Load().CatchUp(); got.Kind != "" {
		t.Errorf("it took %+v", got)
	}
	if err := e.replica.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.level()
	if got := e.tookCopy(); got.Kind != command.CopyDelta {
		t.Errorf("it took %+v", got)
	}
	c.sees(e, "the delta was counted", func(r command.Replica) bool { return r.DeltasSent > 0 && r.SnapshotsSent == 0 })
}

// TestAPausedCopyIsNotPausedAsAVoter: whoever is started as one takes part.
func TestAPausedCopyIsNotPausedAsAVoter(t *testing.T) {
	c := newCluster(t, nil)
	m := c.add("n4", "home", command.RoleLearner)
	if err := m.replica.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.stop()
	m.cfg.Self.Role = command.RoleVoter
	m.start()
	eventually(t, "it votes", func() bool {
		for _, s := range c.leader().n.Load().Raft().GetConfiguration().Configuration().Servers {
			if string(s.ID) == m.id.ID {
				return s.Suffrage == raft.Voter
			}
		}
		return false
	})
	if m.n.Load().Paused() {
		t.Error("it calls itself paused")
	}
}
