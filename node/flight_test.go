package node

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A caller must never get the outcome of a run that began before it called: a
// leadership round that began earlier proves nothing for its read.
func TestFlightGivesARunThatBeganAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flight[time.Time]
		run := func() (time.Time, error) {
			began := time.Now()
			time.Sleep(10 * time.Millisecond)
			return began, nil
		}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				called := time.Now()
				began, err := f.do(t.Context(), run)
				if err != nil || began.Before(called) {
					t.Errorf("called at %v, got the run of %v, %v", called, began, err)
				}
			})
		}
		wg.Wait()
	})
}

func TestFlightSharesRunsAmongCallersThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flight[int]
		var runs atomic.Int64
		run := func() (int, error) {
			time.Sleep(time.Millisecond)
			return int(runs.Add(1)), nil
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := f.do(t.Context(), run); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := runs.Load(); n > 3 {
			t.Errorf("100 callers at one moment took %d runs, want at most 3", n)
		}
	})
}

func TestFlightCallerMayLeaveBeforeTheRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flight[int]
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		ended := make(chan struct{})
		_, err := f.do(ctx, func() (int, error) {
			defer close(ended)
			time.Sleep(time.Second)
			return 1, nil
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v, want the caller's deadline", err)
		}
		<-ended
	})
}

func TestInstantAgeTakesTheClockThatAdvancedFurther(t *testing.T) {
	wall := time.Unix(1_000_000, 0)
	at := Instant{Steady: 100 * time.Second, Wall: wall}
	for _, c := range []struct {
		name string
		now  Instant
		want time.Duration
	}{
		{"both advanced", Instant{105 * time.Second, wall.Add(5 * time.Second)}, 5 * time.Second},
		{"the steady clock stood still in a suspended host", Instant{100 * time.Second, wall.Add(time.Hour)}, time.Hour},
		{"the wall clock was set back", Instant{103 * time.Second, wall.Add(-time.Hour)}, 3 * time.Second},
	} {
		if got := at.Age(c.now); got != c.want {
			t.Errorf("%s: age %v, want %v", c.name, got, c.want)
		}
	}
}
