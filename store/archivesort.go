package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/holdfast-db/holdfast/command"
)

// keySorter sorts keys that come in any order, with bounded memory: what is too
// much for it waits in temporary files, sorted.
type keySorter struct {
	dir string

	page  []byte // the keys held, as a page of pointers
	held  []heldKey
	spilt []*os.File
}

// heldKey is where a key's part of the page begins, its name does, and both end.
type heldKey struct{ from, name, end uint32 }

// sorterBytes bounds the memory a sorter holds keys in. A variable for tests.
var sorterBytes = 64 << 20

func (s *keySorter) key(k heldKey) []byte { return s.page[k.name:k.end] }

// add takes a key and where it leads.
func (s *keySorter) add(key string, p pointer) error {
	from := len(s.page)
	s.page = appendPointer(s.page, key, p)
	s.held = append(s.held, heldKey{uint32(from), uint32(len(s.page) - len(key)), uint32(len(s.page))})
	if len(s.page)+12*len(s.held) < sorterBytes {
		return nil
	}
	return s.spill()
}

// spill writes what is held to a file of its own.
func (s *keySorter) spill() error {
	s.sort()
	f, err := nameless(s.dir)
	if err != nil {
		return err
	}
	s.spilt = append(s.spilt, f)
	w := bufio.NewWriterSize(f, 64<<10)
	for _, k := range s.held {
		if _, err := w.Write(s.page[k.from:k.end]); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	s.page, s.held = s.page[:0], s.held[:0]
	_, err = f.Seek(0, io.SeekStart)
	return err
}

func (s *keySorter) sort() {
	slices.SortFunc(s.held, func(a, b heldKey) int { return bytes.Compare(s.key(a), s.key(b)) })
}

// each calls fn for each key in order, as it stands in a page of pointers. A key
// that came twice is command.ErrArchive. The sorter cannot be used again.
func (s *keySorter) each(fn func(pointer []byte) error) error {
	s.sort()
	runs := make([]keyRun, 0, len(s.spilt)+1)
	for _, f := range s.spilt {
		runs = append(runs, keyRun{file: bufio.NewReaderSize(f, 64<<10)})
	}
	runs = append(runs, keyRun{held: s})
	for i := range runs {
		if err := runs[i].next(); err != nil {
			return err
		}
	}
	var last []byte
	for {
		var first *keyRun
		for i := range runs {
			if r := &runs[i]; r.pointer != nil && (first == nil || bytes.Compare(r.key(), first.key()) < 0) {
				first = r
			}
		}
		if first == nil {
			return nil
		}
		if last != nil && bytes.Equal(last, first.key()) {
			return command.ErrArchive.With("key %q is in it twice", last)
		}
		last = append(last[:0], first.key()...)
		if err := fn(first.pointer); err != nil {
			return err
		}
		if err := first.next(); err != nil {
			return err
		}
	}
}

func (s *keySorter) close() {
	for _, f := range s.spilt {
		_ = f.Close()
	}
}

// keyRun is keys in order: of a file, or those still held.
type keyRun struct {
	file    *bufio.Reader
	held    *keySorter
	n       int    // how many of the held ones have been had
	pointer []byte // the present one, nil at the end
	buf     []byte
}

func (r *keyRun) key() []byte { return r.pointer[pointerHead+int(r.pointer[2]):] }

func (r *keyRun) next() error {
	r.pointer = nil
	if r.held != nil {
		if r.n < len(r.held.held) {
			k := r.held.held[r.n]
			r.pointer = r.held.page[k.from:k.end]
			r.n++
		}
		return nil
	}
	head, err := r.file.Peek(pointerHead)
	if errors.Is(err, io.EOF) && len(head) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	size := pointerHead + int(head[2]) + int(binary.BigEndian.Uint16(head))
	r.buf = slices.Grow(r.buf[:0], size)[:size]
	if _, err := io.ReadFull(r.file, r.buf); err != nil {
		return err
	}
	r.pointer = r.buf
	return nil
}
