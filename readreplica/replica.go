package readreplica

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
	"github.com/holdfast-db/holdfast/node"
)

// Config says how a copy measures itself.
type Config struct {
	// ProbeInterval is how often the leader is asked. The staleness reported by
	// a level copy moves between 0 and about this; each probe is one small
	// message, and probes of many copies share the leader's rounds.
	ProbeInterval time.Duration
	// ContactLimit is how long after the last successful probe the copy calls
	// itself cut off.
	ContactLimit time.Duration
	// Wait bounds how long a read waits for this node to catch up with the
	// leader. BoundedWait is the same for a read with max_stale, including the
	// wait for a leader: its user asked for an answer now or none.
	Wait        time.Duration
	BoundedWait time.Duration
	// AskLeader makes a learner answer a read that names no mode as a voter does:
	// from the newest state, for which the leader is asked. Else it is ReadStale.
	AskLeader bool
	Log       hclog.Logger
}

// Defaults for Config.
const (
	DefaultProbeInterval = 500 * time.Millisecond
	DefaultContactLimit  = 3 * time.Second
	DefaultBoundedWait   = 2 * time.Second
	// DefaultMinIndexWait is how long a read waits for min_index unless told.
	DefaultMinIndexWait = 5 * time.Second
)

// Node is the member whose state is read; *node.Node is one.
type Node interface {
	AskIndex(ctx context.Context, lease bool) (node.Point, error)
	Await(ctx context.Context, p node.Point) error
	Probe(ctx context.Context, staleness time.Duration, known bool) (node.Point, error)
	View() (command.View, error)
	State() node.State
	Clock() node.Clock
	Self() command.Member
	Learner() bool
	KnowsLeader() bool
	LastContact() (since time.Duration, ok bool)
	CatchUp() command.CatchUp
	CaughtUp(command.CatchUp)
	Failure() error
	// Diverged is the first revision at which the state is known to differ from
	// the leader's, 0 while it is not. Meanwhile View refuses.
	Diverged() uint64
	Status() command.NodeStatus
	// Paused: the syncing of this copy was stopped. Resume starts it again.
	Paused() bool
	Resume(ctx context.Context) error

	// Passed through.
	RenewSession(ctx context.Context, id string) (command.Session, error)
	Watch(t command.Target) (changed <-chan struct{}, stop func())
	Propose(ctx context.Context, c command.Command) (command.Result, error)
	Export(ctx context.Context, prefix string, revision uint64, fn func(command.Record) error) error
	Archive(ctx context.Context, begin func(revision uint64) io.Writer) error
	Restore(ctx context.Context, archive io.Reader) (revision uint64, err error)
	Sites(ctx context.Context) ([]command.Site, uint64, error)
	Health(ctx context.Context) (command.Health, error)
	LocalHealth() (command.Health, error)
	TransferLeader(ctx context.Context, to string) error
	RemovePeer(ctx context.Context, id, address string) error
	Pause(ctx context.Context) error
	Replicas(ctx context.Context) ([]command.Replica, error)
	PromoteSite(ctx context.Context, site, confirm string, force bool) (command.PromotionPlan, error)
}

// Replica answers reads on a node. Writes and topology pass through to it.
type Replica struct {
	Node
	cfg   Config
	clock node.Clock
	state node.State
	began time.Duration // steady clock

	cert        certificate
	failed      atomic.Uint64 // consecutive failed probes
	lastSuccess atomic.Int64  // steady clock, 0 for never
	waiting     atomic.Int64  // probe answers whose index is not applied yet
	returning   atomic.Bool   // the first answer after an absence is not applied yet
	// levelBy is how the copy had got level when it last was: another way since
	// means that it has taken a copy, which has recorded itself.
	levelBy atomic.Pointer[command.CatchUp]

	// resumed makes the next probe come at once; resumedAt is on the steady clock.
	resumed   chan struct{}
	resumedAt atomic.Int64

	stop  chan struct{}
	ctx   context.Context
	end   context.CancelFunc
	loops sync.WaitGroup
}

