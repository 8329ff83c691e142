package node_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// fakeDisk does as the test says.
type fakeDisk struct {
	mu   sync.Mutex
	look command.Disk
	gate chan struct{} // while set, appends wait for it
}

func (d *fakeDisk) Look() command.Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.look
}

func (d *fakeDisk) is(look command.Disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.look = look
}

// hang makes appends wait, until answer.
func (d *fakeDisk) hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.look = command.Disk{State: command.DiskStalled, Call: "append", Stalled: time.Second}
	d.gate = make(chan struct{})
}

func (d *fakeDisk) answer() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.look = command.Disk{State: command.DiskOK}
	if d.gate != nil {
		close(d.gate)
		d.gate = nil
	}
}

// hangingLog is a log on a fakeDisk.
type hangingLog struct {
	raft.LogStore
	disk *fakeDisk
}

func (l hangingLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

func (l hangingLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l hangingLog) StoreLogs(logs []*raft.Log) error {
	l.disk.mu.Lock()
	gate := l.disk.gate
	l.disk.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return l.LogStore.StoreLogs(logs)
}

// onFakeDisks starts three voters, each on a disk that does as the test says.
func onFakeDisks(t *testing.T) (*cluster, map[*member]*fakeDisk) {
	disks := map[*member]*fakeDisk{}
	c := newClusterOf(t, nil, func(m *member) {
		d := &fakeDisk{look: command.Disk{State: command.DiskOK}}
		disks[m], m.watched = d, d
		m.wrapLog = func(s raft.LogStore) raft.LogStore { return hangingLog{s, d} }
		t.Cleanup(d.answer) // before the member stops
	})
	return c, disks
}

// reported waits until the leader has heard from both others.
func (c *cluster) reported(leader *member, state command.DiskState) {
	c.t.Helper()
	eventually(c.t, "the leader has heard that the disks of the others are "+string(state), func() bool {
		h, err := leader.n.Load().Health(c.t.Context())
		n := 0
		for _, m := range h.Members {
			if m.Disk == state && !m.Leader {
				n++
			}
		}
		return err == nil && n == 2
	})
}

// Raft itself can do nothing while it waits for the disk. The entry that hangs is
// lost; whoever waits for it learns so, and the write is made by the new leader.
func TestALeaderWhoseDiskHangsPassesLeadershipOn(t *testing.T) {
	c, disks := onFakeDisks(t)
	leader := c.leader()
	others := c.followersOf(leader)
	c.reported(leader, command.DiskOK)
	disks[leader].hang()
	began := time.Now()
	others[0].mustPut("k", "v")
	t.Logf("acknowledged after %v", time.Since(began))
	if err := leader.n.Load().Unfit(); err == nil || leader.n.Load().MayLead() {
		t.Errorf("it calls itself fit: %v", err)
	}
	if _, err := leader.put("k", "by way of the node that hangs"); err != nil {
		t.Errorf("a write at the node that hangs: %v", err)
	}
	if s := leader.n.Load().Status(); s.Ready {
		t.Error("it says that it is ready")
	}
	disks[leader].answer()
	eventually(t, "it follows the new leader", func() bool {
		r := leader.n.Load().Raft()
		_, id := r.LeaderWithID()
		return r.State() == raft.Follower && id != "" && string(id) != leader.id.ID
	})
	eventually(t, "it may lead again, but is not preferred", func() bool {
		return leader.n.Load().MayLead() && leader.n.Load().Disk().State == command.DiskUnsteady
	})
	eventually(t, "its disk is well again", func() bool { return leader.n.Load().Disk().State.Well() })
	eventually(t, "it has what was written meanwhile", func() bool { return leader.state.Revision() == others[0].state.Revision() })
}

// A follower whose disk hangs is not handed leadership to, and not called healthy.
func TestAVoterWhoseDiskHangsIsNotChosen(t *testing.T) {
	c, disks := onFakeDisks(t)
	leader := c.leader()
	others := c.followersOf(leader)
	c.reported(leader, command.DiskOK)
	disks[others[0]].is(command.Disk{State: command.DiskStalled})
	eventually(t, "it is not called healthy", func() bool {
		h, err := leader.n.Load().Health(t.Context())
		for _, m := range h.Members {
			if m.ID == others[0].id.ID {
				return err == nil && !m.Healthy && m.Disk == command.DiskStalled
			}
		}
		return false
	})
	if err := leader.n.Load().StepDown(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other one leads", func() bool { return others[1].n.Load().Raft().State() == raft.Leader })
}

// Where no disk is better, nothing is gained by another leader.
func TestALeaderStaysWhenTheOtherDisksAreNoBetter(t *testing.T) {
	for _, state := range []command.DiskState{command.DiskSlow, command.DiskFull, command.DiskStalled} {
		t.Run(string(state), func(t *testing.T) {
			c, disks := onFakeDisks(t)
			leader := c.leader()
			bad := command.Disk{State: state, Latency: 300 * time.Millisecond}
			for _, m := range c.followersOf(leader) {
				disks[m].is(bad)
			}
			c.reported(leader, state)
			disks[leader].is(bad)
			term := leader.n.Load().Raft().CurrentTerm()
			for began := time.Now(); time.Since(began) < time.Second; time.Sleep(10 * time.Millisecond) {
				if r := leader.n.Load().Raft(); r.State() != raft.Leader || r.CurrentTerm() != term {
					t.Fatal("it leads no longer")
				}
			}
		})
	}
}

// It hands over where one is, and that settles it.
func TestALeaderHandsOverToAVoterWithABetterDisk(t *testing.T) {
	for _, state := range []command.DiskState{command.DiskSlow, command.DiskFull} {
		t.Run(string(state), func(t *testing.T) {
			c, disks := onFakeDisks(t)
			leader := c.leader()
			others := c.followersOf(leader)
			bad := command.Disk{State: state, Latency: 300 * time.Millisecond}
			c.reported(leader, command.DiskOK)
			disks[others[0]].is(bad)
			eventually(t, "the leader knows of it", func() bool {
				h, err := leader.n.Load().Health(t.Context())
				for _, m := range h.Members {
					if m.ID == others[0].id.ID {
						return err == nil && m.Disk == state
					}
				}
				return false
			})
			disks[leader].is(bad)
			eventually(t, "the voter with the better disk leads", func() bool { return others[1].n.Load().Raft().State() == raft.Leader })
			for range 20 {
				leader.mustPut("k", "v")
			}
			if others[1].n.Load().Raft().State() != raft.Leader {
				t.Error("it leads no longer")
			}
		})
	}
}

// A voter whose disk is full is not made leader by an operator either, unless the leader's is
// full as well.
func TestLeadershipIsNotTransferredToAFullDisk(t *testing.T) {
	c, disks := onFakeDisks(t)
	leader := c.leader()
	others := c.followersOf(leader)
	full := command.Disk{State: command.DiskFull}
	for _, m := range others {
		disks[m].is(full)
	}
	c.reported(leader, command.DiskFull)
	to := others[0].id.ID
	if err := leader.n.Load().TransferLeader(t.Context(), to); !errors.Is(err, command.ErrNoTarget) || !strings.Contains(err.Error(), "full") {
		t.Errorf("transferred to a full disk: %v", err)
	}
	disks[leader].is(full)
	eventually(t, "it is as good as the others", func() bool { return leader.n.Load().TransferLeader(t.Context(), to) == nil })
}

// On full disks what adds data is refused, and nothing else.
func TestOnFullDisksOnlyWhatAddsDataIsRefused(t *testing.T) {
	c, disks := onFakeDisks(t)
	leader := c.leader()
	leader.mustPut("k", "v")
	full := command.Disk{State: command.DiskFull, Free: 1 << 20, Reserve: 16 << 20}
	for _, m := range c.followersOf(leader) {
		disks[m].is(full)
	}
	c.reported(leader, command.DiskFull)
	disks[leader].is(full)
	for _, m := range []*member{leader, c.followersOf(leader)[0]} {
		if _, err := m.put("more", "v"); !errors.Is(err, command.ErrDiskFull) {
			t.Errorf("a put at %s: %v", m.name, err)
		}
		if _, err := m.replica.Propose(t.Context(), &command.Stage{ID: "archive", Data: []byte("x")}); !errors.Is(err, command.ErrDiskFull) {
			t.Errorf("a piece of an archive at %s: %v", m.name, err)
		}
		if res, err := m.replica.Propose(t.Context(), &command.Delete{Key: "k"}); err != nil || res.Err != nil {
			t.Errorf("a delete at %s: %+v %v", m.name, res, err)
		}
	}
	disks[leader].is(command.Disk{State: command.DiskOK})
	leader.mustPut("more", "v")
}

// A disk that hangs again and again must answer for longer each time; one that hung
// long ago starts anew.
func TestProbationGrowsWithEachTimeADiskHangs(t *testing.T) {
	now := time.Now()
	at := make([]time.Time, 0, 9)
	for i := range 8 {
		at = append(at, now.Add(time.Duration(i)*time.Minute))
	}
	got := node.Probations(append(at, now.Add(time.Hour))...)
	for i, want := range []time.Duration{2, 4, 8, 16, 32, 60, 60, 60, 2} {
		if got[i] != want*time.Second {
			t.Errorf("the %d. time: %v, want %vs", i+1, got[i], int(want))
		}
	}
}

// hangingPeers waits for a fakeDisk with what it records of peers.
type hangingPeers struct {
	node.Logs
	disk  *fakeDisk
	whose string          // record that waits; the cluster's own members come when they like
	waits chan<- struct{} // told that it does
}

func (l hangingPeers) SetPeer(id string, seen command.PeerSeen) error {
	l.disk.mu.Lock()
	gate := l.disk.gate
	l.disk.mu.Unlock()
	if gate != nil && id == l.whose {
		close(l.waits)
		<-gate
	}
	return l.Logs.SetPeer(id, seen)
}

func TestADiskThatHangsKeepsNoPeerWaitingThatConnects(t *testing.T) {
	c := newCluster(t, nil)
	m := c.followers()[0]
	m.stop()
	disk := &fakeDisk{}
	disk.is(command.Disk{State: command.DiskOK})
	t.Cleanup(disk.answer) // or nothing on it could be stopped
	m.watched = disk
	waits := make(chan struct{})
	m.wrapLogs = func(l node.Logs) node.Logs { return hangingPeers{l, disk, "new", waits} }
	m.start()
	known := command.Hello{ID: "known", Name: "known", Starts: 1, Incarnation: "1"}
	if err := m.n.Load().Check(known); err != nil {
		t.Fatal(err)
	}
	disk.hang()
	disk.is(command.Disk{State: command.DiskOK}) // it is not found out yet
	check := func(id, run string) <-chan error {
		done := make(chan error, 1)
		go func() { done <- m.n.Load().Check(command.Hello{ID: id, Name: id, Starts: 1, Incarnation: run}) }()
		return done
	}
	first := check("new", "1")
	returns := func(what string, done <-chan error) (err error) {
		t.Helper()
		select {
		case err = <-done:
		case <-time.After(patience):
			t.Error(what + " is kept waiting")
		}
		return err
	}
	select {
	case <-waits:
	case <-time.After(patience):
		t.Fatal("the record of the first does not wait for the disk")
	}
	if err := returns("who was met before", check("known", "1")); err != nil {
		t.Error(err)
	}
	disk.is(command.Disk{State: command.DiskStalled})
	if err := returns("who comes while the disk is known to hang", check("newer", "1")); err == nil {
		t.Error("a peer that could not be judged is let in")
	}
	disk.answer()
	if err := returns("who came first", first); err != nil {
		t.Error(err)
	}
}
