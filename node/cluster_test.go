package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/fsm"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/readreplica"
	"github.com/holdfast-db/holdfast/store"
	"github.com/holdfast-db/holdfast/transport"
)

// These tests run whole nodes in one process, on loopback, with real stores and
// transports; cluster-tests does the same with processes that are killed.

const patience = 20 * time.Second

// member is one node and its parts.
type member struct {
	t    testing.TB
	name string
	dir  string
	addr string
	edit func(*node.Config)
	cfg  node.Config
	// logStore is the log store the next start uses.
	logStore string
	id       store.Identity
	disk     *store.Dir
	state    *store.State
	logs     *store.Logs
	tr       *transport.Transport
	n        atomic.Pointer[node.Node]
	replica  *readreplica.Replica
	running  bool
	// What tests put between the node and its parts, and how often it probes.
	wrapFSM       func(node.FSM) node.FSM
	wrapState     func(node.State) node.State
	wrapTransport func(node.Transport) node.Transport
	wrapLog       func(raft.LogStore) raft.LogStore
	wrapLogs      func(node.Logs) node.Logs
	watched       node.Disk
	wrapIdentity  func(node.Identity) node.Identity
	probe         time.Duration
	deadAfter     time.Duration // of calls to a peer that is silent
}

type cluster struct {
	t       testing.TB
	members map[string]*member
	join    []string
}

// newCluster starts voters n1..n3 at home and waits for a leader.
func newCluster(t testing.TB, edit func(*node.Config)) *cluster {
	return newClusterOf(t, edit, func(*member) {})
}

// newClusterOf is newCluster with members that were made ready by a test.
func newClusterOf(t testing.TB, edit func(*node.Config), ready func(*member)) *cluster {
	c := &cluster{t: t, members: map[string]*member{}}
	// All addresses must be known before the first node starts.
	for i := range 3 {
		m := c.prepare(fmt.Sprintf("n%d", i+1), "home", command.RoleVoter, edit)
		m.cfg.BootstrapExpect = 3
		ready(m)
		c.join = append(c.join, m.addr)
	}
	for _, m := range c.members {
		m.cfg.Join = c.join
		m.start()
	}
	for _, m := range c.members {
		m.waitJoined()
	}
	return c
}

// waitJoined waits until the member finds itself in its own members table.
func (m *member) waitJoined() {
	m.t.Helper()
	eventually(m.t, m.name+" is a member", func() bool {
		return slices.ContainsFunc(m.state.Members(), func(o command.Member) bool { return o.ID == m.id.ID })
	})
}

func (c *cluster) prepare(name, site string, role command.Role, edit func(*node.Config)) *member {
	m := &member{t: c.t, name: name, logStore: store.LogStoreWAL, dir: filepath.Join(c.t.TempDir(), name), addr: freeAddress(c.t), edit: edit}
	m.id = store.NewIdentity(name, site)
	m.cfg = node.Config{
		Self: command.Member{ID: m.id.ID, Name: name, Site: site, Role: role, RaftAddr: m.addr, HTTPAddr: "-", Version: "test", Level: command.Level},
		Home: site == "home", Datacenter: "dc1",
	}
	c.members[name] = m
	m.cfg.Join = c.join
	c.t.Cleanup(m.stop)
	return m
}

// add prepares and starts one more member.
func (c *cluster) add(name, site string, role command.Role) *member {
	m := c.prepare(name, site, role, nil)
	m.start()
	m.waitJoined()
	return m
}

// ports hands out loopback addresses below the range of ephemeral ports, so
// that no outgoing connection takes one while a node is down.
var ports = struct {
	sync.Mutex
	next int
}{next: 11000 + os.Getpid()%1000*10}

