package bench

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pacer waits for moments more exactly than package time, whose timers are up to a
// millisecond late in a process that does nothing else meanwhile.
type pacer struct{}

// newPacer binds the calling goroutine to a thread, until end.
func newPacer() pacer {
	runtime.LockOSThread()
	// Else the kernel puts wake-ups together that are within 50 µs.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	return pacer{}
}

func (pacer) wait(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil) // woken early by a signal, the caller looks at the clock again
}

// end gives the thread back as it was. If the goroutine ended bound to it the thread would end, too, and
// with it every process that was started from it to die with its parent.
func (pacer) end() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // the default
	runtime.UnlockOSThread()
}
