package node_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
)

// gate holds up a state machine, as a slow disk or a large batch does.
type gate struct {
	mu      sync.Mutex
	shut    chan struct{} // guarded by mu; nil while open
	waiting bool          // guarded by mu; entries stand before the shut gate
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.waiting = make(chan struct{}), false
}

// holds reports whether the state machine is held up: what it has applied stands
// still.
func (g *gate) holds() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

func (g *gate) pass() {
	g.mu.Lock()
	shut := g.shut
	g.waiting = shut != nil
	g.mu.Unlock()
	if shut != nil {
		<-shut
	}
}

type gatedFSM struct {
	node.FSM
	gate *gate
}

func (f gatedFSM) ApplyBatch(l []*raft.Log) []any {
	f.gate.pass()
	return f.FSM.ApplyBatch(l)
}

func (m *member) gated() *gate {
	g := &gate{}
	m.wrapFSM = func(f node.FSM) node.FSM { return gatedFSM{f, g} }
	m.t.Cleanup(g.open)
	return g
}

// gatedCluster is three voters whose state machines can be held up.
func gatedCluster(t *testing.T, probe time.Duration) (*cluster, map[string]*gate) {
	c := &cluster{t: t, members: map[string]*member{}}
	gates := map[string]*gate{}
	for _, m := range c.firstVoters() {
		m.probe = probe
		gates[m.name] = m.gated()
	}
	for _, m := range c.members {
		m.start()
	}
	for _, m := range c.members {
		m.waitJoined()
	}
	return c, gates
}

// firstVoters prepares n1..n3, which form a cluster once they are started.
func (c *cluster) firstVoters() []*member {
	var voters []*member
	for i := range 3 {
		m := c.prepare(fmt.Sprintf("n%d", i+1), "home", command.RoleVoter, nil)
		m.cfg.BootstrapExpect = 3
		c.join = append(c.join, m.addr)
		voters = append(voters, m)
	}
	for _, m := range voters {
		m.cfg.Join = c.join
	}
	return voters
}

// A follower may have applied a commit, and answered a read with it, while the
// leader's own state machine is still at work on it.
func TestAConsistentReadNeverSeesLessThanOneBefore(t *testing.T) {
	c, gates := gatedCluster(t, time.Hour)
	leader, follower := c.leader(), c.followers()[0]
	leader.mustPut("a", "1")
	c.level()
	gates[leader.name].close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer gates[leader.name].open()
	wg.Go(func() { _, _ = leader.put("a", "2") })
	eventually(t, "the follower has applied the write", func() bool {
		v, _ := follower.read("a", command.ReadOptions{Mode: command.ReadStale})
		return v == "2"
	})
	consistent := command.ReadOptions{Mode: command.ReadConsistent}
	first, err := follower.read("a", consistent)
	if err != nil || first != "2" {
		t.Fatalf("at the follower: %q, %v", first, err)
	}
	time.AfterFunc(300*time.Millisecond, gates[leader.name].open)
	if second, err := leader.read("a", consistent); err != nil || second != "2" {
		t.Errorf("at the follower %q, then at the leader %q, %v", first, second, err)
	}
}

// A read or probe that waits is told of a commit by a message in the leader's
// name. It must not keep a dead leader in office.
func TestAWaitingProbeDoesNotHoldUpAnElection(t *testing.T) {
	c, gates := gatedCluster(t, 50*time.Millisecond)
	leader, followers := c.leader(), c.followers()
	leader.mustPut("a", "1")
	c.level()
	slow := followers[0]
	gates[slow.name].close()
	leader.mustPut("a", "2")
	eventually(t, "a probe of the slow follower waits", func() bool { return slow.replica.ReplicaStatus().Status == "catching-up" })
	leader.stop()
	eventually(t, "another leads", func() bool {
		return followers[0].n.Load().Raft().State() == raft.Leader || followers[1].n.Load().Raft().State() == raft.Leader
	})
	gates[slow.name].open()
}

