package store

import (
	"sort"
	"strings"
	"time"

	"github.com/tidwall/btree"

	"github.com/holdfast-db/holdfast/command"
)

// View is one consistent state: a read transaction of the file and the layers
// over it, taken together. It implements command.View.
//
// A view must be closed, and within ten seconds: until then the file cannot
// reuse the pages it sees. It may not be used by two goroutines at once.
// Records it returned stay valid after Close.
type View struct {
	overlay
	gen *generation
}

var _ command.View = (*View)(nil)

// Close ends the view. A second Close does nothing.
func (v *View) Close() { v.overlay.close() }

// Revision is the store's counter at this view.
func (v *View) Revision() uint64 { return v.gen.meta.Revision }

// Applied is the Raft index of the last entry in this view.
func (v *View) Applied() uint64 { return v.gen.meta.Applied }

// Lineage is the rolling hash over all changes up to Revision.
func (v *View) Lineage() command.Lineage { return command.Lineage(v.gen.meta.Lineage) }

// KVRevision is the last revision at which any key changed.
func (v *View) KVRevision() uint64 { return v.gen.meta.KVRevision }

// MembersRevision is the last revision at which a member changed.
func (v *View) MembersRevision() uint64 { return v.gen.meta.MembersRevision }

// OldestRevision is the oldest revision GetAt and ScanAt answer for.
func (v *View) OldestRevision() uint64 { return v.gen.meta.Oldest }

// Cluster is the cluster's identity; the zero value before Init.
func (v *View) Cluster() command.Cluster { return v.gen.meta.Cluster }

// Members lists all members, ordered by ID.
func (v *View) Members() ([]command.Member, error) { return memberList(v.gen.members), nil }

// Stamp is the cluster time of the last applied entry, and its wall time.
func (v *View) Stamp() (command.Stamp, time.Time) {
	return v.gen.meta.Stamp, time.Unix(0, v.gen.meta.Wall)
}

// Get returns the record of key, or command.ErrKeyNotFound, or
// command.ErrDamaged.
func (v *View) Get(key string) (command.Record, error) {
	l, ok, err := v.find(key, false)
	if err != nil {
		return command.Record{}, err
	}
	if !ok || l.deleted {
		return command.Record{}, command.ErrKeyNotFound
	}
	return v.record(key, l, nil)
}

// Scan calls fn for each record whose key starts with prefix and is greater
// than after, in ascending byte order, until fn returns false.
func (v *View) Scan(prefix, after string, fn func(command.Record) bool) error {
	return v.scanRecords(prefix, behindSystem(prefix, after), fn)
}

// ScanKeys is Scan without reading values.
func (v *View) ScanKeys(prefix, after string, fn func(key string, modifyRevision uint64) bool) error {
	return v.scan(prefix, behindSystem(prefix, after), false, func(key string, l located) (bool, error) {
		return fn(strings.Clone(key), l.at.rev), nil
	})
}

// PrefixRevision is the last revision at which a key under the prefix was
// changed or deleted; KVRevision when nothing is known of the prefix. Since the
// deletes below the compaction point are forgotten, it is at least the newest of
// those, wherever it was: who knows an older one must learn of a delete. It
// walks all keys under the prefix, but not their values.
func (v *View) PrefixRevision(prefix string) (uint64, error) {
	newest := v.gen.meta.KVRevision
	if prefix == "" {
		return newest, nil
	}
	var last uint64
	err := v.scan(prefix, "", true, func(_ string, l located) (bool, error) {
		last = max(last, l.at.rev)
		return last < newest, nil
	})
	if last == 0 {
		return newest, err
	}
	return max(last, v.gen.meta.Buried), err
}

func memberList(rows []member) []command.Member {
	list := make([]command.Member, len(rows))
	for i, m := range rows {
		list[i] = m.Member
	}
	return list
}

func memberRow(rows []member, id string) (i int, ok bool) {
	i = sort.Search(len(rows), func(i int) bool { return rows[i].ID >= id })
	return i, i < len(rows) && rows[i].ID == id
}

// overlay reads a state as layers over a file. A layer hides what is below it.
type overlay struct {
	top, under *layer // under may be nil
	// oldest is the compaction point: a delete below it is as if the key had
	// never been, whether its record is still there or not.
	oldest uint64
	// limit, when not 0, is the revision to read at: the file may hold later ones.
	limit uint64
	file  *fileTx
	// open gives the file transaction when it is first needed; nil when file
	// was opened from the start.
	open func() (*fileTx, error)
}

