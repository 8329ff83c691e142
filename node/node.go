package node

import (
	"context"
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
	own     *own
	timers  *sessionTimers
	reports reports
	pilot   atomic.Pointer[pilot] // nil while not leading
	// handing holds one: who hands leadership over.
	handing    chan struct{}
	leaving    atomic.Bool // set by Leave
	preference preference
	counts     counts
	traffic    traffic
	pausing    pausing
	// retention is when the log was how long.
	retention retention
	// changed wakes those who wait for a leader.
	changed   signal
	vigil     vigil
	reign     reign
	rounds    flight[confirmation]
	lastRound atomic.Pointer[confirmation] // nil while not leading
	readAsks  flight[Point]
	leaseAsks flight[Point]
	fetches   flight[struct{}]
	fetchFrom atomic.Value // string: whom the next fetch asks
	logHolds  atomic.Int64 // who needs the whole log kept: see holdLog
	budget    sync.Mutex   // held while Raft is told the log's budget
	catchUp   atomic.Pointer[command.CatchUp]
	time      atomic.Pointer[clusterTime] // nil while not leading

	copying sync.Mutex // held while a copy is taken in, until it is in place or staged for Raft
	// still is held while the state is exchanged under Raft, and shared by who
	// hands it entries, opens a view or says what it holds.
	still sync.RWMutex

	// diverged is what is known of a difference to the leader's contents, nil
	// while there is none.
	diverged atomic.Pointer[divergence]
	sick     chan struct{} // tells healing of a difference

	// apart is why this node takes part in its epoch no longer, nil while it does: see
	// Newer.
	apart    atomic.Pointer[parting]
	learning sync.Mutex    // held while that is decided
	left     chan struct{} // holds one: told once it is so

	joining chan struct{} // holds one: who may change the members
	forming struct {      // guards the forming of a cluster by this node
		sync.Mutex
		init *command.Init // set once all have promised
	}

	remembering sync.Mutex // held while what was seen of peers is looked at and recorded
	seen        struct {
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

	disk        diskWatch
	diskFailure atomic.Bool // the disk is what failed

	failMu  sync.Mutex
	failure error      // guarded by failMu
	fatal   chan error // the failure that ends the process
}

// logBudget turns the retention into Raft's two counts of entries.
func (n *Node) logBudget() (threshold, trailing uint64) {
	if n.logHolds.Load() > 0 {
		return 1 << 20, 1 << 40 // whoever takes a copy will need what follows it
	}
	trailing = n.logLimit()
	if entries, ok := n.retention.within(n.cfg.Clock.Steady(), n.lastIndex()); ok {
		trailing = max(min(trailing, entries), leastTrailing)
	}
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
				n.followed(n.leaderID())
				n.changed.notify()
			case <-n.stop:
				return
			}
		}
	})
	n.loop(n.leadership)
	n.loop(n.keepVigil)
	n.loop(n.settling)
	n.loop(n.membership)
	n.loop(n.housekeeping)
	n.loop(n.watchDisk)
	n.loop(n.compaction)
	n.loop(n.healing)
	n.loop(n.parting)
	n.loop(func() { n.timers.run(n.stop) })
}

func (n *Node) loop(fn func()) {
	n.loops.Add(1)
	go func() {
		defer n.loops.Done()
		fn()
	}()
}

// housekeeping sizes the log, warns of learners that will need more of it, looks for the
// voters when no leader does, and watches for failures of the disk.
func (n *Node) housekeeping() {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	var warned warnings
	for {
		select {
		case <-tick.C:
			n.retention.note(n.cfg.Clock.Steady(), n.lastIndex())
			n.setLogBudget()
			n.rememberPeers()
			n.warn(&warned)
			if n.leaderID() == "" && !n.Paused() && n.Failure() == nil {
				// Who calls nobody does not hear why nobody calls.
				n.knock(n.ctx)
			}
		case err := <-n.parts.Failed:
			n.diskFailed(err)
		case <-n.stop:
			return
		}
	}
}

// lastIndex is the last entry of the log, 0 before Raft has started.
func (n *Node) lastIndex() uint64 {
	if n.raft == nil {
		return 0
	}
	return n.raft.LastIndex()
}

func (n *Node) setLogBudget() {
	n.budget.Lock()
	defer n.budget.Unlock()
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

// Restart is the error with which a node ends so that it is started anew in the same
// process: what it is to be from then on is on its disk, and is taken up by a start only.
type Restart struct{ Reason string }

// Error implements error.
func (r *Restart) Error() string { return r.Reason }

// Restart ends the node for the sake of another start.
func (n *Node) Restart(reason string) {
	select {
	case n.fatal <- &Restart{reason}:
	default: // it is ending already
	}
}

// Fatal delivers the error that ends this run: for good, or *Restart.
func (n *Node) Fatal() <-chan error { return n.fatal }

// Failure is why this node takes part no longer, nil while it does.
func (n *Node) Failure() error {
	n.failMu.Lock()
	defer n.failMu.Unlock()
	return n.failure
}

// Stop ends the node's part in Raft and all its goroutines. What is in flight
// ends with command.ErrOutcomeUnknown; call Leave first to let it finish.
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
	for began := time.Now(); ; {
		n.parts.Transport.SetLeading(false)
		n.parts.Transport.CloseStreams()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Millisecond):
		}
		if err := n.stuck(); err != nil && time.Since(began) > abandonAfter {
			return err
		}
	}
}

// View opens the state as it is now. While it differs from the leader's it is
// not to be read: command.ErrDiverged.
func (n *Node) View() (command.View, error) {
	n.still.RLock()
	defer n.still.RUnlock()
	if err := n.wrong(); err != nil {
		return nil, err
	}
	return n.parts.State.View()
}

// Watch returns a channel that is closed at the first change of t that views
// contain after the call, and when the whole state is replaced. stop must be
// called once.
func (n *Node) Watch(t command.Target) (changed <-chan struct{}, stop func()) {
	return n.parts.State.Watch(t)
}

// Clock is the clock the node judges leases by.
func (n *Node) Clock() Clock { return n.cfg.Clock }

// Self is this member.
func (n *Node) Self() command.Member { return n.cfg.Self }

// State is the node's store.
func (n *Node) State() State { return n.parts.State }

// Probe is AskIndex with lease, which also tells the leader how this node does,
// and learns whether its contents are the leader's.
func (n *Node) Probe(ctx context.Context, staleness time.Duration, known bool) (Point, error) {
	leader := n.leaderID()
	if leader == n.id && leader != "" {
		return n.localIndex(ctx, true)
	}
	report := n.report(staleness, known)
	req, err := encode(report)
	if err != nil {
		return Point{}, err
	}
	p, rest, err := n.remoteIndex(methodProbe, req)
	if err == nil && len(rest) > 0 {
		n.judged(report, verdict(rest[0]))
	}
	return p, err
}

// Export calls fn for every record under prefix exactly at revision; 0 is the newest.
func (n *Node) Export(ctx context.Context, prefix string, revision uint64, fn func(command.Record) error) error {
	if err := n.wrong(); err != nil {
		return err
	}
	return n.parts.State.Export(ctx, prefix, revision, fn)
}
