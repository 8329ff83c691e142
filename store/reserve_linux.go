package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserveSpace makes a file take size bytes on the disk; unix.EOPNOTSUPP where it
// must be written for that.
func reserveSpace(f *os.File, size int64) error {
	return unix.Fallocate(int(f.Fd()), 0, 0, size)
}
