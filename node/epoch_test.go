package node_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// startAgain waits until a member asks to be started again and does so, as often as
// that takes.
func (m *member) startAgain() {
	m.t.Helper()
	var restart *node.Restart
	select {
	case err := <-m.n.Load().Fatal():
		if !errors.As(err, &restart) {
			m.t.Fatalf("%s ended with %v", m.name, err)
		}
	case <-time.After(patience):
		m.t.Fatalf("%s did not ask to be started again", m.name)
	}
	m.stop()
	m.startTurning()
}

// startTurning starts a member, and again when its start asks for it.
func (m *member) startTurning() {
	m.t.Helper()
	role, home := m.cfg.Self.Role, m.cfg.Home
	for {
		m.cfg.Self.Role, m.cfg.Home = role, home
		if id := m.disk.Identity(); id.Promoted || id.Promotion != nil && id.Promotion.Sealed {
			m.cfg.Self.Role, m.cfg.Home = command.RoleVoter, true
		}
		err := m.tryStart(m.t.Context())
		var restart *node.Restart
		if !errors.As(err, &restart) {
			if err != nil {
				m.t.Fatal(err)
			}
			return
		}
		m.closeParts()
	}
}

// closeParts closes what a start that failed has opened.
func (m *member) closeParts() {
	for _, c := range []interface{ Close() error }{m.tr, m.state, m.logs, m.disk} {
		if err := c.Close(); err != nil {
			m.t.Error(err)
		}
	}
}

// promotable is a cluster of three voters at home and a learner each at east and west.
func promotable(t *testing.T) (c *cluster, east, west *member) {
	t.Helper()
	c = newCluster(t, nil)
	east, west = c.add("e1", "east", command.RoleLearner), c.add("w1", "west", command.RoleLearner)
	for _, m := range []*member{east, west} {
		eventually(t, m.name+" is level", func() bool { return !m.state.LastCertified().IsZero() })
	}
	return c, east, west
}

// loseHome stops all voters.
func (c *cluster) loseHome() {
	for _, name := range []string{"n1", "n2", "n3"} {
		c.members[name].stop()
	}
	for _, m := range c.members {
		if m.running {
			eventually(c.t, m.name+" misses its leader", func() bool { return !m.n.Load().KnowsLeader() })
		}
	}
}

// promote asks a member for the plan and confirms it.
func promote(t *testing.T, at *member, site string) command.PromotionPlan {
	t.Helper()
	plan, err := at.n.Load().PromoteSite(t.Context(), site, "", false)
	if err != nil || plan.Started {
		t.Fatalf("%+v, %v", plan, err)
	}
	done, err := at.n.Load().PromoteSite(t.Context(), site, plan.Confirm, false)
	if err != nil || !done.Started {
		t.Fatalf("%+v, %v", done, err)
	}
	return plan
}

func (m *member) level(with *member) bool {
	a, b := m.state.Head(), with.state.Head()
	return a.Revision == b.Revision && a.Lineage == b.Lineage && a.Cluster == b.Cluster
}

func TestTheDataOfTheLearnerThatGoesFurthestBecomesTheNewHome(t *testing.T) {
	c, east, west := promotable(t)
	c.leader().mustPut("a", "1")
	eventually(t, "east holds it", func() bool { return east.state.Revision() >= c.leader().state.Revision() })
	last := east.state.Revision()
	east.stop() // and misses this
	for i := range 40 {
		last = c.leader().mustPut("b", strings.Repeat("x", i+1))
	}
	eventually(t, "west holds it", func() bool { return west.state.Revision() >= last })
	c.leader() // settles
	c.loseHome()
	east.start()
	plan := promote(t, west, "east")
	if plan.Seed != "e1" || plan.Source != "w1" || plan.Revision != last || plan.HomeSite != "home" || len(plan.Unreachable) != 3 {
		t.Errorf("the plan is %+v", plan)
	}
	east.startAgain()
	if rev := east.mustPut("c", "new"); rev <= last+1<<32 {
		t.Errorf("the first write of the new home has revision %d", rev)
	}
	west.startAgain()
	eventually(t, "west is level", func() bool { return west.level(east) })
	for _, m := range []*member{east, west} {
		v, err := m.read("b", command.ReadOptions{Mode: command.ReadConsistent})
		if err != nil || len(v) != 40 {
			t.Errorf("%s has %d bytes of b, %v", m.name, len(v), err)
		}
	}
	if rev := west.mustPut("c", "newer"); rev <= last+1<<32 {
		t.Errorf("a write by way of west has revision %d", rev)
	}
}

