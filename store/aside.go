package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// asideName is how a damaged state file is called once it is set aside; behind it
// comes the number of the start that did so.
const asideName = stateName + ".damaged-"

// SetStateAside takes the state file out of use, so that OpenState makes a new
// one, and returns where it is now. At most one is kept. The state must not be
// open. On return the change is durable.
func (d *Dir) SetStateAside() (path string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return "", os.ErrClosed
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("set the state in %s aside: %w", d.path, err)
		}
	}()
	old, err := filepath.Glob(filepath.Join(d.path, asideName+"*"))
	if err != nil {
		return "", err
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	// From here on the directory need not have a state: a crash on the way leaves it
	// as one that Inspect takes.
	id := d.id
	id.HasState = false
	if err := writeIdentity(d.path, id, d.step); err != nil {
		return "", err
	}
	d.id = id
	path = filepath.Join(d.path, fmt.Sprint(asideName, d.id.Starts))
	if err := os.Rename(filepath.Join(d.path, stateName), path); err != nil {
		return "", err
	}
	// What was kept beside the state was of no use without it.
	if err := os.Remove(filepath.Join(d.path, keptName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return path, syncPath(d.path)
}
