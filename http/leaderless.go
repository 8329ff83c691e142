package http

import (
	"sync"
	"time"
)

const (
	// leaderlessAfter is how long a node knows no leader until queries that wait for
	// what the leader says are read anew. An election is over sooner.
	leaderlessAfter = 3 * time.Second
	// leaderlessEvery is how often it is looked for.
	leaderlessEvery = time.Second
)

// leaderless wakes sleepers while there is no leader. To sleep on would be to say that
// nothing has changed, which a node that is cut off cannot know.
type leaderless struct {
	mu   sync.Mutex
	woke chan struct{} // guarded by mu
}

// next returns a channel that is closed when sleepers are woken next.
func (l *leaderless) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.woke == nil {
		l.woke = make(chan struct{})
	}
	return l.woke
}

func (l *leaderless) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.woke != nil {
		close(l.woke)
		l.woke = nil
	}
}

func (s *Server) knowsLeader() bool { return s.node.Status().Leader != "" }

// watchLeader runs until the server stops. A learner answers without a leader.
func (s *Server) watchLeader() {
	tick := time.NewTicker(leaderlessEvery)
	defer tick.Stop()
	seen := time.Now()
	for {
		select {
		case <-tick.C:
		case <-s.stopping.Done():
			return
		}
		if s.knowsLeader() || s.node.Status().State == "Learner" {
			seen = time.Now()
		} else if time.Since(seen) >= leaderlessAfter {
			s.leaderless.wake()
		}
	}
}
