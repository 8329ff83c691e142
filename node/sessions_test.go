package node

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// timed is the timers of a leader over sessions that are kept in a map.
type timed struct {
	*sessionTimers
	t     *testing.T
	began time.Time
	state sync.Mutex
	alive map[string]command.Session // guarded by state
	ended map[string]time.Duration   // guarded by state; when, since the beginning
	// refuse is why no session can be destroyed now; nil when it can. Guarded by
	// state.
	refuse error
	// takes is how long a destroy is under way.
	takes time.Duration
}

// runTimed runs fn in virtual time.
func runTimed(t *testing.T, fn func(s *timed)) {
	synctest.Test(t, func(t *testing.T) {
		s := &timed{t: t, began: time.Now(), alive: map[string]command.Session{}, ended: map[string]time.Duration{}}
		s.sessionTimers = &sessionTimers{
			steady: func() time.Duration { return time.Since(s.began) },
			sessions: func(fn func(command.Session) bool) error {
				s.state.Lock()
				defer s.state.Unlock()
				for _, x := range s.alive {
					fn(x)
				}
				return nil
			},
			gone: func(id string) bool { return !s.lives(id) },
			destroy: func(term uint64, id string) error {
				time.Sleep(s.takes)
				s.state.Lock()
				defer s.state.Unlock()
				if s.refuse == nil {
					delete(s.alive, id)
					s.ended[id] = time.Since(s.began)
					s.apply(term, &command.SessionDestroy{ID: id})
				}
				return s.refuse
			},
			kick: make(chan struct{}, 1),
		}
		stop := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			s.run(stop)
			close(ended)
		}()
		fn(s)
		close(stop)
		<-ended
	})
}

// apply is an entry of one command.
func (s *timed) apply(term uint64, c command.Command) {
	s.observe(term, &command.Entry{Term: term, Commands: []command.Command{c}}, []command.Result{{OK: true}})
}

func (s *timed) create(id, ttl string) {
	s.exists(id, ttl)
	s.apply(1, &command.SessionCreate{Session: command.Session{ID: id, TTL: ttl}})
}

// exists adds a session that no entry is seen of.
func (s *timed) exists(id, ttl string) {
	s.state.Lock()
	defer s.state.Unlock()
	s.alive[id] = command.Session{ID: id, TTL: ttl}
}

func (s *timed) refuses(err error) {
	s.state.Lock()
	defer s.state.Unlock()
	s.refuse = err
}

// hasEnded says when sessions ended; those that live are left out.
func (s *timed) hasEnded() map[string]time.Duration {
	s.state.Lock()
	defer s.state.Unlock()
	return maps.Clone(s.ended)
}

// at waits until so long after the beginning, and until everything is done that
// is to be done then.
func (s *timed) at(d time.Duration) {
	time.Sleep(time.Until(s.began.Add(d)))
	synctest.Wait()
}

func (s *timed) lives(id string) bool {
	s.state.Lock()
	defer s.state.Unlock()
	_, lives := s.alive[id]
	return lives
}

func (s *timed) mustRestart(id string, ttl time.Duration) {
	s.t.Helper()
	if closing, err := s.restart(id, ttl); closing != nil || err != nil {
		s.t.Errorf("renew %s: closing %v, %v", id, closing != nil, err)
	}
}

func TestASessionEndsTwoTTLsAfterItWasLastRenewed(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.begin(1)
		s.create("left", "10s")
		s.create("renewed", "10s")
		s.create("for ever", "")
		s.create("long", "30s")
		s.at(15 * time.Second)
		s.mustRestart("renewed", 10*time.Second)
		s.at(19_999 * time.Millisecond)
		if ended := s.hasEnded(); len(ended) != 0 {
			t.Errorf("before their time: %v", ended)
		}
		s.at(24 * time.Hour)
		want := map[string]time.Duration{"left": 20 * time.Second, "renewed": 35 * time.Second, "long": time.Minute}
		if ended := s.hasEnded(); !maps.Equal(ended, want) {
			t.Errorf("ended: %v, want %v", ended, want)
		}
	})
}

func TestANewLeaderGivesEachSessionItsFullTime(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.begin(1)
		s.create("a", "10s")
		s.at(19 * time.Second)
		s.end()
		if _, err := s.restart("a", 10*time.Second); !errors.Is(err, command.ErrNotLeader) {
			t.Errorf("renewed where nobody leads: %v", err)
		}
		s.at(50 * time.Second)
		s.begin(2)
		s.at(69_999 * time.Millisecond)
		if !s.lives("a") {
			t.Errorf("ended: %v", s.hasEnded())
		}
		s.at(70 * time.Second)
		if s.lives("a") {
			t.Error("it never ends")
		}
	})
}

