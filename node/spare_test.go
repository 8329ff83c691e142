package node_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// pilot changes the setting of autopilot.
func (c *cluster) pilot(edit func(*command.Autopilot)) {
	c.t.Helper()
	pilot := command.DefaultAutopilot
	edit(&pilot)
	value, err := json.Marshal(pilot)
	if err != nil {
		c.t.Fatal(err)
	}
	c.propose(&command.SettingPut{Name: command.SettingAutopilot, Value: value})
}

// deadSoon makes a second of silence death.
func deadSoon(a *command.Autopilot) { a.DeadServerTime = time.Second }

// healthOf is what the leader says of one member, if it is one.
func (c *cluster) healthOf(m *member) []command.MemberHealth {
	h, err := c.leader().n.Load().Health(c.bounded())
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(h.Members, func(o command.MemberHealth) bool { return o.ID != m.id.ID })
}

// voters are the names of the servers that m has as voters, in order.
func (m *member) voters() string {
	var names []string
	for _, s := range m.n.Load().Raft().GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			name, _, _ := strings.Cut(string(s.ID), "-")
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// vote waits until these vote and no others.
func (c *cluster) vote(names ...string) {
	c.t.Helper()
	slices.Sort(names)
	want := strings.Join(names, " ")
	eventually(c.t, want+" vote", func() bool { return c.leader().voters() == want })
}

// trace notes each set of voters the leader m goes through until stop is called.
func (m *member) trace() (stop func() []string) {
	end, seen := make(chan struct{}), make(chan []string)
	go func() {
		all := []string{m.voters()}
		for ended := false; ; {
			if now := m.voters(); now != all[len(all)-1] {
				all = append(all, now)
			}
			if ended {
				seen <- all
				return
			}
			select {
			case <-end:
				ended = true
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() []string { close(end); return <-seen }
}

func TestASpareVotesInThePlaceOfADeadVoterUntilThatIsBack(t *testing.T) {
	c := newCluster(t, nil)
	s1 := c.add("s1", "home", command.RoleSpare)
	c.healthy(s1)
	c.pilot(deadSoon)
	leader, gone, other := c.leader(), c.followers()[0], c.followers()[1]
	if !s1.n.Load().Learner() || !leader.shows(s1, "spare") {
		t.Error("a spare that is not needed is no learner")
	}
	if err := s1.n.Load().Pause(t.Context()); !errors.Is(err, command.ErrNotLearner) {
		t.Errorf("a spare, which may be needed at any moment, is paused: %v", err)
	}
	stop := leader.trace()
	gone.stop()
	c.vote(leader.name, other.name, "s1")
	if got := stop(); len(got) != 3 || got[1] != "n1 n2 n3 s1" {
		t.Errorf("the voters went through %q", got)
	}
	if s1.n.Load().Learner() || !leader.shows(s1, "voter") {
		t.Error("a spare that votes is a learner")
	}
	if _, ok := leader.member(gone); !ok {
		t.Error("the dead voter is no member any more")
	}
	c.write("a", "1")

	stop = leader.trace()
	gone.start()
	c.vote("n1", "n2", "n3")
	if got := stop(); len(got) != 3 || got[1] != "n1 n2 n3 s1" {
		t.Errorf("the voters went through %q", got)
	}
	eventually(t, "s1 is a learner again", s1.n.Load().Learner)
	c.level()
}

// member is what m has of another in the members table.
func (m *member) member(other *member) (command.Member, bool) {
	for _, o := range m.state.Members() {
		if o.ID == other.id.ID {
			return o, true
		}
	}
	return command.Member{}, false
}

// It still reports, so no silence tells.
func TestASpareVotesInThePlaceOfAVoterWhoseDiskFailed(t *testing.T) {
	c, disks := onFakeDisks(t)
	s1 := c.add("s1", "home", command.RoleSpare)
	c.healthy(s1)
	leader, broken, other := c.leader(), c.followers()[0], c.followers()[1]
	disks[broken].is(command.Disk{State: command.DiskFailed})
	c.vote(leader.name, other.name, "s1")
	if err := leader.n.Load().GiveVote(c.bounded(), broken.id.ID); err == nil || leader.voters() == "n1 n2 n3 s1" {
		t.Errorf("it is given its vote back: %v", err)
	}
	disks[broken].is(command.Disk{State: command.DiskOK})
	c.vote("n1", "n2", "n3")
}

func TestASpareThatLeadsHandsOverAndOnlyThenLosesItsVote(t *testing.T) {
	c := newCluster(t, nil)
	s1 := c.add("s1", "home", command.RoleSpare)
	c.healthy(s1)
	c.pilot(deadSoon)
	leader, gone, other := c.leader(), c.followers()[0], c.followers()[1]
	gone.stop()
	c.vote(leader.name, other.name, "s1")
	if err := leader.n.Load().TransferLeader(c.bounded(), "s1"); err != nil {
		t.Fatal(err)
	}
	gone.start()
	c.vote("n1", "n2", "n3")
	if c.leader() == s1 {
		t.Error("s1 leads and does not vote")
	}
	c.write("a", "1")
}

func TestAReplacementIsFinishedByTheNextLeader(t *testing.T) {
	c := newCluster(t, nil)
	s1 := c.add("s1", "home", command.RoleSpare)
	c.healthy(s1)
	leader, gone, other := c.leader(), c.followers()[0], c.followers()[1]
	gone.stop()
	// As far as the leader has come: s1 votes, and the dead one does still.
	if err := leader.n.Load().Raft().AddVoter(raft.ServerID(s1.id.ID), raft.ServerAddress(s1.id.ID), 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	if err := leader.n.Load().TransferLeader(c.bounded(), other.name); err != nil {
		t.Fatal(err)
	}
	if got := other.voters(); got != "n1 n2 n3 s1" {
		t.Fatalf("%s vote before the dead time has passed", got)
	}
	c.pilot(deadSoon)
	c.vote(leader.name, other.name, "s1")
}

func TestWithoutASpareADeadVoterStaysOneAndAMajorityIsNeverGivenUp(t *testing.T) {
	c := newCluster(t, nil)
	c.pilot(deadSoon)
	f := c.followers()
	f[0].stop()
	leader := c.leader()
	eventually(t, "the leader has not heard of it for 3 s", func() bool { return leader.shows(f[0], "unreachable") })
	if got := leader.voters(); got != "n1 n2 n3" {
		t.Fatalf("%s vote", got)
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, command.ErrNoTarget) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("the vote of the only other one that lives is taken", leader.n.Load().TakeVote(c.bounded(), f[1].id.ID))
	if err := leader.n.Load().TakeVote(c.bounded(), f[0].id.ID); err != nil {
		t.Error("the vote of the dead one: ", err)
	}
	eventually(t, "autopilot has seen who votes now", func() bool {
		err := leader.n.Load().GiveVote(c.bounded(), f[0].id.ID)
		return errors.Is(err, command.ErrNoTarget) && strings.Contains(err.Error(), "not level")
	})
	refused("the leader's own vote is taken", leader.n.Load().TakeVote(c.bounded(), leader.id.ID))
	c.write("a", "1")
}

func TestAVoteIsNotGivenWhereNoMajorityWouldAnswer(t *testing.T) {
	c := newCluster(t, nil)
	s1 := c.add("s1", "home", command.RoleSpare)
	e1 := c.add("e1", "east", command.RoleLearner)
	c.healthy(s1)
	leader := c.leader()
	if err := leader.n.Load().GiveVote(c.bounded(), e1.id.ID); !errors.Is(err, command.ErrNoTarget) || !strings.Contains(err.Error(), "never votes") {
		t.Errorf("to a learner of another site: %v", err)
	}
	c.followers()[0].stop()
	s1.stop() // the leader believes it level until it misses a report
	if err := leader.n.Load().GiveVote(c.bounded(), s1.id.ID); !errors.Is(err, command.ErrNoTarget) || !strings.Contains(err.Error(), "2 of 4 voters answer") {
		t.Errorf("to a spare that died: %v", err)
	}
	if got := leader.voters(); got != "n1 n2 n3" {
		t.Errorf("%s vote", got)
	}
}

func TestWhoHasBeenDeadForLongIsRemovedAndEntersByItselfWhenItIsBack(t *testing.T) {
	c := newCluster(t, nil)
	n4 := c.add("n4", "home", command.RoleVoter)
	e1, w1 := c.add("e1", "east", command.RoleLearner), c.add("w1", "west", command.RoleLearner)
	c.vote("n1", "n2", "n3", "n4")
	if err := w1.n.Load().Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leader knows that w1 is silent on purpose", func() bool {
		return slices.ContainsFunc(c.healthOf(w1), func(m command.MemberHealth) bool { return m.UnhealthyBecause == "it is paused" })
	})
	clean := func(a *command.Autopilot) {
		a.CleanupDeadServers, a.DeadServerTime, a.VoterCleanupTime, a.LearnerCleanupTime = true, time.Second, time.Second, time.Second
	}
	c.pilot(func(a *command.Autopilot) { clean(a); a.MinQuorum = 4 })
	n4.stop()
	e1.cutFrom(c.others(e1)...)
	isMember := func(m *member) bool { _, ok := c.leader().member(m); return ok }
	eventually(t, "e1 is removed", func() bool { return !isMember(e1) })
	if !isMember(n4) {
		t.Error("n4 was removed though four voters were to be left")
	}
	c.pilot(clean)
	eventually(t, "n4 is removed", func() bool { return !isMember(n4) })
	c.vote("n1", "n2", "n3")
	if !isMember(w1) {
		t.Error("w1 was removed though it was only paused")
	}
	if err := w1.n.Load().Resume(c.bounded()); err != nil {
		t.Error(err)
	}

	// The leader that removed them would still send them the entries that say so.
	if err := c.leader().n.Load().TransferLeader(c.bounded(), ""); err != nil {
		t.Fatal(err)
	}
	n4.start()
	e1.heal()
	c.vote("n1", "n2", "n3", "n4")
	eventually(t, "e1 is a member", func() bool { return isMember(e1) })
	c.write("a", "1")
	c.level()
	c.healthy(c.leader())
}

func TestAVoterWithAnEmptyDiskIsANewMemberAndTheOldOneNeverVotesAgain(t *testing.T) {
	c := newCluster(t, nil)
	old := c.followers()[0]
	old.stop()
	again := c.prepare(old.name, "home", command.RoleVoter, nil)
	if again.id.ID == old.id.ID {
		t.Fatal("the identity is the same")
	}
	again.start()
	eventually(t, "the new one votes", again.n.Load().MayLead)
	c.vote("n1", "n2", "n3")
	again.stop()
	// Also with its name free, and whatever it holds.
	err := old.tryStart(c.bounded())
	if err == nil {
		select {
		case err = <-old.n.Load().Fatal():
		case <-time.After(patience):
		}
		old.stop()
	}
	if !errors.Is(err, command.ErrRemoved) {
		t.Errorf("the old one comes back: %v", err)
	}
	again.start()
	c.write("a", "1")
	c.level()
}