func freeAddress(t testing.TB) string {
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		ports.next++
		addr := fmt.Sprintf("127.0.0.1:%d", 11000+ports.next%20000)
		tr, err := transport.Listen(transport.Config{Listen: addr, Hello: func() command.Hello { return command.Hello{ID: "x", Name: "x", Site: "x"} }})
		if err == nil {
			_ = tr.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

func (m *member) start() {
	if err := m.tryStart(m.t.Context()); err != nil {
		m.t.Fatalf("start %s: %v", m.name, err)
	}
}

func (m *member) tryStart(ctx context.Context) (err error) {
	m.n.Store(nil) // the transport asks it
	log := hclog.NewNullLogger()
	if os.Getenv("HOLDFAST_TEST_LOG") != "" {
		log = hclog.New(&hclog.LoggerOptions{Name: m.name, Level: hclog.Debug})
	}
	id, ok, err := store.Inspect(m.dir)
	if err != nil {
		return err
	}
	if ok {
		m.id = id
	}
	if m.disk, err = store.OpenDir(m.dir, m.id, log); err != nil {
		return err
	}
	if m.state, err = store.OpenState(store.StateConfig{Dir: m.dir, MaxData: 1 << 30, Log: log}); err != nil {
		return err
	}
	if m.logs, err = m.disk.OpenLogs(m.logStore); err != nil {
		return err
	}
	m.tr, err = transport.Listen(transport.Config{
		Listen: m.addr, Faults: true, Log: log, DialTimeout: 500 * time.Millisecond, Timeout: time.Second, DeadAfter: max(m.deadAfter, time.Second), PingInterval: 200 * time.Millisecond,
		Hello: func() command.Hello {
			id := m.disk.Identity()
			applied, _ := m.state.Applied()
			_, last, _ := m.logs.Bounds()
			return command.Hello{ClusterID: id.ClusterID, Epoch: id.Epoch, ID: id.ID, Name: id.Name, Site: id.Site, RaftAddr: m.addr,
				Incarnation: fmt.Sprintf("%p", m.logs), Starts: id.Starts, Applied: applied, LastIndex: max(applied, last)}
		},
		Resolve: func(id string) (string, bool) {
			for _, o := range m.state.Members() {
				if o.ID == id {
					return o.RaftAddr, true
				}
			}
			return "", false
		},
		Check: func(peer command.Hello) error {
			if n := m.n.Load(); n != nil {
				return n.Check(peer)
			}
			return nil
		},
		Forks: func() []command.Fork { return command.AllForks(m.state.Forks(), m.disk.Identity().Forks) },
		Newer: func(forks []command.Fork) {
			if n := m.n.Load(); n != nil {
				n.Newer(forks)
			}
		},
		Refused: func(reason error) {
			if n := m.n.Load(); n != nil {
				n.Refused(reason)
			}
		},
		InTerm:    func(term uint64, fn func()) bool { return m.logs.InTerm(term, fn) },
		EntryTerm: func(index uint64) (uint64, bool) { return m.logs.EntryTerm(index) },
		Paused:    func() bool { n := m.n.Load(); return n != nil && n.Paused() },
		MayLead:   func() bool { n := m.n.Load(); return n != nil && n.MayLead() },
		Condition: func() command.Condition {
			if n := m.n.Load(); n != nil {
				return n.Condition()
			}
			return command.Condition{}
		},
		Muted:         func() bool { n := m.n.Load(); return n != nil && n.Muted() },
		BeforeInstall: func(ctx context.Context, to string) error { return m.n.Load().OfferCopy(ctx, to) },
	})
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	cfg := m.cfg
	cfg.Log = log
	if m.edit != nil {
		m.edit(&cfg)
	}
	machine := node.FSM(fsm.New(m.state, func(err error) { failed <- err }))
	if m.wrapFSM != nil {
		machine = m.wrapFSM(machine)
	}
	state := node.State(stateParts{m.state})
	if m.wrapState != nil {
		state = m.wrapState(state)
	}
	wire := node.Transport(m.tr)
	if m.wrapTransport != nil {
		wire = m.wrapTransport(wire)
	}
	entries := m.logs.Log
	if m.wrapLog != nil {
		entries = m.wrapLog(entries)
	}
	identity := node.Identity(identityParts{m.disk})
	if m.wrapIdentity != nil {
		identity = m.wrapIdentity(identity)
	}
	logs := node.Logs(m.logs)
	if m.wrapLogs != nil {
		logs = m.wrapLogs(logs)
	}
	cfg.Incarnation = fmt.Sprintf("%p", m.logs)
	n, err := node.New(ctx, cfg, node.Parts{
		State: state, FSM: machine, Log: entries, Disk: m.watched, Stable: m.logs.Stable,
		Snapshots: m.state.Snapshots(), Logs: logs, Identity: identity, Transport: wire, Failed: failed,
	})
	if err != nil {
		return err
	}
	m.n.Store(n)
	m.replica = readreplica.New(readreplica.Config{ProbeInterval: max(m.probe, 50*time.Millisecond), ContactLimit: time.Second, Wait: 3 * time.Second, BoundedWait: time.Second}, n)
	m.tr.Serve(n)
	n.Start()
	m.replica.Start()
	m.running = true
	return nil
}

type stateParts struct{ *store.State }

func (s stateParts) ReceiveCopy(ctx context.Context, r io.Reader) (command.CatchUp, error) {
	stats, err := s.State.ReceiveCopy(ctx, r)
	return command.CatchUp{Kind: stats.Kind, Records: stats.Records}, err
}

type identityParts struct{ *store.Dir }

func (i identityParts) Cluster() (string, uint64) {
	id := i.Identity()
	return id.ClusterID, id.Epoch
}
func (i identityParts) Promotion() *command.Promotion { return i.Identity().Promotion }
func (i identityParts) Forks() []command.Fork         { return i.Identity().Forks }
func (i identityParts) Paused() bool                  { return i.Identity().Paused }

func (m *member) stop() {
	if !m.running {
		return
	}
	m.running = false
	m.replica.Stop()
	for what, err := range map[string]error{"node": m.n.Load().Stop(), "transport": m.tr.Close(), "state": m.state.Close(), "logs": m.logs.Close(), "dir": m.disk.Close()} {
		if err != nil {
			m.t.Errorf("stop %s of %s: %v", what, m.name, err)
		}
	}
}

// eventually waits until ok, and fails the test when it never is.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leader waits until a running voter leads and has applied its term's first
// entry, and returns it.
func (c *cluster) leader() *member {
	c.t.Helper()
	var leader *member
	eventually(c.t, "a leader", func() bool {
		for _, m := range c.members {
			if m.running && m.n.Load().Raft().State() == raft.Leader {
				if _, err := m.read("none", command.ReadOptions{Mode: command.ReadConsistent}); err == nil || errors.Is(err, command.ErrKeyNotFound) {
					leader = m
					return true
				}
			}
		}
		return false
	})
	return leader
}

func (c *cluster) followers() []*member { return c.followersOf(c.leader()) }

func (c *cluster) followersOf(leader *member) []*member {
	var f []*member
	for _, name := range []string{"n1", "n2", "n3"} {
		if m := c.members[name]; m != leader {
			f = append(f, m)
		}
	}
	return f
}

func (m *member) put(key, value string) (command.Result, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	return m.replica.Propose(ctx, &command.Put{Key: key, Value: []byte(value)})
}

func (m *member) mustPut(key, value string) uint64 {
	m.t.Helper()
	res, err := m.put(key, value)
	if err != nil || !res.OK {
		m.t.Fatalf("put %s at %s: %+v, %v", key, m.name, res, err)
	}
	return res.Revision
}

func (m *member) readInfo(key string, o command.ReadOptions) (string, command.ReadInfo, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	var value string
	info, err := m.replica.Read(ctx, o, func(v command.View) error {
		rec, err := v.Get(key)
		value = string(rec.Value)
		return err
	})
	return value, info, err
}

func (m *member) read(key string, o command.ReadOptions) (string, error) {
	v, _, err := m.readInfo(key, o)
	return v, err
}

// write puts a key.
func (c *cluster) write(key, value string) {
	c.t.Helper()
	c.propose(&command.Put{Key: key, Value: []byte(value)})
}

// propose carries a write out at the leader, again when it cannot be told whether
// it was.
func (c *cluster) propose(w command.Command) {
	c.t.Helper()
	eventually(c.t, "a write", func() bool {
		ctx, cancel := context.WithTimeout(c.t.Context(), patience)
		defer cancel()
		_, err := c.leader().replica.Propose(ctx, w)
		if err != nil && !errors.Is(err, command.ErrOutcomeUnknown) {
			c.t.Fatal(err)
		}
		return err == nil
	})
}

// cutFrom silently stops all traffic with the others.
func (m *member) cutFrom(others ...*member) {
	var tokens []string
	for _, o := range others {
		tokens = append(tokens, "node:"+o.name)
	}
	m.tr.SetCut(tokens)
}

func (m *member) heal() { m.tr.SetCut(nil) }

func (c *cluster) others(m *member) []*member {
	var o []*member
	for _, x := range c.members {
		if x != m {
			o = append(o, x)
		}
	}
	return o
}

// level waits until all running members hold the same.
func (c *cluster) level() {
	c.t.Helper()
	eventually(c.t, "all members level", func() bool {
		var first *command.NodeStatus
		for _, m := range c.members {
			if !m.running {
				continue
			}
			s := m.n.Load().Status()
			if first == nil {
				first = &s
			}
			if s.Revision != first.Revision || s.Lineage != first.Lineage {
				return false
			}
		}
		return true
	})
}

func TestWritesAndReadsThroughEveryNode(t *testing.T) {
	c := newCluster(t, nil)
	c.add("e1", "east", command.RoleLearner)
	for name, m := range c.members {
		revision := m.mustPut("key-"+name, "value-"+name)
		for reader, r := range c.members {
			v, err := r.read("key-"+name, command.ReadOptions{Mode: command.ReadConsistent})
			if err != nil || v != "value-"+name {
				t.Errorf("written at %s, read at %s: %q, %v", name, reader, v, err)
			}
			v, err = r.read("key-"+name, command.ReadOptions{Mode: command.ReadStale, MinRevision: revision})
			if err != nil || v != "value-"+name {
				t.Errorf("written at %s, read by revision at %s: %q, %v", name, reader, v, err)
			}
		}
	}
	c.level()
}

// Raft's own VerifyLeader counts answers of non-voters: a leader cut off from
// the other voters, but not from a learner, is verified by it at once.
func TestALeaderThatReachesOnlyALearnerConfirmsNothing(t *testing.T) {
	// A long heartbeat keeps the cut-off leader in its belief while it is asked.
	c := newCluster(t, func(cfg *node.Config) { cfg.Heartbeat = 20 * time.Second; cfg.RoundTimeout = 300 * time.Millisecond })
	learner := c.add("e1", "east", command.RoleLearner)
	leader := c.leader()
	leader.mustPut("a", "1")
	eventually(t, "the learner is level", func() bool { v, _ := learner.read("a", command.ReadOptions{Mode: command.ReadStale}); return v == "1" })
	leader.cutFrom(c.followers()...)
	if err := leader.n.Load().Raft().VerifyLeader().Error(); err != nil {
		t.Logf("the library's check has learnt to leave non-voters out: %v", err)
	}
	for _, m := range []*member{leader, learner} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := m.replica.Read(ctx, command.ReadOptions{Mode: command.ReadConsistent}, func(command.View) error { return nil })
		cancel()
		if err == nil {
			t.Errorf("%s answered a consistent read although the leader has lost all other voters", m.name)
		}
	}
	leader.heal()
	if v, err := c.leader().read("a", command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != "1" {
		t.Errorf("after healing: %q, %v", v, err)
	}
}

// Without the message that proves the commit, a follower would learn of it only
// with the next entry or the next commit interval.
func TestAConsistentReadOnAFollowerDoesNotWaitForTheNextEntry(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) { cfg.CommitInterval = time.Hour })
	learner := c.add("e1", "east", command.RoleLearner)
	leader := c.leader()
	for i := range 20 {
		want := fmt.Sprint(i)
		leader.mustPut("a", want)
		for _, m := range append(c.followers(), learner) {
			if v, err := m.read("a", command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != want {
				t.Fatalf("read at %s: %q, %v; want %q", m.name, v, err, want)
			}
		}
	}
}

func TestALearnerIsNeverMadeToLead(t *testing.T) {
	c := newCluster(t, nil)
	learner := c.add("e1", "east", command.RoleLearner)
	spare := c.add("s1", "home", command.RoleLearner)
	c.level()
	leader := c.leader()
	for _, m := range []*member{learner, spare} {
		// Raft itself would depose the leader for it and make it a candidate.
		_ = leader.n.Load().Raft().LeadershipTransferToServer(raft.ServerID(m.id.ID), raft.ServerAddress(m.id.ID)).Error()
		if s := m.n.Load().Raft().State(); s != raft.Follower {
			t.Errorf("%s is a %v after a transfer of leadership to it", m.name, s)
		}
		if m.n.Load().MayLead() {
			t.Errorf("%s may lead", m.name)
		}
	}
	c.leader().mustPut("a", "1")
	sites, _, err := learner.replica.Sites(t.Context())
	if err != nil || len(sites) != 2 || !sites[0].Home || sites[0].Name != "home" {
		t.Fatalf("sites at the learner: %+v, %v", sites, err)
	}
	for _, s := range slices.Concat(sites[0].Servers, sites[1].Servers) {
		if wantVote := s.Role == command.RoleVoter; s.Voter != wantVote {
			t.Errorf("%s of role %s votes: %v", s.Name, s.Role, s.Voter)
		}
	}
}

func TestAVoterOutsideTheHomeSiteIsRefused(t *testing.T) {
	c := newCluster(t, nil)
	m := c.prepare("x1", "east", command.RoleVoter, func(cfg *node.Config) { cfg.Home = true })
	m.start()
	select {
	case err := <-m.n.Load().Fatal():
		if !errors.Is(err, command.ErrNotHome) {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(patience):
		t.Error("never refused")
	}
}

func TestANameOfALiveMemberIsRefusedAndOfADeadOneReplaced(t *testing.T) {
	c := newCluster(t, nil)
	first := c.add("e1", "east", command.RoleLearner)
	c.level()
	delete(c.members, "e1")
	second := c.prepare("e1", "east", command.RoleLearner, nil)
	second.start()
	select {
	case err := <-second.n.Load().Fatal():
		if !errors.Is(err, command.ErrNameInUse) {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(patience):
		t.Error("a second e1 was never refused")
	}
	second.stop()
	first.stop()
	delete(c.members, "e1")
	c.add("e1", "east", command.RoleLearner)
	c.leader().mustPut("a", "1")
	c.level()
	sites, _, err := c.leader().replica.Sites(t.Context())
	if err != nil || len(sites) != 2 || len(sites[1].Servers) != 1 {
		t.Errorf("the dead e1 was not replaced: %+v, %v", sites, err)
	}
}

// Two processes with one identity could vote twice in one term.
func TestACopyOfALiveMembersDirectoryIsRefused(t *testing.T) {
	c := newCluster(t, nil)
	f := c.followers()[0]
	f.stop()
	clone := c.prepare("clone", "home", command.RoleVoter, nil)
	delete(c.members, "clone")
	clone.name, clone.cfg.Self = f.name, f.cfg.Self
	clone.cfg.Self.RaftAddr = clone.addr
	if err := os.CopyFS(clone.dir, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	f.start()
	c.leader().mustPut("a", "1")
	c.level()
	clone.start()
	select {
	case err := <-clone.n.Load().Fatal():
		// As one that runs already, or, by who remembers the original's last report, as
		// one that went back.
		if !errors.Is(err, command.ErrNameInUse) && !errors.Is(err, command.ErrWentBack) {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(patience):
		t.Error("never refused")
	}
	clone.stop()
}

func TestAMemberMovesToAnotherAddress(t *testing.T) {
	c := newCluster(t, nil)
	f := c.followers()[0]
	f.stop()
	moved := c.prepare("moved", "home", command.RoleVoter, nil)
	delete(c.members, "moved")
	c.members[f.name] = moved
	moved.name, moved.cfg.Self = f.name, f.cfg.Self
	moved.cfg.Self.RaftAddr = moved.addr
	if err := os.CopyFS(moved.dir, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	moved.start()
	c.leader().mustPut("a", "2")
	c.level()
	eventually(t, "all know the new address", func() bool {
		for _, m := range c.members {
			if !slices.ContainsFunc(m.state.Members(), func(o command.Member) bool { return o == moved.cfg.Self }) {
				return false
			}
		}
		return true
	})
	select {
	case err := <-moved.n.Load().Fatal():
		t.Errorf("refused: %v", err)
	default:
	}
}

func TestAMemberBelowTheClustersCommandLevelIsRefused(t *testing.T) {
	c := newCluster(t, nil)
	m := c.prepare("e1", "east", command.RoleLearner, nil)
	m.cfg.Self.Level = command.Level - 1
	m.start()
	select {
	case err := <-m.n.Load().Fatal():
		if !errors.Is(err, command.ErrCommandLevel) {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(patience):
		t.Error("never refused")
	}
	m.stop()
	delete(c.members, "e1")
}

func TestANodeStartedForAnotherDatacenterIsRefused(t *testing.T) {
	c := newCluster(t, nil)
	m := c.prepare("e1", "east", command.RoleLearner, func(cfg *node.Config) { cfg.Datacenter = "other" })
	m.start()
	select {
	case err := <-m.n.Load().Fatal():
		if !errors.Is(err, command.ErrWrongCluster) {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(patience):
		t.Error("never refused")
	}
	m.stop()
	delete(c.members, "e1")
}

func TestANewVoterLearnsFirstAndThenVotes(t *testing.T) {
	c := newCluster(t, nil)
	for i := range 50 {
		c.leader().mustPut(fmt.Sprint("k", i), "v")
	}
	m := c.add("n4", "home", command.RoleVoter)
	eventually(t, "n4 votes", m.n.Load().MayLead)
	c.level()
}

func TestNoRequestFailsWhileLeadershipIsHandedOver(t *testing.T) {
	c := newCluster(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var writes atomic.Int64
	for w, m := range c.members {
		for k := range 4 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if _, err := m.put(fmt.Sprintf("%s-%d", w, k), fmt.Sprint(i)); err != nil {
						t.Errorf("write %d through %s: %v", i, w, err)
						return
					}
					writes.Add(1)
				}
			})
		}
		for _, mode := range []command.ReadMode{command.ReadConsistent, command.ReadDefault} {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := m.read("none", command.ReadOptions{Mode: mode}); !errors.Is(err, command.ErrKeyNotFound) {
						t.Errorf("read of mode %d through %s: %v", mode, w, err)
						return
					}
				}
			})
		}
	}
	for range 5 {
		before := writes.Load()
		leader := c.leader()
		bounded, stop := context.WithTimeout(t.Context(), patience)
		if err := leader.n.Load().StepDown(bounded); err != nil {
			t.Errorf("step down: %v", err)
		}
		stop()
		eventually(t, "writes go on", func() bool { return writes.Load() > before+50 || t.Failed() })
	}
	cancel()
	wg.Wait()
	c.level()
}

func TestACutOffLearnerServesAndSaysHowStaleItIs(t *testing.T) {
	c := newCluster(t, nil)
	m := c.add("e1", "east", command.RoleLearner)
	stale := command.ReadOptions{Mode: command.ReadDefault}
	c.leader().mustPut("a", "1")
	eventually(t, "the learner has the write and a certificate", func() bool {
		v, info, err := m.readInfo("a", stale)
		return err == nil && v == "1" && info.StalenessKnown
	})
	m.cutFrom(c.others(m)...)
	cutAt := time.Now()
	c.leader().mustPut("a", "2")
	eventually(t, "the learner calls itself cut off", func() bool { return m.replica.ReplicaStatus().Status == "cut-off" })
	v, info, err := m.readInfo("a", stale)
	if err != nil || v != "1" || !info.StalenessKnown || info.Staleness < time.Since(cutAt)-100*time.Millisecond {
		t.Errorf("cut off for %v: %q, %+v, %v", time.Since(cutAt), v, info, err)
	}
	if _, err := m.read("a", command.ReadOptions{Mode: command.ReadStale, MaxStale: 200 * time.Millisecond}); !errors.Is(err, command.ErrTooStale) {
		t.Errorf("a read bounded to 200 ms, %v after the cut: %v", time.Since(cutAt), err)
	}
	if v, err := m.read("a", command.ReadOptions{Mode: command.ReadStale, MaxStale: time.Hour}); err != nil || v != "1" {
		t.Errorf("a read bounded to an hour: %q, %v", v, err)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := m.replica.Read(short, command.ReadOptions{Mode: command.ReadConsistent}, func(command.View) error { return nil }); err == nil {
		t.Error("a cut-off learner answered a consistent read")
	}

	// A restart while cut off: everything is still served, the age is unknown,
	// the last certified moment is not.
	before := m.n.Load().Status()
	m.stop()
	m.start()
	m.cutFrom(c.others(m)...)
	v, info, err = m.readInfo("a", stale)
	if err != nil || v == "" || info.Revision < before.Revision {
		t.Errorf("after a restart: %q at revision %d, before it at %d, %v", v, info.Revision, before.Revision, err)
	}
	m.heal()
	eventually(t, "the learner rejoins by itself", func() bool {
		v, info, err := m.readInfo("a", stale)
		return err == nil && v == "2" && info.StalenessKnown && info.Staleness < time.Second
	})
	c.level()
}

func TestALearnerThatStartsCutOffKnowsTheMomentItWasLastFresh(t *testing.T) {
	c := newCluster(t, nil)
	m := c.add("e1", "east", command.RoleLearner)
	c.leader().mustPut("a", "1")
	eventually(t, "the learner has the write and a certificate", func() bool {
		v, info, err := m.readInfo("a", command.ReadOptions{})
		return err == nil && v == "1" && info.StalenessKnown
	})
	m.stop()
	stopped := time.Now()
	for _, o := range c.others(m) {
		o.tr.SetCut([]string{"east"})
	}
	m.start()
	v, info, err := m.readInfo("a", command.ReadOptions{})
	if err != nil || v != "1" {
		t.Fatalf("a learner that starts cut off: %q, %v", v, err)
	}
	if info.StalenessKnown || info.FreshAsOf.IsZero() || info.FreshAsOf.After(stopped) {
		t.Errorf("a learner that starts cut off says %+v; it was stopped at %v", info, stopped)
	}
	for _, o := range c.others(m) {
		o.heal()
	}
	c.level()
}

// missTheLog stops a member, makes all others write and forget the log, and calls
// between before it starts the member again.
func (c *cluster) missTheLog(m *member, writes int, between func()) {
	t := c.t
	t.Helper()
	// raft-wal goes on reading entries it has dropped until their segment is
	// full; raft-boltdb does not. The restart also converts the logs.
	for _, o := range c.members {
		o.stop()
		o.logStore = store.LogStoreBolt
		o.start()
	}
	c.leader()
	m.stop()
	for i := range writes {
		c.write(fmt.Sprint("k", i%50), fmt.Sprint(i))
	}
	between()
	for _, o := range c.others(m) {
		if err := o.n.Load().Raft().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	m.start()
	c.level()
}

// tookCopy waits until the member says that it has taken a copy, which is in place
// by then, or a moment before.
func (m *member) tookCopy() (c command.CatchUp) {
	m.t.Helper()
	eventually(m.t, m.name+" has taken a copy", func() bool {
		c = m.n.Load().CatchUp()
		return c.Kind != "" && c.Kind != command.CatchUpLog
	})
	return c
}

func TestALearnerThatMissedTheLogTakesWhatHasChanged(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) { cfg.LogRetention = 1 })
	m := c.add("e1", "east", command.RoleLearner)
	for i := range 100 {
		c.write(fmt.Sprint("before", i), "1")
	}
	c.level()
	const writes = 600
	c.missTheLog(m, writes, func() {})
	// It may have taken two: the first member it found need not have been level.
	if got := m.tookCopy(); got.Kind != command.CopyDelta || got.Records == 0 || got.Records >= writes+100 || got.Bytes == 0 {
		t.Errorf("it caught up by %+v, it missed %d changes and the log no longer has them", got, writes)
	}
	if v, err := m.read("before7", command.ReadOptions{Mode: command.ReadStale}); err != nil || v != "1" {
		t.Errorf("after the copy: %q, %v", v, err)
	}
	// And once more after a restart: state and log fit.
	m.stop()
	m.start()
	c.leader().mustPut("after", "1")
	c.level()
}

func TestALearnerThatMissedHistoryTooTakesAFullCopy(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) {
		cfg.LogRetention = 1
		cfg.History = command.Retention{Age: time.Millisecond, Changes: 20, Bytes: 1 << 20}
	})
	m := c.add("e1", "east", command.RoleLearner)
	c.write("before", "1")
	c.level()
	had := m.state.Revision()
	c.missTheLog(m, 600, func() {
		eventually(t, "the others forget what it has", func() bool {
			for _, o := range c.others(m) {
				if o.state.OldestRevision() <= had {
					return false
				}
			}
			return true
		})
	})
	if got := m.tookCopy(); got.Kind != command.CopyFull || got.Records == 0 {
		t.Errorf("it caught up by %+v, neither log nor history has what it missed", got)
	}
	if v, err := m.read("before", command.ReadOptions{Mode: command.ReadStale}); err != nil || v != "1" {
		t.Errorf("after the copy: %q, %v", v, err)
	}
}

