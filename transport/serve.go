package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// raftReadBuffer takes in a usual burst of replication with one read.
const raftReadBuffer = 64 << 10

var errMayNotLead = errors.New("this node may not lead: it is no voter")

// errPaused is the answer to a leader while Config.Paused.
const errPaused = remoteError("replication to this node is paused")

// serveRaft answers the Raft requests of one connection, one after the other,
// on the goroutine of the connection: requests go straight to Raft's channel,
// heartbeats straight to its handler.
func (t *Transport) serveRaft(c *conn) error {
	r := bufio.NewReaderSize(c, raftReadBuffer)
	answer := make(chan raft.RPCResponse, 1) // empty between two requests
	var in, out []byte
	var packed unpacker
	for {
		var h [raftHeader]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		n, kind := binary.BigEndian.Uint32(h[:]), raftKind(h[4])
		if n > maxRaftBody {
			return fmt.Errorf("%w: %d bytes", errMessage, n)
		}
		var body []byte
		if kind == raftBare && n <= keepScratch {
			// Raft keeps nothing of it once it has answered.
			if uint32(cap(in)) < n {
				in = make([]byte, max(n, 512))
			}
			body = in[:n]
		} else {
			body = make([]byte, n)
		}
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		if kind == raftPacked {
			var err error
			if body, err = packed.unpack(body); err != nil {
				return err
			}
			kind = raftAppend
		}
		rpc := raft.RPC{RespChan: answer}
		var data *io.LimitedReader
		switch kind {
		case raftAppend, raftBare:
			rpc.Command = new(raft.AppendEntriesRequest)
		case raftVote:
			rpc.Command = new(raft.RequestVoteRequest)
		case raftPreVote:
			rpc.Command = new(raft.RequestPreVoteRequest)
		case raftTimeoutNow:
			rpc.Command = new(raft.TimeoutNowRequest)
		case raftInstall:
			rpc.Command = new(raft.InstallSnapshotRequest)
		default:
			return fmt.Errorf("%w: kind %d", errMessage, kind)
		}
		if err := decodeMessage(body, rpc.Command); err != nil {
			return err
		}
		if req, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
			// Raft's main loop reads it: it must not wait for a peer that is gone.
			if err := c.SetReadDeadline(time.Now().Add(allowance(t.cfg.Timeout, req.Size))); err != nil {
				return err
			}
			data = &io.LimitedReader{R: r, N: req.Size}
			rpc.Reader = data
		}

		resp, err := t.ask(c, rpc, answer)
		if err != nil {
			return err
		}
		if data != nil {
			if _, err := io.Copy(io.Discard, data); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		}
		b := append(out[:0], make([]byte, raftHeader)...)
		k := raftAnswer
		if resp.Error != nil {
			k = raftError
			b = append(b, resp.Error.Error()...)
		} else {
			b = appendMessage(b, resp.Response)
		}
		if err := finishFrame(b, k); err != nil {
			return err
		}
		if cap(b) <= keepScratch {
			out = b
		}
		if err := c.SetWriteDeadline(time.Now().Add(t.cfg.Timeout)); err != nil {
			return err
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

// ask gives a request to Raft and waits for its answer. An error means that the
// connection is over.
func (t *Transport) ask(c *conn, rpc raft.RPC, answer <-chan raft.RPCResponse) (raft.RPCResponse, error) {
	switch rpc.Command.(type) {
	case *raft.AppendEntriesRequest, *raft.InstallSnapshotRequest:
		if t.cfg.Paused != nil && t.cfg.Paused() {
			return raft.RPCResponse{Error: errPaused}, nil
		}
	}
	switch req := rpc.Command.(type) {
	case *raft.TimeoutNowRequest:
		if !t.mayLead() {
			t.log.Warn("told to lead, which this node may not: refused", "peer", c.remote.Name)
			return raft.RPCResponse{Error: errMayNotLead}, nil
		}
	case *raft.AppendEntriesRequest:
		if fn := t.heartbeat.Load(); fn != nil && isHeartbeat(req) && req.Term != 0 && req.Addr != nil &&
			t.inTerm(req.Term, func() { (*fn)(rpc) }) {
			return await(c, answer)
		}
	}
	select {
	case t.consume <- rpc:
		return await(c, answer)
	case <-c.done:
		return raft.RPCResponse{}, raft.ErrTransportShutdown
	}
}

func await(c *conn, answer <-chan raft.RPCResponse) (raft.RPCResponse, error) {
	select {
	case resp := <-answer:
		return resp, nil
	case <-c.done:
		return raft.RPCResponse{}, raft.ErrTransportShutdown
	}
}

// injector delivers commit indexes this node learned to its own Raft.
type injector struct {
	mu      sync.Mutex
	pending *raft.AppendEntriesRequest // the furthest not yet delivered
	running bool
}

// InjectCommit tells the local Raft that the leader of term had committed index,
// an entry of indexTerm, as an AppendEntries without entries that this leader
// could have sent. Raft ignores it where it does not fit its log. It returns at
// once; while one delivery waits for Raft, only the furthest index of the newest
// term is kept.
func (t *Transport) InjectCommit(leaderID string, term, index, indexTerm uint64) {
	req := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax,
			ID:              []byte(leaderID),
			Addr:            []byte(leaderID),
		},
		Term:              term,
		PrevLogEntry:      index,
		PrevLogTerm:       indexTerm,
		LeaderCommitIndex: index,
	}
	in := &t.inject
	in.mu.Lock()
	defer in.mu.Unlock()
	if p := in.pending; p != nil && (p.Term > term || p.Term == term && p.LeaderCommitIndex >= index) {
		return
	}
	in.pending = req
	if !in.running {
		in.running = t.spawn(t.deliver)
	}
}

