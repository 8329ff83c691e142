package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// forgetfulFSM applies one write as if it had said something else, as a bug or a
// bad processor might.
type forgetfulFSM struct {
	node.FSM
	said, heard []byte
}

func (f *forgetfulFSM) ApplyBatch(logs []*raft.Log) []any {
	for i, l := range logs {
		if l.Type == raft.LogCommand && bytes.Contains(l.Data, f.said) {
			wrong := *l
			wrong.Data = bytes.ReplaceAll(l.Data, f.said, f.heard)
			logs[i] = &wrong
		}
	}
	return f.FSM.ApplyBatch(logs)
}

// slowCopies holds copies up until the gate opens.
type slowCopies struct {
	node.Transport
	gate *gate
}

func (s slowCopies) FetchCopy(ctx context.Context, to string, req []byte) (io.ReadCloser, error) {
	s.gate.pass()
	return s.Transport.FetchCopy(ctx, to, req)
}

// lateCopies are complete only when the state has gone on.
type lateCopies struct{ node.State }

func (s lateCopies) ReceiveCopy(ctx context.Context, r io.Reader) (command.CatchUp, error) {
	c, err := s.State.ReceiveCopy(ctx, r)
	if applied, _ := s.Applied(); err == nil {
		err = s.WaitApplied(ctx, applied+10)
	}
	return c, err
}

// mishearing makes a member take the value "right" for "wrong", once it is asked
// to, and hold its repair up.
func (m *member) mishearing() (repair *gate) {
	m.wrapFSM = func(f node.FSM) node.FSM {
		return &forgetfulFSM{FSM: f, said: []byte("right"), heard: []byte("wrong")}
	}
	m.wrapState = func(s node.State) node.State { return lateCopies{s} }
	repair = &gate{}
	m.wrapTransport = func(tr node.Transport) node.Transport { return slowCopies{tr, repair} }
	m.t.Cleanup(repair.open)
	return repair
}

func (m *member) hears() { m.wrapFSM, m.wrapState, m.wrapTransport = nil, nil, nil }

func TestAMemberThatDivergedAnswersNothingAndRepairsItself(t *testing.T) {
	c := newCluster(t, nil)
	learner := c.add("e1", "east", command.RoleLearner)
	for role, pick := range map[command.Role]func() *member{
		command.RoleLearner: func() *member { return learner },
		command.RoleVoter:   func() *member { return c.followers()[0] },
	} {
		t.Run(string(role), func(t *testing.T) {
			m := pick()
			m.stop()
			repair := m.mishearing()
			repair.close()
			m.start()
			c.level()
			for i := range 20 {
				c.write("before", fmt.Sprint(i))
			}
			key := "by a " + string(role)
			c.write(key, "right")
			first := c.leader().state.Revision()
			for i := range 20 {
				c.write("after", fmt.Sprint(i))
			}
			eventually(t, "it finds out from where on it differs", func() bool {
				s := m.replica.ReplicaStatus()
				return s.Status == "diverged" && s.Diverged == first
			})
			for _, o := range []command.ReadOptions{{}, {Mode: command.ReadStale}, {Mode: command.ReadConsistent}, {Mode: command.ReadStale, MaxStale: time.Hour}} {
				if v, err := m.read(key, o); !errors.Is(err, command.ErrDiverged) {
					t.Errorf("read %+v of wrong contents: %q, %v", o, v, err)
				}
			}
			if err := m.n.Load().Export(t.Context(), "", 0, func(command.Record) error { return nil }); !errors.Is(err, command.ErrDiverged) {
				t.Errorf("wrong contents are exported: %v", err)
			}
			eventually(t, "it is settled who is right", func() bool { return !m.n.Load().MayLead() })
			if s := m.n.Load().Status(); s.Ready {
				t.Error("it calls itself ready")
			}

			// Writes go on while it is repaired, and what they change comes after the
			// copy.
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						_, _ = c.leader().put(fmt.Sprint("load", w), fmt.Sprint(i))
					}
				})
			}
			repair.open()
			eventually(t, "it is repaired", func() bool { return m.replica.ReplicaStatus().Diverged == 0 })
			cancel()
			wg.Wait()
			c.level()
			if v, err := m.read(key, command.ReadOptions{Mode: command.ReadStale}); err != nil || v != "right" {
				t.Errorf("after the repair: %q, %v", v, err)
			}
			if got := m.replica.ReplicaStatus().LastCatchUp; got.Kind != command.CopyFull {
				t.Errorf("it was repaired by %+v", got)
			}
			m.stop()
			m.hears()
			m.start()
			c.level()
		})
	}
}

