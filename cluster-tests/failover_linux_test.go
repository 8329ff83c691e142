package clustertests

import (
	"testing"
	"time"
)

// Firewalls and cables between voters.
func TestOneVoterThatLosesTheLeaderDeposesNobody(t *testing.T) {
	l := newLab(t, voters)
	c := startCluster(t, voters, inLab(l))
	leader := c.waitLeader()
	one, two := without(c.nodes, leader)[0], without(c.nodes, leader)[1]

	c.noElection("a firewall refuses one voter the leader", 2500*time.Millisecond, 5*time.Minute, func() { l.refuse(leader, one) })
	if w := put(two, "refused", "x", ""); !w.ok {
		t.Errorf("%+v", w)
	}
	l.mend()
	c.noElection("one voter does not hear the leader", 2500*time.Millisecond, 5*time.Minute, func() { l.drop(leader, one) })
	l.mend()
	c.noElection("the leader does not hear one voter", time.Second, 5*time.Minute, func() { l.drop(one, leader) })
	l.mend()
	c.waitLevel(30 * time.Second)

	began := time.Now()
	term := c.terms(leader)
	l.drop(leader, one)
	l.drop(leader, two)
	c.wait(bearable, "who is heard by nobody is replaced", func() bool { return c.terms(one, two) > term })
	t.Logf("heard by nobody: replaced after %v", time.Since(began).Round(time.Millisecond))
	l.mend()
}

func TestLostPacketsElectNobodyAndALostCableDoes(t *testing.T) {
	l := newLab(t, voters)
	c := startCluster(t, voters, inLab(l))
	c.noElection("a fifth of the packets is lost", 5*time.Second, 5*time.Minute, func() {
		for _, a := range c.nodes {
			for _, b := range without(c.nodes, a) {
				l.lose(a, b, 20)
			}
		}
	})
	l.mend()

	leader := c.waitLeader()
	term, others := c.terms(leader), without(c.nodes, leader)
	l.unplug(leader, true)
	c.wait(bearable, "another leads", func() bool { return c.terms(others...) > term })
	if w := put(c.waitLeader(others...), "unplugged", "x", ""); !w.ok {
		t.Errorf("%+v", w)
	}
	l.unplug(leader, false)
}

// Learners at the end of long, lossy lines neither disturb the voters nor hold up
// their own clients when the leader dies.
func TestFarLearnersDoNotDisturbAFailover(t *testing.T) {
	l := newLab(t, threeSites)
	l.join("home", "east", 200*time.Millisecond, 10)
	l.join("home", "west", 200*time.Millisecond, 10)
	c := startCluster(t, threeSites, inLab(l))
	c.noElection("learners are far away", 2*time.Second, 5*time.Minute, func() {})
	leader := c.waitLeader()
	term := c.terms(leader)
	began := time.Now()
	c.kill(leader)
	far := make(chan time.Duration)
	go func() {
		if w := put(c.node("e1"), "far", "x", ""); !w.ok {
			t.Errorf("at a learner: %+v", w)
		}
		far <- time.Since(began)
	}()
	if w := put(without(c.voters(), leader)[0], "near", "x", ""); !w.ok || time.Since(began) > bearable {
		t.Errorf("after %v: %+v", time.Since(began), w)
	}
	if took := <-far; took > bearable+3*time.Second {
		t.Errorf("a write at a learner took %v", took)
	} else {
		t.Logf("a write at a learner took %v", took.Round(time.Millisecond))
	}
	if now := c.terms(without(c.voters(), leader)...); now != term+1 {
		t.Errorf("it took %d elections", now-term)
	}
}