func (o *overlay) close() {
	if o.file != nil {
		o.file.close()
		o.file = nil
	}
	o.open = nil
}

func (o *overlay) tx() (*fileTx, error) {
	if o.file == nil {
		if o.open == nil {
			return nil, command.ErrStopping.With("view is closed")
		}
		var err error
		if o.file, err = o.open(); err != nil {
			return nil, err
		}
	}
	return o.file, nil
}

// located is where a key's change is found: in memory, or in the file, where the
// pointer leads to it.
type located struct {
	at      position
	deleted bool
	change  *change // nil: in the file
	filed   pointer // when in the file
}

func inMemory(c *change) located { return located{at: c.at, deleted: c.deleted, change: c} }

func inFile(p pointer) located { return located{at: p.at, deleted: p.deleted, filed: p} }

// pointer is the pointer to the change.
func (l *located) pointer() pointer {
	if l.change != nil {
		return l.change.pointer()
	}
	return l.filed
}

// valueSize is the size of the value of a key that is not deleted.
func (l *located) valueSize() uint64 {
	if l.change != nil {
		return uint64(len(l.change.rec.Value))
	}
	return l.filed.size
}

// forgotten reports whether the change is a delete below the compaction point.
func (o *overlay) forgotten(l located) bool { return l.deleted && l.at.rev < o.oldest }

// find returns the key's last change. With buried, a deleted key's delete is
// found unless it is forgotten; without, it may be missing.
func (o *overlay) find(key string, buried bool) (l located, ok bool, err error) {
	if c, found := o.top.get(key); found {
		l, ok = inMemory(c), true
	} else if c, found := o.under.get(key); found {
		l, ok = inMemory(c), true
	} else {
		t, err := o.tx()
		if err != nil {
			return located{}, false, err
		}
		p, found, err := t.find(key, buried || o.limit > 0)
		if err != nil {
			return located{}, false, err
		}
		l, ok = inFile(p), found
	}
	if ok && o.limit > 0 {
		if l, ok, err = o.asOf(key, l, o.limit); err != nil {
			return located{}, false, err
		}
	}
	if ok && o.forgotten(l) {
		return located{}, false, nil
	}
	return l, ok, nil
}

// noted makes damage that was found in the file known, and returns err.
func (o *overlay) noted(err error) error {
	if o.file == nil {
		return err
	}
	return o.file.noted(err)
}

// load makes c the change at p, which must be there; c is valid until the overlay
// is closed.
func (o *overlay) load(p position, key string, c *change) error {
	ok, err := o.lookup(p, key, c)
	if err == nil && !ok {
		err = o.noted(damagedChange(p, command.ErrDamaged.With("history has no revision %d.%d", p.rev, p.k)))
	}
	return err
}

// lookup is load for a change that may not be there.
func (o *overlay) lookup(p position, key string, c *change) (ok bool, err error) {
	for _, l := range [...]*layer{o.top, o.under} {
		if m := l.at(p); m != nil {
			*c = *m
			return true, nil
		}
	}
	t, err := o.tx()
	if err != nil {
		return false, err
	}
	return t.change(p, key, c)
}

// record returns the record of a located key that is not deleted. With values,
// they are copied into that arena, else into memory of their own.
func (o *overlay) record(key string, l located, values *arena) (command.Record, error) {
	if l.change != nil {
		return l.change.rec, nil
	}
	rec, err := o.peek(key, l)
	if err != nil {
		return command.Record{}, err
	}
	if values == nil {
		rec.Value = append(make([]byte, 0, len(rec.Value)), rec.Value...)
	} else {
		rec.Value = values.copy(rec.Value)
	}
	return rec, nil
}

// peek is record with a value that is valid until the overlay is closed.
func (o *overlay) peek(key string, l located) (command.Record, error) {
	if l.change != nil {
		return l.change.rec, nil
	}
	var c change
	if err := o.load(l.at, key, &c); err != nil {
		return command.Record{}, err
	}
	if c.deleted || c.table != tableKV {
		return command.Record{}, o.misled(key, "it leads to a delete")
	}
	return c.rec, nil
}

// misled is damage of a key's pointer.
func (o *overlay) misled(key, problem string) error {
	return o.noted(damagedAt(bucketKeys, bytesOf(key), command.ErrDamaged.With("pointer of key %q: %s", key, problem)))
}