// New returns the reading side of n. Start begins to probe.
func New(cfg Config, n Node) *Replica {
	for _, d := range []struct {
		v       *time.Duration
		initial time.Duration
	}{
		{&cfg.ProbeInterval, DefaultProbeInterval},
		{&cfg.ContactLimit, DefaultContactLimit},
		{&cfg.Wait, node.DefaultWait},
		{&cfg.BoundedWait, DefaultBoundedWait},
	} {
		if *d.v <= 0 {
			*d.v = d.initial
		}
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	r := &Replica{Node: n, cfg: cfg, clock: n.Clock(), state: n.State(), began: n.Clock().Steady(), resumed: make(chan struct{}, 1), stop: make(chan struct{})}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

// Start begins to probe.
func (r *Replica) Start() {
	r.loops.Add(1)
	go func() {
		defer r.loops.Done()
		r.probe()
	}()
}

// Stop ends the probe and waits for its goroutines. The node goes on.
func (r *Replica) Stop() {
	r.end()
	close(r.stop)
	r.loops.Wait()
}

// Resume starts the syncing of a paused copy again.
func (r *Replica) Resume(ctx context.Context) error {
	if err := r.Node.Resume(ctx); err != nil {
		return err
	}
	r.resumedAt.Store(int64(r.clock.Steady()))
	select {
	case r.resumed <- struct{}{}:
	default:
	}
	return nil
}

// maxWaiting bounds the probe answers that wait for their index while a copy is
// behind: enough to certify at every step of a long catch-up.
const maxWaiting = 64

// probe asks the leader in every interval, but not while the copy is paused.
func (r *Replica) probe() {
	tick := time.NewTicker(r.cfg.ProbeInterval)
	defer tick.Stop()
	for {
		if !r.Paused() {
			r.probeOnce()
		}
		select {
		case <-tick.C:
		case <-r.resumed:
		case <-r.stop:
			return
		}
	}
}

func (r *Replica) probeOnce() {
	t, known := r.cert.get()
	p, err := r.Probe(r.ctx, age(t, r.clock), known)
	if err != nil {
		if n := r.failed.Add(1); n == 1 {
			r.cfg.Log.Debug("freshness probe failed", "error", err)
		}
		return
	}
	r.failed.Store(0)
	began := r.clock.Steady()
	before := time.Duration(r.lastSuccess.Swap(int64(began)))
	away := !known || before == 0 || began-before > r.cfg.ContactLimit
	if r.waiting.Load() >= maxWaiting {
		return // the leader knows how this copy does; enough points are waited for
	}
	first := away && r.returning.CompareAndSwap(false, true)
	had := r.appliedIndex()
	r.waiting.Add(1)
	r.loops.Add(1)
	go func() {
		defer r.loops.Done()
		defer r.waiting.Add(-1)
		if r.Await(r.ctx, p) == nil && r.Diverged() == 0 {
			r.prove(p.AsOf)
			if first || !r.returning.Load() {
				r.level(first && p.Index > had, command.CatchUp{Kind: command.CatchUpLog, Records: p.Index - min(had, p.Index), Seconds: (r.clock.Steady() - began).Seconds()})
			}
		}
		if first {
			r.returning.Store(false)
		}
	}()
}

// level notes that the copy is level, and, when it has returned from an absence
// and has taken no copy meanwhile, that the log brought it there.
func (r *Replica) level(returned bool, byLog command.CatchUp) {
	by := r.CatchUp()
	if before := r.levelBy.Load(); returned && (before == nil && by.Kind == "" || before != nil && by == *before) {
		r.CaughtUp(byLog)
		by = byLog
	}
	r.levelBy.Store(&by)
}

func (r *Replica) appliedIndex() uint64 {
	index, _ := r.state.Applied()
	return index
}

// prove records a certificate, also for the next start of the process.
func (r *Replica) prove(t node.Instant) {
	if r.cert.prove(t) {
		r.state.Certify(t.Wall)
	}
}

// Read evaluates fn on a state that meets o, and says what the answer is worth.
// fn must evaluate into memory and may be run again from the start: whether an
// answer is fresh enough is judged after it. Errors of fn come back unchanged.
//
// Errors: command.ErrNoLeader; command.ErrTooStale, no state within MaxStale
// can be reached; command.ErrRevisionNotReached; command.ErrNotReady, this node
// never held a complete state; command.ErrDiverged, what it holds is wrong;
// command.ErrPaused, at once, when it takes the leader to answer and this copy is
// paused.
func (r *Replica) Read(ctx context.Context, o command.ReadOptions, fn func(command.View) error) (command.ReadInfo, error) {
	if at := r.Diverged(); at != 0 {
		return r.info(node.Instant{}, false), command.ErrDiverged.With("from revision %d on", at)
	}
	if o.MinRevision > 0 && !planted.Bug("min-index-ignored") {
		if err := r.awaitRevision(ctx, o); err != nil {
			return r.info(node.Instant{}, false), err
		}
	}
	fresh := false // ask the leader although the mode is stale
	for {
		asOf, known, err := r.gate(ctx, o, fresh)
		if err != nil {
			return r.info(asOf, known), err
		}
		revision, oldest, err := r.evaluate(fn)
		if err != nil {
			return r.info(asOf, known), err
		}
		if planted.Bug("late-certificate") && o.Mode == command.ReadStale {
			time.Sleep(100 * time.Millisecond) // an evaluation that takes long
			asOf, known = r.cert.get()
		}
		if planted.Bug("max-stale-before-the-answer") && o.MaxStale > 0 {
			time.Sleep(100 * time.Millisecond)
			o.MaxStale = time.Hour // it was judged by the gate
		}
		info := r.info(asOf, known)
		info.Revision, info.Oldest = revision, oldest
		if planted.Bug("revision-of-another-view") {
			time.Sleep(5 * time.Millisecond) // an evaluation that takes long
			info.Revision = r.state.Revision()
		}
		if o.Mode == command.ReadConsistent {
			info.Staleness = 0
		}
		if o.MaxStale > 0 && (!known || info.Staleness > o.MaxStale) {
			if fresh {
				return info, command.ErrTooStale.With("the answer is %v old, max_stale is %v", info.Staleness, o.MaxStale)
			}
			fresh = true
			continue
		}
		return info, nil
	}
}

// gate returns when the local state may be read under o, and as of when it is
// known to be complete.
func (r *Replica) gate(ctx context.Context, o command.ReadOptions, fresh bool) (asOf node.Instant, known bool, err error) {
	mode := o.Mode
	if mode == command.ReadDefault && r.Learner() && !r.cfg.AskLeader {
		mode = command.ReadStale
	}
	if mode != command.ReadStale {
		if asOf, err = r.settle(ctx, mode == command.ReadDefault); err == nil {
			return asOf, true, nil
		}
		asOf, known = r.cert.get()
		return asOf, known, err
	}
	asOf, known = r.cert.get()
	switch {
	case o.MaxStale > 0 && (fresh || !known || age(asOf, r.clock) > o.MaxStale):
		short, cancel := context.WithTimeout(ctx, r.cfg.BoundedWait)
		t, err := r.settle(short, false)
		cancel()
		if err == nil {
			return t, true, nil
		}
		if ctx.Err() != nil || errors.Is(err, command.ErrPaused) {
			return asOf, known, err
		}
		if known {
			return asOf, known, command.ErrTooStale.With("this node's state is %v old and the leader cannot be asked", age(asOf, r.clock).Round(time.Millisecond))
		}
		return asOf, known, command.ErrTooStale.With("the age of this node's state is unknown and the leader cannot be asked")
	case !known && r.state.LastCertified().IsZero():
		// Never complete: what is here may be any part of a catch-up.
		t, err := r.settle(ctx, true)
		if err != nil {
			return asOf, false, command.ErrNotReady.With("%v", err)
		}
		return t, true, nil
	}
	return asOf, known, nil
}

// settle asks the leader which index is needed and waits for it, for as long
// as a request may wait.
func (r *Replica) settle(ctx context.Context, lease bool) (node.Instant, error) {
	p, err := r.AskIndex(ctx, lease)
	if err != nil {
		return node.Instant{}, err
	}
	short, cancel := context.WithTimeout(ctx, r.cfg.Wait)
	defer cancel()
	if err := r.Await(short, p); err != nil {
		switch {
		case ctx.Err() != nil || short.Err() == nil:
		case r.Paused(): // since it was asked
			err = command.ErrPaused
		default:
			err = command.ErrBehind
		}
		return node.Instant{}, err
	}
	r.prove(p.AsOf)
	return p.AsOf, nil
}

func (r *Replica) awaitRevision(ctx context.Context, o command.ReadOptions) error {
	if has := r.state.Revision(); has < o.MinRevision && r.Paused() {
		return command.ErrPaused.With("revision %d is asked for, it has %d", o.MinRevision, has)
	}
	wait := o.Wait
	if wait <= 0 {
		wait = DefaultMinIndexWait
	}
	short, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := r.state.WaitRevision(short, o.MinRevision); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return command.ErrRevisionNotReached.With("revision %d, this node has %d", o.MinRevision, r.state.Revision())
		}
		return err
	}
	return nil
}

