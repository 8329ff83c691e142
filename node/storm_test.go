package node_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// storm is writes through all nodes while leaders come to harm. Each creates a key
// that nobody else does, if it is absent: so one that is carried out twice says
// that it was not, although it was.
type storm struct {
	c      *cluster
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	down   map[*member]*sync.RWMutex // held shared by writes through a member, and alone to stop it
	last   atomic.Int64
	writes atomic.Int64 // answered with true
	repeat atomic.Int64 // answered with false
	failed atomic.Pointer[error]
	gates  map[string]*gate
}

// newStorm is a cluster of three voters and a learner for a storm.
func newStorm(t *testing.T, wrap func(node.Transport) node.Transport) *storm {
	c := &cluster{t: t, members: map[string]*member{}}
	s := &storm{c: c, down: map[*member]*sync.RWMutex{}, gates: map[string]*gate{}}
	c.firstVoters()
	c.prepare("e1", "east", command.RoleLearner, nil)
	for _, m := range c.members {
		s.gates[m.name] = m.gated()
		s.down[m] = &sync.RWMutex{}
		m.wrapTransport = wrap
		m.start()
	}
	for _, m := range c.members {
		m.waitJoined()
	}
	s.ctx, s.stop = context.WithCancel(t.Context())
	return s
}

// through starts clients that write through a member.
func (s *storm) through(m *member) {
	for range 8 {
		s.wg.Go(func() {
			for s.ctx.Err() == nil {
				s.down[m].RLock()
				s.write(m)
				s.down[m].RUnlock()
			}
		})
	}
}

func (s *storm) write(m *member) {
	w := &command.Put{Key: fmt.Sprint("w/", s.last.Add(1)), Value: []byte("x"), Mode: command.PutCAS}
	switch res, err := m.n.Load().Propose(s.c.t.Context(), w); {
	case err != nil:
		err = fmt.Errorf("%s through %s: %w", w.Key, m.name, err)
		s.failed.CompareAndSwap(nil, &err)
	case res.OK:
		s.writes.Add(1)
	default:
		s.repeat.Add(1)
	}
}

// goesOn waits until writes have gone on through all nodes.
func (s *storm) goesOn() {
	before := s.writes.Load()
	eventually(s.c.t, "writes go on", func() bool { return s.writes.Load() > before+100 || s.failed.Load() != nil })
}

// harm does something to the leader in each round, and ends the storm.
func (s *storm) harm(rounds int, harm func(round int, leader *member)) {
	for i := range rounds {
		s.goesOn()
		harm(i, s.c.leader())
	}
	s.goesOn()
	s.stop()
	s.wg.Wait()
	s.c.level()
}

// check says whether each write happened once, and its client was told so.
func (s *storm) check() {
	t := s.c.t
	if err := s.failed.Load(); err != nil {
		t.Errorf("a write has no outcome: %v", *err)
	}
	if n := s.repeat.Load(); n > 0 {
		t.Errorf("%d of %d writes were carried out twice", n, s.last.Load())
	}
	view, err := s.c.leader().n.Load().View()
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	keys := int64(0)
	if err := view.ScanKeys("w/", "", func(string, uint64) bool { keys++; return true }); err != nil {
		t.Fatal(err)
	}
	if keys != s.writes.Load() {
		t.Errorf("%d writes were acknowledged, %d keys are there", s.writes.Load(), keys)
	}
}

// handOver, isolate and kill are what leaders come to.
func (s *storm) handOver(leader *member) {
	ctx, cancel := context.WithTimeout(s.c.t.Context(), patience)
	defer cancel()
	if err := leader.n.Load().StepDown(ctx); err != nil {
		s.c.t.Errorf("hand over: %v", err)
	}
}

func (s *storm) isolate(leader *member) {
	leader.cutFrom(s.c.others(leader)...)
	s.goesOn() // under another one
	leader.heal()
}

