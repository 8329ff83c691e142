package node

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// A session with a TTL ends when nobody has renewed it for twice as long. Only
// the leader measures that, by its steady clock, and it knows of no renewal
// before its own time: so when it begins to lead each session has the full time
// again. What ends a session is a SessionDestroy in the log; by itself the
// passing of time changes nothing on any node.

// expiryFactor is how many TTLs a session lives without a renewal. Clients know of
// it: several ask for half the TTL they want.
const expiryFactor = 2

const (
	// maxExpiring bounds the sessions that are being destroyed at a time. They
	// share log entries.
	maxExpiring = 256
	// expiryRetry is the pause before what failed is tried again.
	expiryRetry = time.Second
)

// sessionTimers are the timers of all sessions, on the leader: one heap, one
// goroutine, one timer.
type sessionTimers struct {
	steady func() time.Duration
	// sessions calls fn for each session there is.
	sessions func(fn func(command.Session) bool) error
	// gone reports whether there is no session of an id.
	gone func(id string) bool
	// destroy ends a session, if this node still leads in that term. When it
	// returns nil, observe has been told.
	destroy func(term uint64, id string) error
	kick    chan struct{} // holds one: run is to look again

	mu      sync.Mutex
	term    uint64                   // guarded by mu; in which this node leads, or 0
	byID    map[string]*sessionTimer // guarded by mu; empty while term is 0
	queue   sessionQueue             // guarded by mu; all of byID but those that are closing
	rebuild bool                     // guarded by mu; byID is not complete
}

// sessionTimer is the timer of one session.
type sessionTimer struct {
	id  string
	ttl time.Duration
	due time.Duration // by the steady clock
	at  int           // its place in the queue
	// closing is not nil once the session's end is proposed, and closed when that
	// is decided.
	closing chan struct{}
}

// begin starts the timers of all sessions in full.
func (s *sessionTimers) begin(term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset(term)
}

// end stops all timers.
func (s *sessionTimers) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term, s.byID, s.queue, s.rebuild = 0, nil, nil, false
}

// reset forgets all timers, but for sessions that are closing in this term; run
// builds them anew. Called with mu held.
func (s *sessionTimers) reset(term uint64) {
	before := s.byID
	s.byID, s.queue, s.rebuild = map[string]*sessionTimer{}, nil, true
	for id, t := range before {
		if t.closing != nil && term == s.term {
			s.byID[id] = t
		}
	}
	s.term = term
	s.look()
}

// look makes run look again.
func (s *sessionTimers) look() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// restart gives a session its full time again. closing is not nil when its end is
// proposed, and it has none any more: it is closed when that is decided.
func (s *sessionTimers) restart(id string, ttl time.Duration) (closing <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == 0 {
		return nil, command.ErrNotLeader
	}
	if t := s.byID[id]; t != nil && t.closing != nil {
		return t.closing, nil
	}
	s.set(id, ttl)
	return nil, nil
}

// set starts a timer in full, or starts it again. Called with mu held.
func (s *sessionTimers) set(id string, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	due := s.steady() + expiryFactor*ttl
	t := s.byID[id]
	if t == nil {
		t = &sessionTimer{id: id, ttl: ttl, due: due}
		s.byID[id] = t
		heap.Push(&s.queue, t)
	} else {
		t.due = due
		heap.Fix(&s.queue, t.at)
	}
	if t.at == 0 {
		s.look()
	}
}

// observe is told of every entry of commands that is applied, with the term it
// stands in.
func (s *sessionTimers) observe(term uint64, e *command.Entry, results []command.Result) {
	if e == nil {
		s.replaced() // by a copy, and what came with it is not known
		return
	}
	if e.Term != 0 && e.Term != term {
		return
	}
	for i, c := range e.Commands {
		once, isOnce := c.(*command.Once)
		if isOnce {
			c = once.Command
		}
		if results[i].Err != nil {
			continue
		}
		switch c := c.(type) {
		case *command.SessionCreate:
			// The result may be that of an earlier time, and the session have ended.
			if !isOnce || !s.gone(c.Session.ID) {
				s.created(&c.Session)
			}
		case *command.SessionDestroy:
			s.destroyed(c.ID)
		case *command.Restore:
			s.replaced()
		}
	}
}

