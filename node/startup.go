package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// New brings the state to where it was and starts Raft. The start-up order is
// part of the contract:
//
//  1. a log that ends below the state is dropped: the state holds more, and the
//     log store takes no gaps. If neither reaches the commit marker, the node has
//     forgotten what it acknowledged, and does not start;
//  2. a log that begins above the state's end is preceded by a copy from another
//     member, or Raft would find entries missing and stop the process. So it is
//     with a state that was set aside because it was damaged: the log that is left
//     holds what this node acknowledged and is not in every majority's state yet;
//  3. a node that missed much takes the changes from another member, without
//     Raft's log in between, if one answers at once; then 1 applies;
//  4. the log is applied up to the commit marker, so that reads never go back
//     over a restart, also without a leader (Raft does not persist its commit
//     index);
//  5. a node that was ordered to be the seed of a new home, or has learned of one,
//     enters that epoch (epoch.go);
//  6. Raft starts, and ends at once where the node is fenced.
//
// *Restart is returned by a node that is to be started again at once.
//
// The transport must deliver calls to the node only after Start.
func New(ctx context.Context, cfg Config, parts Parts) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, parts: parts, id: cfg.Self.ID, log: cfg.Log, began: time.Now(),
		joining: make(chan struct{}, 1), handing: make(chan struct{}, 1), started: make(chan struct{}), stop: make(chan struct{}), fatal: make(chan error, 1),
		sick: make(chan struct{}, 1), left: make(chan struct{}, 1), own: newOwn(), vigil: vigil{wake: make(chan struct{}, 1)},
	}
	n.seen.incarnation = map[string]string{}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.timers = n.newSessionTimers()
	n.retention.outage = cfg.LogOutage
	n.initPause()
	parts.FSM.Observe(n.applied)
	if err := n.align(ctx); err != nil {
		return nil, err
	}
	if err := n.leap(ctx); err != nil {
		return nil, err
	}
	if err := n.replay(ctx); err != nil {
		return nil, err
	}
	if err := n.turn(ctx); err != nil {
		return nil, err
	}
	if err := n.startRaft(); err != nil {
		return nil, err
	}
	if n.parted() != nil {
		n.fence()
	}
	n.group = &group{
		apply:    func(e []byte) raft.ApplyFuture { return n.raft.Apply(e, 0) },
		stamp:    n.stamp,
		admit:    n.admitWrite,
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
	marker, _ := n.parts.State.Marker()
	switch {
	case marker > last && marker > holds && !planted.Bug("unsynced-log"):
		// Neither the log nor the state reaches what the state once held. Whatever else
		// was lost behind that, this node may have acknowledged it, and knows of none of
		// it any more.
		return command.ErrWentBack.With("its state held entry %d, now it holds %d, and its log ends at %d", marker, holds, last)
	case last == 0:
		return nil
	case last < holds:
		return n.dropShortLog()
	case first > holds+1:
		n.log.Warn("the log begins above the state: taking a copy first", "log-first", first, "state", holds)
		return n.healStart(ctx, func() bool {
			holds, err := n.holds()
			return err == nil && holds+1 >= first
		})
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

// healStart takes copies from whichever member is found first until the state is
// healed, before Raft starts. The log holds all that this node may have
// acknowledged beyond a copy, so any member's will do.
func (n *Node) healStart(ctx context.Context, healed func() bool) error {
	for {
		var problem error = errors.New("no --join address is given")
		for _, addr := range n.cfg.Join {
			if addr == n.cfg.Self.RaftAddr {
				continue
			}
			if problem = n.healFrom(ctx, addr); problem != nil {
				continue
			}
			if healed() {
				return n.dropShortLog()
			}
			problem = fmt.Errorf("the copy of %s is not enough", addr)
		}
		n.log.Warn("no copy yet", "error", problem)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("no peer gave the copy that the state needs (%w); start a peer, or move the data directory away to join anew", problem)
		}
	}
}

// How long a start may wait for leap: for a member to begin, and in all.
const (
	leapPatience = 50 * time.Millisecond
	leapLimit    = time.Second
)

// leap brings a state that missed much to where another member's is (step 3 of
// New): far quicker than by applying the log, since nothing needs to be decided
// again. Whatever goes wrong, Raft's log does it.
func (n *Node) leap(ctx context.Context) error {
	req := n.parts.State.LeapRequest()
	if req == nil || n.Paused() || n.parts.Identity.Promotion() != nil {
		return nil
	}
	n.copying.Lock()
	defer n.copying.Unlock()
	ctx, cancel := context.WithTimeout(ctx, leapLimit)
	defer cancel()
	impatient := time.AfterFunc(leapPatience, cancel)
	for _, addr := range n.cfg.Join {
		if addr == n.cfg.Self.RaftAddr || ctx.Err() != nil {
			continue
		}
		began := n.cfg.Clock.Steady()
		c, bytes, err := n.tryCopy(ctx, req, func(ctx context.Context, req []byte) (io.ReadCloser, error) {
			r, err := n.parts.Transport.FetchCopyAddr(ctx, addr, req)
			if err == nil {
				impatient.Stop()
			}
			return r, err
		})
		if err != nil {
			n.log.Debug("there is no delta to begin with", "from", addr, "error", err)
			continue
		}
		c.Bytes, c.Seconds = bytes, (n.cfg.Clock.Steady() - began).Seconds()
		n.CaughtUp(c)
		n.log.Info("took a copy", "kind", c.Kind, "changes", c.Records, "bytes", c.Bytes, "seconds", c.Seconds)
		return n.dropShortLog()
	}
	return nil
}

// dropShortLog drops a log that ends below the state.
func (n *Node) dropShortLog() error {
	holds, err := n.holds()
	if err != nil {
		return err
	}
	_, last, err := n.parts.Logs.Bounds()
	if err == nil && last > 0 && last < holds {
		n.log.Info("dropping a log that ends below the state", "log-last", last, "state", holds)
		err = n.parts.Logs.Reset()
	}
	return err
}

func (n *Node) healFrom(ctx context.Context, addr string) error {
	n.copying.Lock()
	defer n.copying.Unlock()
	c, err := n.takeCopy(ctx, false, func(ctx context.Context, req []byte) (io.ReadCloser, error) {
		return n.parts.Transport.FetchCopyAddr(ctx, addr, req)
	})
	if err == nil && c.Kind == command.CopyFull {
		err = n.parts.State.SwapCopy(false)
	}
	return err
}

// replay applies the node's own log up to the commit marker (step 4 of New).
func (n *Node) replay(ctx context.Context) error {
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
	if to <= applied || planted.Bug("forgotten-marker") {
		return nil
	}
	began := time.Now()
	for {
		err := n.applyLog(to)
		if errors.Is(err, command.ErrDamaged) {
			// Nobody serves reads yet, so there is time to ask.
			n.log.Error("a record that the log leads to is damaged", "error", err)
			if err = n.healStart(ctx, func() bool { return len(n.parts.State.Damaged()) == 0 }); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		break
	}
	n.log.Info("replayed the log", "from", applied+1, "to", to, "took", time.Since(began))
	return nil
}

// How much of the log is applied in one step.
const (
	replayEntries = 1024
	replayBytes   = 4 << 20
)

// applyLog applies what the state lacks up to an index from the node's own log,
// around Raft.
func (n *Node) applyLog(to uint64) error {
	from, err := n.holds()
	if err != nil {
		return err
	}
	return Replay(n.parts.Log, n.parts.FSM, from, to)
}

// Replay applies the entries of a log behind one index and up to another. There is no
// Raft meanwhile, or it applies nothing.
func Replay(log raft.LogStore, machine raft.BatchingFSM, after, to uint64) error {
	var logs []*raft.Log
	size := 0
	for index := after + 1; index <= to; index++ {
		l := new(raft.Log)
		if err := log.GetLog(index, l); err != nil {
			return fmt.Errorf("replay log entry %d: %w", index, err)
		}
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			logs = append(logs, l)
			size += len(l.Data)
		}
		if len(logs) > 0 && (index == to || len(logs) == replayEntries || size >= replayBytes) {
			for _, r := range machine.ApplyBatch(logs) {
				if err, bad := r.(error); bad {
					return err
				}
			}
			logs, size = nil, 0
		}
	}
	return nil
}

// maxAppendEntries is how many entries go into one message at most. The transport
// bounds its bytes, but only after Raft has read so many from the log, however
// large they are: so many of command.MaxEntry are what the log keeps for the next
// message (store.Logs), and more would be read again and again.
const maxAppendEntries = 64

func (n *Node) startRaft() error {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(n.id)
	rc.HeartbeatTimeout = n.cfg.Heartbeat
	rc.ElectionTimeout = n.cfg.Heartbeat
	// A leader that is cut off is replaced before Raft's timers would; until it notices,
	// it takes writes whose outcome stays unknown.
	rc.LeaderLeaseTimeout = n.cfg.Heartbeat / 2
	rc.CommitTimeout = n.cfg.CommitInterval
	rc.MaxAppendEntries = maxAppendEntries
	rc.SnapshotInterval = 10 * time.Second
	rc.SnapshotThreshold, rc.TrailingLogs = n.logBudget()
	rc.NoSnapshotRestoreOnStart = true // the state file is the snapshot
	rc.ShutdownOnRemove = false
	rc.NoLegacyTelemetry = true
	rc.Logger = n.cfg.RaftLog
	// Without Close: a node that leaves Raft because its disk failed goes on
	// talking to its peers, and the library would close what it did not open.
	r, err := raft.NewRaft(rc, machine{n.parts.FSM, n}, n.parts.Log, n.parts.Stable,
		snapshots{n.parts.Snapshots, &n.still}, struct{ Transport }{n.parts.Transport})
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.raft = r
	return nil
}
