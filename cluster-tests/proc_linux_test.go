package clustertests

import "syscall"

// dieWithParent makes the kernel kill a node when the test process ends, also
// when that is itself killed, so that no test leaves strays behind.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
