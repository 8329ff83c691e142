package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// planted is a transport whose watches say what a test has them say, so that voters
// find dead whom the test wants, while everybody lives.
type planted struct {
	node.Transport
	deaf  bool          // Raft is never told to stand
	stood *atomic.Int32 // how often it was to be

	mu   sync.Mutex
	tell func(command.Pulse) // guarded by mu; of the watch that runs
}

func (p *planted) Watch(ctx context.Context, _ string, _ time.Duration, tell func(command.Pulse)) {
	p.mu.Lock()
	p.tell = tell
	p.mu.Unlock()
	<-ctx.Done()
}

func (p *planted) InjectTimeoutNow(ctx context.Context) error {
	p.stood.Add(1)
	if p.deaf {
		return nil
	}
	return p.Transport.InjectTimeoutNow(ctx)
}

// say has the watch say something, once there is one.
func (p *planted) say(t *testing.T, pulse command.Pulse) {
	t.Helper()
	eventually(t, "the leader is watched", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.tell != nil {
			p.tell(pulse)
		}
		return p.tell != nil
	})
}

// plantedCluster is three voters with planted watches and heartbeats so long that
// nothing happens by Raft's own timers.
func plantedCluster(t *testing.T, edit func(*node.Config), spoil func(*planted)) (*cluster, map[*member]*planted) {
	c := &cluster{t: t, members: map[string]*member{}}
	watches := map[*member]*planted{}
	for _, m := range c.firstVoters() {
		p := &planted{stood: new(atomic.Int32)}
		watches[m] = p
		m.edit = func(cfg *node.Config) {
			cfg.Heartbeat = 2 * time.Second
			if edit != nil {
				edit(cfg)
			}
		}
		m.wrapTransport = func(tr node.Transport) node.Transport { p.Transport = tr; return p }
	}
	for _, m := range c.members {
		m.start()
	}
	for _, m := range c.members {
		m.waitJoined()
	}
	c.leader()
	for _, p := range watches {
		p.stood.Store(0) // forming the cluster is one
		if spoil != nil {
			spoil(p)
		}
	}
	c.level()
	return c, watches
}

func (m *member) term() uint64 { return m.n.Load().Raft().CurrentTerm() }

// stays fails the test when a term does not outlast the time given.
func stays(t *testing.T, m *member, term uint64, length time.Duration) {
	t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if now := m.term(); now != term {
			t.Fatalf("term %d came after %d, though the leader is there", now, term)
		}
	}
}

// What a watch says when the leader is gone for it.
var gone = map[string]command.Pulse{
	"refused":  {Refused: true},
	"replaced": {Replaced: true},
	"silent":   {Missed: 6},
	"unfit":    {Said: command.Condition{Unfit: "its disk hangs"}},
}

func TestALeaderIsReplacedOnlyWhenAMajorityOfTheVotersFindsItGone(t *testing.T) {
	for name, pulse := range gone {
		t.Run(name, func(t *testing.T) {
			c, watches := plantedCluster(t, nil, nil)
			leader, followers := c.leader(), c.followers()
			term := leader.term()
			watches[followers[0]].say(t, pulse)
			stays(t, leader, term, time.Second)
			watches[followers[1]].say(t, pulse)
			eventually(t, "another leads", func() bool { return c.leader() != leader })
			if now := leader.term(); now != term+1 {
				t.Errorf("it took %d terms", now-term)
			}
			forced := watches[followers[0]].stood.Load() + watches[followers[1]].stood.Load()
			if forced != 1 || watches[leader].stood.Load() != 0 {
				t.Errorf("%d elections were forced by those that lost the leader, %d by itself", forced, watches[leader].stood.Load())
			}
		})
	}
}

// Silence shorter than that, and a leader that speaks of an earlier term, are no
// signs of death.
func TestALeaderThatIsOnlySlowIsNotReplaced(t *testing.T) {
	c, watches := plantedCluster(t, nil, nil)
	leader := c.leader()
	term := leader.term()
	for _, pulse := range []command.Pulse{{Missed: 5}, {Said: command.Condition{Term: term - 1}}, {Said: command.Condition{Term: term, Leads: true}}} {
		for _, m := range c.followers() {
			watches[m].say(t, pulse)
		}
		stays(t, leader, term, 500*time.Millisecond)
	}
	for _, m := range c.followers() {
		watches[m].say(t, command.Pulse{Said: command.Condition{Term: term}})
	}
	eventually(t, "a leader that says it leads no longer is replaced", func() bool { return leader.term() > term })
}

