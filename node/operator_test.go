package node_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// healthy waits until the leader calls every member healthy, and returns what m
// is told.
func (c *cluster) healthy(m *member) command.Health {
	c.t.Helper()
	var h command.Health
	eventually(c.t, "all members are healthy", func() (ok bool) {
		var err error
		h, err = m.n.Load().Health(c.t.Context())
		return err == nil && h.Healthy
	})
	return h
}

func (c *cluster) bounded() context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	c.t.Cleanup(cancel)
	return ctx
}

func TestEveryNodeTellsHowTheLeaderSeesTheMembers(t *testing.T) {
	c := newCluster(t, nil)
	e := c.add("e1", "east", command.RoleLearner)
	h := c.healthy(e)
	if len(h.Members) != 4 || h.FailureTolerance != 1 || h.Leader != c.leader().id.ID || h.Configuration == 0 {
		t.Fatalf("%+v", h)
	}
	for _, m := range h.Members {
		if m.Voter == (m.Name == "e1") || m.Leader != (m.ID == h.Leader) || m.LastIndex == 0 || m.LastTerm == 0 || m.StableSince.IsZero() || m.Address != c.members[m.Name].addr {
			t.Errorf("%+v", m)
		}
	}
	gone := c.followers()[0]
	gone.stop()
	eventually(t, "a dead voter is noticed", func() bool {
		h, err := e.n.Load().Health(t.Context())
		return err == nil && !h.Healthy && h.FailureTolerance == 0
	})
	if local, err := e.n.Load().LocalHealth(); err != nil || len(local.Members) != 4 {
		t.Errorf("%+v, %v", local, err)
	}
}

func TestSinceWhenAMemberIsUnhealthyIsKnownThoughNobodyAsked(t *testing.T) {
	c := newCluster(t, nil)
	leader, gone := c.leader(), c.followers()[0]
	eventually(t, "both followers have reported", func() bool { return leader.shows(c.followers()[0], "voter") && leader.shows(c.followers()[1], "voter") })
	var at time.Time
	eventually(t, "all are healthy", func() bool {
		at = time.Now()
		h, err := leader.n.Load().Health(t.Context())
		return err == nil && h.Healthy
	})
	gone.stop()
	eventually(t, "the leader has not heard of it for 3 s", func() bool { return leader.shows(gone, "unreachable") })
	h, err := leader.n.Load().Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range h.Members {
		if since := time.Since(m.StableSince); m.Healthy == (m.ID == gone.id.ID) || since < time.Second {
			t.Errorf("%s: healthy %v for %v", m.Name, m.Healthy, since)
		}
		if m.ID == gone.id.ID && m.StableSince.Before(at) {
			t.Errorf("%s is unhealthy since %v, and was healthy at %v", m.Name, m.StableSince, at)
		}
	}
}

