package transport

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// follow watches a peer until the test ends and gives what is known of it.
func follow(tb testing.TB, t *Transport, id string, beat time.Duration) (pulse func() command.Pulse) {
	var mu sync.Mutex
	var last command.Pulse
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t.Watch(ctx, id, beat, func(p command.Pulse) { mu.Lock(); defer mu.Unlock(); last = p })
	}()
	tb.Cleanup(func() { cancel(); <-ended })
	return func() command.Pulse { mu.Lock(); defer mu.Unlock(); return last }
}

// run is a run of the process of b at an address, which says of itself what it
// leads.
func run(tb testing.TB, bk *book, listen, incarnation string, said func() command.Condition) *Transport {
	h := hello("b")
	h.Incarnation = incarnation
	cfg := testConfig(tb, bk, h)
	cfg.Listen, cfg.Condition = listen, said
	return start(tb, bk, cfg, nil)
}

func leads(term uint64) func() command.Condition {
	return func() command.Condition { return command.Condition{Term: term, Leads: true} }
}

func TestAWatchSeesAProcessEndAndAnotherInItsPlace(t *testing.T) {
	bk := newBook()
	a := start(t, bk, testConfig(t, bk, hello("a")), nil)
	b := run(t, bk, "127.0.0.1:0", "first", leads(7))
	pulse := follow(t, a, "b", time.Second)
	eventually(t, "it says what it is", func() bool { return pulse().Said == command.Condition{Term: 7, Leads: true} })
	addr := b.Addr()
	b.Close()
	eventually(t, "its port refuses", func() bool { return pulse().Refused })
	if p := pulse(); p.Replaced {
		t.Errorf("replaced by nobody: %+v", p)
	}
	again := run(t, bk, addr, "first", leads(8))
	eventually(t, "the same process is back", func() bool { return !pulse().Refused })
	again.Close()
	run(t, bk, addr, "second", leads(9))
	eventually(t, "another process is there", func() bool { return pulse().Replaced })
	time.Sleep(50 * time.Millisecond)
	if p := pulse(); p.Said.Term == 9 {
		t.Errorf("what the second says is taken for the first's: %+v", p)
	}
}

func TestAWatchKnowsTheProcessThatWasThereBeforeIt(t *testing.T) {
	bk := newBook()
	a := start(t, bk, testConfig(t, bk, hello("a")), nil)
	b := run(t, bk, "127.0.0.1:0", "first", nil)
	if _, err := a.Call(t.Context(), "b", 1, nil); err != nil {
		t.Fatal(err)
	}
	addr := b.Addr()
	b.Close()
	run(t, bk, addr, "second", nil)
	pulse := follow(t, a, "b", time.Second)
	eventually(t, "the process it had met is gone", func() bool { return pulse().Replaced })
}

func TestAWatchTellsThatItsPeerMustNotLead(t *testing.T) {
	bk := newBook()
	a := start(t, bk, testConfig(t, bk, hello("a")), nil)
	unfit := ""
	var mu sync.Mutex
	run(t, bk, "127.0.0.1:0", "first", func() command.Condition { mu.Lock(); defer mu.Unlock(); return command.Condition{Unfit: unfit} })
	pulse := follow(t, a, "b", 5*time.Millisecond)
	for _, reason := range []string{"", "its disk hangs", strings.Repeat("x", maxUnfit)} {
		mu.Lock()
		unfit = reason + reason[:min(len(reason), 100)]
		mu.Unlock()
		want := unfit[:min(len(unfit), maxUnfit)]
		eventually(t, "it says so", func() bool { return pulse().Said.Unfit == want })
	}
}

func TestAWatchCountsSilenceOnAllConnectionsOnly(t *testing.T) {
	const beat = 20 * time.Millisecond
	bk := newBook()
	quiet := func(cfg Config) Config {
		cfg.PingInterval, cfg.DeadAfter, cfg.Faults = time.Minute, 3*time.Minute, true
		return cfg
	}
	a := start(t, bk, quiet(testConfig(t, bk, hello("a"))), nil)
	cfg := quiet(testConfig(t, bk, hello("b")))
	stuck := make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(stuck) }) }
	cfg.Condition = func() command.Condition { <-stuck; return command.Condition{} } // no ping is answered
	b := start(t, bk, cfg, nil)
	t.Cleanup(release) // before b closes
	pulse := follow(t, a, "b", beat)
	for range 100 {
		if _, err := a.Call(t.Context(), "b", 1, nil); err != nil {
			t.Fatal(err)
		}
		if p := pulse(); p.Missed > 3 {
			t.Fatalf("it answers calls, and counts as silent for %d beats", p.Missed)
		}
		time.Sleep(beat / 4)
	}
	eventually(t, "without calls it is silent", func() bool { return pulse().Missed > 10 })
	release()
	eventually(t, "it is heard again", func() bool { return pulse().Missed == 0 })
	b.SetCut([]string{"node:a"})
	eventually(t, "a cut is silent", func() bool { return pulse().Missed > 10 })
	if p := pulse(); p.Refused || p.Replaced {
		t.Errorf("a cut is taken for an end: %+v", p)
	}
	b.SetCut(nil)
	eventually(t, "it is heard after the cut", func() bool { return pulse().Missed == 0 })
}

// Time in which this process was held up says nothing about the peer.
func TestAWatchDoesNotCountItsOwnPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const beat = 50 * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), 20*beat)
		defer cancel()
		var told []int
		w := &watch{peer: newPeer(t.Context(), "b"), beat: beat, tell: func(p command.Pulse) {
			told = append(told, p.Missed)
			if len(told) == 4 {
				time.Sleep(10 * beat) // as if the process was stopped
			}
		}}
		w.count(ctx)
		for i, want := range []int{1, 2, 3, 4, 0, 1, 2, 3} {
			if i >= len(told) || told[i] != want {
				t.Fatalf("beats of silence told: %v", told)
			}
		}
	})
}

func TestAWatchEndsWithTheTransport(t *testing.T) {
	bk := newBook()
	a := start(t, bk, testConfig(t, bk, hello("a")), nil)
	bk.set("b", "127.0.0.1:1")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.Watch(context.Background(), "b", time.Millisecond, func(command.Pulse) {})
	}()
	a.Close()
	soon(t, "the watch ends", ended)
}

// The node's own wish to lead goes no other way than another node's.
func TestANodeThatMayNotLeadCannotTellItself(t *testing.T) {
	bk := newBook()
	cfg := testConfig(t, bk, hello("a"))
	may := false
	cfg.MayLead = func() bool { return may }
	a := start(t, bk, cfg, nil)
	if err := a.InjectTimeoutNow(t.Context()); !errors.Is(err, errMayNotLead) {
		t.Errorf("told: %v", err)
	}
	may = true
	heard := make(chan raft.RPC, 1)
	go func() {
		rpc := <-a.Consumer()
		rpc.Respond(&raft.TimeoutNowResponse{}, nil)
		heard <- rpc
	}()
	if err := a.InjectTimeoutNow(t.Context()); err != nil {
		t.Error(err)
	}
	req, ok := soon(t, "Raft is told", heard).Command.(*raft.TimeoutNowRequest)
	if !ok || req.ProtocolVersion != raft.ProtocolVersionMax || string(req.ID) != "a" {
		t.Errorf("Raft is told %+v", req)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.InjectTimeoutNow(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a Raft that does not listen: %v", err)
	}
}