// Who was told to stand and did not, for whatever reason, is passed over; and nobody
// is told twice in one term.
func TestEachVoterStandsAtMostOnceInATerm(t *testing.T) {
	c, watches := plantedCluster(t, nil, func(p *planted) { p.deaf = true })
	leader, followers := c.leader(), c.followers()
	term := leader.term()
	for _, m := range followers {
		watches[m].say(t, command.Pulse{Refused: true})
	}
	stood := func() (total int32) {
		for _, m := range followers {
			total += watches[m].stood.Load()
		}
		return total
	}
	eventually(t, "both were told to stand, one after the other", func() bool { return stood() == 2 })
	stays(t, leader, term, 2*time.Second)
	if watches[followers[0]].stood.Load() != 1 || watches[followers[1]].stood.Load() != 1 {
		t.Errorf("told to stand in one term: %d and %d times", watches[followers[0]].stood.Load(), watches[followers[1]].stood.Load())
	}
}

// ask puts a finding to a voter as if another one had sent it.
func (m *member) ask(t *testing.T, method uint8, from *member, f node.Finding) ([]byte, error) {
	t.Helper()
	req, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return m.n.Load().Call(t.Context(), command.Hello{ID: from.id.ID}, method, req)
}

func TestAVoterLeavesATermToOneOtherThatItWouldVoteFor(t *testing.T) {
	c, watches := plantedCluster(t, nil, func(p *planted) { p.deaf = true })
	leader, followers := c.leader(), c.followers()
	voter, other := followers[0], followers[1]
	learner := c.add("e1", "east", command.RoleLearner)
	c.level()
	term := voter.term()
	good := node.Finding{Term: term, Leaderless: true, Eligible: true, LastTerm: term, LastIndex: 1 << 40}
	yields := func(from *member, f node.Finding) bool {
		t.Helper()
		answer, err := voter.ask(t, node.MethodYield, from, f)
		if err != nil {
			t.Fatal(err)
		}
		return answer[0] == 1
	}
	if yields(other, good) {
		t.Error("it gave up a leader that lives for it")
	}
	watches[voter].say(t, command.Pulse{Refused: true})
	for what, change := range map[string]func(*node.Finding){
		"of an earlier term":           func(f *node.Finding) { f.Term-- },
		"of a later term":              func(f *node.Finding) { f.Term++ },
		"that lacks an entry":          func(f *node.Finding) { f.LastIndex = 1 },
		"whose entries are outdated":   func(f *node.Finding) { f.LastTerm-- },
		"that lacks entries and terms": func(f *node.Finding) { f.LastTerm, f.LastIndex = 0, 0 },
	} {
		f := good
		change(&f)
		if yields(other, f) {
			t.Errorf("it left the term to one %s", what)
		}
	}
	if !yields(other, good) {
		t.Error("it did not leave the term to one that may have it")
	}
	if !yields(other, good) {
		t.Error("it does not stand by its word")
	}
	if yields(leader, good) {
		t.Error("it left the term to a second one")
	}
	if _, err := voter.ask(t, node.MethodYield, learner, good); err == nil {
		t.Error("a learner was answered")
	}
}

