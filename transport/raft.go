package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// maxIdleRaft is how many Raft connections to a peer are kept for reuse.
	maxIdleRaft = 3
	// maxAppendBytes is about how many bytes of entries go into one request. Raft
	// itself counts entries only, so that large values could make a request that
	// no deadline fits.
	maxAppendBytes = 4 << 20
	// timeoutScale bytes get one Config.Timeout.
	timeoutScale = 256 << 10
	// keepScratch is the largest buffer a Raft connection holds on to.
	keepScratch = 64 << 10
)

// remoteError is an error with which the peer's Raft answered: the peer is there.
type remoteError string

func (e remoteError) Error() string { return string(e) }

// raftConn is the dialling end of a Raft connection: one request at a time, or
// a pipeline.
type raftConn struct {
	*conn
	answers answerReader
	r       *bufio.Reader // of answers
	out     []byte        // scratch for requests
	packed  []byte        // and for compressed ones
	zstd    *zstd.Encoder
}

// Consumer implements raft.Transport. Requests of other nodes and those this
// node injects arrive here without a detour; heartbeats do not while a handler
// is set.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consume }

// LocalAddr implements raft.Transport: a server's address is its id.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.self) }

// EncodePeer implements raft.Transport.
func (t *Transport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer implements raft.Transport.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport: cb is called on the goroutine
// of the connection a heartbeat came by, beside Raft's main loop, with heartbeats of the
// present term (Config.InTerm).
func (t *Transport) SetHeartbeatHandler(cb func(raft.RPC)) {
	if cb == nil {
		t.heartbeat.Store(nil)
		return
	}
	t.heartbeat.Store(&cb)
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.request(t.ctx, string(id), raftVote, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.request(t.ctx, string(id), raftPreVote, args, resp)
}

// TimeoutNow implements raft.Transport. A target that may not lead answers with
// an error.
func (t *Transport) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.request(t.ctx, string(id), raftTimeoutNow, args, resp)
}

// AppendEntries implements raft.Transport. When the entries are too many bytes
// for one request it sends the first of them and cuts args.Entries to match;
// Raft goes by what args holds afterwards. A peer that lacks what comes before
// them may have got further without the log: then args says that it was sent what
// it has. It waits, also with a heartbeat, while the peer is paused; see SetLeading
// for when else.
func (t *Transport) AppendEntries(id raft.ServerID, _ raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	p := t.peer(string(id))
	kind, bytes := prepareAppend(args, p.pace.most(t.isFar(p)))
	send := func(ctx context.Context) error {
		if t.muted() {
			return errMuted
		}
		began := time.Now()
		err := t.request(ctx, string(id), kind, args, resp)
		if err == nil {
			p.answered(args, resp, bytes, time.Since(began))
		}
		return err
	}
	beat := isHeartbeat(args)
	for {
		err := send(t.ctx)
		if err != nil && !beat {
			err = t.hold(string(id), err, send)
		}
		if !errors.Is(err, errPaused) {
			if err == nil && !beat && !resp.Success {
				t.skip(string(id), args, resp)
			}
			return err
		}
		if err := t.untilResumed(string(id), args.RPCHeader, args.Term); err != nil {
			return err
		}
	}
}

// answered notes an answer to replication with so many bytes of entries.
func (p *peer) answered(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, bytes int, took time.Duration) {
	if p.paused.Load() {
		p.paused.Store(false)
	}
	if len(args.Entries) == 0 {
		return
	}
	p.pace.took(bytes, took)
	if resp.Success {
		p.entries.Add(uint64(len(args.Entries)))
	}
}

// appendPause is how long a peer is left alone that could not append: its disk is full.
// Raft's own pause would grow to ten seconds, also after there is space again.
const appendPause = 250 * time.Millisecond

// skip goes on, after a request that was refused for want of the entry before it,
// behind the last entry the peer has, if this node's log has the same. Raft by itself only
// tries lower indices, but a peer whose state came as a copy has no lower ones. The
// peer is asked as for any other place in the log, so that its Raft decides. One that had
// the entry before and could not append is asked in the same way, after appendPause: it has
// a part of what was sent, or nothing.
func (t *Transport) skip(to string, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	last := resp.LastLog
	if t.cfg.EntryTerm == nil || resp.Term > args.Term || last <= args.PrevLogEntry {
		return
	}
	term, ok := t.cfg.EntryTerm(last)
	if !ok {
		return
	}
	lacked := resp.NoRetryBackoff // how Raft tells a missing entry from a failed append
	if !lacked {
		select {
		case <-time.After(appendPause):
		case <-t.ctx.Done():
			return
		}
	}
	ask := *args
	ask.PrevLogEntry, ask.PrevLogTerm, ask.Entries = last, term, nil // no heartbeat: last is not 0
	var answer raft.AppendEntriesResponse
	if err := t.request(t.ctx, to, raftBare, &ask, &answer); err != nil || !answer.Success {
		return // Raft goes by the first answer
	}
	if lacked {
		t.log.Info("peer has more than its log: replication skips that", "peer", to, "from", args.PrevLogEntry+1, "to", last)
	}
	args.Entries = []*raft.Log{{Index: last, Term: term}}
	*resp = answer
}

var errMuted = errors.New("this node must not be heard as a leader now")

func (t *Transport) muted() bool { return t.cfg.Muted != nil && t.cfg.Muted() }

// isHeartbeat tells Raft's heartbeats from its replication, as the library does.
func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return len(a.Entries) == 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && a.LeaderCommitIndex == 0
}

