package node

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// A leadership round asks the voters of the latest configuration, after the
// read that needs it arrived, whether they are still in the leader's term. A
// majority that is has granted no vote in a later one, so no other leader can
// have acknowledged a write before the round began.
//
// Raft's own VerifyLeader is no substitute: it counts answers of non-voters
// (hashicorp/raft v1.7.3, raft.go), so a leader cut off from the other voters
// but not from a learner would verify itself.

// confirmation is the outcome of a round.
type confirmation struct {
	term  uint64
	began Instant
}

// confirm returns the outcome of a round that began after confirm was called,
// or, with lease, of one that began at most Config.Lease ago. It fails with
// command.ErrNotLeader when leadership is not or no longer given.
func (n *Node) confirm(ctx context.Context, lease bool) (confirmation, error) {
	if lease {
		if c := n.lastRound.Load(); c != nil && c.term == n.raft.CurrentTerm() && c.began.Age(Now(n.cfg.Clock)) <= n.cfg.Lease {
			return *c, nil
		}
	}
	return n.rounds.do(ctx, n.round)
}

// round runs one round.
func (n *Node) round() (confirmation, error) {
	c := confirmation{began: Now(n.cfg.Clock), term: n.parts.FSM.Term()}
	if !n.leads(c.term) {
		return c, command.ErrNotLeader
	}
	n.counts.rounds.Add(1)
	voters, self := n.voters()
	need := (len(voters)+self)/2 + 1 - self
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.RoundTimeout)
	defer cancel()
	answers := n.askTerms(ctx, voters, c.term)
	for left := len(voters); need > 0; left-- {
		if left < need {
			return c, command.ErrNotLeader.With("no majority of the voters confirms term %d", c.term)
		}
		switch err := <-answers; {
		case err == nil:
			need--
		case errors.Is(err, errNewerTerm):
			return c, command.ErrNotLeader.With("a voter is in a later term than %d", c.term)
		}
	}
	if !n.leads(c.term) {
		return c, command.ErrNotLeader
	}
	n.lastRound.Store(&c)
	return c, nil
}

// leads reports whether this node leads in term and has applied the term's
// first command, so that its state holds all that earlier leaders committed.
func (n *Node) leads(term uint64) bool {
	return term != 0 && n.raft.State() == raft.Leader && n.raft.CurrentTerm() == term && n.parts.FSM.Term() == term
}

// voters lists the other voters of the latest configuration, and 1 when this
// node is one, else 0.
func (n *Node) voters() (others []string, self int) {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		switch {
		case s.Suffrage != raft.Voter:
		case string(s.ID) == n.id:
			self = 1
		default:
			others = append(others, string(s.ID))
		}
	}
	return others, self
}

var (
	errNewerTerm = errors.New("voter is in a later term")
	errOlderTerm = errors.New("voter has not reached this term")
)

// askTerms asks voters for their terms, all at once; each gives one answer.
func (n *Node) askTerms(ctx context.Context, voters []string, term uint64) (answers <-chan error) {
	all := make(chan error, len(voters))
	for _, id := range voters {
		go func() { all <- n.askTerm(ctx, id, term) }()
	}
	return all
}

// askTerm asks one voter for its term. It returns nil when the voter is the one
// meant, of this cluster and epoch, and in the same term.
func (n *Node) askTerm(ctx context.Context, id string, term uint64) error {
	answer, err := n.parts.Transport.Call(ctx, id, methodTerm, nil)
	if err != nil {
		return err
	}
	cluster, epoch := n.parts.Identity.Cluster()
	theirs, rest, err := decodeTerm(answer)
	switch {
	case err != nil:
		return err
	case rest != termAnswerTail(cluster, epoch, id):
		return errors.New("the answer is of another server, cluster or epoch")
	case theirs > term:
		return errNewerTerm
	case theirs < term:
		return errOlderTerm
	}
	return nil
}

func (n *Node) answerTerm() []byte {
	cluster, epoch := n.parts.Identity.Cluster()
	b := binary.BigEndian.AppendUint64(nil, n.raft.CurrentTerm())
	return append(b, termAnswerTail(cluster, epoch, n.id)...)
}

func termAnswerTail(cluster string, epoch uint64, id string) string {
	b := binary.BigEndian.AppendUint64(nil, epoch)
	return string(b) + cluster + "/" + id
}

func decodeTerm(b []byte) (term uint64, tail string, err error) {
	if len(b) < 8 {
		return 0, "", errors.New("term answer is cut off")
	}
	return binary.BigEndian.Uint64(b), string(b[8:]), nil
}

// Point is an index a read has to wait for.
type Point struct {
	Index      uint64 // the leader's commit index
	LeaderTerm uint64 // of the leader, and of the entry at Index
	Leader     string // id
	// AsOf is a moment on this node's clock: once Index is applied here, the
	// state holds every write acknowledged before it.
	AsOf Instant
}

