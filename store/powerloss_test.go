//go:build linux

package store

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-db/holdfast/internal/faultfs"
)

// recorded is a life that was lived undisturbed, and the number of disk
// operations after each step.
type recorded struct {
	disk   *faultfs.FS
	life   *life
	worlds []world
	ops    []int
}

func record(t *testing.T, l *life) *recorded {
	t.Helper()
	r := &recorded{disk: faultfs.Mount(t), life: l, worlds: l.worlds(), ops: []int{0}}
	n := &living{t: t, life: l, path: r.disk.Path()}
	if _, err := n.live(func(int) { r.ops = append(r.ops, r.disk.Ops()) }); err != nil {
		t.Fatal(err)
	}
	return r
}

// during returns what was promised at an operation: before the step it belongs
// to, and after it.
func (r *recorded) during(op int) (step int, before, after world) {
	for step+1 < len(r.ops) && r.ops[step+1] <= op {
		step++
	}
	return step, r.worlds[step], r.worlds[min(step+1, len(r.worlds)-1)]
}

// losePower checks what is left after operation op.
func (r *recorded) losePower(t *testing.T, op int, seed uint64) {
	step, before, after := r.during(op)
	defer func() {
		if t.Failed() {
			trace := r.disk.Trace()
			name := "the end"
			if step < len(r.life.steps) {
				name = r.life.steps[step].name
			}
			t.Fatalf("power was lost (seed %d) in step %q, after operation %d: %s", seed, name, op, trace[max(op, 1)-1])
		}
	}()
	left := r.disk.Crash(op, seed)
	r.life.want(t, left.Path(), before, after)
	left.Close()
}

// Whenever the power fails, the next start finds all that was promised, and
// nothing that never was: with nothing kept of what was not synced, and with any
// part of it kept.
func TestWhatWasPromisedSurvivesALossOfPowerAtAnyOperation(t *testing.T) {
	seed := faultSeed(t)
	for _, c := range []struct {
		name string
		life *life
		most int
	}{{"a whole life", wholeLife(), 70}, {"large flushes", largeLife(), 10}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rec := record(t, c.life)
			r := rand.New(rand.NewPCG(seed, 0))
			last := rec.disk.Ops()
			for _, op := range someOf(r, 0, last, 2*c.most) {
				rec.losePower(t, op, 0)
			}
			for round := range uint64(3) {
				for _, op := range someOf(r, 0, last, c.most) {
					rec.losePower(t, op, seed+round+1)
				}
			}
		})
	}
}