// evaluate runs fn on a view, and says of which revision it is and which is the
// oldest it can be read at.
func (r *Replica) evaluate(fn func(command.View) error) (revision, oldest uint64, err error) {
	view, err := r.View()
	if err != nil {
		return 0, 0, err
	}
	defer view.Close()
	return view.Revision(), view.OldestRevision(), fn(view)
}

func (r *Replica) info(asOf node.Instant, known bool) command.ReadInfo {
	self := r.Self()
	info := command.ReadInfo{Node: self.Name, Site: self.Site, Revision: r.state.Revision(), Oldest: r.state.OldestRevision(), StalenessKnown: known, KnownLeader: r.KnowsLeader()}
	contact, heard := r.LastContact()
	if known {
		info.Staleness = age(asOf, r.clock)
	} else {
		info.FreshAsOf = r.state.LastCertified()
		if !heard && !info.FreshAsOf.IsZero() {
			// Not heard in this run: the run before may be long ago.
			contact = max(contact, r.clock.Wall().Sub(info.FreshAsOf))
		}
	}
	info.LastContact = contact
	return info
}

// ReplicaStatus says how this copy does.
func (r *Replica) ReplicaStatus() command.ReplicaStatus {
	n := r.Status()
	s := command.ReplicaStatus{
		Running: r.Failure() == nil && !r.Paused(), Mode: "voter", FailedRequests: r.failed.Load(), SecondsSinceLastSuccess: -1,
		Applied: n.Revision, AppliedIndex: n.AppliedIndex, Lineage: hex.EncodeToString(n.Lineage[:]), Staleness: -1, LastCatchUp: r.CatchUp(),
		Diverged: r.Diverged(), Damaged: r.state.Damaged(), Disk: n.Disk.State,
	}
	switch {
	case n.State == "Leader":
		s.Mode = "leader"
	case n.State == "Learner" || r.Learner(): // also one that takes part no longer
		s.Mode = "learner"
	}
	now := r.clock.Steady()
	contact := time.Duration(-1)
	if at := time.Duration(r.lastSuccess.Load()); at != 0 {
		contact = now - at
		s.SecondsSinceLastSuccess = int64(contact / time.Second)
	}
	if t, ok := r.cert.get(); ok {
		s.Staleness = (age(t, r.clock) + time.Millisecond - 1).Milliseconds() // an upper bound: round up
	}
	if t := r.state.LastCertified(); !t.IsZero() {
		s.FreshAsOf = t.UTC().Format(time.RFC3339Nano)
	}
	failure := r.Failure()
	switch {
	case errors.Is(failure, command.ErrFenced):
		s.Status = "fenced"
	case failure != nil:
		s.Status = "failed"
	case s.Disk == command.DiskStalled:
		s.Status = "stalled"
	case s.Diverged != 0:
		s.Status = "diverged"
	case len(s.Damaged) > 0:
		s.Status = "damaged"
	case !s.Running:
		s.Status = "paused"
	case contact > r.cfg.ContactLimit && now-time.Duration(r.resumedAt.Load()) <= r.cfg.ContactLimit:
		s.Status = "catching-up" // it was paused, and has not been out of contact since
	case contact > r.cfg.ContactLimit, contact < 0 && now-r.began > r.cfg.ContactLimit:
		s.Status = "cut-off"
	case contact < 0:
		s.Status = "starting"
	case r.waiting.Load() > 1:
		s.Status = "catching-up"
	default:
		s.Status = "level"
	}
	return s
}