// AskIndex asks the leader for the index that a read must wait for. Without
// lease the leader confirms its leadership after the request arrived, so the
// read is linearizable; with lease it may ride on a round that began up to
// Config.Lease ago. Concurrent callers on one node share one request.
//
// It waits for a leader for as long as Config.Wait; command.ErrNoLeader after
// that.
func (n *Node) AskIndex(ctx context.Context, lease bool) (Point, error) {
	var p Point
	if planted.Bug("read-without-round") {
		return Point{AsOf: Now(n.cfg.Clock)}, nil
	}
	err := n.withLeader(ctx, func(ctx context.Context, leader string) (err error) {
		switch {
		case leader == n.id:
			p, err = n.localIndex(ctx, lease)
		case lease:
			p, err = n.leaseAsks.do(ctx, func() (Point, error) { return n.remotePoint(methodLeaseIndex) })
		default:
			p, err = n.readAsks.do(ctx, func() (Point, error) { return n.remotePoint(methodReadIndex) })
		}
		return askAgain(err)
	})
	return p, err
}

// localIndex is AskIndex on the leader.
func (n *Node) localIndex(ctx context.Context, lease bool) (Point, error) {
	p := Point{Leader: n.id, AsOf: Now(n.cfg.Clock)}
	term := n.parts.FSM.Term()
	if !n.leads(term) {
		return Point{}, command.ErrNotLeader.With("the term's first entry is not applied yet")
	}
	// The commit index, not what is applied here: a follower may have applied a
	// commit that this node's state machine is still at work on, and have
	// answered a read with it; a later read must not see less. No follower
	// knows of a commit before the leader, so this index covers them all.
	//
	// It is the index of an entry that the state machine sees, and of this
	// term: the term's first command has been applied, and behind it come only
	// commands and configurations. Nothing in Holdfast calls raft.Barrier.
	p.Index = n.raft.CommitIndex()
	c, err := n.confirm(ctx, lease)
	if err != nil {
		return Point{}, err
	}
	if c.term != term {
		return Point{}, command.ErrNotLeader
	}
	p.LeaderTerm = term
	if c.began.Steady < p.AsOf.Steady {
		p.AsOf = c.began
	}
	return p, nil
}

func (n *Node) remotePoint(method uint8) (Point, error) {
	n.counts.indexRequests.Add(1)
	p, _, err := n.remoteIndex(method, nil)
	return p, err
}

// remoteIndex is one request to the leader; rest is what the answer says beyond
// the point. Runs detached from any caller.
func (n *Node) remoteIndex(method uint8, req []byte) (p Point, rest []byte, err error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.RoundTimeout)
	defer cancel()
	leader := n.leaderID()
	if leader == "" || leader == n.id {
		return Point{}, nil, command.ErrNotLeader
	}
	sent := Now(n.cfg.Clock)
	answer, err := n.callLeader(ctx, leader, method, req)
	if err != nil {
		return Point{}, nil, err
	}
	p, age, rest, err := decodePoint(answer)
	if err != nil {
		return Point{}, nil, err
	}
	p.Leader = leader
	// The round began `age` before the leader answered, and it answered after
	// the request was sent: counted from there, AsOf is early, never late.
	p.AsOf = sent.Before(age)
	if planted.Bug("certificate-from-the-answer") {
		p.AsOf = Now(n.cfg.Clock)
	}
	return p, rest, nil
}

// answerIndex serves methodReadIndex and methodLeaseIndex on the leader.
func (n *Node) answerIndex(ctx context.Context, lease bool) ([]byte, error) {
	arrived := Now(n.cfg.Clock)
	p, err := n.localIndex(ctx, lease)
	if err != nil {
		return nil, err
	}
	age := max(arrived.Steady-p.AsOf.Steady, 0)
	if age > 0 {
		age = p.AsOf.Age(Now(n.cfg.Clock))
	}
	b := make([]byte, 0, 24)
	for _, v := range []uint64{p.Index, p.LeaderTerm, uint64(age)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b, nil
}

func decodePoint(b []byte) (p Point, age time.Duration, rest []byte, err error) {
	if len(b) < 24 {
		return Point{}, 0, nil, errors.New("index answer is cut off")
	}
	u := binary.BigEndian.Uint64
	return Point{Index: u(b), LeaderTerm: u(b[8:])}, time.Duration(u(b[16:])), b[24:], nil
}

// Await returns when this node's state holds p.Index.
//
// A follower that has the entry in its log may not know yet that it is
// committed; the leader's answer proves it, so the transport delivers to Raft
// the message the leader would send next (an empty AppendEntries). Raft takes it
// for a sign of life of that leader, so it is delivered at most once for each
// state of the log, and only while this node follows that leader in that term:
// a read that waits must not keep a dead leader in office.
func (n *Node) Await(ctx context.Context, p Point) error {
	if applied, _ := n.parts.State.Applied(); applied >= p.Index {
		return nil
	}
	if p.Leader == n.id {
		return n.parts.State.WaitApplied(ctx, p.Index)
	}
	delivered := uint64(0) // last index of the log at the last delivery
	began := time.Now()
	for poll := 200 * time.Microsecond; ; poll = min(2*poll, 5*time.Millisecond) {
		if last := n.raft.LastIndex(); last >= p.Index && last != delivered && n.raft.CommitIndex() < p.Index &&
			n.raft.CurrentTerm() == p.LeaderTerm && n.leaderID() == p.Leader {
			n.parts.Transport.InjectCommit(p.Leader, p.LeaderTerm, p.Index, p.LeaderTerm)
			delivered = last
		}
		if time.Since(began) > time.Second {
			poll = 100 * time.Millisecond // a long catch-up: the log will bring the commit
		}
		short, cancel := context.WithTimeout(ctx, poll)
		err := n.parts.State.WaitApplied(short, p.Index)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		select {
		case <-n.stop:
			return command.ErrStopping
		default:
		}
	}
}
