//go:build linux

package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func syncDir(t *testing.T, path string) {
	t.Helper()
	d, err := os.Open(path)
	check(t, err)
	check(t, d.Sync())
	check(t, d.Close())
}

// content is what a path holds, "-" when it does not exist.
func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	check(t, err)
	return string(b)
}

func (f *FS) in(name string) string { return filepath.Join(f.Path(), name) }

func TestItIsAFileSystem(t *testing.T) {
	f := Mount(t)
	check(t, os.MkdirAll(f.in("a/b"), 0o700))
	file, err := os.OpenFile(f.in("a/b/file"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	check(t, err)
	_, err = os.OpenFile(f.in("a/b/file"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if !errors.Is(err, os.ErrExist) {
		t.Error("created twice: ", err)
	}
	check(t, unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	second, err := os.Open(f.in("a/b/file"))
	check(t, err)
	defer second.Close()
	if err := unix.Flock(int(second.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Error("locked twice: ", err)
	}

	mapped, err := unix.Mmap(int(file.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	check(t, err)
	defer unix.Munmap(mapped)
	big := bytes.Repeat([]byte("0123456789"), 30000)
	_, err = file.WriteAt(big, 5000)
	check(t, err)
	if !bytes.Equal(mapped[5000:5000+len(big)], big) || mapped[4999] != 0 {
		t.Error("the map does not show what was written")
	}
	_, err = file.WriteAt([]byte("new"), 7000)
	check(t, err)
	if string(mapped[7000:7003]) != "new" {
		t.Error("the map does not show what was written over it")
	}
	check(t, file.Truncate(7002))
	check(t, file.Truncate(9000))
	if b := content(t, f.in("a/b/file")); len(b) != 9000 || b[7000:7003] != "ne\x00" {
		t.Errorf("cut and made longer: %d bytes, %q", len(b), b[7000:7003])
	}
	check(t, unix.Fallocate(int(file.Fd()), 0, 0, 20000))
	if fi, err := file.Stat(); err != nil || fi.Size() != 20000 {
		t.Error(fi.Size(), err)
	}
	check(t, file.Sync())
	check(t, unix.Fdatasync(int(file.Fd())))
	check(t, file.Close())

	check(t, os.Rename(f.in("a/b/file"), f.in("moved")))
	if err := os.Remove(f.in("a")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Error("removed a directory that is not empty: ", err)
	}
	for i := range 300 {
		check(t, os.WriteFile(f.in(fmt.Sprintf("a/b/%d", i)), nil, 0o600))
	}
	if names, err := os.ReadDir(f.in("a/b")); err != nil || len(names) != 300 {
		t.Error(len(names), err)
	}
	check(t, os.RemoveAll(f.in("a")))
	if names, err := os.ReadDir(f.Path()); err != nil || len(names) != 1 || names[0].Name() != "moved" {
		t.Error(names, err)
	}
	f.SetFree(1 << 20)
	var st unix.Statfs_t
	check(t, unix.Statfs(f.Path(), &st))
	if st.Bavail*uint64(st.Bsize) != 1<<20 {
		t.Error("free: ", st.Bavail*uint64(st.Bsize))
	}
	check(t, os.Chmod(f.in("moved"), 0o400))
	if fi, err := os.Stat(f.in("moved")); err != nil || fi.Mode() != 0o400 {
		t.Error(fi.Mode(), err)
	}
}

func TestOnlyWhatWasSyncedSurvives(t *testing.T) {
	f := Mount(t)
	check(t, os.WriteFile(f.in("unsynced"), []byte("x"), 0o600))
	file, err := os.Create(f.in("file"))
	check(t, err)
	defer file.Close()
	_, err = file.WriteString("old")
	check(t, err)
	check(t, file.Sync())
	withoutName := f.Ops()
	syncDir(t, f.Path())
	durable := f.Ops()
	_, err = file.WriteAt([]byte("new and longer"), 0)
	check(t, err)
	written := f.Ops()
	check(t, file.Sync())
	for _, c := range []struct {
		ops      int
		file     string
		unsynced string
	}{{withoutName, "-", "-"}, {durable, "old", ""}, {written, "old", ""}, {-1, "new and longer", ""}} {
		crashed := f.Crash(c.ops, 0)
		if got := content(t, crashed.in("file")); got != c.file {
			t.Errorf("after %d operations the file holds %q, not %q", c.ops, got, c.file)
		}
		if got := content(t, crashed.in("unsynced")); got != c.unsynced {
			t.Errorf("after %d operations the other holds %q, not %q", c.ops, got, c.unsynced)
		}
	}
	if content(t, f.in("unsynced")) != "x" {
		t.Error("a crash image has changed the original")
	}
}

func TestNamesSurviveWhenTheirDirectoryWasSynced(t *testing.T) {
	f := Mount(t)
	for _, d := range []string{"from", "to"} {
		check(t, os.Mkdir(f.in(d), 0o700))
	}
	syncDir(t, f.Path())
	check(t, os.WriteFile(f.in("from/x"), nil, 0o600))
	check(t, os.WriteFile(f.in("to/old"), nil, 0o600))
	check(t, os.WriteFile(f.in("from/gone"), nil, 0o600))
	syncDir(t, f.in("from"))
	syncDir(t, f.in("to"))
	check(t, os.Remove(f.in("from/gone")))
	check(t, os.Rename(f.in("from/x"), f.in("to/old")))
	names := func(f *FS) string {
		var all []string
		for _, n := range []string{"from/x", "from/gone", "to/old"} {
			if _, err := os.Stat(f.in(n)); err == nil {
				all = append(all, n)
			}
		}
		return strings.Join(all, " ")
	}
	inode := func(f *FS) uint64 {
		var st unix.Stat_t
		check(t, unix.Stat(f.in("to/old"), &st))
		return st.Ino & inoMask
	}
	moved := inode(f)
	if got := names(f.Crash(-1, 0)); got != "from/x from/gone to/old" || inode(f.Crash(-1, 0)) == moved {
		t.Errorf("without a sync: %q", got)
	}
	syncDir(t, f.in("from"))
	if got := names(f.Crash(-1, 0)); got != "from/x to/old" {
		t.Errorf("after a sync of where it was: %q", got)
	}
	syncDir(t, f.in("to"))
	if got := names(f.Crash(-1, 0)); got != "to/old" || inode(f.Crash(-1, 0)) != moved {
		t.Errorf("after a sync of where it went: %q", got)
	}
	check(t, os.RemoveAll(f.in("to")))
	check(t, os.Mkdir(f.in("new"), 0o700))
	check(t, os.WriteFile(f.in("new/x"), nil, 0o600))
	syncDir(t, f.in("new"))
	if _, err := os.Stat(f.Crash(-1, 0).in("new")); err == nil {
		t.Error("a directory whose own name was not synced is there")
	}
	for seed := range uint64(100) {
		c := f.Crash(f.Ops()-20, seed)
		if got := names(c); strings.Contains(got, "from/x") && inode(c) == moved {
			t.Errorf("seed %d: a rename shows both names: %s", seed, got)
		}
		c.Close()
	}
}

// A crash may keep any of the writes, but each sector is as it was at some time.
func TestUnsyncedWritesSurviveInAnyChoice(t *testing.T) {
	f := Mount(t)
	file, err := os.Create(f.in("file"))
	check(t, err)
	defer file.Close()
	check(t, file.Sync())
	syncDir(t, f.Path())
	const sectors = 40
	for i := range byte(3) {
		_, err := file.WriteAt(bytes.Repeat([]byte{'1' + i}, sectors*sectorSize), 0)
		check(t, err)
	}
	_, err = file.WriteAt([]byte("44"), 100) // a part of the first sector
	check(t, err)
	whole, none, mixed := 0, 0, 0
	for seed := range uint64(60) {
		c := f.Crash(-1, seed)
		b := []byte(content(t, c.in("file")))
		seen := map[byte]bool{}
		for i := 0; i < len(b); i += sectorSize {
			s := b[i : i+sectorSize]
			if i == 0 && s[100] == '4' {
				if s[99] != '3' || s[102] != '3' {
					t.Fatalf("seed %d: a sector is a mixture", seed)
				}
				s[100], s[101] = '3', '3'
			}
			if !bytes.Equal(s, bytes.Repeat(s[:1], sectorSize)) {
				t.Fatalf("seed %d: sector %d is a mixture", seed, i/sectorSize)
			}
			seen[s[0]] = true
		}
		again := []byte(content(t, f.Crash(-1, seed).in("file")))
		if len(again) != len(b) {
			t.Fatalf("seed %d gives another image each time", seed)
		}
		switch {
		case len(b) == 0:
			none++
		case len(seen) == 1 && seen['3']:
			whole++
		case len(seen) > 1:
			mixed++
		}
		c.Close()
	}
	if none == 0 || whole == 0 || mixed == 0 {
		t.Errorf("of 60 seeds %d kept nothing, %d everything, %d a mixture", none, whole, mixed)
	}
}

func TestAnOperationFailsAsPlanned(t *testing.T) {
	f := Mount(t)
	file, err := os.Create(f.in("file"))
	check(t, err)
	defer file.Close()
	old, now := strings.Repeat("a", 2000), strings.Repeat("b", 2000)
	_, err = file.WriteAt([]byte(old), 0)
	check(t, err)
	check(t, file.Sync())
	syncDir(t, f.Path())
	again := func(want error) {
		t.Helper()
		if _, err := file.WriteAt([]byte(now), 0); !errors.Is(err, want) {
			t.Errorf("write: %v, not %v", err, want)
		}
	}

	f.Fail(Fault{At: f.Ops() + 1, Err: syscall.ENOSPC})
	check(t, file.Sync()) // needs no space
	if f.Met() != "" {
		t.Error("a sync has met a full disk")
	}
	again(syscall.ENOSPC)
	again(nil)
	_, err = file.WriteAt([]byte(old), 0)
	check(t, err)
	mapped, err := unix.Mmap(int(file.Fd()), 0, pageSize, unix.PROT_READ, unix.MAP_SHARED)
	check(t, err)
	defer unix.Munmap(mapped)
	if string(mapped[:len(old)]) != old {
		t.Error("the map shows something else")
	}
	f.Fail(Fault{At: f.Ops() + 1, Err: syscall.ENOSPC, Torn: 2})
	again(syscall.ENOSPC)
	if string(mapped[:len(old)]) != now[:1024]+old[1024:] {
		t.Error("the map shows what was not written")
	}
	if got := content(t, f.in("file")); got != now[:1024]+old[1024:] {
		t.Error("a torn write left something else")
	}
	if want := fmt.Sprintf("%d: write file [0, 2000)", f.Ops()); f.Met() != want {
		t.Errorf("met %q, not %q", f.Met(), want)
	}
	again(nil)

	f.Fail(Fault{At: f.Ops() + 1})
	if err := file.Sync(); !errors.Is(err, syscall.EIO) {
		t.Error("sync: ", err)
	}
	check(t, file.Sync())
	if content(t, f.in("file")) != now || content(t, f.Crash(-1, 0).in("file")) != old {
		t.Error("a failed sync does not drop the data")
	}
	again(nil)
	check(t, file.Sync())
	if content(t, f.Crash(-1, 0).in("file")) != now {
		t.Error("what is written again is not kept")
	}

	f.Fail(Fault{At: f.Ops() + 1, Forever: true})
	for what, err := range map[string]error{
		"create": os.WriteFile(f.in("new"), nil, 0o600),
		"mkdir":  os.Mkdir(f.in("dir"), 0o700),
		"rename": os.Rename(f.in("file"), f.in("other")),
		"remove": os.Remove(f.in("file")),
		"cut":    file.Truncate(1),
		"grow":   unix.Fallocate(int(file.Fd()), 0, 0, 1<<20),
	} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.Heal()
	if got, err := os.ReadDir(f.Path()); err != nil || len(got) != 1 || content(t, f.in("file")) != now {
		t.Error("what failed has changed something: ", got, err)
	}
}

func TestAnOperationHangsUntilReleased(t *testing.T) {
	f := Mount(t)
	f.Fail(Fault{At: 1, Hang: true})
	done := make(chan error)
	go func() { done <- os.WriteFile(f.in("file"), []byte("x"), 0o600) }()
	for deadline := time.Now().Add(10 * time.Second); !f.Hanging(); {
		if time.Now().After(deadline) {
			t.Fatal("nothing hangs")
		}
		runtime.Gosched()
	}
	select {
	case <-done:
		t.Fatal("the write is done")
	default:
	}
	f.Release()
	check(t, <-done)
	if content(t, f.in("file")) != "x" {
		t.Error("the write is lost")
	}
}