// The leader is believed only with a majority on its side: one that has it wrong
// must not spread it.
func TestALeaderThatDivergedHandsOverAndIsRepairedByTheOthers(t *testing.T) {
	c := newCluster(t, nil)
	former := c.leader()
	for _, m := range c.members {
		m.stop()
		if m == former {
			m.mishearing()
		}
		m.start()
	}
	eventually(t, "it leads again", func() bool {
		leader := c.leader()
		if leader == former {
			return true
		}
		_ = leader.n.Load().Raft().LeadershipTransferToServer(raft.ServerID(former.id.ID), raft.ServerAddress(former.id.ID)).Error()
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = former.put("load", fmt.Sprint(i))
		}
	})
	c.write("a", "right")
	eventually(t, "another leads", func() bool { return c.leader() != former })
	eventually(t, "it is repaired", func() bool {
		v, err := former.read("a", command.ReadOptions{Mode: command.ReadConsistent})
		return err == nil && v == "right"
	})
	cancel()
	wg.Wait()
	c.level()
	for name, m := range c.members {
		if v, err := m.read("a", command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != "right" {
			t.Errorf("at %s: %q, %v", name, v, err)
		}
	}
}

// sickState is a state of which a part is damaged until a copy has brought it: one
// of the part alone, or only a full one.
type sickState struct {
	node.State
	found    chan struct{}
	stubborn bool
	bad      atomic.Bool
	copies   atomic.Int64 // taken, of the damaged part
	swapped  func()       // called when a full copy takes its place
}

func (s *sickState) Damaged() []command.Damage {
	if s.bad.Load() {
		return []command.Damage{{Table: "history", From: "a", To: "b", Problem: "checksum"}}
	}
	return s.State.Damaged()
}

func (s *sickState) DamageFound() <-chan struct{} { return s.found }

func (s *sickState) ReceiveCopy(ctx context.Context, r io.Reader) (command.CatchUp, error) {
	c, err := s.State.ReceiveCopy(ctx, r)
	if err == nil && c.Kind != command.CopyFull {
		s.copies.Add(1)
		s.bad.CompareAndSwap(!s.stubborn, false)
	}
	return c, err
}

func (s *sickState) SwapCopy(force bool) error {
	if force {
		s.swapped()
		s.bad.Store(false)
	}
	return s.State.SwapCopy(force)
}

// falls makes what the state holds bad, while copies are held up.
func (s *sickState) falls() {
	s.bad.Store(true)
	s.found <- struct{}{}
}

// sickCluster is three voters that take part with states that can fall sick.
func sickCluster(t *testing.T, stubborn bool) (*cluster, map[*member]*sickState, *gate) {
	c := &cluster{t: t, members: map[string]*member{}}
	states := map[*member]*sickState{}
	repair := &gate{}
	t.Cleanup(repair.open)
	for _, m := range c.firstVoters() {
		s := &sickState{stubborn: stubborn, found: make(chan struct{}, 1), swapped: func() {}}
		states[m] = s
		m.wrapState = func(inner node.State) node.State { s.State = inner; return s }
		m.wrapTransport = func(tr node.Transport) node.Transport { return slowCopies{tr, repair} }
	}
	for _, m := range c.members {
		m.start()
	}
	for _, m := range c.members {
		m.waitJoined()
	}
	return c, states, repair
}

