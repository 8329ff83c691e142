package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
)

func TestANodeGoesOverToItsStandbyOnlyWhenItsDiskIsLost(t *testing.T) {
	cfg := Config{DataDir: "/a", StandbyDir: "/b", BootstrapExpect: 3}
	for _, c := range []struct {
		err  error
		over bool
	}{
		{&diskLost{errors.New("it hangs")}, true},
		{fmt.Errorf("start: %w", &store.DirError{Path: "/a", Cause: "cannot be locked", Err: syscall.EIO}), true},
		{syscall.EROFS, true},
		{syscall.ENOSPC, false},
		{command.ErrDiskFull.With("no space left on device"), false},
		{command.ErrNameInUse, false},
		{nil, false},
	} {
		next, again := afterRun(cfg, c.err)
		if again != c.over || again && (next.DataDir != "/b" || next.BootstrapExpect != 0) {
			t.Errorf("%v: again %v, in %s, forming a cluster of %d", c.err, again, next.DataDir, next.BootstrapExpect)
		}
	}
	cfg.DataDir = cfg.StandbyDir
	if _, again := afterRun(cfg, &diskLost{syscall.EIO}); again {
		t.Error("it goes over to where it is")
	}
	if next, again := afterRun(cfg, &node.Restart{Reason: "space"}); !again || next.DataDir != "/b" {
		t.Error("a restart leads elsewhere")
	}
}

// What the standby directory holds decides at each start, not what the other one does.
func TestAStandbyDirectoryThatWasUsedStaysTheDataDirectory(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Node: "n1", DataDir: filepath.Join(dir, "a"), StandbyDir: filepath.Join(dir, "b"), BootstrapExpect: 3}
	make := func(path string) {
		d, err := store.OpenDir(path, store.NewIdentity("n1", "home"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	make(cfg.DataDir)
	if got, err := onStandby(cfg, Host{}); err != nil || got.DataDir != cfg.DataDir || got.BootstrapExpect != 3 {
		t.Errorf("before: %s, %v", got.DataDir, err)
	}
	make(cfg.StandbyDir)
	if got, err := onStandby(cfg, Host{}); err != nil || got.DataDir != cfg.StandbyDir || got.BootstrapExpect != 0 {
		t.Errorf("after: %s, %v", got.DataDir, err)
	}
	// A directory that cannot be told to be empty may hold who this node is now.
	if err := syscall.Unlink(filepath.Join(cfg.StandbyDir, "identity.json")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkdir(filepath.Join(cfg.StandbyDir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := onStandby(cfg, Host{}); err == nil {
		t.Errorf("a standby directory of which a part is there: the node starts in %s", got.DataDir)
	}
}
