//go:build !linux

package main

import "syscall"

// childAttributes put a child in a process group of its own, so that Ctrl-C
// reaches only the supervisor. That a child ends with the supervisor is left to
// its standard input: see --with-parent.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
