package bench

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The thread of an open loop goes on when the loop is over: processes may hang on it.
func TestPacingEndsNoThread(t *testing.T) {
	r := &run{turns: make(chan time.Duration)} // of which the end has come
	r.cfg.Rate = 1
	var thread string
	var slack int
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // so that it is the one that pace gets
		defer runtime.UnlockOSThread()
		thread = fmt.Sprintf("/proc/self/task/%d", unix.Gettid())
		r.pace(t.Context())
		slack, _ = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	}()
	<-done
	if slack < 1000 {
		t.Errorf("the thread is left with a timer slack of %d ns", slack)
	}
	// A thread that ends does so a moment after its goroutine.
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
		if _, err := os.Stat(thread); err != nil {
			t.Fatal(err)
		}
	}
}
