package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// pushToDisk makes the system write what it has of a file, after what it was
// writing already, and does not wait for that to end. Unlike a sync it does not
// commit the file system's journal, behind which writes to other files wait.
// Nothing is durable by it.
func pushToDisk(f *os.File) error {
	err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE)
	if errors.Is(err, unix.ENOSYS) {
		return f.Sync()
	}
	return err
}
