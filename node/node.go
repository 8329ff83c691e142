package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// Node is one running member.
type Node struct {
	cfg   Config
	parts Parts
	id    string
	log   hclog.Logger
	raft  *raft.Raft
	began time.Time

	group   *group
	reports reports
	// changed wakes those who wait for a leader.
	changed   signal
	rounds    flight[confirmation]
	lastRound atomic.Pointer[confirmation] // nil while not leading
	readAsks  flight[Point]
	leaseAsks flight[Point]
	fetches   flight[struct{}]
	fetchFrom atomic.Value // string: whom the next fetch asks
	offers    atomic.Int64 // copies being taken from this node by Raft's order
	catchUp   atomic.Pointer[command.CatchUp]
	time      atomic.Pointer[clusterTime] // nil while not leading

	joining chan struct{} // holds one: who may change the members
	forming struct {      // guards the forming of a cluster by this node
		sync.Mutex
		init *command.Init // set once all have promised
	}

	// seen serialises what is remembered of peers.
	seen struct {
		sync.Mutex
		incarnation map[string]string // by id: the run judged last
	}

	ctx       context.Context // ends with the node
	cancel    context.CancelFunc
	started   chan struct{} // closed by Start: calls are served from then on
	stop      chan struct{} // closed by Stop
	stopOnce  sync.Once
	loops     sync.WaitGroup
	observers []*raft.Observer

	failMu  sync.Mutex
	failure error      // guarded by failMu
	fatal   chan error // the failure that ends the process
}

// New brings the state to where it was and starts Raft. The start-up order is
// part of the contract:
//
//  1. a log that ends below the state is dropped: the state holds more, and the
//     log store takes no gaps;
//  2. a log that begins above the state's end is preceded by a full copy from
//     another member, or Raft would find entries missing and stop the process;
//  3. the log is applied up to the commit marker, so that reads never go back
//     over a restart, also without a leader (Raft does not persist its commit
//     index);
//  4. Raft starts.
//
// The transport must deliver calls to the node only after Start.
func New(ctx context.Context, cfg Config, parts Parts) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, parts: parts, id: cfg.Self.ID, log: cfg.Log, began: time.Now(),
		joining: make(chan struct{}, 1), started: make(chan struct{}), stop: make(chan struct{}), fatal: make(chan error, 1),
	}
	n.seen.incarnation = map[string]string{}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.align(ctx); err != nil {
		return nil, err
	}
	if err := n.replay(); err != nil {
		return nil, err
	}
	if err := n.startRaft(); err != nil {
		return nil, err
	}
	n.group = &group{
		apply:    func(e []byte) raft.ApplyFuture { return n.raft.Apply(e, 0) },
		stamp:    n.stamp,
		inFlight: cfg.InFlight,
	}
	return n, nil
}

// align makes log and state fit (steps 1 and 2 of New).
func (n *Node) align(ctx context.Context) error {
	first, last, err := n.parts.Logs.Bounds()
	if err != nil {
		return fmt.Errorf("read the log's bounds: %w", err)
	}
	holds, err := n.holds()
	if err != nil {
		return err
	}
	switch {
	case last == 0:
		return nil
	case last < holds:
		n.log.Info("dropping a log that ends below the state", "log-last", last, "state", holds)
		return n.parts.Logs.Reset()
	case first > holds+1:
		n.log.Warn("the log begins above the state: fetching a full copy first", "log-first", first, "state", holds)
		return n.healState(ctx, first)
	}
	return nil
}

// holds is the Raft index the state stands for: that of the last entry it saw,
// or of a snapshot behind it, since entries between the two mean nothing to it.
func (n *Node) holds() (uint64, error) {
	index, _ := n.parts.State.Applied()
	snapshots, err := n.parts.Snapshots.List()
	if err != nil {
		return 0, fmt.Errorf("read the state's index: %w", err)
	}
	for _, s := range snapshots {
		index = max(index, s.Index)
	}
	return index, nil
}