// deliver is the goroutine of the injector; it ends when nothing is pending.
func (t *Transport) deliver() {
	in := &t.inject
	for {
		in.mu.Lock()
		req := in.pending
		in.pending = nil
		in.running = req != nil
		in.mu.Unlock()
		if req == nil {
			return
		}
		answer := make(chan raft.RPCResponse, 1)
		select {
		case t.consume <- raft.RPC{Command: req, RespChan: answer}:
		case <-t.ctx.Done():
			return
		}
		// A Raft instance that stops does not answer; another may follow it.
		timeout := time.NewTimer(t.cfg.Timeout)
		select {
		case <-answer:
		case <-timeout.C:
		case <-t.ctx.Done():
		}
		timeout.Stop()
	}
}

// inTerm is Config.InTerm.
func (t *Transport) inTerm(term uint64, fn func()) bool {
	if t.cfg.InTerm != nil {
		return t.cfg.InTerm(term, fn)
	}
	fn()
	return true
}

func (t *Transport) mayLead() bool { return t.cfg.MayLead != nil && t.cfg.MayLead() }

// InjectTimeoutNow tells the local Raft to stand for election at once, as a leader
// that hands over to this node would, and returns when Raft has heard it or ctx
// ends. A node that may not lead (Config.MayLead) gets an error.
//
// Raft then asks for votes though the others know a leader, and would do so from
// any state: whoever calls this has reason to think that nobody leads.
func (t *Transport) InjectTimeoutNow(ctx context.Context) error {
	if !t.mayLead() {
		return errMayNotLead
	}
	req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(t.self),
		Addr:            []byte(t.self),
	}}
	answer := make(chan raft.RPCResponse, 1)
	select {
	case t.consume <- raft.RPC{Command: req, RespChan: answer}:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.ctx.Done():
		return raft.ErrTransportShutdown
	}
	select {
	case resp := <-answer:
		return resp.Error
	case <-ctx.Done():
		return ctx.Err()
	case <-t.ctx.Done():
		return raft.ErrTransportShutdown
	}
}
