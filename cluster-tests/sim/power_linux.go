package sim

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/internal/faultfs"
)

// disks are file systems that know what was synced, one for each member.
type disks struct {
	byName map[string]*faultfs.FS
	// What speaks to other processes must not use the bubble's channels: work is done
	// by a goroutine outside, and meanwhile time stands still inside.
	work chan func()
	done chan struct{}
}

// mountDisks makes one for each of the members. Where that cannot be done it skips the
// test. It is called outside of any bubble.
func mountDisks(t *testing.T, names []string) *disks {
	d := &disks{byName: map[string]*faultfs.FS{}, work: make(chan func()), done: make(chan struct{})}
	for _, name := range names {
		d.byName[name] = faultfs.Mount(t)
	}
	go func() {
		for f := range d.work {
			f()
			d.done <- struct{}{}
		}
	}()
	t.Cleanup(func() { close(d.work) })
	return d
}

// folder is where a member's data lies.
func (d *disks) folder(name string) string { return filepath.Join(d.byName[name].Path(), "data") }

// losePower puts in the place of a member's disk what a loss of power leaves of it.
func (d *disks) losePower(name string, seed uint64) (folder string) {
	d.work <- func() { d.byName[name] = d.byName[name].Crash(-1, seed) }
	<-d.done
	return d.folder(name)
}

// copy puts in the place of a member's disk what the end of its process leaves of it.
func (d *disks) copy(name string) (folder string) {
	d.work <- func() { d.byName[name] = d.byName[name].Copy() }
	<-d.done
	return d.folder(name)
}

// power is the ability to lose it.
var power = &fault.Ability{Name: "loss of power", Has: func(t fault.Target) bool { return t.(*Cluster).disks != nil }}

// powerFaults are losses of power, of those whom who chooses.
var powerFaults = []fault.Fault{
	powerFault("power-one", "a machine loses its power", func(_ context.Context, s *fault.Scene) ([]string, error) {
		return s.Choose(1, func(fault.Member) bool { return true })
	}),
	powerFault("power-leader", "the leader's machine loses its power", func(ctx context.Context, s *fault.Scene) ([]string, error) {
		name, err := s.Leader(ctx)
		return []string{name}, err
	}),
	powerFault("power-all", "all machines lose their power at once", func(_ context.Context, s *fault.Scene) ([]string, error) {
		return s.Choose(len(s.Target.Members()), func(fault.Member) bool { return true })
	}),
	powerFault("power-behind-the-leader", "the leader is cut off when all other voters lose their power", func(ctx context.Context, s *fault.Scene) ([]string, error) {
		leader, err := s.Leader(ctx)
		if err != nil {
			return nil, err
		}
		var cut []fault.Pair
		for _, m := range s.Target.Members() {
			if m.Name != leader {
				cut = append(cut, fault.Pair{From: leader, To: m.Name}, fault.Pair{From: m.Name, To: leader})
			}
		}
		if _, err := s.Cut(ctx, cut); err != nil {
			return nil, err
		}
		s.Says("cut off %s", leader)
		return s.Choose(len(s.Target.Members()), func(m fault.Member) bool { return m.Voter })
	}),
}

func powerFault(name, what string, who func(context.Context, *fault.Scene) ([]string, error)) fault.Fault {
	return fault.Fault{
		Name: name, What: what, Group: "power", Needs: []*fault.Ability{power}, Least: time.Second, Most: 8 * time.Second,
		Act: func(ctx context.Context, s *fault.Scene) error {
			names, err := who(ctx, s)
			if err != nil {
				return err
			}
			seed := s.Rand.Uint64() * uint64(s.Rand.IntN(2)) // half of the time nothing is left that was not synced
			s.Says("power of %s, disks by %d", strings.Join(names, " "), seed)
			s.Undo(func(ctx context.Context) error { return s.Target.Start(ctx, names...) })
			if err := s.Target.(*Cluster).LosePower(ctx, seed, names...); err != nil {
				return err
			}
			s.Rest(ctx, time.Duration(s.Rand.Int64N(int64(2*time.Second))))
			return s.Target.Start(ctx, names...)
		},
	}
}

// unharmed are the workloads whose judges demand nothing of a node that a loss of power
// may take: that it never goes back is promised for the end of its process only.
var unharmed = []string{"set", "append", "bank", "longfork", "counter"}
