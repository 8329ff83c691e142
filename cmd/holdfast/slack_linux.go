package main

import (
	"context"
	"math"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// relaxed is run with timers of the whole process that may be late by cfg.TimerSlack.
//
// A thread of Go's runtime looks after the others while any of them works or waits for
// the disk, in naps of 20 us, which Linux makes 70 us by its usual timer slack
// (PR_SET_TIMERSLACK in prctl(2)). So it wakes 14,000 times a second in a node that does
// nothing but sync its log, and for small writes these naps are half of all switches
// between threads and more than a third of the processor time. No timer of ours needs to be
// that exact.
//
// A thread inherits its slack from the thread that makes it, and the runtime makes that
// one before any of our code runs. So the process sets its slack and executes itself,
// once. Where that is not possible it goes on as it is.
func relaxed(run runner) runner {
	return func(ctx context.Context, cfg agentConfig) error {
		if ctx.Err() == nil {
			relax(uint64(cfg.TimerSlack))
		}
		runtime.UnlockOSThread()
		return run(ctx, cfg)
	}
}

// The main goroutine stays on the main thread until relax has run there: only from that
// thread does executing keep the signal that a parent's end is to send (PR_SET_PDEATHSIG).
func init() { runtime.LockOSThread() }

// relax returns if this process has that much slack, or cannot have it. It is called on
// the main thread.
func relax(slack uint64) {
	if timerSlack() >= slack {
		return
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0)
	if timerSlack() < slack {
		return // or it would execute itself for ever
	}
	if self, err := os.Executable(); err == nil {
		_ = syscall.Exec(self, os.Args, os.Environ())
	}
}

// timerSlack is how many nanoseconds timers of this thread may be late; the most there
// is where that cannot be told.
func timerSlack() uint64 {
	n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return math.MaxUint64
	}
	return uint64(n)
}
