//go:build !linux

package clustertests

import "syscall"

// dieWithParent is known to Linux only; elsewhere a killed test may leave
// nodes running.
func dieWithParent() *syscall.SysProcAttr { return nil }

// withTimerSlack has nothing to give here.
func withTimerSlack(start func() error) error { return start() }