func TestAHomeThatIsNotLostIsNotReplaced(t *testing.T) {
	c, east, west := promotable(t)
	c.leader().mustPut("a", "1")
	n := east.n.Load()
	if _, err := n.PromoteSite(t.Context(), "east", "", true); !errors.Is(err, command.ErrHomeReachable) {
		t.Errorf("with a leader: %v", err)
	}
	for site, want := range map[string]error{"nowhere": command.ErrNoTarget, "home": command.ErrNoTarget} {
		if _, err := n.PromoteSite(t.Context(), site, "", false); !errors.Is(err, want) {
			t.Errorf("site %s: %v", site, err)
		}
	}
	rest := c.followers()
	leader := c.leader()
	leader.stop()
	rest[0].stop()
	for _, m := range []*member{rest[1], east, west} {
		eventually(t, m.name+" misses its leader", func() bool { return !m.n.Load().KnowsLeader() })
	}
	if _, err := n.PromoteSite(t.Context(), "east", "", false); !errors.Is(err, command.ErrHomeReachable) {
		t.Errorf("with one voter: %v", err)
	}
	plan, err := n.PromoteSite(t.Context(), "east", "", true)
	if err != nil || len(plan.HomeReached) != 1 {
		t.Errorf("with one voter and force: %+v, %v", plan, err)
	}
	if _, err := n.PromoteSite(t.Context(), "east", "east-at-1-epoch-2", true); !errors.Is(err, command.ErrPlanChanged) {
		t.Errorf("with another confirmation: %v", err)
	}
	if id := east.disk.Identity(); id.Promotion != nil || id.Epoch != 1 {
		t.Errorf("it left %+v", id)
	}
}

