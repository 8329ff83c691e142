//go:build linux

package faultfs

import (
	"fmt"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// FS is one file system. Its methods end the test when the server fails.
type FS struct {
	t  testing.TB
	id uint32
}

// Mount makes an empty file system, which lives until the test ends or Close.
// Where file systems cannot be mounted, it skips the test.
func Mount(t testing.TB) *FS {
	t.Helper()
	f := &FS{t: t}
	err := start()
	if err == nil {
		err = child.calls.Call("Server.Make", &Arg{}, &f.id)
	}
	if err != nil {
		t.Skipf("SKIPPED: no file system can be mounted here; this needs /dev/fuse and the right to mount: %s", strings.TrimSpace(err.Error()))
	}
	t.Cleanup(f.Close)
	return f
}

// child is the server, one for all tests of a process.
var child struct {
	once  sync.Once
	err   error
	dir   string
	calls *rpc.Client
}

func start() error {
	child.once.Do(func() { child.err = startServer() })
	return child.err
}

func startServer() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if child.dir, err = os.MkdirTemp("", "faultfs"); err != nil {
		return err
	}
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "server"), os.NewFile(uintptr(ends[1]), "server's")
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveVar+"="+child.dir)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = theirs.Close()
	child.calls = rpc.NewClient(ours)
	return nil
}

func (f *FS) call(name string, a Arg, reply any) {
	f.t.Helper()
	a.Volume = f.id
	if err := child.calls.Call("Server."+name, &a, reply); err != nil {
		f.t.Fatal("faultfs: ", err)
	}
}

// Path is the directory of the file system.
func (f *FS) Path() string { return filepath.Join(child.dir, strconv.Itoa(int(f.id))) }

// Ops is how many operations there have been.
func (f *FS) Ops() int {
	f.t.Helper()
	return f.report(0).Ops
}

func (f *FS) report(trace int) (r Report) {
	f.t.Helper()
	f.call("Report", Arg{At: trace}, &r)
	return r
}

// Fail plans a fault, in place of the one before.
func (f *FS) Fail(fault Fault) {
	f.t.Helper()
	f.call("Plan", Arg{Fault: fault}, &Report{})
}

// Heal makes the disk a good one again. What an operation that failed has
// destroyed stays so.
func (f *FS) Heal() {
	f.t.Helper()
	f.Fail(Fault{})
}

// Met says which operation was the first to meet the fault planned last; "" when
// none has.
func (f *FS) Met() string {
	f.t.Helper()
	r := f.report(1)
	if r.Met == 0 {
		return ""
	}
	return fmt.Sprintf("%d: %s", r.Met, r.Trace[r.Met-1])
}

// Hanging says whether an operation hangs.
func (f *FS) Hanging() bool {
	f.t.Helper()
	return f.report(0).Hanging
}

// Release lets an operation that hangs go on. None hangs any more.
func (f *FS) Release() {
	f.t.Helper()
	f.call("Release", Arg{}, &Report{})
}

// SetFree sets how many bytes statfs says are free. It makes nothing fail.
func (f *FS) SetFree(bytes uint64) {
	f.t.Helper()
	f.call("SetFree", Arg{Free: bytes}, &Report{})
}

// Trace says what each operation did; number 1 comes first.
func (f *FS) Trace() []string {
	f.t.Helper()
	return f.report(1).Trace
}

// Crash returns, as a file system of its own, what a loss of power after the
// first ops operations could leave on disk; below 0: after all so far. With seed
// 0 only what was durable is there, each other seed is one choice of what else.
func (f *FS) Crash(ops int, seed uint64) *FS {
	f.t.Helper()
	c := &FS{t: f.t}
	f.call("Make", Arg{At: ops, Seed: seed}, &c.id)
	f.t.Cleanup(c.Close)
	return c
}

// Copy returns, as a file system of its own, what the end of all processes that use it
// would leave: everything, and what is not durable can still be lost.
func (f *FS) Copy() *FS {
	f.t.Helper()
	c := &FS{t: f.t}
	f.call("Make", Arg{Whole: true}, &c.id)
	f.t.Cleanup(c.Close)
	return c
}

// Close forgets the file system. Nothing in it may be open.
func (f *FS) Close() {
	if f.id != 0 {
		f.call("Drop", Arg{}, &Report{})
		f.id = 0
	}
}
