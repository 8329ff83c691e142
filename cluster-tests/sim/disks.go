package sim

import (
	"path/filepath"
	"testing"

	"github.com/holdfast-db/holdfast/internal/faultfs"
)

// disks are file systems that know what was synced, one for each member.
type disks struct {
	byName map[string]*faultfs.FS
	// What speaks to other processes must not use the bubble's channels: work is done
	// by a goroutine outside, and meanwhile time stands still inside.
	work chan func()
	done chan struct{}
}

// mountDisks makes one for each of the members. Where that cannot be done it skips the
// test. It is called outside of any bubble.
func mountDisks(t *testing.T, names []string) *disks {
	d := &disks{byName: map[string]*faultfs.FS{}, work: make(chan func()), done: make(chan struct{})}
	for _, name := range names {
		d.byName[name] = faultfs.Mount(t)
	}
	go func() {
		for f := range d.work {
			f()
			d.done <- struct{}{}
		}
	}()
	t.Cleanup(func() { close(d.work) })
	return d
}

// folder is where a member's data lies.
func (d *disks) folder(name string) string { return filepath.Join(d.byName[name].Path(), "data") }

// losePower puts in the place of a member's disk what a loss of power leaves of it.
func (d *disks) losePower(name string, seed uint64) (folder string) {
	d.outside(func() { d.byName[name] = d.byName[name].Crash(-1, seed) })
	return d.folder(name)
}

// copy puts in the place of a member's disk what the end of its process leaves of it.
func (d *disks) copy(name string) (folder string) {
	d.outside(func() { d.byName[name] = d.byName[name].Copy() })
	return d.folder(name)
}

// outside has f called by the goroutine outside of the bubble.
func (d *disks) outside(f func()) {
	d.work <- f
	<-d.done
}