func (s *sessionTimers) created(session *command.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Creating one that there is already is no renewal.
	if s.term != 0 && s.byID[session.ID] == nil {
		s.set(session.ID, session.Lifetime())
	}
}

func (s *sessionTimers) destroyed(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.byID[id]; t != nil {
		delete(s.byID, id)
		if t.closing == nil {
			heap.Remove(&s.queue, t.at)
		}
	}
}

// replaced gives all sessions of a state that took the place of another their full
// time.
func (s *sessionTimers) replaced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term != 0 {
		s.reset(s.term)
	}
}

// run ends sessions whose time is over, until stop is closed.
func (s *sessionTimers) run(stop <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.kick:
		case <-timer.C:
		case <-stop:
			return
		}
		s.build()
		term, due := s.take()
		var all sync.WaitGroup
		for _, t := range due {
			all.Go(func() { s.decided(term, t, s.destroy(term, t.id)) })
		}
		all.Wait()
		timer.Reset(s.pause())
	}
}

// build starts the timers of the sessions there are, when that is still to be
// done.
func (s *sessionTimers) build() {
	s.mu.Lock()
	term, rebuild := s.term, s.rebuild
	s.rebuild = false
	s.mu.Unlock()
	if !rebuild {
		return
	}
	// Sessions that are created meanwhile are told of, since the term is set. One
	// that is destroyed meanwhile may get a timer, which ends nothing.
	err := s.sessions(func(session command.Session) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.term == term && s.byID[session.ID] == nil {
			lifetime := session.Lifetime()
			if planted.Bug("rest-of-the-time-to-live") {
				lifetime /= 8
			}
			s.set(session.ID, lifetime)
		}
		return s.term == term
	})
	if err != nil {
		s.mu.Lock()
		s.rebuild = s.rebuild || s.term == term
		s.mu.Unlock()
	}
}

// take removes sessions whose time is over from the queue: from now on they are
// closing.
func (s *sessionTimers) take() (term uint64, due []*sessionTimer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.steady()
	for len(s.queue) > 0 && s.queue[0].due <= now && len(due) < maxExpiring {
		t := heap.Pop(&s.queue).(*sessionTimer)
		t.closing = make(chan struct{})
		due = append(due, t)
	}
	return s.term, due
}

// decided wakes who waits for the end of a session. If it has not ended, it is
// tried again.
func (s *sessionTimers) decided(term uint64, t *sessionTimer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.term == term && s.byID[t.id] == t {
		again := &sessionTimer{id: t.id, ttl: t.ttl, due: s.steady() + expiryRetry}
		s.byID[t.id] = again
		heap.Push(&s.queue, again)
	}
	close(t.closing)
}

// pause is how long there is nothing to do.
func (s *sessionTimers) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.rebuild:
		return expiryRetry
	case len(s.queue) == 0:
		return time.Hour // begin and set tell of what comes
	}
	return max(s.queue[0].due-s.steady(), 0)
}

// sessionQueue is a heap of timers, the first one due on top.
type sessionQueue []*sessionTimer

