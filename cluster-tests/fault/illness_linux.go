package fault

import (
	"syscall"

	"github.com/holdfast-db/holdfast/internal/faultfs"
)

// Befall has a disk show the illness from its next operation on, in place of the one
// before.
func (ill Illness) Befall(disk *faultfs.FS) {
	f := faultfs.Fault{At: disk.Ops() + 1, Forever: true}
	switch {
	case ill.NoSpace:
		f.Err = syscall.ENOSPC
	case ill.FailsOneSync:
		f.Only, f.Forever = faultfs.Fsync, false
	case ill.Tears:
		f.Only, f.Forever, f.Torn = faultfs.Write, false, 1
	case ill.Hangs:
		f.Hang = true
	case ill.Delay > 0:
		f.Delay = ill.Delay
	}
	disk.Fail(f)
}