// healState replaces the state by a copy that reaches the log, from whichever
// member is found first.
func (n *Node) healState(ctx context.Context, first uint64) error {
	for {
		var problem error = errors.New("no --join address is given")
		for _, addr := range n.cfg.Join {
			if addr == n.cfg.Self.RaftAddr {
				continue
			}
			problem = n.receiveCopy(func(ctx context.Context) (io.ReadCloser, error) {
				return n.parts.Transport.FetchCopyAddr(ctx, addr, nil)
			})
			if problem == nil {
				problem = n.parts.State.SwapCopy()
			}
			if holds, err := n.holds(); problem == nil && err == nil && holds+1 >= first {
				_, last, err := n.parts.Logs.Bounds()
				if err == nil && last < holds {
					err = n.parts.Logs.Reset()
				}
				return err
			}
		}
		n.log.Warn("no full copy yet", "error", problem)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("state is older than the log and no peer gave a full copy (%w); start a peer, or move the data directory away to join anew", problem)
		}
	}
}

// replay applies the node's own log up to the commit marker (step 3 of New).
func (n *Node) replay() error {
	marker, _ := n.parts.State.Marker()
	applied, err := n.holds()
	if err != nil {
		return err
	}
	_, last, err := n.parts.Logs.Bounds()
	if err != nil {
		return fmt.Errorf("read the log's bounds: %w", err)
	}
	to := min(marker, last)
	if marker > last && marker > applied {
		n.log.Warn("the log ends below the last entry that was read from: reads may go back", "marker", marker, "log-last", last)
	}
	if to <= applied || planted("forgotten-marker") {
		return nil
	}
	began := time.Now()
	const chunk = 64
	logs := make([]*raft.Log, 0, chunk)
	for index := applied + 1; index <= to; index++ {
		l := new(raft.Log)
		if err := n.parts.Log.GetLog(index, l); err != nil {
			return fmt.Errorf("replay log entry %d: %w", index, err)
		}
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			logs = append(logs, l)
		}
		if len(logs) == chunk || index == to && len(logs) > 0 {
			for _, r := range n.parts.FSM.ApplyBatch(logs) {
				if err, bad := r.(error); bad {
					return err
				}
			}
			logs = logs[:0]
		}
	}
	n.log.Info("replayed the log", "from", applied+1, "to", to, "took", time.Since(began))
	return nil
}

func (n *Node) startRaft() error {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(n.id)
	rc.HeartbeatTimeout = n.cfg.Heartbeat
	rc.ElectionTimeout = n.cfg.Heartbeat
	rc.LeaderLeaseTimeout = n.cfg.Heartbeat
	rc.CommitTimeout = n.cfg.CommitInterval
	rc.MaxAppendEntries = 64
	rc.SnapshotInterval = 10 * time.Second
	rc.SnapshotThreshold, rc.TrailingLogs = n.logBudget()
	rc.NoSnapshotRestoreOnStart = true // the state file is the snapshot
	rc.ShutdownOnRemove = false
	rc.NoLegacyTelemetry = true
	rc.Logger = n.cfg.RaftLog
	// Without Close: a node that leaves Raft because its disk failed goes on
	// talking to its peers, and the library would close what it did not open.
	r, err := raft.NewRaft(rc, n.parts.FSM, n.parts.Log, n.parts.Stable, n.parts.Snapshots, struct{ Transport }{n.parts.Transport})
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.raft = r
	return nil
}

// logBudget turns the retention in bytes into Raft's two counts of entries.
func (n *Node) logBudget() (threshold, trailing uint64) {
	if n.offers.Load() > 0 {
		return 1 << 20, 1 << 40 // the receiver of a copy will need what follows it
	}
	size := max(n.parts.Logs.EntryBytes(), 1)
	trailing = min(max(n.cfg.LogRetention/size, 256), 1<<16)
	return min(max(trailing/4, 64), 8192), trailing
}

// Start begins to serve calls, to lead when elected, and to become a member.
func (n *Node) Start() {
	ch := make(chan raft.Observation, 16)
	o := raft.NewObserver(ch, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(o)
	n.observers = append(n.observers, o)
	close(n.started)
	n.loop(func() {
		for {
			select {
			case <-ch:
				n.changed.notify()
			case <-n.stop:
				return
			}
		}
	})
	n.loop(n.leadership)
	n.loop(n.membership)
	n.loop(n.housekeeping)
}

func (n *Node) loop(fn func()) {
	n.loops.Add(1)
	go func() {
		defer n.loops.Done()
		fn()
	}()
}

// housekeeping sizes the log by bytes and watches for failures of the disk.
func (n *Node) housekeeping() {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.setLogBudget()
			n.rememberPeers()
		case err := <-n.parts.Failed:
			n.Fail(err, false)
			n.shutdownRaft()
		case <-n.stop:
			return
		}
	}
}

