//go:build linux

package store

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/faultfs"
)

// Whenever the power fails during a restore, the next start finds the state before
// or the one restored; and from the one before, the log leads to the same again.
func TestARestoreThatALossOfPowerCutsShortIsAllOrNothing(t *testing.T) {
	seed := faultSeed(t)
	_, archive := archivedCluster(t)
	disk := faultfs.Mount(t)
	open := func(dir string) *State {
		t.Helper()
		s, err := OpenState(StateConfig{Dir: dir, BufferAge: time.Hour, MaxData: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(disk.Path())
	putKey(t, s, "a", "1")
	c := stageArchive(t, s, archive)
	mustFlush(t, s)
	before, began := s.Head(), disk.Ops()
	if _, err := restoreNow(t, s, c); err != nil {
		t.Fatal(err)
	}
	after, ended := s.Head(), disk.Ops()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 0))
	old, restored := 0, 0
	for _, op := range someOf(r, began, ended, 60) {
		left := disk.Crash(op, r.Uint64N(3)*seed)
		s := open(left.Path())
		if _, err := os.Stat(filepath.Join(left.Path(), archivesName)); !os.IsNotExist(err) {
			t.Errorf("after operation %d files of the restore are left: %v", op, err)
		}
		switch s.Head() {
		case before:
			old++
			if _, err := restoreNow(t, s, c); err != nil {
				t.Fatalf("again after operation %d: %v", op, err)
			}
		case after:
			restored++
		default:
			t.Fatalf("after operation %d (seed %d): %+v, neither %+v nor %+v", op, seed, s.Head(), before, after)
		}
		if s.Head() != after || len(liveRecords(t, s)) != 51 {
			t.Fatalf("after operation %d: %+v, not %+v", op, s.Head(), after)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		inspect(t, left.Path())
		left.Close()
	}
	if old == 0 || restored == 0 {
		t.Errorf("the old state was found %d times, the new one %d times: the test misses one of them", old, restored)
	}
}

// A disk that fills up delays a restore and does not spoil it.
func TestARestoreWaitsForSpace(t *testing.T) {
	_, archive := archivedCluster(t)
	disk := faultfs.Mount(t)
	s, err := OpenState(StateConfig{Dir: disk.Path(), BufferAge: time.Hour, MaxData: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	c := stageArchive(t, s, archive)
	mustFlush(t, s)
	disk.Fail(faultfs.Fault{At: disk.Ops() + 1, Forever: true, Err: syscall.ENOSPC})
	done := make(chan error, 1)
	go func() {
		_, err := restoreNow(t, s, c)
		done <- err
	}()
	for deadline := time.Now().Add(20 * time.Second); disk.Met() == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the restore never met the full disk")
		}
	}
	disk.Heal()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(liveRecords(t, s)) != 51 {
		t.Error("the archive is not restored")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
