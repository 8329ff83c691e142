package store

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/command"
)

// A full disk is not a broken one: the state waits, readers go on, and it is
// written once there is space.
func TestAFullDiskHealsByItself(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("SKIPPED: a small disk needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := OpenState(StateConfig{Dir: dir, MaxData: 1 << 28, BufferAge: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	put := func() {
		t.Helper()
		index++
		b := s.Begin()
		b.Put(command.Record{Key: fmt.Sprint("k", index), Value: make([]byte, 256<<10)})
		b.Step()
		b.Entry(index, 1, 0, time.Time{})
		if err := b.Publish(); err != nil {
			t.Fatal(err)
		}
	}
	put()
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}

	// Take all the space there is.
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1 << 20, 4 << 10} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	_ = f.Close()

	for range 80 { // 20 MiB: more than the file has room for
		put()
	}
	durable := s.Stats().DurableIndex
	for began := time.Now(); time.Since(began) < 2*spaceRetry; time.Sleep(10 * time.Millisecond) {
		if s.Stats().DurableIndex == index {
			t.Fatal("the disk was not full")
		}
	}
	if err := s.Err(); err != nil {
		t.Fatalf("a full disk was taken for a broken one: %v", err)
	}
	if _, err := s.Get(fmt.Sprint("k", index)); err != nil {
		t.Errorf("a reader: %v", err)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Errorf("with space again, durable to %d of %d: %v", durable, index, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s, err = OpenState(StateConfig{Dir: dir, MaxData: 1 << 28})
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= index; i++ {
		if _, err := s.Get(fmt.Sprint("k", i)); err != nil {
			t.Errorf("k%d after a restart: %v", i, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
