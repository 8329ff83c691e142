package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// A batch of a conversion is bounded by entries and by bytes.
const (
	convertEntries = 512
	convertBytes   = 4 << 20
)

// convertLogs moves the Raft log to the other kind of store.
//
// The two kinds have different names in the directory, and identity.json says
// which counts. So the new log is built and checked in its place while the old
// one counts; the switch is the rename of identity.json; then the old log goes.
// Whatever does not count after a crash is removed by the next OpenLogs.
func (d *Dir) convertLogs(from, to string) error {
	if err := d.removeLog(to); err != nil { // of an earlier attempt
		return err
	}
	size, err := logSize(filepath.Join(d.path, logStorePath(from)))
	if err != nil {
		return err
	}
	if free, err := freeSpace(d.path); err == nil && free < size+d.disk.reserve() {
		return fmt.Errorf("the copy needs up to %d MiB: %w", size>>20, ErrNoSpace)
	}
	src, err := d.openBackend(from)
	if err != nil {
		return err
	}
	defer src.Close()
	first, last, err := d.copyLog(src, to)
	if err != nil {
		return err
	}
	if err := d.verifyLog(src, to, first, last); err != nil {
		return err
	}
	if err := d.step("verify"); err != nil {
		return err
	}
	id := d.id
	id.LogStore = to
	if err := d.writeLocked(id); err != nil {
		return err
	}
	if err := d.step("switch"); err != nil {
		return err
	}
	d.log.Info("converted the Raft log", "from", from, "to", to, "first", first, "last", last)
	return nil
}

// copyLog copies all entries of src into a new log of kind to, durably, and
// returns their bounds.
//
// A store that allows gaps may have one where a snapshot was installed; what
// lies below it is older than the state and is of no use to Raft, which looks
// for an unbroken end. Only that end is copied.
func (d *Dir) copyLog(src logBackend, to string) (first, last uint64, err error) {
	dst, err := d.openBackend(to)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if cerr := dst.Close(); err == nil {
			err = cerr
		}
	}()
	if err := d.step("create " + to); err != nil {
		return 0, 0, err
	}
	if last, err = src.LastIndex(); err != nil || last == 0 {
		return 0, 0, err
	}
	if first, err = unbrokenFrom(src, last); err != nil {
		return 0, 0, err
	}
	var batch []*raft.Log
	size := 0
	for i := first; i <= last; i++ {
		e := new(raft.Log)
		if err := src.GetLog(i, e); err != nil {
			return 0, 0, fmt.Errorf("read entry %d: %w", i, err)
		}
		batch = append(batch, e)
		size += len(e.Data)
		if len(batch) < convertEntries && size < convertBytes && i < last {
			continue
		}
		if err := dst.StoreLogs(batch); err != nil {
			return 0, 0, fmt.Errorf("write entry %d: %w", batch[0].Index, err)
		}
		if err := d.step("copy batch"); err != nil {
			return 0, 0, err
		}
		batch, size = nil, 0
	}
	return first, last, nil
}

// unbrokenFrom returns the lowest index from which on no entry is missing.
func unbrokenFrom(src logBackend, last uint64) (uint64, error) {
	first, err := src.FirstIndex()
	if err != nil {
		return 0, err
	}
	if m, ok := src.(raft.MonotonicLogStore); ok && m.IsMonotonic() {
		return first, nil
	}
	for i := last; i > first; i-- {
		var e raft.Log
		err := src.GetLog(i-1, &e)
		if errors.Is(err, raft.ErrLogNotFound) {
			return i, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read entry %d: %w", i-1, err)
		}
	}
	return first, nil
}

// verifyLog opens the new log as a start would and compares it with the old.
func (d *Dir) verifyLog(src logBackend, to string, first, last uint64) error {
	dst, err := d.openBackend(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	gotFirst, err := dst.FirstIndex()
	if err != nil {
		return err
	}
	gotLast, err := dst.LastIndex()
	if err != nil {
		return err
	}
	if gotFirst != first || gotLast != last {
		return fmt.Errorf("the copy has entries %d to %d, not %d to %d", gotFirst, gotLast, first, last)
	}
	if last == 0 {
		return nil
	}
	for i := first; i <= last; i++ {
		var want, got raft.Log
		if err := src.GetLog(i, &want); err != nil {
			return fmt.Errorf("read entry %d: %w", i, err)
		}
		if err := dst.GetLog(i, &got); err != nil {
			return fmt.Errorf("read the copy of entry %d: %w", i, err)
		}
		if !sameEntry(&want, &got) {
			return fmt.Errorf("the copy of entry %d differs", i)
		}
	}
	return nil
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && a.AppendedAt.Equal(b.AppendedAt) &&
		bytes.Equal(a.Data, b.Data) && bytes.Equal(a.Extensions, b.Extensions)
}

// removeLog removes a log that does not count, durably.
func (d *Dir) removeLog(kind string) error {
	path := filepath.Join(d.path, logStorePath(kind))
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := d.step("remove " + kind); err != nil {
		return err
	}
	return syncPath(d.path)
}

// logSize is the space in bytes that the files of a log take at most.
func logSize(path string) (uint64, error) {
	var n uint64
	err := filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if err == nil {
			n += uint64(fi.Size())
		}
		return err
	})
	return n, err
}
