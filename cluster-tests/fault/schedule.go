package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Step is one fault of a plan.
type Step struct {
	Fault Fault
	At    time.Duration // after the plan's begin, or later where a step before took longer
	For   time.Duration // how long it acts
	Seed  uint64        // of what is left open to chance: at whom, how bad
}

func (s Step) String() string {
	return fmt.Sprintf("%-28s at %7v for %7v", s.Fault.Name, s.At.Round(time.Millisecond), s.For.Round(time.Millisecond))
}

// Plan draws faults from a seed, one after the other with calm between them,
// until the time within is full. Each fault is drawn once before one is drawn
// again; every sixth or so has another one of them beside it. The same arguments
// give the same plan.
func Plan(seed uint64, faults []Fault, within time.Duration) []Step {
	rng := rand.New(rand.NewPCG(seed, 0xfa17))
	var plan []Step
	var deck []Fault
	for at := time.Duration(0); len(faults) > 0; {
		if len(deck) == 0 {
			for _, i := range rng.Perm(len(faults)) {
				deck = append(deck, faults[i])
			}
		}
		at += draw(rng, 200*time.Millisecond, 2*time.Second)
		f := deck[0]
		deck = deck[1:]
		if rng.IntN(6) == 0 {
			f = beside(f, faults, rng)
		}
		step := Step{Fault: f, At: at, For: draw(rng, f.Least, f.Most), Seed: rng.Uint64()}
		if at+step.For > within {
			if f.Least > within-at {
				break
			}
			step.For = within - at
		}
		plan = append(plan, step)
		at += step.For
	}
	return plan
}

// Record is a fault that has acted.
type Record struct {
	Fault    string
	What     string   // what it did, as far as the fault says
	Nodes    []string // whose processes it acted on
	From, To time.Time
	// Err is why it did not act, or not whole: ErrMissed, or a failure.
	Err error
}

// Run carries a plan out and heals the target. Each step is reported when it
// is over; report may be nil. It returns at the plan's end or soon after ctx
// ends, in either case with nothing left broken, unless it says otherwise. A
// fault that missed its moment is no error.
func Run(ctx context.Context, t Target, plan []Step, report func(Record)) error {
	began := time.Now()
	var errs []error
	for _, step := range plan {
		if !sleep(ctx, step.At-time.Since(began)) {
			break
		}
		r := step.act(ctx, t)
		if report != nil {
			report(r)
		}
		if r.Err != nil && !errors.Is(r.Err, ErrMissed) && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("fault %s: %w", r.Fault, r.Err))
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoing)
	defer cancel()
	return errors.Join(append(errs, Heal(ctx, t))...)
}

// act is one fault from its begin to its end.
func (step Step) act(ctx context.Context, t Target) Record {
	began := time.Now()
	s := &Scene{Target: t, Rand: rand.New(rand.NewPCG(step.Seed, 0x5ce7e)), over: began.Add(step.For)}
	err := step.Fault.Fits(t)
	if err == nil {
		err = step.Fault.Act(ctx, s)
	}
	if err == nil {
		sleep(ctx, time.Until(s.over))
	}
	if undone := s.end(ctx); undone != nil {
		err = fmt.Errorf("it acted (%v), but is not undone: %w", err, undone)
	}
	return Record{Fault: step.Fault.Name, What: strings.Join(s.what, "; "), Nodes: s.taken, From: began, To: time.Now(), Err: err}
}

// draw is a duration between two, both possible.
func draw(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(max(1, most-least+1))))
}

// between is a duration by chance.
func (s *Scene) between(least, most time.Duration) time.Duration { return draw(s.Rand, least, most) }
