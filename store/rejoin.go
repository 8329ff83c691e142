package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// A node that was left behind when another site became home comes back as a new
// member. What it holds and the new home never saw is written to a file first; only
// once that is durable is its data directory emptied.

// AsidePrefix is what the names of such files begin with: a data directory may hold
// them beside its own parts.
const AsidePrefix = "set-aside-"

// Aside says what was set aside.
type Aside struct {
	// Changes is how many there are, of so many Keys, from revision First to Last.
	Changes, Keys uint64
	First, Last   uint64
	// Compacted is the revision below which history had been dropped: of the changes
	// before it the file has the last one of each key, unless that was its delete. 0
	// when the file has all of them.
	Compacted uint64
}

// asideChange is a line of the file: what kv import takes, and more.
type asideChange struct {
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at"`
	Op       string    `json:"op"` // "put" or "delete"
	Key      string    `json:"key"`
	Flags    uint64    `json:"flags"`
	Value    []byte    `json:"value"`
}

// asidePage is how many changes are read under one view.
const asidePage = 1024

// SetAside writes all changes of users' keys behind a revision to a file, one JSON
// object per line, in their order. When it returns, the file is complete and durable;
// there is none when there are no changes, or on an error. A file of that name is not
// replaced.
func (s *State) SetAside(ctx context.Context, after uint64, path string) (a Aside, err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return a, fmt.Errorf("set changes aside: %s exists already", path)
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, dataFileMode)
	if err != nil {
		return a, fmt.Errorf("set changes aside: %w", err)
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(part) // unless it has its name by now
		if err != nil {
			err = fmt.Errorf("set changes aside: %w", err)
		}
	}()
	w := &asideWriter{out: bufio.NewWriterSize(f, 1<<20), keys: map[string]struct{}{}}
	if err := s.writeAside(ctx, after, w); err != nil {
		return a, err
	}
	w.Keys = uint64(len(w.keys))
	if w.Changes == 0 {
		return w.Aside, nil
	}
	if err := w.out.Flush(); err != nil {
		return a, err
	}
	if err := f.Sync(); err != nil {
		return a, err
	}
	if err := os.Rename(part, path); err != nil {
		return a, err
	}
	return w.Aside, syncPath(filepath.Dir(path))
}

// writeAside writes what is kept of the changes behind a revision.
func (s *State) writeAside(ctx context.Context, after uint64, w *asideWriter) error {
	if oldest := s.OldestRevision(); after < oldest {
		w.Compacted = oldest
		if err := s.Export(ctx, "", oldest, func(rec command.Record) error {
			if rec.ModifyRevision <= after {
				return nil
			}
			return w.write(&command.Change{At: command.Position{Revision: rec.ModifyRevision}, Record: rec})
		}); err != nil {
			return err
		}
		after = oldest
	}
	at := command.Position{Revision: after, K: math.MaxUint32}
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if at, more, err = s.asidePage(at, w); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) asidePage(after command.Position, w *asideWriter) (at command.Position, more bool, err error) {
	v, err := s.view()
	if err != nil {
		return after, false, err
	}
	defer v.Close()
	n, at := 0, after
	var bad error
	err = v.ChangesAfter("", after, v.Revision(), func(c command.Change) bool {
		bad = w.write(&c)
		at, n = c.At, n+1
		return bad == nil && n < asidePage
	})
	return at, n == asidePage, errors.Join(err, bad)
}

type asideWriter struct {
	Aside
	out  *bufio.Writer
	keys map[string]struct{}
}

func (w *asideWriter) write(c *command.Change) error {
	line := asideChange{Revision: c.At.Revision, At: c.Wall.UTC(), Op: "put", Key: c.Record.Key, Flags: c.Record.Flags, Value: c.Record.Value}
	if c.Deleted {
		line.Op, line.Value = "delete", nil
	}
	b, err := json.Marshal(&line)
	if err != nil {
		return err
	}
	if w.Changes == 0 {
		w.First = line.Revision
	}
	w.Changes++
	w.First, w.Last = min(w.First, line.Revision), max(w.Last, line.Revision)
	w.keys[strings.Clone(line.Key)] = struct{}{}
	if _, err := w.out.Write(append(b, '\n')); err != nil {
		return err
	}
	return nil
}

// Empty makes the directory that of a node that does not exist yet: everything in it
// goes but what was set aside. It must hold no open state or logs, and is closed then.
// After a crash on the way nobody can start the node before EmptyRest has done the rest.
func (d *Dir) Empty() error {
	if err := d.change("that it is emptied", func(id *Identity) { id.Emptied = true }); err != nil {
		return err
	}
	if err := empty(d.path); err != nil {
		return err
	}
	return d.Close()
}

// EmptyRest completes an Empty that was cut short. done is false when there was none.
func EmptyRest(path string) (done bool, err error) {
	id, err := readIdentity(path)
	if err != nil || !id.Emptied {
		return false, nil // whatever is wrong, Inspect says it
	}
	lock, err := lockDir(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = unlock(lock) }()
	return true, empty(path)
}

// empty removes the identity last.
func empty(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == identityFile, name == lockFile, name == "lost+found", strings.HasPrefix(name, AsidePrefix):
		default:
			if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
				return err
			}
		}
	}
	if err := syncPath(path); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(path, identityFile)); err != nil {
		return err
	}
	return syncPath(path)
}
