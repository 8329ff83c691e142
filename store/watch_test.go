package store

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// woken reports whether the change of a watch has come. A change is told before
// Publish returns, so there is nothing to wait for.
func woken(changed <-chan struct{}) bool {
	select {
	case <-changed:
		return true
	default:
		return false
	}
}

func TestAWatchIsWokenByWhatConcernsItAndNothingElse(t *testing.T) {
	target := func(kind command.TargetKind, key string) command.Target { return command.Target{Kind: kind, Key: key} }
	var (
		key      = target(command.TargetKey, "app/a")
		under    = target(command.TargetPrefix, "app/")
		asPrefix = target(command.TargetPrefix, "app/a")
		longer   = target(command.TargetPrefix, "app/a/b")
		any      = target(command.TargetPrefix, "")
		sessions = target(command.TargetSessions, "")
		members  = target(command.TargetMembers, "")
	)
	all := []command.Target{key, under, asPrefix, longer, any, sessions, members}
	put := func(keys ...string) func(*testing.T, *Batch) {
		return func(t *testing.T, b *Batch) {
			for _, k := range keys {
				setKey(t, b, k, "new")
			}
		}
	}
	for _, row := range []struct {
		name   string
		change func(*testing.T, *Batch)
		wakes  []command.Target
	}{
		{"the key", put("app/a"), []command.Target{key, under, asPrefix, any}},
		{"its delete", func(_ *testing.T, b *Batch) { b.Delete("app/a") }, []command.Target{key, under, asPrefix, any}},
		{"a new key", put("app/a/b/c"), []command.Target{under, asPrefix, longer, any}},
		{"a neighbour", put("app/b"), []command.Target{under, any}},
		{"a key above", put("app"), []command.Target{any}},
		{"several keys", put("app", "z", "app/a/b"), []command.Target{under, asPrefix, longer, any}},
		{"a session", put(SpaceSessions + "id"), []command.Target{sessions}},
		{"another record of the system", put(SpaceHolds+"id/app/a", SpaceSettings+"app/a"), nil},
		{"a member", func(_ *testing.T, b *Batch) { b.SetMember(command.Member{ID: "m"}) }, []command.Target{members}},
		{"the cluster", func(_ *testing.T, b *Batch) { b.SetCluster(command.Cluster{ID: "c", Epoch: 2}) }, []command.Target{members}},
		{"the delete of nothing", func(_ *testing.T, b *Batch) { b.Delete("app/none") }, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := openTestState(t, StateConfig{})
			putKey(t, s, "app/a", "old")
			wakes := map[command.Target]bool{}
			for _, target := range row.wakes {
				wakes[target] = true
			}
			channels := map[command.Target]<-chan struct{}{}
			for _, target := range all {
				changed, stop := s.Watch(target)
				defer stop()
				channels[target] = changed
			}
			inOneEntry(t, s, func(b *Batch) { row.change(t, b) })
			for _, target := range all {
				if got := woken(channels[target]); got != wakes[target] {
					t.Errorf("%+v: woken %v", target, got)
				}
			}
		})
	}
}

func TestALoneWatchIsWokenOnce(t *testing.T) {
	s := openTestState(t, StateConfig{})
	target := command.Target{Kind: command.TargetKey, Key: "k"}
	for i := range 3 {
		changed, stop := s.Watch(target)
		putKey(t, s, "k", fmt.Sprint(i))
		if !woken(changed) {
			t.Errorf("it sleeps through change %d", i)
		}
		again, stopAgain := s.Watch(target)
		stop()
		if putKey(t, s, "other", fmt.Sprint(i)); woken(again) {
			t.Errorf("it is woken again by change %d", i)
		}
		stopAgain()
	}
}

func TestReplacingTheStateWakesEveryWatch(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, s *State){
		"full copy": func(t *testing.T, s *State) {
			receiveCopy(t, s, writeCopy(t, someState(t)))
			if err := s.SwapCopy(true); err != nil {
				t.Fatal(err)
			}
		},
		"close": func(t *testing.T, s *State) {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTestState(t, StateConfig{})
			changed, stop := s.Watch(command.Target{Kind: command.TargetKey, Key: "of no state"})
			defer stop()
			replace(t, s)
			if !woken(changed) {
				t.Error("it sleeps on")
			}
		})
	}
}

func TestADeltaWakesWhoWaitsForWhatItBrings(t *testing.T) {
	from, to := twins(t)
	changed, stop := to.Watch(command.Target{Kind: command.TargetKey, Key: "brought"})
	defer stop()
	putKey(t, from, "brought", "by a delta")
	if st := sendCopy(t, from, to); st.Kind != command.CopyDelta {
		t.Fatalf("the copy was of kind %q", st.Kind)
	}
	if !woken(changed) {
		t.Error("it sleeps on")
	}
}

func TestNothingIsLeftOfWatchesThatEnded(t *testing.T) {
	s := openTestState(t, StateConfig{})
	var stops []func()
	for i := range 10 {
		for kind := command.TargetKey; kind <= command.TargetMembers; kind++ {
			for range 2 {
				_, stop := s.Watch(command.Target{Kind: kind, Key: strings.Repeat("k", i)})
				stops = append(stops, stop)
			}
		}
	}
	putKey(t, s, "kkkk", "some end by their change")
	for _, stop := range stops {
		stop()
	}
	if w := &s.watches; w.waiting.Load() != 0 || len(w.targets) != 0 || len(w.lengths) != 0 {
		t.Errorf("%d watches, %d targets, %d lengths", w.waiting.Load(), len(w.targets), len(w.lengths))
	}
}

// Whoever watches, looks, and waits when there is nothing new sees the last change.
func TestNoChangeIsMissedBetweenTheLookAndTheWait(t *testing.T) {
	const last = 2000
	s := openTestState(t, StateConfig{})
	var readers sync.WaitGroup
	for i := range 4 {
		target := command.Target{Kind: command.TargetKey, Key: "k"}
		if i%2 == 1 {
			target = command.Target{Kind: command.TargetPrefix}
		}
		readers.Go(func() {
			for {
				changed, stop := s.Watch(target)
				rec, err := s.Get("k")
				if err == nil && string(rec.Value) == fmt.Sprint(last) {
					stop()
					return
				}
				select {
				case <-changed:
				case <-time.After(30 * time.Second):
					t.Errorf("waits for ever, having seen %q", rec.Value)
					stop()
					return
				}
				stop()
			}
		})
	}
	for i := range last {
		putKey(t, s, "k", fmt.Sprint(i+1))
		runtime.Gosched()
	}
	readers.Wait()
}

// BenchmarkPublishBesideWatches is one write while others wait for something else.
func BenchmarkPublishBesideWatches(b *testing.B) {
	for _, waiting := range []int{0, 10_000} {
		b.Run(fmt.Sprint(waiting), func(b *testing.B) {
			s := openTestState(b, StateConfig{})
			for i := range waiting {
				for _, kind := range []command.TargetKind{command.TargetKey, command.TargetPrefix} {
					_, stop := s.Watch(command.Target{Kind: kind, Key: fmt.Sprintf("other/%d", i)})
					defer stop()
				}
			}
			for b.Loop() {
				putKey(b, s, "service/config/of-some-length", "value")
			}
		})
	}
}
