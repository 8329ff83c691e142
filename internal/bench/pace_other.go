//go:build !linux

package bench

import "time"

// pacer waits for moments.
type pacer struct{}

func newPacer() pacer { return pacer{} }

func (pacer) wait(d time.Duration) { time.Sleep(d) }

func (pacer) end() {}
