package transport

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// counter is a state machine that remembers what was applied.
type counter struct {
	mu      sync.Mutex
	applied []string
}

func (c *counter) Apply(l *raft.Log) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied = append(c.applied, string(l.Data))
	return len(c.applied)
}

func (c *counter) Snapshot() (raft.FSMSnapshot, error) { return nil, fmt.Errorf("none") }
func (c *counter) Restore(io.ReadCloser) error         { return fmt.Errorf("none") }

func (c *counter) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.applied)
}

// TestThreeNodesElectAndReplicate with the library's real Raft: writes, the loss
// of the leader, and the return of a voter that was held for.
func TestThreeNodesElectAndReplicate(t *testing.T) {
	type member struct {
		t    *Transport
		r    *raft.Raft
		fsm  *counter
		logs *raft.InmemStore
	}
	b := newBook()
	names := []string{"n1", "n2", "n3"}
	members := map[string]*member{}
	run := func(name string, logs *raft.InmemStore) *member {
		cfg := testConfig(t, b, hello(name))
		cfg.MayLead = func() bool { return true }
		m := &member{t: start(t, b, cfg, nil), fsm: &counter{}, logs: logs}
		rc := raft.DefaultConfig()
		rc.LocalID = raft.ServerID(name)
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
		rc.CommitTimeout = 5 * time.Millisecond
		rc.Logger = hclog.NewNullLogger()
		var servers []raft.Server
		for _, n := range names {
			servers = append(servers, raft.Server{ID: raft.ServerID(n), Address: raft.ServerAddress(n)})
		}
		if last, _ := logs.LastIndex(); last == 0 {
			if err := raft.BootstrapCluster(rc, logs, logs, raft.NewDiscardSnapshotStore(), m.t, raft.Configuration{Servers: servers}); err != nil {
				t.Fatal(err)
			}
		}
		r, err := raft.NewRaft(rc, m.fsm, logs, logs, raft.NewDiscardSnapshotStore(), m.t)
		if err != nil {
			t.Fatal(err)
		}
		m.r = r
		go func() {
			for leads := range r.LeaderCh() {
				m.t.SetLeading(leads)
			}
		}()
		members[name] = m
		return m
	}
	stop := func(name string) *raft.InmemStore {
		m := members[name]
		m.t.SetLeading(false)
		f := m.r.Shutdown()
		m.t.CloseStreams()
		if err := f.Error(); err != nil { // closes the transport too
			t.Fatal(err)
		}
		delete(members, name)
		return m.logs
	}
	for _, n := range names {
		run(n, raft.NewInmemStore())
	}
	t.Cleanup(func() {
		for n := range members {
			stop(n)
		}
	})
	leader := func() *member {
		var found *member
		eventually(t, "a leader", func() bool {
			for _, m := range members {
				if m.r.State() == raft.Leader && m.r.VerifyLeader().Error() == nil {
					found = m
				}
			}
			return found != nil
		})
		return found
	}
	written := 0
	write := func(n int) {
		l := leader()
		var fs []raft.ApplyFuture
		for range n {
			fs = append(fs, l.r.Apply(fmt.Appendf(nil, "%d", written), patience))
			written++
		}
		for _, f := range fs {
			if err := f.Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	level := func() {
		for name, m := range members {
			eventually(t, name+" is level", func() bool { return len(m.fsm.all()) >= written })
			for i, s := range m.fsm.all()[:written] {
				if s != fmt.Sprint(i) {
					t.Fatalf("%s applied %q as number %d", name, s, i)
				}
			}
		}
	}
	write(300)
	level()

	old := leader().t.self
	logs := stop(old)
	write(100) // the new leader holds replication for the old one
	level()
	run(old, logs)
	level()

	target := ""
	l := leader()
	for n := range members {
		if n != l.t.self {
			target = n
		}
	}
	if err := l.r.LeadershipTransferToServer(raft.ServerID(target), raft.ServerAddress(target)).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, target+" leads", func() bool { return members[target].r.State() == raft.Leader })
	write(100)
	level()
}
