package fault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// ErrMissed is why a fault did not act though nothing failed: the moment it
// waited for did not come, or nobody was left to act on. Faults wrap it.
var ErrMissed = errors.New("did not come about")

// undoing is how long undoing a fault may take.
const undoing = time.Minute

// Scene is one fault while it acts. It is used by one goroutine.
type Scene struct {
	Target Target
	Rand   *rand.Rand

	over  time.Time                     // when the fault's time is over
	undo  []func(context.Context) error // last in, first out
	taken []string                      // whose processes this fault acts on
	cuts  [][]Pair                      // nil where healed; Block gets all of them
	what  []string                      // what was done, in words
}

// Rest lets a fault's time pass: d of it, or what is left. It is false when
// the fault's time is over.
func (s *Scene) Rest(ctx context.Context, d time.Duration) bool {
	return sleep(ctx, min(d, time.Until(s.over))) && time.Now().Before(s.over)
}

// Await rests until cond holds; false when it did not in the fault's time.
func (s *Scene) Await(ctx context.Context, cond func() bool) bool {
	for {
		if cond() {
			return true
		}
		if !s.Rest(ctx, 10*time.Millisecond) {
			return false
		}
	}
}

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Undo has f called when the fault's time is over, before what was given
// earlier.
func (s *Scene) Undo(f func(context.Context) error) { s.undo = append(s.undo, f) }

// Says notes what the fault did, for the history.
func (s *Scene) Says(format string, args ...any) {
	s.what = append(s.what, fmt.Sprintf(format, args...))
}

// Take makes members this fault's own: no other part of it chooses them.
func (s *Scene) Take(names ...string) { s.taken = append(s.taken, names...) }

// Free are the members that run and that no part of the fault acts on yet,
// among those for which of holds.
func (s *Scene) Free(of func(Member) bool) []string {
	return namesOf(slices.DeleteFunc(slices.Clone(s.Target.Members()), func(m Member) bool {
		return !of(m) || slices.Contains(s.taken, m.Name) || !s.Target.Running(m.Name)
	}))
}

// Choose takes up to n of the free members by chance. The error is ErrMissed
// when there is none.
func (s *Scene) Choose(n int, of func(Member) bool) ([]string, error) {
	names := s.Free(of)
	s.Rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	names = names[:min(n, len(names))]
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: nobody is left to act on", ErrMissed)
	}
	slices.Sort(names)
	s.Take(names...)
	return names, nil
}

// Leader takes the leader. It waits for one; when none is seen in the first
// half of the fault's time, or another part of the fault has it, it takes any
// voter.
func (s *Scene) Leader(ctx context.Context) (string, error) {
	name := s.leader(ctx)
	if name == "" || slices.Contains(s.taken, name) {
		names, err := s.Choose(1, voter)
		if err != nil {
			return "", err
		}
		return names[0], nil
	}
	s.Take(name)
	return name, nil
}

// leader names the leader without taking it; "" when none is seen in the first
// half of the fault's time.
func (s *Scene) leader(ctx context.Context) string {
	until := time.Now().Add(time.Until(s.over) / 2)
	for {
		if name, ok := s.Target.Leader(ctx); ok {
			return name
		}
		if !s.Rest(ctx, min(20*time.Millisecond, time.Until(until))) || !time.Now().Before(until) {
			return ""
		}
	}
}

// Cut blocks pairs beside what this fault blocks already, and returns what
// takes just them back. That happens at the latest when the fault is over.
func (s *Scene) Cut(ctx context.Context, pairs []Pair) (heal func(context.Context) error, err error) {
	s.Says("cut %s", describe(pairs))
	i := len(s.cuts)
	s.cuts = append(s.cuts, pairs)
	heal = func(ctx context.Context) error {
		if s.cuts[i] == nil {
			return nil
		}
		s.cuts[i] = nil
		return s.Target.Block(ctx, merged(s.cuts))
	}
	s.Undo(heal)
	return heal, s.Target.Block(ctx, merged(s.cuts))
}

// merged are the pairs of all lists, each once.
func merged(lists [][]Pair) []Pair {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b Pair) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return slices.Compact(all)
}

// Kill ends processes; they are started when the fault is over.
func (s *Scene) Kill(ctx context.Context, names ...string) error {
	s.Says("kill %s", strings.Join(names, " "))
	s.Undo(func(ctx context.Context) error { return s.Target.Start(ctx, names...) })
	return s.Target.Kill(ctx, names...)
}

// Pause freezes processes; they go on when the fault is over.
func (s *Scene) Pause(ctx context.Context, names ...string) error {
	s.Says("pause %s", strings.Join(names, " "))
	s.Undo(func(ctx context.Context) error { return s.Target.Resume(ctx, names...) })
	return s.Target.Pause(ctx, names...)
}

// AwaitReady rests until a member may serve.
func (s *Scene) AwaitReady(ctx context.Context, name string) bool {
	return s.Await(ctx, func() bool { return s.Target.Ready(ctx, name) })
}

// end undoes everything, whatever became of the context.
func (s *Scene) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoing)
	defer cancel()
	var errs []error
	for _, f := range slices.Backward(s.undo) {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

// Whom a fault may act on.
func voter(m Member) bool   { return m.Voter }
func learner(m Member) bool { return !m.Voter && !m.Spare }
func spare(m Member) bool   { return m.Spare }
func anyone(Member) bool    { return true }

func have(of func(Member) bool) func([]Member) bool {
	return func(members []Member) bool { return slices.ContainsFunc(members, of) }
}