func (n *Node) setLogBudget() {
	rc := n.raft.ReloadableConfig()
	threshold, trailing := n.logBudget()
	if rc.SnapshotThreshold == threshold && rc.TrailingLogs == trailing {
		return
	}
	rc.SnapshotThreshold, rc.TrailingLogs = threshold, trailing
	if err := n.raft.ReloadConfig(rc); err != nil {
		n.log.Warn("log budget not set", "error", err)
	}
}

// rememberPeers notes what each member has been seen to hold, so that a disk
// that is rolled back later is noticed (Check).
func (n *Node) rememberPeers() {
	n.reports.mu.Lock()
	seen := make(map[string]uint64, len(n.reports.byID))
	for id, r := range n.reports.byID {
		seen[id] = r.Applied
	}
	n.reports.mu.Unlock()
	n.seen.Lock()
	defer n.seen.Unlock()
	known := n.parts.Logs.Peers()
	for id, applied := range seen {
		p := known[id]
		if applied > p.LastIndex {
			p.LastIndex = applied
			if err := n.parts.Logs.SetPeer(id, p); err != nil {
				n.log.Warn("could not remember a peer", "id", id, "error", err)
			}
		}
	}
}

// Check judges a peer at connect: whether its disk went back. A peer that
// started less often, or holds less, than was seen of it may have forgotten a
// vote or a write it acknowledged.
//
// Only a new process can have gone back, so each incarnation is judged once, at
// its first connection. Later introductions may overtake one another: one that
// was written before and arrives after says less, and means nothing.
func (n *Node) Check(peer command.Hello) error {
	if peer.Starts == 0 {
		return nil // it only asks, and has not opened its data directory yet
	}
	n.seen.Lock()
	defer n.seen.Unlock()
	if n.seen.incarnation[peer.ID] == peer.Incarnation {
		return nil
	}
	seen := n.parts.Logs.Peers()[peer.ID]
	if peer.Starts < seen.Starts || peer.LastIndex < seen.LastIndex {
		return command.ErrWentBack.With("%s was seen at start %d with entry %d, now it is at start %d with entry %d",
			peer.Name, seen.Starts, seen.LastIndex, peer.Starts, peer.LastIndex)
	}
	if err := n.parts.Logs.SetPeer(peer.ID, command.PeerSeen{Starts: peer.Starts, LastIndex: max(peer.Applied, seen.LastIndex)}); err != nil {
		return fmt.Errorf("remember %s: %w", peer.Name, err)
	}
	n.seen.incarnation[peer.ID] = peer.Incarnation
	return nil
}

// Refused is told why a peer would not talk to this node. A peer that knows more
// of this node than its disk does is right, whoever it is: the node ends.
func (n *Node) Refused(reason error) {
	if errors.Is(reason, command.ErrWentBack) {
		n.Fail(reason, true)
	}
}

// Fail records why this node can no longer take part; fatal asks the process to
// end. Without fatal the node goes on serving stale reads.
func (n *Node) Fail(err error, fatal bool) {
	n.failMu.Lock()
	if n.failure == nil {
		n.failure = err
		n.log.Error("this node takes part no longer", "error", err)
	}
	n.failMu.Unlock()
	if fatal {
		select {
		case n.fatal <- err:
		default:
		}
	}
}

// Fatal delivers the error that ends the process.
func (n *Node) Fatal() <-chan error { return n.fatal }

// Failure is why this node takes part no longer, nil while it does.
func (n *Node) Failure() error {
	n.failMu.Lock()
	defer n.failMu.Unlock()
	return n.failure
}

// Stop ends the node's part in Raft and all its goroutines. What is in flight
// ends with command.ErrOutcomeUnknown; call StepDown first to let it finish.
// The parts stay open: whoever made them closes them.
func (n *Node) Stop() error {
	var err error
	n.stopOnce.Do(func() {
		close(n.stop)
		n.cancel()
		for _, o := range n.observers {
			n.raft.DeregisterObserver(o)
		}
		err = n.shutdownRaft()
		n.loops.Wait()
	})
	return err
}