func (q sessionQueue) Len() int           { return len(q) }
func (q sessionQueue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q sessionQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements heap.Interface.
func (q *sessionQueue) Push(x any) {
	t := x.(*sessionTimer)
	t.at = len(*q)
	*q = append(*q, t)
}

// Pop implements heap.Interface.
func (q *sessionQueue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return t
}

// newSessionTimers are the timers of a node's sessions.
func (n *Node) newSessionTimers() *sessionTimers {
	return &sessionTimers{
		steady: n.cfg.Clock.Steady,
		sessions: func(fn func(command.Session) bool) error {
			view, err := n.parts.State.View()
			if err != nil {
				return err
			}
			defer view.Close()
			return view.Sessions(fn)
		},
		gone: func(id string) bool {
			view, err := n.parts.State.View() // not of the node, which waits for the state machine to hold still
			if err != nil {
				return false
			}
			defer view.Close()
			_, err = view.Session(id)
			return errors.Is(err, command.ErrSessionNotFound)
		},
		// Never through another leader: its timers say something else.
		destroy: func(term uint64, id string) error {
			_, err := n.group.submit(n.ctx, write{term: term, encoded: command.Append(nil, &command.SessionDestroy{ID: id})})
			return err
		},
		kick: make(chan struct{}, 1),
	}
}

// RenewSession starts a session's time anew, on whichever node leads, and returns
// the session: it will not expire before its TTL is over. Renewing writes nothing.
// One that never expires is only looked up.
//
// Errors: command.ErrSessionNotFound, it has ended; command.ErrNoLeader.
func (n *Node) RenewSession(ctx context.Context, id string) (command.Session, error) {
	var session command.Session
	err := n.withLeader(ctx, func(ctx context.Context, leader string) (err error) {
		if leader == n.id {
			session, err = n.renew(ctx, id)
			return err
		}
		answer, err := n.parts.Transport.Call(ctx, leader, methodRenew, []byte(id))
		if err == nil {
			session, err = decodeSession(answer)
		}
		return askAgain(err) // renewing twice does no harm
	})
	return session, err
}

// renew is RenewSession on the leader.
func (n *Node) renew(ctx context.Context, id string) (command.Session, error) {
	for {
		term := n.parts.FSM.Term()
		if !n.leads(term) {
			return command.Session{}, command.ErrNotLeader
		}
		session, missing := n.session(id)
		if missing != nil && !errors.Is(missing, command.ErrSessionNotFound) {
			return command.Session{}, missing
		}
		if missing == nil {
			closing, err := n.timers.restart(id, session.Lifetime())
			if err != nil {
				return command.Session{}, err
			}
			if closing != nil {
				select {
				case <-closing:
					continue
				case <-ctx.Done():
					return command.Session{}, command.ErrNotLeader.With("the session is about to end")
				}
			}
		}
		// The round comes last. It proves that no other leader had begun when the
		// timer was restarted, so whoever leads later gives the session its full
		// time after that moment; and that what was looked up above was the newest
		// state. The other way round the timer could run out after the round, and
		// the session end, though the answer says that it lives on.
		c, err := n.confirm(ctx, false)
		if err == nil && c.term != term {
			err = command.ErrNotLeader
		}
		if err == nil {
			err = missing
		}
		return session, err
	}
}

// session looks a session up.
func (n *Node) session(id string) (command.Session, error) {
	view, err := n.View()
	if errors.Is(err, command.ErrDiverged) {
		err = command.ErrNotLeader.With("%v", err) // it will hand over
	}
	if err != nil {
		return command.Session{}, err
	}
	defer view.Close()
	return view.Session(id)
}

// renewed is a session as it travels between nodes.
type renewed struct {
	Session        command.Session `json:"session"`
	CreateRevision uint64          `json:"create_revision"`
}

func (n *Node) answerRenew(ctx context.Context, id []byte) ([]byte, error) {
	s, err := n.renew(ctx, string(id))
	if err != nil {
		return nil, err
	}
	return encode(renewed{Session: s, CreateRevision: s.CreateRevision})
}

func decodeSession(b []byte) (command.Session, error) {
	var r renewed
	if err := json.Unmarshal(b, &r); err != nil {
		return command.Session{}, command.ErrPeer.With("%v", err)
	}
	r.Session.CreateRevision = r.CreateRevision
	return r.Session, nil
}
