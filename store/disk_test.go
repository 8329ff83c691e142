package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

func TestAHangingCallShows(t *testing.T) {
	l, fl, _ := injected(t)
	disk := l.log.disk
	disk.limits.Store(&DiskLimits{Stall: 20 * time.Millisecond, Slow: time.Second, Reserve: LogReserve})
	if v := disk.Look(); v.State != command.DiskOK || v.Stalled != 0 {
		t.Errorf("idle: %+v", v)
	}
	fl.block = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { l.Log.StoreLog(testEntry(1, 1, 10)) })
	eventually(t, "a hanging append shows", func() bool {
		v := disk.Look()
		return v.State == command.DiskStalled && v.Call == "append to the Raft log"
	})
	close(fl.block)
	wg.Wait()
	if v := disk.Look(); v.State != command.DiskOK || v.Stalled != 0 {
		t.Errorf("afterwards: %+v", v)
	}
}

// A call that overlaps others and outlives them is not forgotten with them.
func TestTheOldestOfSeveralCallsIsTimed(t *testing.T) {
	d := newDisk(t.TempDir(), hclog.NewNullLogger())
	d.limits.Store(&DiskLimits{Stall: time.Millisecond, Reserve: 1})
	first := d.begin("the first", urgent)
	d.begin("the second", urgent)()
	time.Sleep(2 * time.Millisecond)
	if v := d.Look(); v.State != command.DiskStalled || v.Call != "the first" {
		t.Errorf("%+v", v)
	}
	slow := d.begin("moves much", patient)
	first()
	if v := d.Look(); v.State == command.DiskStalled {
		t.Errorf("a call that may take longer counts as one that hangs: %+v", v)
	}
	slow()
}

func TestSlowAppendsShowInTheirMeanAndAreForgotten(t *testing.T) {
	var l latency
	for range 4 * latencyMemory {
		l.add(300 * time.Millisecond)
	}
	if m := l.mean(); m < 250*time.Millisecond {
		t.Errorf("mean %v after many slow ones", m)
	}
	l.add(3 * time.Second)
	if m := l.mean(); m > 400*time.Millisecond {
		t.Errorf("mean %v after a single long one", m)
	}
	for range 4 * latencyMemory {
		l.add(time.Millisecond)
	}
	if m := l.mean(); m > 20*time.Millisecond {
		t.Errorf("mean %v after many quick ones", m)
	}
	l.at = time.Now().Add(-2 * latencyLife)
	if m := l.mean(); m != 0 {
		t.Errorf("mean %v though it is long ago", m)
	}
}

// guarded16 opens a data directory on a disk with so much space as free says.
func guarded16(t *testing.T, free *uint64) *Dir {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	d, err := OpenDir(path, NewIdentity("n1", "home"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	d.disk.space = func(string) (uint64, error) {
		left := *free
		if _, err := os.Stat(filepath.Join(path, ballastName)); err == nil {
			left -= 4 << 20
		}
		return left, nil
	}
	d.disk.limits.Store(&DiskLimits{Reserve: 16 << 20})
	d.disk.guarded.Store(true)
	close(d.disk.done) // nobody watches beside the test
	return d
}

// Space that runs out first makes the disk full, then takes the ballast, and only
// then is an append refused. With space again everything is as before.
func TestTheBallastIsGivenUpWhenSpaceRunsOutAndMadeAgain(t *testing.T) {
	free := uint64(100 << 20)
	d := guarded16(t, &free)
	has := func() bool { _, err := os.Stat(filepath.Join(d.path, ballastName)); return err == nil }
	d.disk.tend()
	if v := d.disk.Look(); v.State != command.DiskOK || !has() {
		t.Fatalf("with space: %+v, ballast %v", v, has())
	}
	free = (16+4)<<20 - 1
	d.disk.tend()
	if v := d.disk.Look(); v.State != command.DiskFull || !has() {
		t.Errorf("below the reserve: %+v, ballast %v", v, has())
	}
	if err := d.disk.room(); err != nil {
		t.Errorf("a delete finds no room: %v", err)
	}
	free = (2+4)<<20 - 1
	if err := d.disk.room(); err != nil || has() {
		t.Errorf("at the floor: %v, ballast %v", err, has())
	}
	d.disk.tend()
	if has() {
		t.Error("the ballast is made again without room for it")
	}
	free = 2<<20 - 1
	if err := d.disk.room(); !errors.Is(err, ErrNoSpace) {
		t.Errorf("below the floor: %v", err)
	}
	free = (16 + 4) << 20
	d.disk.tend()
	if v := d.disk.Look(); v.State != command.DiskFull {
		t.Errorf("only just at the reserve again: %+v", v)
	}
	free = (18 + 4) << 20
	d.disk.tend()
	if v := d.disk.Look(); v.State != command.DiskOK || !has() {
		t.Errorf("with space again: %+v, ballast %v", v, has())
	}
	if id, ok, err := Inspect(d.path); err != nil || !ok || id.ID != d.Identity().ID {
		t.Errorf("a directory with a ballast: %v %v %v", id, ok, err)
	}
}

// For want of space is another reason to fail than a broken disk: a new start may
// succeed.
func TestAWriteThatFoundNoSpaceIsToldFromABrokenDisk(t *testing.T) {
	for _, c := range []struct {
		err  error
		full bool
	}{{syscall.ENOSPC, true}, {syscall.EDQUOT, true}, {syscall.EIO, false}} {
		l, fl, _ := injected(t)
		fl.store = fmt.Errorf("write: %w", c.err)
		if err := l.Log.StoreLog(testEntry(1, 1, 10)); err == nil {
			t.Fatal("stored")
		}
		err := <-l.log.disk.Failed()
		if errors.Is(err, command.ErrDiskFull) != c.full || l.log.disk.Look().State != command.DiskFailed {
			t.Errorf("%v: %v, %+v", c.err, err, l.log.disk.Look())
		}
	}
}
