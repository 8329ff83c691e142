package transport

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// maxInFlight is how many requests of a pipeline may wait for their answers. Two
// let one travel while another is written to disk; with more, less gathers in
// each, and throughput falls.
const maxInFlight = 2

// pipeline sends replication without waiting for each answer. The caller of
// AppendEntries writes; one goroutine reads the answers.
type pipeline struct {
	t      *Transport
	rc     *raftConn
	queue  chan *appendFuture // to the reader, which takes one at a time
	answer chan raft.AppendFuture
}

// appendFuture implements raft.AppendFuture.
type appendFuture struct {
	start   time.Time
	allowed time.Duration
	bytes   int // of the entries
	args    *raft.AppendEntriesRequest
	resp    *raft.AppendEntriesResponse
	done    chan struct{} // closed once err is set
	err     error
}

func (f *appendFuture) Error() error {
	<-f.done
	return f.err
}
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.args }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }

func (f *appendFuture) settle(err error) {
	f.err = err
	close(f.done)
}

// AppendEntriesPipeline implements raft.Transport. A pipeline has a connection
// of its own, made anew.
//
// There is none right after a peer was away. Raft sends one message into a
// pipeline per new entry, or per commit interval where there are none: too few
// for who has missed much. Without a pipeline it sends one after the other until
// the peer is level, and then asks for a pipeline again.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, _ raft.ServerAddress) (raft.AppendPipeline, error) {
	if t.peer(string(id)).behind.Swap(false) {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	rc, err := t.dialRaft(t.ctx, string(id))
	if err != nil {
		return nil, err
	}
	p := &pipeline{
		t:      t,
		rc:     rc,
		queue:  make(chan *appendFuture, maxInFlight-2), // one is at the reader, one in AppendEntries
		answer: make(chan raft.AppendFuture, maxInFlight),
	}
	if !t.spawn(p.read) {
		rc.Close()
		return nil, raft.ErrTransportShutdown
	}
	return p, nil
}

// AppendEntries implements raft.AppendPipeline. Like Transport.AppendEntries it
// may send fewer entries than it was given and cut args to match. It blocks
// while too many requests wait for their answers. An error ends the pipeline.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	f := &appendFuture{start: time.Now(), args: args, resp: resp, done: make(chan struct{})}
	kind, bytes := prepareAppend(args, p.rc.peer.pace.most(p.rc.far != nil))
	f.bytes = bytes
	b, err := p.rc.encode(kind, args)
	if err == nil && p.t.muted() {
		err = errMuted
	}
	if err == nil {
		f.allowed = allowance(p.t.cfg.Timeout, int64(len(b)))
		err = p.rc.write(b, kind, f.allowed)
	}
	if err != nil {
		p.rc.Close()
		return nil, fmt.Errorf("replication to %s: %w", p.rc.remote.ID, err)
	}
	select {
	case p.queue <- f:
		return f, nil
	case <-p.rc.done:
		return nil, raft.ErrPipelineShutdown
	}
}

// Consumer implements raft.AppendPipeline. Only requests that were answered
// arrive: Raft takes whatever arrives for a sign of life of the peer. A pipeline
// that broke shows it at the next AppendEntries.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answer }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	return p.rc.Close()
}

// read is the goroutine that takes the answers, in order.
func (p *pipeline) read() {
	defer p.rc.Close()
	for {
		select {
		case f := <-p.queue:
			err := p.rc.receive(f.resp, f.allowed)
			if err == nil {
				p.rc.peer.answered(f.args, f.resp, f.bytes, time.Since(f.start))
			}
			f.settle(err)
			if err != nil {
				p.t.log.Debug("replication pipeline broke", "peer", p.rc.remote.ID, "error", err)
				return
			}
			select {
			case p.answer <- f:
			case <-p.rc.done:
				return
			}
		case <-p.rc.done:
			return
		}
	}
}