// breaking ends every copy stream after some bytes, as long as it is told to.
type breaking struct {
	node.Transport
	after int64
	opens *atomic.Int64
}

func (b breaking) FetchCopy(ctx context.Context, to string, req []byte) (io.ReadCloser, error) {
	r, err := b.Transport.FetchCopy(ctx, to, req)
	if err != nil {
		return nil, err
	}
	b.opens.Add(1)
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, b.after), iotest.ErrReader(io.ErrUnexpectedEOF)), r}, nil
}

// A copy over a link that never stays up for a whole one must get there, without
// anything travelling twice that need not.
func TestACopyOverALinkThatBreaksArrivesPieceByPiece(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) {
		cfg.LogRetention = 1
		cfg.History = command.Retention{Age: time.Hour, Changes: 1 << 30, Bytes: 1 << 30}
	})
	const piece, pieces = 1 << 20, 12 // more than are tried without getting further
	value := strings.Repeat("0123456789abcdef", 4<<10)
	for i := range pieces {
		many := &command.PutMany{}
		for k := range piece / len(value) {
			many.KVs = append(many.KVs, command.KV{Key: fmt.Sprint("k", i, "/", k), Value: []byte(value)})
		}
		c.propose(many)
	}
	for _, o := range c.members {
		o.stop()
		o.logStore = store.LogStoreBolt
		o.start()
	}
	for i := range 300 {
		c.write("more", fmt.Sprint(i))
	}
	c.level()
	for _, o := range c.members {
		if err := o.n.Load().Raft().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	m := c.prepare("e1", "east", command.RoleLearner, nil)
	m.logStore = store.LogStoreBolt
	opens := &atomic.Int64{}
	m.wrapTransport = func(tr node.Transport) node.Transport { return breaking{tr, piece, opens} }
	m.start()
	c.level()
	got := m.tookCopy()
	if got.Kind != command.CopyFull || opens.Load() < pieces {
		t.Errorf("it caught up by %+v in %d pieces", got, opens.Load())
	}
	if got.Bytes > 2*pieces*piece {
		t.Errorf("%d bytes travelled for some %d", got.Bytes, pieces*piece)
	}
}

