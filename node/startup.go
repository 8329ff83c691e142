package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

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
