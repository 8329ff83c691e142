package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// A disk that fails says so. One that hangs does not: Raft's main loop then waits in
// an append and can neither hand over nor hear of an election, while the heartbeats,
// which touch no disk, go on and keep the followers from holding one. So the disk is
// watched from outside. A leader whose disk hangs refuses writes, falls silent as a
// leader and tells the voter that is best off to stand for election, around its own
// Raft. The voter's election is like any other: what makes it safe is in the votes.
//
// Nothing of this is for good. When the call ends Raft finds that it is deposed and
// goes on as a follower.

// diskWatch is what the watch of the disk has found.
type diskWatch struct {
	now atomic.Pointer[command.Disk]
	// unfit is why this node must not lead because of its disk, nil while it may.
	unfit atomic.Pointer[error]
	// unsteady: the disk has hung a short while ago.
	unsteady atomic.Bool
	// mute: this node must not be heard as a leader.
	mute atomic.Bool
	// handing: leadership is being handed over for the sake of a better disk.
	handing atomic.Bool
	// led is the term in which this node was last seen to lead, and when.
	led atomic.Pointer[leading]
	// follows is who leads, as others say, while this node's own Raft cannot know.
	follows atomic.Pointer[following]
}

type leading struct {
	term uint64
	at   time.Time
}

type following struct {
	id   string
	term uint64
}

const (
	// diskPeriod is how often the disk is looked at.
	diskPeriod = 20 * time.Millisecond
	// shortestProbation is how long a disk that hung must have answered before it counts
	// as well again. Each time that it hangs within stallMemory it is doubled.
	shortestProbation = 2 * time.Second
	longestProbation  = time.Minute
	stallMemory       = 5 * time.Minute
	// ledMemory is how long after it gave up leadership, for a write that failed, a node
	// still has another one take over.
	ledMemory = time.Second
	// standPatience is how long a voter that was told to stand is given to win.
	standPatience = 300 * time.Millisecond
	// handOverPause is the least time between two tries to hand over for the sake of a
	// better disk.
	handOverPause = 10 * time.Second
	// handOverPatience is how long such a try holds writes.
	handOverPatience = 2 * time.Second
)

// Disk is how the node's disk does.
func (n *Node) Disk() command.Disk {
	d := command.Disk{State: command.DiskOK}
	if n.parts.Disk != nil {
		d = n.parts.Disk.Look()
	}
	switch {
	case n.Failure() != nil && n.diskFailure.Load():
		d.State = command.DiskFailed
	case d.State == command.DiskOK && n.disk.unsteady.Load():
		d.State = command.DiskUnsteady
	}
	return d
}

// Muted reports whether this node must not be heard as a leader: its Raft believes
// that it leads, and cannot do anything about it.
func (n *Node) Muted() bool { return n.disk.mute.Load() }

// watchDisk looks at the disk until the node stops.
func (n *Node) watchDisk() {
	tick := time.NewTicker(diskPeriod)
	defer tick.Stop()
	var w diskJudge
	for {
		select {
		case <-tick.C:
			n.judgeDisk(&w, n.Disk(), time.Now())
		case <-n.stop:
			return
		}
	}
}

// diskJudge is what judging the disk remembers.
type diskJudge struct {
	stalled   bool
	passed    uint64        // the last term of leadership that was passed on
	stalledAt time.Time     // when it hung last
	probation time.Duration // after that
	until     time.Time     // of the probation
	next      time.Time     // not before this handing over is tried again
	sought    time.Time     // when others were last asked who leads
}

// judgeDisk draws the consequences of how the disk does.
func (n *Node) judgeDisk(w *diskJudge, d command.Disk, now time.Time) {
	if n.raft.State() == raft.Leader {
		n.disk.led.Store(&leading{n.raft.CurrentTerm(), now})
	}
	before := n.disk.now.Swap(&d)
	if before == nil || before.State != d.State {
		n.changed.notify()
	}
	stalled := d.State == command.DiskStalled
	switch {
	case stalled && !w.stalled:
		n.hang(w, d, now)
	case !stalled && w.stalled:
		n.answersAgain(w, now)
	}
	w.stalled = stalled
	if d.State.Down() {
		n.fallSilent()
		// Whoever hears that this node is unfit holds an election, so the voter chosen here
		// is told before.
		if term := n.raft.CurrentTerm(); n.raft.State() == raft.Leader && w.passed != term {
			w.passed = term
			n.passOn()
		}
		if n.disk.unfit.Load() == nil {
			why := error(command.ErrNotLeader.With("its disk is %s: to %s takes %v by now", d.State, d.Call, d.Stalled.Round(time.Millisecond)))
			n.disk.unfit.Store(&why)
		}
		if now.Sub(w.sought) > seekPeriod {
			w.sought = now
			n.loop(n.seekLeader)
		}
		return
	}
	n.disk.mute.Store(false)
	n.disk.follows.Store(nil)
	n.disk.unfit.Store(nil)
	n.disk.unsteady.Store(now.Before(w.until))
	if n.raft.State() == raft.Leader && now.After(w.next) && !d.State.Well() {
		if to := n.heir(d); to != "" {
			w.next = now.Add(handOverPause)
			n.yield(to, d)
		}
	}
}

