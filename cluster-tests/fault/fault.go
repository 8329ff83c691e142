// Package fault is the vocabulary of what goes wrong around a cluster: cuts of
// every shape, bad lines, processes that die and freeze, members that come and
// go, and what composes them. It knows no runtime. A Target is what faults act
// on; real processes and simulated ones each implement it, so the same faults
// and the same schedules run on all of them.
//
//	fault.go      what a target is, what a fault is, and the list of all
//	scene.go      one fault while it acts: whom it chose, and how to undo it
//	schedule.go   which fault when and for how long, from a seed
//	shapes.go     partitions as pure functions
//	partitions.go the faults made of them
//	lines.go      the lines between sites
//	clocks.go     wall clocks that jump and run wrong, hosts that sleep
//	processes.go  kills, pauses, restarts
//	moments.go    kills and cuts in the middle of a copy, a compaction, a hand-over
//	members.go    removal, return, another address, another log store, a restore
//	disks.go      disks that fail, and hold what nobody wrote
//	power.go      machines that lose power, and what was not synced with it
//	composed.go   several at once
//
// Time is used only through package time and contexts, and chance only through
// a seeded source: so all of it works in virtual time.
package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Member is one node of the target, as it was configured. Who of them votes or
// leads at the moment is for the cluster to say.
type Member struct {
	Name  string
	Site  string
	Voter bool // started to vote
	Spare bool // at home, and votes in the place of a dead voter
}

// Pair is one direction between two members.
type Pair struct{ From, To string }

// Target is a running cluster that faults act on.
//
// Each call is done when it returns. Calls with many names act on all at once,
// as nearly as the runtime can. What is asked for already is no error: to kill
// what does not run, to start what runs, to resume what is not paused.
//
// A fault calls one method at a time.
type Target interface {
	// Members are all nodes, in an order that does not change.
	Members() []Member
	// Leader is the voter that leads, as far as can be seen now. It may be wrong
	// a moment later; with no answer, ok is false.
	Leader(ctx context.Context) (name string, ok bool)
	// Running says whether the member's process is there, paused or not.
	Running(name string) bool
	// Ready says whether the member answers that it may serve.
	Ready(ctx context.Context, name string) bool
	// Block loses, silently, what goes from a pair's first to its second member,
	// and takes the place of what was blocked before. A member started later is
	// behind the cut from its first packet. Clients reach all members as before.
	Block(ctx context.Context, pairs []Pair) error
	// Kill ends processes as kill -9 does: what the system was given stays.
	Kill(ctx context.Context, names ...string) error
	// Stop ends a process as an operator does.
	Stop(ctx context.Context, name string) error
	// Start runs the processes. They need not be ready when it returns.
	Start(ctx context.Context, names ...string) error
	// Pause freezes processes, Resume lets them go on.
	Pause(ctx context.Context, names ...string) error
	Resume(ctx context.Context, names ...string) error
}

// Ability is what some targets can do beyond a Target: an optional interface,
// and how everything done through it is undone.
type Ability struct {
	Name string
	Has  func(Target) bool
	// Heal makes everything whole again. It is called on targets that have the
	// ability, also when nothing is broken. Nil where nothing stays broken.
	Heal func(context.Context, Target) error
}

// abilities are all optional interfaces.
var abilities = []*Ability{lines, clocks, moments, memberships, logStores, snapshots, transfers, disks, power}

// can makes the ability of a target to be an I.
func can[I any](name string, heal func(context.Context, I) error) *Ability {
	a := &Ability{Name: name, Has: func(t Target) bool { _, ok := t.(I); return ok }}
	if heal != nil {
		a.Heal = func(ctx context.Context, t Target) error { return heal(ctx, t.(I)) }
	}
	return a
}

// Fault is one thing that goes wrong.
type Fault struct {
	Name string // as flags, reports and histories show it
	What string // in one line, for the table of faults
	// Group is the name under which all faults of its kind are asked for.
	Group string
	Needs []*Ability
	// Wants says whether it makes sense in this cluster; nil for any.
	Wants func([]Member) bool
	// Least and Most bound how long it acts.
	Least, Most time.Duration
	// Brings is the moment that the fault waits for, "" for none: before its time
	// begins it may take a while.
	Brings Moment
	// Prompt says that Act returns at once, so that another fault can act beside it.
	Prompt bool
	// Rewinds says that it takes the cluster back to an earlier state by an
	// operator's order: what was acknowledged in between is gone, rightly.
	Rewinds bool
	// Act begins the fault. What it changes it changes through the scene, which
	// undoes it when the fault's time is over. It may return at once, or act on
	// for as long as Scene.Rest says.
	Act func(ctx context.Context, s *Scene) error
}

// Fits says whether the fault can act on the target, or why not.
func (f Fault) Fits(t Target) error {
	for _, a := range f.Needs {
		if !a.Has(t) {
			return fmt.Errorf("this runtime has no %s", a.Name)
		}
	}
	if f.Wants != nil && !f.Wants(t.Members()) {
		return errors.New("this cluster has not the members for it")
	}
	return nil
}

// All are all faults.
func All() []Fault {
	return slices.Concat(partitionFaults, lineFaults, clockFaults, processFaults, momentFaults, memberFaults, diskFaults, powerFaults, composedFaults)
}

// Groups are the kinds of faults, in the order of All.
func Groups() []string {
	var groups []string
	for _, f := range All() {
		if !slices.Contains(groups, f.Group) {
			groups = append(groups, f.Group)
		}
	}
	return groups
}

// Named are the faults a list names: each part is the name of a fault or of a
// group, "" and "all" are every fault. Parts are divided by commas.
func Named(list string) ([]Fault, error) {
	if list == "" || list == "all" {
		return All(), nil
	}
	var named []Fault
	for part := range strings.SplitSeq(list, ",") {
		found := slices.DeleteFunc(All(), func(f Fault) bool { return f.Name != part && f.Group != part })
		if len(found) == 0 {
			return nil, fmt.Errorf("no fault and no group of faults is called %q", part)
		}
		named = append(named, found...)
	}
	return named, nil
}

// Heal makes the target whole: nothing is cut, nothing is paused, everything
// runs. It returns when that is done, not when the cluster has recovered.
func Heal(ctx context.Context, t Target) error {
	errs := []error{t.Block(ctx, nil)}
	for _, a := range abilities {
		if a.Heal != nil && a.Has(t) {
			errs = append(errs, a.Heal(ctx, t))
		}
	}
	names := namesOf(t.Members())
	return errors.Join(append(errs, t.Resume(ctx, names...), t.Start(ctx, names...))...)
}

func namesOf(members []Member) []string {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Name
	}
	return names
}