// A voter asks for votes and so hears of it. A learner that nobody calls any more has to
// ask, too.
func TestADiskThatWentBackIsRefused(t *testing.T) {
	t.Run("of a voter", func(t *testing.T) {
		c := newCluster(t, nil)
		testWentBack(t, c, c.followers()[0])
	})
	t.Run("of a learner", func(t *testing.T) {
		c := newCluster(t, nil)
		testWentBack(t, c, c.add("e1", "east", command.RoleLearner))
	})
}

func testWentBack(t *testing.T, c *cluster, f *member) {
	t.Helper()
	c.leader().mustPut("a", "1")
	c.level()
	f.stop()
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	f.start()
	for i := range 20 {
		c.leader().mustPut("a", fmt.Sprint(i))
	}
	c.level()
	eventually(t, "the others have seen what it holds", func() bool {
		seen := c.leader().logs.Peers()[f.id.ID]
		applied, _ := f.state.Applied()
		return seen.LastIndex >= applied-1
	})
	f.stop()
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(f.dir, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	f.start()
	select {
	case err := <-f.n.Load().Fatal():
		if !errors.Is(err, command.ErrWentBack) {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(patience):
		t.Error("a node whose disk went back takes part as if nothing had happened")
	}
}

// Who comes back as of an earlier moment starts again with a number that was used, however
// little was seen of what it has forgotten.
func TestAStartThatIsNotTheOneThatWasSeenIsRefused(t *testing.T) {
	n := newCluster(t, nil).leader().n.Load()
	peer := command.Hello{ID: "x-1", Name: "x", Starts: 2, Incarnation: "second", LastIndex: 5, Applied: 5}
	copied := peer
	copied.Incarnation, copied.LastIndex, copied.Applied = "second of a copy", 9, 9
	next := copied
	next.Starts, next.Incarnation = 3, "third"
	for _, c := range []struct {
		peer command.Hello
		want error
	}{{peer, nil}, {peer, nil}, {copied, command.ErrWentBack}, {next, nil}, {copied, command.ErrWentBack}} {
		if err := n.Check(c.peer); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.peer, err, c.want)
		}
	}
}

