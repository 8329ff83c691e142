package main

import "syscall"

// childAttributes put a child in a process group of its own, so that Ctrl-C
// reaches only the supervisor, and have the kernel kill it with the thread that
// started it: see spawner.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