// isolateBehind isolates a leader that has not applied what the others commit: the
// writes under way have happened, and it answers none of them.
func (s *storm) isolateBehind(leader *member) {
	gate := s.gates[leader.name]
	gate.close()
	defer gate.open()
	eventually(s.c.t, "the followers hold what the leader has under way", func() bool {
		if !gate.holds() {
			return false
		}
		has, _ := leader.state.Applied()
		for _, m := range s.c.followersOf(leader) {
			if holds, _ := m.state.Applied(); holds <= has {
				return false
			}
		}
		return true
	})
	s.isolate(leader)
}

// kill ends the leader's process, as far as others can see.
func (s *storm) kill(leader *member) {
	s.down[leader].Lock()
	defer s.down[leader].Unlock()
	leader.stop()
	s.goesOn()
	leader.start()
}

func TestEachWriteHappensOnceHoweverLeadersEnd(t *testing.T) {
	s := newStorm(t, nil)
	for _, m := range s.c.members {
		s.through(m)
	}
	s.harm(8, func(round int, leader *member) {
		[]func(*member){s.handOver, s.isolate, s.isolateBehind, s.kill}[round%4](leader)
	})
	s.check()
}

// hasty takes a write for lost as soon as its outcome is in doubt.
type hasty struct{ node.Transport }

func (h hasty) Call(ctx context.Context, to string, method uint8, req []byte) ([]byte, error) {
	b, err := h.Transport.Call(ctx, to, method, req)
	if errors.Is(err, command.ErrOutcomeUnknown) {
		err = command.ErrNotLeader
	}
	return b, err
}

// The test above would find a write that is sent again although it may have
// happened.
func TestAWriteThatIsSentAgainTooSoonIsFound(t *testing.T) {
	s := newStorm(t, func(tr node.Transport) node.Transport { return hasty{tr} })
	s.through(s.c.members["e1"])
	s.harm(1, func(_ int, leader *member) { s.isolateBehind(leader) })
	if s.repeat.Load() == 0 {
		t.Error("no write says that it was carried out twice")
	}
}

// mute loses answers to proposals, or to another method, on the way, and the connection
// with them.
type mute struct {
	node.Transport
	method uint8
	lose   func() (request, answer bool)
}

func (m mute) Call(ctx context.Context, to string, method uint8, req []byte) ([]byte, error) {
	if method != m.method {
		return m.Transport.Call(ctx, to, method, req)
	}
	request, answer := m.lose()
	if request {
		return nil, command.ErrOutcomeUnknown.With("connection lost")
	}
	b, err := m.Transport.Call(ctx, to, method, req)
	if answer {
		return nil, command.ErrOutcomeUnknown.With("connection lost")
	}
	return b, err
}

// The leader stays, so no later term tells what became of the write.
func TestAWriteWhoseConnectionBreaksHappensOnceUnderTheSameLeader(t *testing.T) {
	c := newCluster(t, nil)
	m := c.prepare("e1", "east", command.RoleLearner, nil)
	var calls atomic.Int64
	m.wrapTransport = func(tr node.Transport) node.Transport {
		return mute{tr, node.MethodPropose, func() (request, answer bool) { n := calls.Add(1); return n%5 == 1, n%5 == 2 }}
	}
	m.start()
	m.waitJoined()
	c.level()
	began := c.leader().n.Load().Status().Term
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			for i := range 20 {
				create := &command.Put{Key: fmt.Sprint("k", k, "/", i), Value: []byte("x"), Mode: command.PutCAS}
				if res, err := m.n.Load().Propose(t.Context(), create); err != nil || !res.OK {
					t.Errorf("%s: %+v, %v", create.Key, res, err)
				}
			}
		})
	}
	wg.Wait()
	if now := c.leader().n.Load().Status().Term; now != began {
		t.Errorf("the leader has changed: term %d became %d", began, now)
	}
	if calls.Load() < 160*6/5 {
		t.Errorf("%d calls for 160 writes: none was sent again", calls.Load())
	}
}

func TestAClientThatGivesUpIsLetGoAtOnce(t *testing.T) {
	c := newCluster(t, nil)
	leader := c.leader()
	leader.cutFrom(c.followers()...)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := leader.n.Load().Propose(ctx, &command.Put{Key: "a"}); err == nil {
		t.Error("acknowledged without a majority")
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("let go after %v", d)
	}
	leader.heal()
}