func TestANewLeaderJudgesNobodyByReportsOfAFormerTerm(t *testing.T) {
	c := newCluster(t, nil)
	next := c.followers()[0]
	n := next.n.Load()
	n.ReportLate("late")
	if err := c.leader().n.Load().TransferLeader(t.Context(), next.id.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it leads", n.Pilots)
	if n.Reported("late") {
		t.Error("it goes by what came in before")
	}
}

// shows reports whether m calls another member what state says.
func (m *member) shows(other *member, state string) bool {
	sites, _, err := m.n.Load().Sites(m.t.Context())
	return err == nil && slices.ContainsFunc(sites[0].Servers, func(s command.Server) bool {
		return s.ID == other.id.ID && s.State == state && s.LastContact != "never"
	})
}

func TestAMemberThatReportsJustNowWasHeard(t *testing.T) {
	c := newCluster(t, nil)
	leader := c.leader()
	c.healthy(leader)
	var done atomic.Bool
	var reporting sync.WaitGroup
	for _, m := range c.followers() {
		reporting.Go(func() {
			for !done.Load() {
				if _, err := m.n.Load().Probe(t.Context(), 0, true); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 1000 {
		h, err := leader.n.Load().Health(t.Context())
		if err != nil || slices.ContainsFunc(h.Members, func(m command.MemberHealth) bool { return m.LastContact < 0 }) {
			t.Errorf("%+v, %v", h, err)
			break
		}
	}
	done.Store(true)
	reporting.Wait()
}

func TestLeadershipGoesToTheVoterThatIsNamedAndToNoOther(t *testing.T) {
	c := newCluster(t, nil)
	e := c.add("e1", "east", command.RoleLearner)
	for range 3 {
		c.healthy(e)
		target := c.followers()[0]
		if err := e.n.Load().TransferLeader(c.bounded(), target.name); err != nil {
			t.Fatal(err)
		}
		if leader := c.leader(); leader != target {
			t.Errorf("%s leads, not %s", leader.name, target.name)
		}
	}
	c.healthy(e)
	leader := c.leader()
	for to, problem := range map[string]string{"e1": "not a voter", "nobody": "not found"} {
		if err := e.n.Load().TransferLeader(c.bounded(), to); !errors.Is(err, command.ErrNoTarget) || !strings.Contains(err.Error(), problem) {
			t.Errorf("to %s: %v", to, err)
		}
	}
	down := c.followers()[0]
	down.stop()
	eventually(t, "a dead voter is refused", func() bool {
		err := e.n.Load().TransferLeader(c.bounded(), down.name)
		return errors.Is(err, command.ErrNoTarget)
	})
	if now := c.leader(); now != leader {
		t.Errorf("%s leads after what was refused", now.name)
	}
}

func TestARemovedMemberEndsAndCannotComeBack(t *testing.T) {
	c := newCluster(t, nil)
	e := c.add("e1", "east", command.RoleLearner)
	c.healthy(e)
	for _, gone := range []*member{e, c.leader()} { // the leader hands over first
		asked := c.members["n1"]
		if asked == gone {
			asked = c.members["n2"]
		}
		if err := asked.n.Load().RemovePeer(c.bounded(), gone.id.ID, ""); err != nil {
			t.Fatal(gone.name, ": ", err)
		}
		select {
		case err := <-gone.n.Load().Fatal():
			if !errors.Is(err, command.ErrRemoved) {
				t.Errorf("%s ends with %v", gone.name, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s does not learn that it was removed", gone.name)
		}
		gone.stop()
		for _, m := range c.leader().n.Load().Raft().GetConfiguration().Configuration().Servers {
			if m.ID == raft.ServerID(gone.id.ID) {
				t.Errorf("%s is still there", gone.name)
			}
		}
		// Under its old identity it is refused, whatever it holds.
		if err := gone.tryStart(c.bounded()); err == nil {
			select {
			case err := <-gone.n.Load().Fatal():
				if !errors.Is(err, command.ErrRemoved) {
					t.Errorf("%s comes back, and ends with %v", gone.name, err)
				}
			case <-time.After(patience):
				t.Errorf("%s comes back", gone.name)
			}
			gone.stop()
		} else if !errors.Is(err, command.ErrRemoved) {
			t.Errorf("%s comes back: %v", gone.name, err)
		}
		delete(c.members, gone.name)
		c.write("after/"+gone.name, "v")
	}
}

// A leader that removes a member may be lost after it has barred it.
func TestARemovalThatWasBegunIsFinished(t *testing.T) {
	for _, role := range []string{"follower", "leader"} {
		t.Run(role, func(t *testing.T) {
			c := newCluster(t, nil)
			gone := c.leader()
			if role == "follower" {
				gone = c.followers()[0]
			}
			c.healthy(gone)
			c.propose(&command.MemberRemove{ID: gone.id.ID, Barred: true})
			select {
			case err := <-gone.n.Load().Fatal():
				if !errors.Is(err, command.ErrRemoved) {
					t.Errorf("it ends with %v", err)
				}
			case <-time.After(patience):
				t.Fatal("it does not learn that it was removed")
			}
			gone.stop()
			delete(c.members, gone.name)
			eventually(t, "it is out of the Raft configuration", func() bool {
				servers := c.leader().n.Load().Raft().GetConfiguration().Configuration().Servers
				return len(servers) == 2 && !slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == raft.ServerID(gone.id.ID) })
			})
			if slices.ContainsFunc(c.leader().state.Members(), func(m command.Member) bool { return m.ID == gone.id.ID }) {
				t.Error("it is in the members table")
			}
		})
	}
}

func TestANewVoterWaitsUntilItHasBeenLevelForLongEnough(t *testing.T) {
	c := newCluster(t, nil)
	set := func(wait time.Duration) {
		t.Helper()
		pilot := command.DefaultAutopilot
		pilot.ServerStabilizationTime = wait
		value, err := json.Marshal(pilot)
		if err != nil {
			t.Fatal(err)
		}
		c.propose(&command.SettingPut{Name: command.SettingAutopilot, Value: value})
	}
	set(time.Hour)
	n4 := c.add("n4", "home", command.RoleVoter)
	c.healthy(n4)
	for _, m := range c.healthy(n4).Members {
		if m.Voter == (m.Name == "n4") {
			t.Errorf("%+v", m)
		}
	}
	set(0)
	eventually(t, "n4 votes", n4.n.Load().MayLead)
}

func TestAMemberIsNotRemovedWhenNoHealthyMajorityWouldBeLeft(t *testing.T) {
	c := newCluster(t, nil)
	c.healthy(c.leader())
	f := c.followers()
	// A voter that still has the epoch of its promise answers for no leader.
	eventually(t, "the cluster is formed at "+f[1].name, func() bool { return f[1].disk.Identity().Epoch > 0 })
	f[0].stop()
	if err := c.leader().n.Load().RemovePeer(c.bounded(), "", f[1].addr); !errors.Is(err, command.ErrNoTarget) {
		t.Error("the only other one that lives: ", err)
	}
	if err := c.leader().n.Load().RemovePeer(c.bounded(), "nobody", ""); !errors.Is(err, command.ErrNoTarget) || !strings.Contains(err.Error(), `id "nobody" was not found in the Raft configuration`) {
		t.Error(err)
	}
	if err := c.leader().n.Load().RemovePeer(c.bounded(), "", f[0].addr); err != nil {
		t.Error("the dead one: ", err)
	}
	c.write("k", "v")
}

// The operator asked for it once: a connection that breaks is nothing to them.
func TestARemovalWhoseConnectionBreaksIsAskedForAgain(t *testing.T) {
	c := newCluster(t, nil)
	c.healthy(c.leader())
	m := c.prepare("e1", "east", command.RoleLearner, nil)
	var calls atomic.Int64
	m.wrapTransport = func(tr node.Transport) node.Transport {
		return mute{tr, node.MethodRemove, func() (request, answer bool) { n := calls.Add(1); return n == 1, n == 2 }}
	}
	m.start()
	m.waitJoined()
	gone := c.followers()[0]
	if err := m.n.Load().RemovePeer(c.bounded(), gone.id.ID, ""); err != nil {
		t.Error(err)
	}
	if calls.Load() != 3 {
		t.Errorf("asked %d times", calls.Load())
	}
	for _, s := range c.leader().n.Load().Raft().GetConfiguration().Configuration().Servers {
		if string(s.ID) == gone.id.ID {
			t.Error("it is still a member")
		}
	}
	// One that was never there was not removed when an answer was lost.
	if err := m.n.Load().RemovePeer(c.bounded(), "nobody", ""); !errors.Is(err, command.ErrNoTarget) {
		t.Error(err)
	}
}

// lateVoter has a voter's first answers to the question for its term be what late makes of them.
type lateVoter struct {
	node.Transport
	voter *atomic.Pointer[string]
	left  *atomic.Int32
	late  func(answer []byte) ([]byte, error)
}

func (l lateVoter) Call(ctx context.Context, to string, method uint8, req []byte) ([]byte, error) {
	answer, err := l.Transport.Call(ctx, to, method, req)
	if voter := l.voter.Load(); voter != nil && *voter == to && method == node.MethodTerm && err == nil && l.left.Add(-1) >= 0 {
		return l.late(slices.Clone(answer))
	}
	return answer, err
}

// The voters that stay need not all be there at the first question.
func TestAMemberIsRemovedWhenTheOthersAnswerAMomentLater(t *testing.T) {
	for what, late := range map[string]func([]byte) ([]byte, error){
		// As when the leader is removed: the voter that leads next is asked in the first
		// moments of its term, which the third one has not heard of.
		"in the first moments of a term": func(answer []byte) ([]byte, error) {
			binary.BigEndian.PutUint64(answer, binary.BigEndian.Uint64(answer)-1)
			return answer, nil
		},
		"right after a cut has healed": func([]byte) ([]byte, error) { return nil, errors.New("connection refused") },
	} {
		t.Run(what, func(t *testing.T) {
			c := &cluster{t: t, members: map[string]*member{}}
			voters := c.firstVoters()
			var voter atomic.Pointer[string]
			left := &atomic.Int32{}
			for _, m := range voters {
				m.wrapTransport = func(tr node.Transport) node.Transport { return lateVoter{tr, &voter, left, late} }
				m.start()
			}
			for _, m := range voters {
				m.waitJoined()
			}
			c.level()
			f := c.followers()
			eventually(t, "the cluster is formed at "+f[0].name, func() bool { return f[0].disk.Identity().Epoch > 0 })
			left.Store(4)
			voter.Store(&f[0].id.ID)
			if err := c.leader().n.Load().RemovePeer(c.bounded(), f[1].id.ID, ""); err != nil {
				t.Error(err)
			}
			if left.Load() >= 0 {
				t.Errorf("the voter was asked too seldom: %d late answers are left", left.Load())
			}
		})
	}
}