func TestALearnerTakesNoPartInFindingALeaderGone(t *testing.T) {
	c, watches := plantedCluster(t, nil, nil)
	leader, followers := c.leader(), c.followers()
	learner := c.prepare("s1", "home", command.RoleLearner, nil)
	p := &planted{stood: new(atomic.Int32)}
	learner.wrapTransport = func(tr node.Transport) node.Transport { p.Transport = tr; return p }
	learner.start()
	learner.waitJoined()
	c.level()
	term := leader.term()
	watches[followers[0]].say(t, command.Pulse{Refused: true})
	found := node.Finding{Term: term, Leaderless: true, Eligible: true, LastTerm: term, LastIndex: 1 << 40}
	if _, err := followers[0].ask(t, node.MethodFind, learner, found); err == nil {
		t.Error("a voter took in what a learner finds")
	}
	answer, err := learner.ask(t, node.MethodFind, followers[0], found)
	var theirs node.Finding
	if err := errors.Join(err, json.Unmarshal(answer, &theirs)); err != nil || theirs.Leaderless || theirs.Eligible {
		t.Errorf("asked, a learner finds %+v, %v", theirs, err)
	}
	stays(t, leader, term, time.Second)
	if p.mu.Lock(); p.tell != nil || p.stood.Load() > 0 {
		t.Error("a learner watches the leader, or stood")
	}
	p.mu.Unlock()
}

func TestOfEquallyCompleteVotersTheOneWithPriorityFollowsTheLeader(t *testing.T) {
	for _, wanted := range []string{"n1", "n2", "n3"} {
		t.Run(wanted, func(t *testing.T) {
			c, watches := plantedCluster(t, func(cfg *node.Config) {
				if cfg.Self.Name == wanted {
					cfg.LeaderPriority = 1
				}
			}, nil)
			if first := c.leader(); first.name == wanted {
				if err := first.n.Load().TransferLeader(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
				eventually(t, "another leads first", func() bool { return c.leader() != first })
			}
			leader, followers := c.leader(), c.followers()
			for _, m := range followers {
				watches[m].say(t, command.Pulse{Refused: true})
			}
			eventually(t, wanted+" leads", func() bool { return c.leader().name == wanted })
			if term := leader.term(); c.members[wanted].term() != term || watches[c.members[wanted]].stood.Load() != 1 {
				t.Errorf("it stood %d times", watches[c.members[wanted]].stood.Load())
			}
		})
	}
}

// From here on the watches are real. Raft by itself would take this long at least.
const raftsTime = 10 * time.Second

func slowRaft(cfg *node.Config) { cfg.Heartbeat = raftsTime }

func TestALeaderThatDiedIsReplacedBeforeRaftWould(t *testing.T) {
	c := newCluster(t, slowRaft)
	for range 3 {
		leader := c.leader()
		c.level()
		began := time.Now()
		leader.stop()
		eventually(t, "another leads", func() bool { return c.leader() != leader })
		if took := time.Since(began); took > raftsTime/2 {
			t.Errorf("only after %v", took)
		}
		leader.start()
		c.level()
		for _, m := range c.followers() {
			eventually(t, m.name+" follows", m.n.Load().KnowsLeader)
		}
	}
}

func TestALeaderThatBecomesUnfitIsReplacedThoughItsRaftGoesOn(t *testing.T) {
	c := newCluster(t, slowRaft)
	leader, term := c.leader(), c.leader().term()
	c.level()
	leader.n.Load().Fail(errors.New("its disk is gone"), false)
	eventually(t, "another leads", func() bool {
		return leader.term() > term && leader.n.Load().Raft().State() == raft.Follower
	})
	c.leader().mustPut("a", "1")
}

func TestASilentLeaderIsReplacedBeforeRaftWould(t *testing.T) {
	c := newCluster(t, slowRaft)
	leader := c.leader()
	followers := c.followers()
	c.level()
	began := time.Now()
	leader.cutFrom(followers...)
	eventually(t, "another leads", func() bool {
		return followers[0].n.Load().Raft().State() == raft.Leader || followers[1].n.Load().Raft().State() == raft.Leader
	})
	if took := time.Since(began); took >= raftsTime {
		t.Errorf("only after %v", took)
	}
	leader.heal()
}

// Voters that start together know of no leader to find gone.
func TestVotersThatStartTogetherElectOneBeforeRaftWould(t *testing.T) {
	c := newCluster(t, slowRaft)
	c.level()
	for _, m := range c.members {
		m.stop()
	}
	began := time.Now()
	for _, m := range c.members {
		m.start()
	}
	c.leader()
	if took := time.Since(began); took >= raftsTime {
		t.Errorf("only after %v", took)
	}
}
