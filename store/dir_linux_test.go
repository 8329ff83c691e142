package store

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// asNobody runs fn on a thread that has no rights but those of an ordinary
// user. The thread ends with it.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan bool)
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // and never unlock: the thread is spoilt
			const nobody = 65534
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), nobody, ^uintptr(0)); errno != 0 {
				t.Errorf("setresuid: %v", errno)
				return
			}
		}
		fn()
	}()
	<-done
}

func TestDirectoryWithoutRightsIsRefused(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(dir string) (path string)
		cause string
	}{
		{"no right to write", func(d string) string { os.Chmod(d, 0o555); return d }, "cannot be written"},
		{"no right to read", func(d string) string { os.Chmod(d, 0o333); return d }, "cannot be written"},
		{"no right to look", func(d string) string { os.Chmod(d, 0); return filepath.Join(d, "x") }, "cannot be looked at: permission denied"},
		{"no right to create", func(d string) string { os.Chmod(d, 0o555); return filepath.Join(d, "a", "b") }, "cannot be created in "},
		{"no right to read the identity", func(d string) string {
			os.Chmod(d, 0o777)
			os.Chmod(filepath.Join(d, identityFile), 0)
			return d
		}, "identity.json that cannot be read: permission denied"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			base, err := os.MkdirTemp("/tmp", "store") // t.TempDir is closed to others
			if err != nil {
				t.Fatal(err)
			}
			os.Chmod(base, 0o755)
			dir := filepath.Join(base, "data")
			t.Cleanup(func() { os.Chmod(dir, 0o700); os.RemoveAll(base) })
			d := openTestDir(t, dir)
			d.Close()
			path := c.spoil(dir)
			root, before := os.Geteuid() == 0, ""
			if root { // others cannot read what was spoilt
				before = tree(t, base)
			}
			asNobody(t, func() {
				_, _, err := Inspect(path)
				oneLine(t, err, c.cause)
				_, err = OpenDir(path, d.Identity(), nil)
				oneLine(t, err, c.cause)
			})
			if root && tree(t, base) != before {
				t.Error("the directory was changed")
			}
		})
	}
}