func TestAnOldHomeIsFencedByOneContactAndItsWritesAreRefused(t *testing.T) {
	c, east, west := promotable(t)
	east.tr.SetCut([]string{"home"})
	west.tr.SetCut([]string{"home"})
	for _, name := range []string{"n1", "n2", "n3"} {
		c.members[name].tr.SetCut([]string{"east", "west"})
	}
	for _, m := range []*member{east, west} {
		eventually(t, m.name+" misses its leader", func() bool { return !m.n.Load().KnowsLeader() })
	}
	old := c.leader()
	old.mustPut("late", "by the old home")
	promote(t, east, "east")
	east.startAgain()
	west.startAgain()
	east.mustPut("a", "by the new home")
	rev := old.mustPut("late", "goes on") // there was no contact yet
	for _, name := range []string{"n1", "n2", "n3"} {
		eventually(t, name+" has it", func() bool { return c.members[name].state.Revision() >= rev })
	}

	n1 := c.members["n1"]
	n1.tr.SetCut(nil) // one node heals, one contact
	var refusal interface{ OfPeer() bool }
	if _, err := n1.tr.CallAddr(t.Context(), east.addr, 9, nil); !errors.As(err, &refusal) || !errors.Is(err, command.ErrStaleEpoch) {
		t.Errorf("the new home answers %v", err)
	}
	for _, name := range []string{"n1", "n2", "n3"} {
		m := c.members[name]
		eventually(t, name+" is fenced", func() bool { return errors.Is(m.n.Load().Failure(), command.ErrFenced) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := m.replica.Propose(ctx, &command.Put{Key: "a", Value: []byte("x")}); !errors.Is(err, command.ErrFenced) {
			t.Errorf("a write at %s: %v", name, err)
		}
		cancel()
		if v, err := m.read("late", command.ReadOptions{Mode: command.ReadStale}); v != "goes on" || err != nil {
			t.Errorf("a stale read at %s: %q, %v", name, v, err)
		}
		if s := m.n.Load().Status(); s.Ready || !strings.Contains(s.NotReadyBecause, "another site has become home") {
			t.Errorf("%s says %+v", name, s)
		}
		if s := m.replica.ReplicaStatus(); s.Status != "fenced" || s.Running {
			t.Errorf("the copy of %s says %+v", name, s)
		}
		if s := m.showsItself(); s.State != "fenced" {
			t.Errorf("%s shows itself as %+v", name, s)
		}
	}
	// And it stays so.
	n1.stop()
	n1.start()
	if err := n1.n.Load().Failure(); !errors.Is(err, command.ErrFenced) {
		t.Errorf("after a restart: %v", err)
	}
}

func TestAMemberWithNothingOfItsOwnFollowsTheNewHomeHoweverLate(t *testing.T) {
	c, east, west := promotable(t)
	rev := c.leader().mustPut("a", "1")
	for _, m := range []*member{east, west} {
		eventually(t, m.name+" holds it", func() bool { return m.state.Revision() >= rev })
	}
	west.stop()
	c.loseHome()
	promote(t, east, "east")
	east.startAgain()
	east.mustPut("a", "2")
	west.start()
	west.startAgain()
	eventually(t, "west is level", func() bool { return west.level(east) })
	if west.disk.Identity().Epoch != 2 {
		t.Errorf("its identity is %+v", west.disk.Identity())
	}
}

// A member that has entered the epoch, and has nothing of it yet, still knows whose it
// is: it fences the old home, and takes nothing of another one of the same epoch.
func TestAMemberThatFollowsPassesOnWhatItLearnedBeforeItHasACopy(t *testing.T) {
	c, east, west := promotable(t)
	rev := c.leader().mustPut("a", "1")
	for _, m := range []*member{east, west} {
		eventually(t, m.name+" holds it", func() bool { return m.state.Revision() >= rev })
	}
	west.stop()
	east.stop()
	rev = c.leader().mustPut("late", "by the old home")
	old := c.members["n1"]
	eventually(t, "n1 holds it", func() bool { return old.state.Revision() >= rev })
	c.loseHome()
	east.start()
	eventually(t, "east takes calls", func() bool { _, err := east.n.Load().PromoteSite(t.Context(), "east", "", false); return err == nil })
	promote(t, east, "east")
	east.startAgain()
	west.start()
	select {
	case <-west.n.Load().Fatal():
	case <-time.After(patience):
		t.Fatal("west does not follow")
	}
	west.stop()
	fork := east.state.Forks()[0]
	east.stop() // for good
	west.startTurning()
	if id := west.disk.Identity(); id.Epoch != 2 || len(id.Forks) != 1 || !command.SameFork(id.Forks[0], fork) || len(west.state.Forks()) != 0 {
		t.Fatalf("west's identity is %+v, its state has %v", id, west.state.Forks())
	}
	old.start()
	_, _ = old.tr.CallAddr(t.Context(), west.addr, 9, nil)
	eventually(t, "n1 is fenced", func() bool { return errors.Is(old.n.Load().Failure(), command.ErrFenced) })
}

// ordered is a member that was told to be the seed of its site and stopped, and another
// one that is told to be so afterwards. The log of the first goes no further.
func ordered(t *testing.T) (late, first *member) {
	c, east, west := promotable(t)
	rev := c.leader().mustPut("a", "1")
	for _, m := range []*member{east, west} {
		eventually(t, m.name+" holds it", func() bool { return m.state.Revision() >= rev })
	}
	c.loseHome()
	late, first = east, west
	last := func(m *member) uint64 { _, last, _ := m.logs.Bounds(); return last }
	if last(late) > last(first) {
		late, first = west, east
	}
	index, term := late.state.Applied()
	if err := late.disk.SetPromotion(&command.Promotion{Epoch: 2, Index: index, Term: term, Sealed: true, Committed: rev}); err != nil {
		t.Fatal(err)
	}
	late.stop()
	return late, first
}

// Who was ordered to be the seed, was down, and was given up for another one must not
// begin a second home when it comes back.
func TestASeedThatComesBackAfterAnotherHomeBeganFollowsThat(t *testing.T) {
	late, first := ordered(t)
	promote(t, first, first.cfg.Self.Site)
	first.startAgain()
	first.mustPut("a", "of the new home")
	late.startTurning()
	if id := late.disk.Identity(); id.Promotion != nil || id.Promoted || late.cfg.Self.Role != command.RoleLearner {
		t.Fatalf("it is a %s, %+v", late.cfg.Self.Role, id)
	}
	late.startAgain()
	eventually(t, "it is level", func() bool { return late.level(first) })
}

// failing lets a step of a promotion fail, before it has done anything or after.
type failing struct{ step string }

type failingState struct {
	node.State
	failing
}

type failingIdentity struct {
	node.Identity
	failing
}

var errCrash = errors.New("the process ended here")

func (f failingState) BeginEpoch(ctx context.Context, e command.EpochStart) error {
	if f.step == "before the epoch begins" {
		return errCrash
	}
	if err := f.State.BeginEpoch(ctx, e); err != nil || f.step != "after the epoch began" {
		return err
	}
	return errCrash
}

func (f failingIdentity) EnterEpoch(epoch uint64, seed bool) error {
	if f.step == "before the epoch is entered" {
		return errCrash
	}
	if err := f.Identity.EnterEpoch(epoch, seed); err != nil || f.step != "after the epoch was entered" {
		return err
	}
	return errCrash
}

// A seed may end at any point and completes what it began.
func TestAPromotionThatIsSealedIsCompletedAfterACrashAtAnyStep(t *testing.T) {
	for _, step := range []string{"before the epoch begins", "after the epoch began", "before the epoch is entered", "after the epoch was entered"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			c, east, west := promotable(t)
			rev := c.leader().mustPut("a", "1")
			eventually(t, "east holds it", func() bool { return east.state.Revision() >= rev })
			c.loseHome()
			promote(t, east, "east")
			east.stop()
			east.cfg.Self.Role, east.cfg.Home = command.RoleVoter, true
			east.wrapState = func(s node.State) node.State { return failingState{s, failing{step}} }
			east.wrapIdentity = func(i node.Identity) node.Identity { return failingIdentity{i, failing{step}} }
			err := east.tryStart(t.Context())
			east.closeParts()
			if _, again := err.(*node.Restart); again { // west went further, by an entry without a revision
				err = east.tryStart(t.Context())
				east.closeParts()
			}
			if !errors.Is(err, errCrash) {
				t.Fatalf("the start ends with %v", err)
			}
			east.wrapState, east.wrapIdentity = nil, nil
			east.startTurning()
			if id := east.disk.Identity(); id.Epoch != 2 || id.Promotion != nil || !id.Promoted {
				t.Errorf("its identity is %+v", id)
			}
			west.startAgain()
			if got := east.mustPut("a", "2"); got != rev+1<<32+1 {
				t.Errorf("the first write has revision %d, the last one before %d", got, rev)
			}
			eventually(t, "west is level", func() bool { return west.level(east) })
		})
	}
}

// A seed that cannot get what goes furthest is again what it was.
func TestAPromotionIsGivenUpWhenItsSourceIsGone(t *testing.T) {
	c, east, west := promotable(t)
	rev := c.leader().mustPut("a", "1")
	eventually(t, "east holds it", func() bool { return east.state.Revision() >= rev })
	c.loseHome()
	west.stop()
	index, term := east.state.Applied()
	if err := east.disk.SetPromotion(&command.Promotion{Epoch: 2, Source: "w1", SourceAddr: west.addr, Index: index + 5, Term: term}); err != nil {
		t.Fatal(err)
	}
	east.stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := east.tryStart(ctx); err != nil {
		t.Fatal(err)
	}
	if id := east.disk.Identity(); id.Promotion != nil || id.Epoch != 1 {
		t.Errorf("its identity is %+v", id)
	}
	for _, name := range []string{"n1", "n2", "n3"} {
		c.members[name].start()
	}
	c.leader().mustPut("a", "2")
	eventually(t, "east follows the old home", func() bool { return east.level(c.leader()) })
}