// prepareAppend cuts a request to most bytes of entries, but to no less than one,
// and tells its kind and how many bytes of entries it has.
func prepareAppend(args *raft.AppendEntriesRequest, most int) (kind raftKind, bytes int) {
	if len(args.Entries) == 0 {
		return raftBare, 0
	}
	for i, e := range args.Entries {
		n := len(e.Data) + len(e.Extensions)
		if bytes+n > most && i > 0 {
			args.Entries = args.Entries[:i]
			break
		}
		bytes += n
	}
	return raftAppend, bytes
}

// isFar reports whether a peer was seen at another site.
func (t *Transport) isFar(p *peer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hello.Site != "" && p.hello.Site != t.faults.self.Site
}

// request sends one request and reads its answer on a connection of its own.
func (t *Transport) request(ctx context.Context, to string, kind raftKind, args, resp any) error {
	for {
		rc, reused, err := t.borrow(ctx, to)
		if err != nil {
			return err
		}
		interrupted := func() bool { return true }
		if ctx != t.ctx { // whose end closes all connections anyway
			interrupted = context.AfterFunc(ctx, func() { rc.Close() })
		}
		err = rc.exchange(t.cfg.Timeout, kind, args, resp)
		interrupted()
		var remote remoteError
		if err == nil || errors.As(err, &remote) {
			t.giveBack(rc)
			return err
		}
		rc.Close()
		if t.ctx.Err() != nil {
			return raft.ErrTransportShutdown
		}
		// A connection that lay idle may have ended unnoticed when the peer was
		// restarted. All these requests may be repeated.
		if reused && !timedOut(err) && ctx.Err() == nil {
			continue
		}
		return fmt.Errorf("raft request to %s: %w", to, err)
	}
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// borrow takes a connection from the pool or dials one.
func (t *Transport) borrow(ctx context.Context, to string) (rc *raftConn, reused bool, err error) {
	p := t.peer(to)
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		rc = p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		select {
		case <-rc.done:
		default:
			return rc, true, nil
		}
	}
	rc, err = t.dialRaft(ctx, to)
	return rc, false, err
}

func (t *Transport) dialRaft(ctx context.Context, to string) (*raftConn, error) {
	c, err := t.dialPeer(ctx, purposeRaft, to)
	if err != nil {
		if t.ctx.Err() != nil {
			err = raft.ErrTransportShutdown
		}
		return nil, err
	}
	rc := &raftConn{conn: c, answers: answerReader{c: c}}
	rc.r = bufio.NewReader(&rc.answers)
	return rc, nil
}

// giveBack keeps a healthy connection for the next request.
func (t *Transport) giveBack(rc *raftConn) {
	p := rc.peer
	p.mu.Lock()
	_, open := p.conns[rc.conn]
	keep := open && len(p.idle) < maxIdleRaft
	if keep {
		p.idle = append(p.idle, rc)
	}
	p.mu.Unlock()
	if !keep {
		rc.Close()
	}
}