func TestADamagedMemberServesTheRestAndTakesWhatItLacksFromAnother(t *testing.T) {
	c, states, repair := sickCluster(t, false)
	c.write("a", "1")
	c.level()
	for what, m := range map[string]*member{"a follower": c.followers()[0], "the leader": c.leader()} {
		repair.close()
		states[m].falls()
		if s := m.replica.ReplicaStatus(); s.Status != "damaged" || len(s.Damaged) != 1 {
			t.Errorf("%s: %+v", what, s)
		}
		if v, err := m.read("a", command.ReadOptions{Mode: command.ReadStale}); err != nil || v != "1" {
			t.Errorf("%s answers %q, %v", what, v, err)
		}
		repair.open()
		eventually(t, what+" is repaired", func() bool { return m.replica.ReplicaStatus().Status == "level" })
		if n := states[m].copies.Load(); n != 1 {
			t.Errorf("%s took %d copies", what, n)
		}
	}
}

func TestWhatNoPartialCopyRepairsIsTakenWholeAndNotByTheLeader(t *testing.T) {
	c, states, _ := sickCluster(t, true)
	c.write("a", "1")
	c.level()
	m := c.leader()
	swaps := 0
	states[m].swapped = func() {
		swaps++
		if m.n.Load().Raft().State() == raft.Leader {
			t.Error("the state of a leader was exchanged")
		}
	}
	states[m].falls()
	eventually(t, "it is repaired", func() bool { return m.replica.ReplicaStatus().Status == "level" })
	if swaps != 1 || states[m].copies.Load() == 0 {
		t.Errorf("%d exchanges after %d partial copies", swaps, states[m].copies.Load())
	}
	c.write("a", "2")
	c.level()
	if v, err := m.read("a", command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != "2" {
		t.Errorf("%q, %v", v, err)
	}
}

func TestTheLeaderKeepsNoMoreHistoryThanItIsTold(t *testing.T) {
	const keep = 50
	c := newCluster(t, func(cfg *node.Config) {
		cfg.History = command.Retention{Age: time.Millisecond, Changes: keep, Bytes: 1 << 20}
	})
	learner := c.add("e1", "east", command.RoleLearner)
	for i := range 3 * keep {
		c.write("a", fmt.Sprint(i))
	}
	eventually(t, "all forget what is beyond it", func() bool {
		for _, m := range c.members {
			if m.state.Revision()-m.state.OldestRevision() > keep+keep/4 {
				return false
			}
		}
		return true
	})
	c.level()
	oldest := learner.state.OldestRevision()
	if kept := learner.state.Revision() - oldest; kept < keep {
		t.Errorf("%d revisions are left, want %d", kept, keep)
	}
	info, err := learner.replica.Read(t.Context(), command.ReadOptions{}, func(v command.View) error {
		_, err := v.GetAt("a", oldest-1)
		return err
	})
	if !errors.Is(err, command.ErrCompacted) || info.Oldest < oldest {
		t.Errorf("a read below the oldest revision %d: %+v, %v", oldest, info, err)
	}
}

func TestAtItsLimitTheLeaderRefusesPutsAndNothingElse(t *testing.T) {
	const limit = 100 << 10
	c := newCluster(t, func(cfg *node.Config) { cfg.MaxData = limit })
	learner := c.add("e1", "east", command.RoleLearner)
	value := string(make([]byte, 1<<10))
	for name, m := range map[string]*member{"the leader": c.leader(), "a learner": learner} {
		once := &command.Once{Key: "key-" + m.name, Retention: time.Hour, Limit: 1 << 20, Command: &command.Put{Key: "k-once", Value: []byte(m.name)}}
		first, err := m.replica.Propose(t.Context(), once)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; err == nil && i < 2*limit/len(value); i++ {
			_, err = m.put(fmt.Sprint("k", i), value)
		}
		if !errors.Is(err, command.ErrDataFull) {
			t.Errorf("beyond the limit, through %s: %v", name, err)
		}
		if size := c.leader().state.DataBytes(); size < limit || size > limit+2*uint64(len(value)) {
			t.Errorf("refused at %d bytes", size)
		}
		if _, err := m.replica.Propose(t.Context(), &command.PutMany{KVs: []command.KV{{Key: "k0"}}}); !errors.Is(err, command.ErrDataFull) {
			t.Errorf("a put of many, through %s: %v", name, err)
		}
		// Who repeats a write that has happened is owed its result.
		if again, err := m.replica.Propose(t.Context(), once); err != nil || again.Revision != first.Revision {
			t.Errorf("a repeat, through %s: %+v, %v; first %+v", name, again, err, first)
		}
		other := *once
		other.Key = "another"
		if _, err := m.replica.Propose(t.Context(), &other); !errors.Is(err, command.ErrDataFull) {
			t.Errorf("a put with another key, through %s: %v", name, err)
		}
		if _, err := m.replica.Propose(t.Context(), &command.DeleteTree{Prefix: "k"}); err != nil {
			t.Errorf("a delete, through %s: %v", name, err)
		}
		if _, err := m.put("k0", value); err != nil {
			t.Errorf("a put once there is room, through %s: %v", name, err)
		}
	}
}

// setAside makes the member start without its state, which was damaged.
func (m *member) setAside() {
	m.t.Helper()
	d, err := store.OpenDir(m.dir, m.id, nil)
	if err == nil {
		_, err = d.SetStateAside()
	}
	if err == nil {
		err = d.Close()
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func TestAMemberWhoseStateWasDamagedTakesItsLogAndACopy(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) { cfg.LogRetention = 1 })
	for _, m := range c.members {
		m.stop()
		m.logStore = store.LogStoreBolt // it drops entries for good
		m.start()
	}
	for i := range 600 {
		c.write(fmt.Sprint("k", i%20), fmt.Sprint(i))
	}
	f := c.followers()[0]
	c.level()
	if err := f.n.Load().Raft().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	c.write("last", "1")
	c.level()
	before := f.n.Load().Status()
	f.stop()
	f.setAside()
	f.start()
	if s := f.n.Load().Status(); s.Revision < before.Revision || s.Ready && s.Cluster.ID == "" {
		t.Errorf("it takes part with %+v, before it had revision %d", s, before.Revision)
	}
	c.write("more", "1")
	c.level()
	eventually(t, "it votes", f.n.Load().MayLead)
}

func TestAStateThatWasDamagedIsMadeAgainFromALogThatHoldsEverything(t *testing.T) {
	c := &cluster{t: t, members: map[string]*member{}}
	m := c.prepare("n1", "home", command.RoleVoter, nil)
	m.cfg.BootstrapExpect = 1
	m.start()
	m.waitJoined()
	for i := range 200 {
		c.write(fmt.Sprint("k", i%20), fmt.Sprint(i))
	}
	before := m.n.Load().Status()
	m.stop()
	m.setAside()
	m.start()
	c.leader()
	if s := m.n.Load().Status(); s.Revision != before.Revision || s.Lineage != before.Lineage {
		t.Errorf("revision %d, before it was %d", s.Revision, before.Revision)
	}
}

// A log that ends below what the state held has forgotten what was acknowledged, whether
// the state is lost altogether or is only one of an earlier moment.
func TestAMemberWhoseLogEndsBelowWhatItHeldIsRefused(t *testing.T) {
	for _, lost := range []string{"the state, and the end of the log", "the end of the log"} {
		t.Run(lost, func(t *testing.T) {
			c := newCluster(t, nil)
			f := c.followers()[0]
			c.write("a", "first")
			c.level()
			f.stop()
			state := filepath.Join(f.dir, "state.db")
			old, err := os.ReadFile(state)
			if err != nil {
				t.Fatal(err)
			}
			f.start()
			for i := range 20 {
				c.write("a", fmt.Sprint(i))
			}
			c.level()
			f.stop()
			if lost == "the end of the log" {
				err = os.WriteFile(state, old, 0o600) // as it is until it is flushed
			} else {
				f.setAside()
			}
			d, derr := store.OpenDir(f.dir, f.id, nil)
			if err := errors.Join(err, derr); err != nil {
				t.Fatal(err)
			}
			logs, err := d.OpenLogs(f.logStore)
			if err != nil {
				t.Fatal(err)
			}
			_, last, err := logs.Bounds()
			if err == nil {
				err = logs.Log.DeleteRange(last-5, last)
			}
			if err := errors.Join(err, logs.Close(), d.Close()); err != nil {
				t.Fatal(err)
			}
			if err := f.tryStart(t.Context()); !errors.Is(err, command.ErrWentBack) {
				t.Errorf("it starts: %v", err)
			}
			if err := errors.Join(f.tr.Close(), f.state.Close(), f.logs.Close(), f.disk.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}