// asOf walks back from a key's last change to the one that held at rev.
func (o *overlay) asOf(key string, l located, rev uint64) (located, bool, error) {
	for l.at.rev > rev {
		var c change
		if l.change != nil {
			c = *l.change
		} else if err := o.load(l.at, key, &c); err != nil {
			return located{}, false, err
		}
		if c.prev.zero() || c.prev.rev < o.oldest && c.created() {
			return located{}, false, nil // what was before is at most a forgotten delete
		}
		if !c.prev.less(l.at) {
			return located{}, false, o.noted(damagedChange(l.at, command.ErrDamaged.With("revision %d.%d follows a later one", l.at.rev, l.at.k)))
		}
		var p change
		if err := o.load(c.prev, key, &p); err != nil {
			return located{}, false, err
		}
		l = inFile(p.pointer())
	}
	return l, true, nil
}

func (o *overlay) scanRecords(prefix, after string, fn func(command.Record) bool) error {
	var values arena
	return o.scan(prefix, after, false, func(key string, l located) (bool, error) {
		if l.change != nil {
			return fn(l.change.rec), nil
		}
		rec, err := o.record(strings.Clone(key), l, &values)
		return err == nil && fn(rec), err
	})
}

// source is one ordered run of keys that takes part in a scan.
type source struct {
	key  string // of a file, valid until the next step
	ok   bool
	tree btree.MapIter[string, *change]
	file *fileCursor
	tomb bool
}

func (s *source) seek(key string) (err error) {
	if s.file == nil {
		s.ok = s.tree.Seek(key)
	} else {
		err = s.file.seek(bytesOf(key))
	}
	s.settle()
	return err
}

func (s *source) next() (err error) {
	if s.file == nil {
		s.ok = s.tree.Next()
	} else {
		err = s.file.next()
	}
	s.settle()
	return err
}

func (s *source) settle() {
	switch {
	case s.file != nil:
		s.ok = s.file.k != nil
		s.key = textOf(s.file.k)
	case s.ok:
		s.key = s.tree.Key()
	}
}

func (s *source) located() (located, error) {
	if s.file == nil {
		return inMemory(s.tree.Value()), nil
	}
	table := bucketKeys
	if s.tomb {
		table = bucketTombs
	}
	p, err := decodePointerIn(s.tomb, s.file.k, s.file.v)
	return inFile(p), damagedAt(table, s.file.k, err)
}

// scan calls fn for each key under prefix and after the given one, in order,
// until fn returns false or an error. A key is valid during the call only.
// With buried, deleted keys are among them.
func (o *overlay) scan(prefix, after string, buried bool, fn func(key string, l located) (bool, error)) error {
	t, err := o.tx()
	if err != nil {
		return err
	}
	// Ordered by precedence: of equal keys, the first source's counts.
	sources := make([]source, 0, 4)
	for _, l := range [...]*layer{o.top, o.under} {
		if l != nil && l.keys.Len() > 0 {
			sources = append(sources, source{tree: l.keys.Iter()})
		}
	}
	keys, err := t.cursor(bucketKeys)
	if err != nil {
		return err
	}
	sources = append(sources, source{file: &fileCursor{c: keys}})
	if buried || o.limit > 0 {
		tombs, err := t.cursor(bucketTombs)
		if err != nil {
			return err
		}
		sources = append(sources, source{file: &fileCursor{c: tombs}, tomb: true})
	}
	from := max(prefix, after)
	for i := range sources {
		if err := sources[i].seek(from); err != nil {
			return o.noted(damagedFile(err))
		}
	}
	for {
		first := -1
		for i := range sources {
			if s := &sources[i]; s.ok && (first < 0 || s.key < sources[first].key) {
				first = i
			}
		}
		if first < 0 || !strings.HasPrefix(sources[first].key, prefix) {
			return nil
		}
		key := sources[first].key
		l, err := sources[first].located()
		if err != nil {
			return o.noted(err)
		}
		ok := key > after || after == ""
		if ok && o.limit > 0 {
			if l, ok, err = o.asOf(key, l, o.limit); err != nil {
				return err
			}
		}
		if ok && (buried || !l.deleted) && !o.forgotten(l) {
			if more, err := fn(key, l); err != nil || !more {
				return err
			}
		}
		// Move the sources that hold the same key, the first of them last:
		// its key is what the others are compared with.
		for i := len(sources) - 1; i >= first; i-- {
			if s := &sources[i]; s.ok && s.key == key {
				if err := s.next(); err != nil {
					return o.noted(damagedFile(err))
				}
			}
		}
	}
}