// allowance is how long a message of n bytes may stand still, on its way and while it
// is answered.
func allowance(timeout time.Duration, n int64) time.Duration {
	return timeout + timeout*time.Duration(n/timeoutScale)
}

// encode gives the frame of a request, valid until the next.
func (rc *raftConn) encode(kind raftKind, args any) ([]byte, error) {
	b := append(rc.out[:0], make([]byte, raftHeader)...)
	b = appendMessage(b, args)
	if cap(b) <= keepScratch {
		rc.out = b
	}
	if err := finishFrame(b, kind); err != nil || kind != raftAppend {
		return b, err
	}
	return rc.pack(b), nil
}

// write sends a request. Entries are bulk, and all else is not held up.
func (rc *raftConn) write(b []byte, kind raftKind, idle time.Duration) (err error) {
	if kind == raftAppend {
		_, err = rc.writeBulk(b, idle)
	} else {
		_, err = writeMoving(rc.conn, b, idle)
	}
	return err
}

// receive reads one answer into resp. It is given up when for idle none comes, and
// nothing of what was asked moves.
func (rc *raftConn) receive(resp any, idle time.Duration) error {
	rc.answers.idle = idle
	var h [raftHeader]byte
	if _, err := io.ReadFull(rc.r, h[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > keepScratch {
		return fmt.Errorf("%w: answer of %d bytes", errMessage, n)
	}
	body := make([]byte, n) // resp keeps parts of it
	if _, err := io.ReadFull(rc.r, body); err != nil {
		return err
	}
	switch raftKind(h[4]) {
	case raftAnswer:
		return decodeMessage(body, resp)
	case raftError:
		return remoteError(body) // errPaused among them
	}
	return fmt.Errorf("%w: answer of kind %d", errMessage, h[4])
}

// exchange sends a request and waits for its answer.
func (rc *raftConn) exchange(timeout time.Duration, kind raftKind, args, resp any) error {
	b, err := rc.encode(kind, args)
	if err != nil {
		return err
	}
	idle := allowance(timeout, int64(len(b)))
	if err := rc.write(b, kind, idle); err != nil {
		return err
	}
	return rc.receive(resp, idle)
}

// InstallSnapshot implements raft.Transport. Config.BeforeInstall comes first;
// while it runs, heartbeats to the peer go on.
func (t *Transport) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	to := string(id)
	ctx, cancel, _ := t.lead.spell(t.peer(to))
	defer cancel()
	for t.cfg.BeforeInstall != nil {
		err := t.cfg.BeforeInstall(ctx, to)
		if err == nil {
			break
		}
		if !errors.Is(err, command.ErrPaused) {
			return fmt.Errorf("prepare %s for a snapshot: %w", to, err)
		}
		if err := t.untilResumed(to, args.RPCHeader, args.Term); err != nil {
			return err
		}
	}
	rc, err := t.dialRaft(ctx, to)
	if err != nil {
		return err
	}
	defer rc.Close()
	defer context.AfterFunc(ctx, func() { rc.Close() })()
	if err := rc.install(t.cfg.Timeout, args, resp, data); err != nil {
		return fmt.Errorf("snapshot to %s: %w", to, err)
	}
	return nil
}

func (rc *raftConn) install(timeout time.Duration, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	b, err := rc.encode(raftInstall, args)
	if err != nil {
		return err
	}
	idle := allowance(timeout, args.Size)
	if _, err := writeMoving(rc.conn, b, idle); err != nil {
		return err
	}
	if _, err := io.Copy(bulkWriter{rc.conn, idle}, data); err != nil {
		return err
	}
	return rc.receive(resp, idle)
}

// bulkWriter is writeBulk as an io.Writer.
type bulkWriter struct {
	c    *conn
	idle time.Duration
}

// Write implements io.Writer.
func (w bulkWriter) Write(b []byte) (int, error) { return w.c.writeBulk(b, w.idle) }

// CloseStreams closes all Raft connections in both directions and fails the
// requests on them; new ones are made when needed. It lets a Raft instance that
// shuts down, or is about to be replaced by another on this transport, end its
// requests in flight at once. Calls and copies go on.
func (t *Transport) CloseStreams() {
	t.mu.Lock()
	var conns []*conn
	for c := range t.conns {
		if c.peer != nil && c.purpose == purposeRaft {
			conns = append(conns, c)
		}
	}
	t.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}
