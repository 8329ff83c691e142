//go:build !linux

package transport

import "time"

// limitUnsent leaves other systems to their own buffers.
func limitUnsent(*conn, int) error { return nil }

// unacked and roundTrips are not known on other systems.
func unacked(*conn) (bytes int, ok bool)                      { return 0, false }
func roundTrips(*conn) (now, shortest time.Duration, ok bool) { return 0, 0, false }