// hang is what follows when a call hangs.
func (n *Node) hang(w *diskJudge, d command.Disk, now time.Time) {
	w.sentence(now)
	n.log.Error("the disk hangs", "call", d.Call, "since", d.Stalled.Round(time.Millisecond))
	n.group.shed()
}

// sentence sets how long the disk must have answered, after it hung at a moment, before
// it counts as well again.
func (w *diskJudge) sentence(now time.Time) {
	w.probation = min(2*w.probation, longestProbation)
	if now.Sub(w.stalledAt) > stallMemory || w.probation == 0 {
		w.probation = shortestProbation
	}
	w.stalledAt = now
}

// answersAgain is what follows when the call that hung has ended.
func (n *Node) answersAgain(w *diskJudge, now time.Time) {
	n.disk.unsteady.Store(true)
	w.until = now.Add(w.probation)
	n.log.Warn("the disk answers again", "after", now.Sub(w.stalledAt).Round(time.Millisecond), "well again in", w.probation)
	n.changed.notify()
}

// fallSilent keeps this node from being heard as a leader while its disk is down,
// unless no other voter is better off: then it is no worse a leader than they are.
func (n *Node) fallSilent() {
	n.disk.mute.Store(n.raft.State() == raft.Leader && n.replaceable())
}

// replaceable reports whether there is another voter that is not known to be unable
// to lead.
func (n *Node) replaceable() bool {
	others, _ := n.voters()
	return slices.ContainsFunc(others, func(id string) bool {
		r, ok := n.reports.get(id)
		return !ok || !r.Disk.Down()
	})
}

// passOn makes another voter stand for election at once, without this node's Raft,
// which cannot do it any more, if this node leads. It returns when a voter was told.
func (n *Node) passOn() {
	led := n.disk.led.Load()
	// Raft gives leadership up by itself when an append fails.
	if led == nil || time.Since(led.at) > ledMemory || n.raft.CurrentTerm() != led.term || !n.replaceable() {
		return
	}
	n.disk.mute.Store(true)
	others := n.heirs()
	told := make(chan struct{})
	n.loop(func() {
		for i, id := range others {
			err := n.tellToStand(id)
			if i == 0 {
				close(told)
			}
			if err != nil {
				n.log.Warn("another voter does not take over", "id", id, "error", err)
				continue
			}
			n.log.Warn("leadership is passed on", "to", id)
			for began := time.Now(); time.Since(began) < standPatience; {
				if n.seekLeader(); n.disk.follows.Load() != nil || pause(n.ctx) != nil {
					return
				}
			}
		}
	})
	if len(others) > 0 {
		select {
		case <-told:
		case <-time.After(standPatience):
		}
	}
}

// tellToStand has a voter stand for election.
func (n *Node) tellToStand(id string) error {
	req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.id), Addr: []byte(n.id),
	}}
	done := make(chan error, 1)
	go func() { // ends with the transport's own limit
		var resp raft.TimeoutNowResponse
		done <- n.parts.Transport.TimeoutNow(raft.ServerID(id), raft.ServerAddress(id), req, &resp)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(standPatience):
		return command.ErrPeer.With("no answer")
	}
}

// seekPeriod is how often others are asked who leads, while this node's own Raft
// cannot tell.
const seekPeriod = 250 * time.Millisecond