// A former leader has entries of its own where the new leader's commit stands:
// what it waits for is not in its log, and the new leader is gone.
func TestAPointOfADeadLeaderDoesNotHoldUpAnElection(t *testing.T) {
	c, _ := gatedCluster(t, time.Hour)
	former, followers := c.leader(), c.followers()
	former.mustPut("a", "1")
	c.level()
	former.cutFrom(followers...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range 5 {
		wg.Go(func() {
			_, _ = former.n.Load().Propose(ctx, &command.Put{Key: fmt.Sprint("lost", i), Value: []byte("x")})
		})
	}
	leads := func(m *member) bool { return m.n.Load().Raft().State() == raft.Leader }
	eventually(t, "a new leader", func() bool { return leads(followers[0]) || leads(followers[1]) })
	leader, other := followers[0], followers[1]
	if leads(followers[1]) {
		leader, other = other, leader
	}
	eventually(t, "it writes", func() bool { _, err := other.put("b", "1"); return err == nil })
	index, term := leader.state.Applied()
	leader.stop()
	former.heal()
	wg.Go(func() {
		_ = former.n.Load().Await(ctx, node.Point{Index: index, LeaderTerm: term, Leader: leader.id.ID})
	})
	eventually(t, "one of the two that are left leads", func() bool { return leads(other) || leads(former) })
	cancel()
}

// garbled spoils answers to proposals.
type garbled struct {
	node.Transport
	left *atomic.Int32
}

func (g garbled) Call(ctx context.Context, to string, method uint8, req []byte) ([]byte, error) {
	answer, err := g.Transport.Call(ctx, to, method, req)
	if method == node.MethodPropose && err == nil && g.left.Add(-1) >= 0 {
		return []byte{0xff}, nil
	}
	return answer, err
}

func TestAWriteWhoseAnswerCannotBeReadIsFoundByItsID(t *testing.T) {
	c := newCluster(t, nil)
	m := c.prepare("e1", "east", command.RoleLearner, nil)
	left := &atomic.Int32{}
	m.wrapTransport = func(tr node.Transport) node.Transport { return garbled{tr, left} }
	m.start()
	m.waitJoined()
	c.level()
	left.Store(1)
	create := &command.Put{Key: "x", Value: []byte("1"), Mode: command.PutCAS}
	if res, err := m.n.Load().Propose(t.Context(), create); err != nil || !res.OK {
		t.Errorf("create if absent: %+v, %v", res, err)
	}
}

// lossy loses promises to one node.
type lossy struct {
	node.Transport
	left *atomic.Int32
	to   string
}

func (l lossy) Call(ctx context.Context, to string, method uint8, req []byte) ([]byte, error) {
	if method == node.MethodPromise && to == l.to && l.left.Add(-1) >= 0 {
		return nil, errors.New("connection lost")
	}
	return l.Transport.Call(ctx, to, method, req)
}

// promise makes the member's directory as it is after it promised to belong to
// the cluster, and was killed.
func (m *member) promise(cluster string) {
	d, err := store.OpenDir(m.dir, m.id, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := d.SetCluster(cluster, 0); err != nil {
		m.t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		m.t.Fatal(err)
	}
}

func TestAClusterFormsThoughTheFirstTryFailed(t *testing.T) {
	for name, spoil := range map[string]func(voters []*member){
		"a promise is lost on the way": func(voters []*member) {
			left := &atomic.Int32{}
			left.Store(1)
			for _, m := range voters {
				m.wrapTransport = func(tr node.Transport) node.Transport { return lossy{tr, left, voters[2].id.ID} }
			}
		},
		"the former was killed after its own promise":   func(voters []*member) { voters[0].promise("c0ffee") },
		"the former was killed after the first promise": func(voters []*member) { voters[0].promise("c0ffee"); voters[1].promise("c0ffee") },
		"the former was killed before it began": func(voters []*member) {
			voters[0].promise("c0ffee")
			voters[1].promise("c0ffee")
			voters[2].promise("c0ffee")
		},
		"only a promise is left, of a former that is lost": func(voters []*member) { voters[2].promise("c0ffee") },
	} {
		t.Run(name, func(t *testing.T) {
			c := &cluster{t: t, members: map[string]*member{}}
			voters := c.firstVoters()
			spoil(voters)
			for _, m := range voters {
				m.start()
			}
			for _, m := range voters {
				m.waitJoined()
			}
			c.leader().mustPut("a", "1")
			c.level()
			for _, m := range voters {
				eventually(t, m.name+" belongs to the cluster for good", func() bool {
					id := m.disk.Identity()
					return id.Epoch == 1 && id.ClusterID == voters[0].disk.Identity().ClusterID
				})
			}
		})
	}
}

// The library leaves some futures unanswered when it shuts down.
func TestStopReturnsThoughTheStateMachineIsBusy(t *testing.T) {
	for range 6 {
		c := &cluster{t: t, members: map[string]*member{}}
		m := c.prepare("n1", "home", command.RoleVoter, nil)
		m.cfg.BootstrapExpect = 1
		g := m.gated()
		g.close()
		m.start()
		eventually(t, "it leads, and its term's first entry is committed", func() bool {
			return m.n.Load().Raft().State() == raft.Leader && m.n.Load().Raft().CommitIndex() >= 3
		})
		stopped := make(chan struct{})
		go func() {
			m.stop()
			close(stopped)
		}()
		time.AfterFunc(300*time.Millisecond, g.open)
		select {
		case <-stopped:
		case <-time.After(patience):
			t.Fatal("Stop never returns")
		}
	}
}

func TestALearnerThatCatchesUpForLongStaysInContact(t *testing.T) {
	c := newCluster(t, nil)
	m := c.prepare("e1", "east", command.RoleLearner, nil)
	g := m.gated()
	m.start()
	m.waitJoined()
	c.level()
	g.close()
	c.leader().mustPut("a", "1")
	// At 50 ms a probe, more than are waited for.
	for began := time.Now(); time.Since(began) < 5*time.Second; {
		if s := m.replica.ReplicaStatus(); s.Status == "cut-off" {
			t.Fatalf("in contact, and calls itself cut off: %+v", s)
		}
		time.Sleep(20 * time.Millisecond)
	}
	g.open()
	c.level()
}

// proposal is a forwarded write for term 1.
func proposal(encoded ...byte) []byte { return append([]byte{0, 0, 0, 0, 0, 0, 0, 1}, encoded...) }

func TestAMalformedProposalNeverReachesTheLog(t *testing.T) {
	c := newCluster(t, nil)
	leader := c.leader()
	last := leader.n.Load().Raft().LastIndex()
	for _, req := range [][]byte{{}, {99, 0}, proposal(99, 0), proposal(command.Append(nil, &command.Put{})...), proposal(append(command.Append(nil, &command.Term{}), 1)...)} {
		if _, err := leader.n.Load().Call(t.Context(), command.Hello{}, node.MethodPropose, req); !errors.Is(err, command.ErrInvalidCommand) {
			t.Errorf("%v: %v", req, err)
		}
	}
	if now := leader.n.Load().Raft().LastIndex(); now != last {
		t.Errorf("the log grew from %d to %d", last, now)
	}
	leader.mustPut("a", "1")
}

// skewedClock is a clock that a test can move.
type skewedClock struct {
	node.SystemClock
	steady, wall atomic.Int64 // nanoseconds ahead
}

func (c *skewedClock) Steady() time.Duration {
	return c.SystemClock.Steady() + time.Duration(c.steady.Load())
}

func (c *skewedClock) Wall() time.Time {
	return c.SystemClock.Wall().Add(time.Duration(c.wall.Load()))
}

// A host that was suspended resumes with its leadership unexamined: the lease
// must have run out by a clock that went on.
func TestALeaseRunsOutWhileTheHostIsSuspended(t *testing.T) {
	clocks := map[string]*skewedClock{}
	c := newCluster(t, func(cfg *node.Config) {
		clock := &skewedClock{}
		clocks[cfg.Self.Name] = clock
		// The library's own timers stand still for the time of the test.
		cfg.Clock, cfg.Lease, cfg.Heartbeat, cfg.Wait = clock, time.Hour, 5*time.Second, time.Second
		cfg.RoundTimeout = 300 * time.Millisecond
	})
	leader := c.leader()
	leader.mustPut("a", "1")
	read := command.ReadOptions{Mode: command.ReadDefault}
	if _, err := leader.read("a", read); err != nil {
		t.Fatal(err)
	}
	leader.cutFrom(c.followers()...)
	if v, err := leader.read("a", read); err != nil || v != "1" {
		t.Errorf("within the lease: %q, %v", v, err)
	}
	clocks[leader.name].steady.Store(int64(2 * time.Hour))
	if v, err := leader.read("a", read); err == nil {
		t.Errorf("a leader that slept for two hours, and reaches nobody, answered %q", v)
	}
	leader.heal()
}

// No wall clock moves cluster time: a new leader goes on from the last stamp.
func TestANewLeaderContinuesClusterTime(t *testing.T) {
	wrong := map[string]time.Duration{"n1": -24 * time.Hour, "n2": 0, "n3": 24 * time.Hour}
	began := time.Now()
	c := newCluster(t, func(cfg *node.Config) {
		clock := &skewedClock{}
		clock.wall.Store(int64(wrong[cfg.Self.Name]))
		clock.steady.Store(int64(wrong[cfg.Self.Name] + 48*time.Hour))
		cfg.Clock = clock
	})
	last := command.Stamp(-1)
	for i := range 6 {
		leader := c.leader()
		leader.mustPut("a", fmt.Sprint(i))
		stamp, _ := leader.state.Stamp()
		if stamp < last || time.Duration(stamp) > time.Since(began)+time.Second {
			t.Errorf("leader %s stamps %v after %v, the cluster is %v old", leader.name, time.Duration(stamp), time.Duration(last), time.Since(began))
		}
		last = stamp
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := leader.n.Load().StepDown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

// A state that is older than the log begins would make the library stop the
// process; a log that ends below the state would refuse its next entry.
func TestStateAndLogAreMadeToFitBeforeRaftStarts(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) { cfg.LogRetention = 1 })
	for _, m := range c.members {
		m.stop()
		m.logStore = store.LogStoreBolt // it drops entries for good
		m.start()
	}
	f := c.followers()[0]
	old := t.TempDir()
	keep := func(name string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(f.dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(old, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	putBack := func(name string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(old, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(f.dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c.leader().mustPut("first", "1")
	c.level()
	f.stop()
	keep("state.db")
	keep("log.db")
	f.start()
	for i := range 600 {
		c.leader().mustPut(fmt.Sprint("k", i%20), fmt.Sprint(i))
	}
	c.level()
	if err := f.n.Load().Raft().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}

	f.stop()
	putBack("state.db")
	f.start()
	c.level()
	if got := f.replica.ReplicaStatus().LastCatchUp.Kind; got != command.CopyDelta {
		t.Errorf("a state below the log's beginning was filled by %q", got)
	}

	f.stop()
	putBack("log.db")
	f.start()
	c.leader().mustPut("last", "1")
	c.level()
	if first, _, err := f.logs.Bounds(); err != nil || first < 600 {
		t.Errorf("the log that ended below the state is still there: it begins at %d, %v", first, err)
	}
	if v, err := f.read("k7", command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != "587" {
		t.Errorf("k7 is %q, %v", v, err)
	}
}