func TestARestoredArchiveGivesItsSessionsTheirFullTime(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.begin(1)
		s.create("gone", "10s")
		s.create("kept", "10s")
		s.at(19 * time.Second)
		s.state.Lock()
		delete(s.alive, "gone")
		s.state.Unlock()
		s.exists("archived", "10s")
		s.apply(1, &command.Restore{})
		s.at(time.Hour)
		want := map[string]time.Duration{"kept": 39 * time.Second, "archived": 39 * time.Second}
		if ended := s.hasEnded(); !maps.Equal(ended, want) {
			t.Errorf("ended: %v, want %v", ended, want)
		}
	})
}

func TestCreatingASessionAgainIsNoRenewal(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.begin(1)
		s.create("a", "10s")
		s.at(10 * time.Second)
		s.create("a", "10s")
		again := &command.Once{Command: &command.SessionCreate{Session: command.Session{ID: "a", TTL: "10s"}}}
		s.apply(1, again)
		s.at(20 * time.Second)
		if s.lives("a") {
			t.Error("it outlived its time")
		}
		s.exists("b", "10s")
		again.Command = &command.SessionCreate{Session: command.Session{ID: "b", TTL: "10s"}}
		s.apply(1, again)
		s.at(40 * time.Second)
		if s.lives("b") {
			t.Error("a session made with an idempotency key never ends")
		}
	})
}

// A leader that had its contents mended by a copy may not have seen each entry.
func TestASessionThatCameWithACopyEnds(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.begin(1)
		s.create("a", "10s")
		s.at(5 * time.Second)
		s.exists("copied", "10s")
		s.observe(1, nil, nil)
		s.at(time.Hour)
		want := map[string]time.Duration{"a": 25 * time.Second, "copied": 25 * time.Second}
		if ended := s.hasEnded(); !maps.Equal(ended, want) {
			t.Errorf("ended: %v, want %v", ended, want)
		}
	})
}

// The result of a creation that is repeated may be that of a session which ended long ago.
func TestASessionThatIsMadeAgainHasItsFullTime(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.begin(1)
		create := &command.SessionCreate{Session: command.Session{ID: "a", TTL: "10s"}}
		s.apply(1, &command.Once{Command: create}) // a repeat: there is no such session
		s.at(19 * time.Second)
		s.exists("a", "10s")
		s.apply(1, &command.Once{Command: create})
		s.at(38 * time.Second)
		if !s.lives("a") {
			t.Errorf("ended: %v", s.hasEnded())
		}
		s.at(39 * time.Second)
		if s.lives("a") {
			t.Error("it never ends")
		}
	})
}

func TestASessionThatIsClosingIsNotRenewed(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.takes = 3 * time.Second
		s.begin(1)
		s.create("a", "10s")
		s.at(21 * time.Second)
		closing, err := s.restart("a", 10*time.Second)
		if closing == nil || err != nil {
			t.Fatalf("renewed although its end is proposed: %v", err)
		}
		<-closing
		if s.lives("a") || time.Since(s.began) != 23*time.Second {
			t.Errorf("told after %v, when it lives: %v", time.Since(s.began), s.lives("a"))
		}
	})
}

func TestASessionThatCouldNotBeEndedMayBeRenewedAndIsTriedAgain(t *testing.T) {
	runTimed(t, func(s *timed) {
		s.refuses(command.ErrNotLeader)
		s.begin(1)
		s.create("renewed", "10s")
		s.create("left", "10s")
		s.at(20 * time.Second)
		s.mustRestart("renewed", 10*time.Second)
		s.refuses(nil)
		s.at(20*time.Second + expiryRetry)
		if s.lives("left") || !s.lives("renewed") {
			t.Errorf("ended: %v", s.hasEnded())
		}
		s.at(40 * time.Second)
		if s.lives("renewed") {
			t.Error("it never ends")
		}
	})
}

func TestManySessionsShareOneTimer(t *testing.T) {
	runTimed(t, func(s *timed) {
		const many = 100_000
		for i := range many {
			s.exists(fmt.Sprint(i), "10s")
		}
		before := runtime.NumGoroutine()
		s.begin(1)
		s.at(time.Second)
		if now := runtime.NumGoroutine(); now > before {
			t.Errorf("%d goroutines more", now-before)
		}
		s.mustRestart("0", 10*time.Second)
		s.at(20 * time.Second)
		if ended := s.hasEnded(); len(ended) != many-1 {
			t.Errorf("%d sessions have ended", len(ended))
		}
	})
}