func TestEverythingIsThereAfterAllNodesRestart(t *testing.T) {
	c := newCluster(t, nil)
	c.add("e1", "east", command.RoleLearner)
	for i := range 100 {
		c.leader().mustPut(fmt.Sprint("k", i), fmt.Sprint(i))
	}
	c.level()
	before := c.leader().n.Load().Status()
	for _, m := range c.members {
		m.stop()
	}
	for _, m := range c.members {
		m.start()
	}
	for i := range 100 {
		if v, err := c.leader().read(fmt.Sprint("k", i), command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != fmt.Sprint(i) {
			t.Fatalf("k%d after the restart: %q, %v", i, v, err)
		}
	}
	c.level()
	after := c.leader().n.Load().Status()
	if after.Revision != before.Revision || after.Lineage != before.Lineage {
		t.Errorf("before %d %x, after %d %x", before.Revision, before.Lineage, after.Revision, after.Lineage)
	}
}

func TestAWriteWithoutAMajorityIsNeverAcknowledged(t *testing.T) {
	c := newCluster(t, func(cfg *node.Config) { cfg.Wait = 2 * time.Second })
	leader := c.leader()
	leader.mustPut("a", "1")
	leader.cutFrom(c.followers()...)
	if res, err := leader.put("a", "lost"); err == nil {
		t.Errorf("acknowledged without a majority: %+v", res)
	}
	eventually(t, "the others elect a leader and write", func() bool {
		for _, m := range c.members {
			if m != leader {
				if _, err := m.put("a", "2"); err == nil {
					return true
				}
			}
		}
		return false
	})
	leader.heal()
	eventually(t, "the former leader follows", func() bool {
		v, err := leader.read("a", command.ReadOptions{Mode: command.ReadConsistent})
		return err == nil && v == "2"
	})
	c.level()
}