func (n *Node) shutdownRaft() error {
	f := n.raft.Shutdown()
	// A replication call held for an absent peer would keep Raft from ending;
	// the leadership loop may just be about to hold them.
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	for {
		n.parts.Transport.SetLeading(false)
		n.parts.Transport.CloseStreams()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// The node's faces to readreplica and http.

// View opens the state as it is now.
func (n *Node) View() (command.View, error) { return n.parts.State.View() }

// Clock is the clock the node judges leases by.
func (n *Node) Clock() Clock { return n.cfg.Clock }

// Self is this member.
func (n *Node) Self() command.Member { return n.cfg.Self }

// State is the node's store.
func (n *Node) State() State { return n.parts.State }

// CaughtUp records how this node got level.
func (n *Node) CaughtUp(c command.CatchUp) { n.catchUp.Store(&c) }

// CatchUp is how this node last got level.
func (n *Node) CatchUp() command.CatchUp {
	if c := n.catchUp.Load(); c != nil {
		return *c
	}
	return command.CatchUp{}
}

// Probe is AskIndex with lease, which also tells the leader how this node does.
func (n *Node) Probe(ctx context.Context, staleness time.Duration, known bool) (Point, error) {
	leader := n.leaderID()
	if leader == n.id && leader != "" {
		return n.localIndex(ctx, true)
	}
	req, err := encode(n.report(staleness, known))
	if err != nil {
		return Point{}, err
	}
	return n.remoteIndex(methodProbe, req)
}

func (n *Node) report(staleness time.Duration, known bool) Report {
	r := Report{LastIndex: n.raft.LastIndex(), StalenessMS: -1}
	if known {
		r.StalenessMS = staleness.Milliseconds()
	}
	if view, err := n.parts.State.View(); err == nil {
		r.Revision, r.Applied, r.Lineage = view.Revision(), view.Applied(), view.Lineage()
		view.Close()
	}
	return r
}

// LastContact is the time since a leader was heard; 0 on the leader. When there
// never was one it is the time since the start, and ok is false.
func (n *Node) LastContact() (since time.Duration, ok bool) {
	if n.raft.State() == raft.Leader {
		return 0, true
	}
	at := n.raft.LastContact()
	if at.IsZero() {
		return time.Since(n.began), false
	}
	return time.Since(at), true
}

// KnowsLeader reports whether a leader is known now.
func (n *Node) KnowsLeader() bool { return n.leaderID() != "" }

// Learner reports whether the node is meant to serve reads on the spot.
func (n *Node) Learner() bool { return n.cfg.Self.Role == command.RoleLearner }

// Export calls fn for every record under prefix exactly at revision, 0 for now.
func (n *Node) Export(ctx context.Context, prefix string, revision uint64, fn func(command.Record) error) error {
	return n.parts.State.Export(ctx, prefix, revision, fn)
}

// Status is what the node knows of itself and the cluster right now.
func (n *Node) Status() command.NodeStatus {
	s := command.NodeStatus{
		ID: n.id, Name: n.cfg.Self.Name, Site: n.cfg.Self.Site, HTTPAddr: n.cfg.Self.HTTPAddr, RaftAddr: n.cfg.Self.RaftAddr,
		State: n.raft.State().String(), LeaderID: n.leaderID(), Term: n.raft.CurrentTerm(),
		LastIndex: n.raft.LastIndex(), CommitIndex: n.raft.CommitIndex(), Started: n.began, Version: n.cfg.Self.Version,
	}
	if s.State == raft.Follower.String() && !n.MayLead() {
		s.State = "Learner"
	}
	s.LastContact, _ = n.LastContact()
	if view, err := n.parts.State.View(); err == nil {
		defer view.Close()
		s.Cluster, s.AppliedIndex, s.Revision, s.Lineage = view.Cluster(), view.Applied(), view.Revision(), view.Lineage()
		members, err := view.Members()
		if err == nil {
			byID := map[string]command.Member{}
			for _, m := range members {
				byID[m.ID] = m
			}
			s.Leader, s.LeaderRaftAddr = byID[s.LeaderID].Name, byID[s.LeaderID].RaftAddr
			for _, v := range n.raft.GetConfiguration().Configuration().Servers {
				if v.Suffrage == raft.Voter {
					s.VoterRaftAddrs = append(s.VoterRaftAddrs, byID[string(v.ID)].RaftAddr)
				}
			}
		}
	}
	switch failure := n.Failure(); {
	case failure != nil:
		s.NotReadyBecause = failure.Error()
	case n.Learner() && n.parts.State.LastCertified().IsZero():
		s.NotReadyBecause = "no complete copy yet"
	case !n.Learner() && s.LeaderID == "":
		s.NotReadyBecause = "no known leader"
	case !n.Learner() && s.Cluster.ID == "":
		s.NotReadyBecause = "no complete copy yet"
	default:
		s.Ready = true
	}
	return s
}

type sitesAnswer struct {
	Sites    []command.Site `json:"sites"`
	Revision uint64         `json:"revision"`
}

// Sites is the topology, with the members table's revision. Any node answers;
// what only the leader knows (lag, contact) comes from it when it can be
// reached within a second, and is left unknown when not.
func (n *Node) Sites(ctx context.Context) ([]command.Site, uint64, error) {
	if n.raft.State() == raft.Leader {
		return n.leaderSites()
	}
	if leader := n.leaderID(); leader != "" {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if b, err := n.parts.Transport.Call(short, leader, methodSites, nil); err == nil {
			var a sitesAnswer
			if err := json.Unmarshal(b, &a); err == nil {
				return a.Sites, a.Revision, nil
			}
		}
	}
	return n.sites(func(_ command.Member, s *command.Server) { s.State = "unknown" })
}

func (n *Node) leaderSites() ([]command.Site, uint64, error) {
	if n.raft.State() != raft.Leader {
		return nil, 0, command.ErrNotLeader
	}
	now := n.cfg.Clock.Steady()
	return n.sites(func(m command.Member, s *command.Server) {
		r, ok := n.reports.full(m.ID)
		if !ok {
			s.State = "unreachable"
			return
		}
		since := now - r.at
		s.Applied, s.Lineage = r.Revision, hex.EncodeToString(r.Lineage[:])
		s.LastContact = since.Round(time.Millisecond).String()
		if r.leader > r.Applied {
			s.Lag.Entries = r.leader - r.Applied
			s.Lag.Bytes = s.Lag.Entries * n.parts.Logs.EntryBytes()
		}
		if r.StalenessMS >= 0 {
			s.Lag.Seconds = (time.Duration(r.StalenessMS)*time.Millisecond + since).Seconds()
		}
		switch {
		case s.Lag.Entries == 0:
			s.Lag.ETA = 0
		case r.perSecond > 0:
			s.Lag.ETA = float64(s.Lag.Entries) / r.perSecond
		default:
			s.Lag.ETA = -1
		}
		switch {
		case since > 3*time.Second:
			s.State = "unreachable"
		case s.Lag.Entries > levelEntries:
			s.State = "catching-up"
		}
	})
}

// sites composes the topology from replicated membership; others adds what is
// known of a member other than this node.
func (n *Node) sites(others func(command.Member, *command.Server)) ([]command.Site, uint64, error) {
	view, err := n.parts.State.View()
	if err != nil {
		return nil, 0, err
	}
	defer view.Close()
	members, err := view.Members()
	if err != nil {
		return nil, 0, err
	}
	voters := map[string]bool{}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		voters[string(s.ID)] = s.Suffrage == raft.Voter
	}
	leader, home := n.leaderID(), view.Cluster().HomeSite
	byName := map[string]*command.Site{}
	for _, m := range members {
		s := command.Server{
			ID: m.ID, Name: m.Name, Address: m.RaftAddr, HTTP: m.HTTPAddr, Role: m.Role, Version: m.Version,
			Voter: voters[m.ID], Leader: m.ID == leader, LastContact: "never", State: "learner", Lag: command.Lag{ETA: -1},
		}
		if s.Voter {
			s.State = "voter"
		}
		if m.ID == n.id {
			lineage := view.Lineage()
			s.Applied, s.Lineage, s.LastContact, s.Lag.ETA = view.Revision(), hex.EncodeToString(lineage[:]), "0s", 0
			if since, ok := n.LastContact(); ok && !s.Leader {
				s.LastContact = since.Round(time.Millisecond).String()
			}
		} else {
			others(m, &s)
		}
		if s.Leader {
			s.State = "leader"
		}
		site := byName[m.Site]
		if site == nil {
			site = &command.Site{Name: m.Site, Home: m.Site == home}
			byName[m.Site] = site
		}
		site.Leader = site.Leader || s.Leader
		site.Servers = append(site.Servers, s)
	}
	out := make([]command.Site, 0, len(byName))
	for _, s := range byName {
		slices.SortFunc(s.Servers, func(a, b command.Server) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, *s)
	}
	// Home first, then by name.
	slices.SortFunc(out, func(a, b command.Site) int {
		if a.Home != b.Home {
			if a.Home {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, view.MembersRevision(), nil
}
