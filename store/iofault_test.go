//go:build linux

package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/faultfs"
)

// failing lives a life on a disk with a fault, and checks what is left: as it
// lies there once the disk is well again, and after a loss of power. It returns
// false when nothing met the fault.
func failing(t *testing.T, l *life, worlds []world, fault faultfs.Fault, seed uint64) (met bool) {
	disk := faultfs.Mount(t)
	disk.Fail(fault)
	n := &living{t: t, life: l, path: disk.Path()}
	if fault.Err == syscall.ENOSPC {
		n.free = disk.Heal
	}
	steps, err := n.live(nil)
	closed := n.close()
	what := disk.Met()
	defer func() {
		if t.Failed() {
			t.Fatalf("%+v met operation %s\nafter %d steps: %v\nclose: %v", fault, what, steps, err, closed)
		}
	}()
	if what == "" {
		if err != nil {
			t.Error("a life on a good disk has failed")
		}
		return false
	}
	disk.Heal()
	before, after := worlds[steps], worlds[min(steps+1, len(worlds)-1)]
	for _, seed := range []uint64{0, seed} {
		left := disk.Crash(-1, seed)
		l.want(t, left.Path(), before, after)
		left.Close()
	}
	l.want(t, disk.Path(), before, after)
	disk.Close()
	return true
}

// Whatever operation fails, the node says so or does without it; it never ends
// in a panic; and the next start finds all that was promised.
func TestAFailedOperationBreaksNoPromise(t *testing.T) {
	seed := faultSeed(t)
	for _, c := range []struct {
		name  string
		life  *life
		most  int
		fault faultfs.Fault
	}{
		{"one operation fails", wholeLife(), 60, faultfs.Fault{}},
		{"one write is torn", wholeLife(), 20, faultfs.Fault{Torn: 3}},
		{"the disk dies", wholeLife(), 12, faultfs.Fault{Forever: true}},
		{"the disk is full for a moment", wholeLife(), 4, faultfs.Fault{Err: syscall.ENOSPC}},
		{"the disk is full", wholeLife(), 4, faultfs.Fault{Err: syscall.ENOSPC, Forever: true}},
		{"one operation of a large flush fails", largeLife(), 8, faultfs.Fault{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			last := record(t, c.life).disk.Ops() + 3 // their number varies a little
			worlds, met := c.life.worlds(), 0
			for _, op := range someOf(r, 1, last, c.most) {
				fault := c.fault
				fault.At = op
				if failing(t, c.life, worlds, fault, seed+uint64(op)) {
					met++
				}
			}
			if met == 0 {
				t.Error("no operation met the fault")
			}
		})
	}
}

// A node whose disk is full waits for space, but not when it is to stop.
func TestAFullDiskDoesNotKeepANodeFromStopping(t *testing.T) {
	disk := faultfs.Mount(t)
	n := &living{t: t, life: wholeLife(), path: disk.Path()}
	for _, s := range []step{start(LogStoreWAL), apply(10)} {
		if err := s.do(n); err != nil {
			t.Fatal(err)
		}
	}
	disk.Fail(faultfs.Fault{At: disk.Ops() + 1, Forever: true, Err: syscall.ENOSPC})
	flushed := make(chan error, 1)
	go func() { flushed <- n.state.Flush(context.Background()) }()
	eventually(t, "a write found no space", func() bool { return disk.Met() != "" })
	if err := n.close(); !errors.Is(err, errUnflushed) && !t.Failed() {
		t.Error("close: ", err)
	}
	if err := <-flushed; !errors.Is(err, command.ErrStopping) {
		t.Error("flush: ", err)
	}
}

// A first start that is cut short, by a full disk or a loss of power, is no
// reason to refuse the next one.
func TestAnUnfinishedFirstStartIsTakenUp(t *testing.T) {
	l := newLife(crashEntry, start(LogStoreWAL), stop())
	rec := record(t, l)
	for op := range rec.ops[1] {
		met := faultfs.Fault{At: op + 1, Torn: 3, Err: syscall.ENOSPC}
		t.Run(fmt.Sprint("operation ", op+1), func(t *testing.T) {
			failing(t, l, rec.worlds, met, uint64(op+1))
			for seed := range uint64(3) {
				rec.losePower(t, op+1, seed)
			}
		})
	}
}