// seekLeader asks the other voters who leads.
func (n *Node) seekLeader() {
	others, _ := n.voters()
	ctx, cancel := context.WithTimeout(n.ctx, seekPeriod)
	defer cancel()
	answers := make(chan pong, len(others))
	for _, id := range others {
		go func() { // ends with ctx
			var p pong
			if b, err := n.parts.Transport.Call(ctx, id, methodPing, nil); err == nil {
				_ = json.Unmarshal(b, &p) // what cannot be read names nobody
			}
			answers <- p
		}()
	}
	var found following
	for range others {
		if p := <-answers; p.Leader != "" && p.Leader != n.id && p.Term > found.term {
			found = following{p.Leader, p.Term}
		}
	}
	if n.raft.CurrentTerm() > found.term || !n.Disk().State.Down() {
		return // what this node's own Raft knows is newer, or it can be asked again
	}
	if was := n.disk.follows.Swap(&found); was == nil || *was != found {
		n.changed.notify()
	}
}

// heirs lists the other voters, those first that are best off to lead. Those whose
// disk is down are left out.
func (n *Node) heirs() []string {
	others, _ := n.voters()
	others = slices.DeleteFunc(others, func(id string) bool {
		r, ok := n.reports.get(id)
		return ok && (r.Disk.Down() || r.differs != 0)
	})
	slices.SortStableFunc(others, func(a, b string) int { return n.lacks(a) - n.lacks(b) })
	return others
}

// lacks ranks a voter: 0 is as well off as can be known.
func (n *Node) lacks(id string) int {
	r, ok := n.reports.get(id)
	rank := 0
	for _, bad := range []bool{!r.Disk.Well(), r.LastIndex < n.raft.LastIndex(), !n.level(id), !ok} {
		rank *= 2
		if bad {
			rank++
		}
	}
	return rank
}

// heir is a voter that should lead in place of this node, whose disk is d: one that
// is level and said so just now, with a disk that is clearly better. It is empty when
// there is none.
func (n *Node) heir(d command.Disk) string {
	for _, id := range n.heirs() {
		r, ok := n.reports.get(id)
		if !ok || !n.level(id) {
			continue
		}
		latency := time.Duration(r.DiskLatencyMS) * time.Millisecond
		switch d.State {
		case command.DiskFull: // then one that is only slow will do
			if r.Disk != command.DiskFull {
				return id
			}
		case command.DiskSlow:
			if r.Disk.Well() && 2*latency < d.Latency {
				return id
			}
		default:
			if r.Disk.Well() {
				return id
			}
		}
	}
	return ""
}

// yield hands leadership to a voter whose disk is better.
func (n *Node) yield(to string, d command.Disk) {
	if !n.disk.handing.CompareAndSwap(false, true) {
		return
	}
	n.log.Warn("leadership goes to a voter whose disk is better", "to", to, "disk", d.State, "latency", d.Latency.Round(time.Millisecond))
	n.loop(func() {
		defer n.disk.handing.Store(false)
		ctx, cancel := context.WithTimeout(n.ctx, handOverPatience)
		defer cancel()
		if err := n.handOver(ctx, to); err != nil {
			n.log.Warn("leadership was not handed over", "to", to, "error", err)
		}
	})
}

// diskRefuses says why this leader's disk keeps it from proposing a write, nil when
// it does not.
func (n *Node) diskRefuses(w write) error {
	if n.parts.Disk == nil {
		return nil
	}
	switch d := n.parts.Disk.Look(); {
	case d.State.Down():
		return command.ErrNotLeader.With("its disk is %s", d.State)
	case d.State != command.DiskFull || !w.adds || n.remembers(w.once):
		return nil
	case n.disk.handing.Load():
		return command.ErrNotLeader.With("its disk is full")
	default:
		return command.ErrDiskFull.With("%s has %d MiB left, and keeps %d MiB for votes, deletes and the state (--disk-reserve)",
			n.cfg.Self.Name, d.Free>>20, d.Reserve>>20)
	}
}

// diskFailed ends this node's part in Raft because its disk failed. Stale reads go on.
func (n *Node) diskFailed(err error) {
	n.diskFailure.Store(true)
	n.Fail(err, false)
	n.group.shed()
	n.passOn()
	if err := n.shutdownRaft(); err != nil {
		n.log.Warn("Raft has not ended", "error", err)
	}
}

// stuck reports why Raft cannot be waited for: its disk hangs.
func (n *Node) stuck() error {
	if d := n.Disk(); d.State.Down() && d.Stalled > time.Second {
		return fmt.Errorf("its disk hangs: to %s takes %v by now", d.Call, d.Stalled.Round(time.Millisecond))
	}
	return nil
}

// abandonAfter is how long the end of Raft is waited for when its disk hangs.
const abandonAfter = 2 * time.Second
