//go:build linux

package faultfs

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
)

// Kind is a kind of operation that changes something.
type Kind uint8

// The kinds.
const (
	Write Kind = iota + 1
	Truncate
	Fallocate
	Fsync
	Create
	Mkdir
	Rename
	Unlink
	Rmdir
	FsyncDir
	// dropped is a failed Fsync, as the journal has it.
	dropped
)

var kindNames = [...]string{"", "write", "truncate", "fallocate", "fsync", "create", "mkdir", "rename", "unlink", "rmdir", "fsyncdir", "failed fsync"}

func (k Kind) String() string { return kindNames[k] }

// allocates says whether an operation may fail for want of space.
func (k Kind) allocates() bool {
	return k == Write || k == Fallocate || k == Create || k == Mkdir
}

// operation is one step of the journal. The same operations applied to the same
// tree give the same tree.
type operation struct {
	kind     Kind
	ino      uint64 // of the file, or of the directory that holds name
	name     string
	to       uint64 // of a rename
	newName  string
	off, end int64 // of a write or fallocate; end is the length a truncate asks for
	data     []byte
	mode     uint32
	failed   bool // without effect, but for dropped and a torn write
}

// tree is a file system's content, as it is and as it is on disk.
type tree struct {
	nodes map[uint64]*node // by inode number
	last  uint64           // highest number in use
	// pending are the changes of names that are not durable, oldest first.
	pending []*naming
}

const rootIno = 1

type node struct {
	ino  uint64
	mode uint32 // with the type of file
	name string // it was last known by

	// Of a directory: what its names lead to.
	names, durableNames map[string]uint64

	// Of a file.
	now, durable image
	dirty        map[int64]bool // pages that the next fsync makes durable
	// versions are what each page was since it last became durable, oldest
	// first, and sizes what the length was.
	versions map[int64][]*page
	sizes    []int64
}

// image is the content of a file. Pages that are absent are zero.
type image struct {
	pages map[int64]*page
	size  int64
}

const (
	pageSize   = 4096
	sectorSize = 512
)

// page is never changed once an image holds it.
type page [pageSize]byte

// slot is a name in a directory.
type slot struct {
	dir  uint64
	name string
}

// naming is one change of names, made as a whole.
type naming struct {
	set map[slot]uint64 // 0: the name goes
	by  uint64          // the directory whose sync makes it durable
}

func newTree() *tree {
	t := &tree{nodes: map[uint64]*node{}}
	t.add(syscall.S_IFDIR|0o755, "")
	return t
}

func (t *tree) add(mode uint32, name string) *node {
	t.last++
	n := &node{ino: t.last, mode: mode, name: name}
	if n.isDir() {
		n.names, n.durableNames = map[string]uint64{}, map[string]uint64{}
	} else {
		n.now.pages, n.durable.pages = map[int64]*page{}, map[int64]*page{}
		n.dirty, n.versions = map[int64]bool{}, map[int64][]*page{}
	}
	t.nodes[n.ino] = n
	return n
}

func (n *node) isDir() bool { return n.mode&syscall.S_IFMT == syscall.S_IFDIR }

// lookup returns what a name leads to, nil when nothing.
func (t *tree) lookup(dir uint64, name string) *node {
	if d := t.nodes[dir]; d != nil && d.isDir() {
		return t.nodes[d.names[name]]
	}
	return nil
}

// apply carries out an operation. It returns the node made, if one is.
func (t *tree) apply(o *operation) (*node, syscall.Errno) {
	if o.failed && o.kind != dropped && o.kind != Write {
		return nil, 0
	}
	n := t.nodes[o.ino]
	if n == nil {
		return nil, syscall.ENOENT
	}
	switch o.kind {
	case Write:
		n.write(o.off, o.data)
	case Truncate:
		n.truncate(o.end)
	case Fallocate:
		if o.end > n.now.size {
			n.truncate(o.end)
		}
	case Fsync:
		n.sync()
	case dropped:
		clear(n.dirty)
	case FsyncDir:
		for i := 0; i < len(t.pending); i++ {
			if t.pending[i].by == n.ino {
				t.commit(t.pending[i])
				i = -1 // commit has changed the list
			}
		}
	default:
		return t.rename(n, o)
	}
	return nil, 0
}

// rename carries out an operation on names in directory d.
func (t *tree) rename(d *node, o *operation) (made *node, _ syscall.Errno) {
	old := t.nodes[d.names[o.name]]
	change := &naming{by: d.ino, set: map[slot]uint64{}}
	switch o.kind {
	case Create, Mkdir:
		if old != nil {
			return nil, syscall.EEXIST
		}
		made = t.add(o.mode, o.name)
		change.set[slot{d.ino, o.name}] = made.ino
	case Unlink, Rmdir:
		if old == nil {
			return nil, syscall.ENOENT
		}
		if o.kind == Rmdir && len(old.names) > 0 {
			return nil, syscall.ENOTEMPTY
		}
		change.set[slot{d.ino, o.name}] = 0
	case Rename:
		if old == nil || t.nodes[o.to] == nil {
			return nil, syscall.ENOENT
		}
		if into := t.lookup(o.to, o.newName); into != nil && len(into.names) > 0 {
			return nil, syscall.ENOTEMPTY
		}
		change.by = o.to
		change.set[slot{d.ino, o.name}] = 0
		change.set[slot{o.to, o.newName}] = old.ino
		old.name = o.newName
	}
	for s, ino := range change.set {
		set(t.nodes[s.dir].names, s.name, ino)
	}
	t.pending = append(t.pending, change)
	return made, 0
}

func set(names map[string]uint64, name string, ino uint64) {
	if ino == 0 {
		delete(names, name)
	} else {
		names[name] = ino
	}
}

// commit makes a change of names durable, after those before it that it builds
// upon.
func (t *tree) commit(c *naming) {
	for i := slices.Index(t.pending, c) - 1; i >= 0; i-- {
		p := t.pending[i]
		for s := range c.set {
			if _, shared := p.set[s]; shared {
				t.commit(p)
				i = slices.Index(t.pending, c)
				break
			}
		}
	}
	for s, ino := range c.set {
		set(t.nodes[s.dir].durableNames, s.name, ino)
	}
	i := slices.Index(t.pending, c)
	t.pending = slices.Delete(t.pending, i, i+1)
}

func (n *node) write(off int64, data []byte) {
	for len(data) > 0 {
		i, at := off/pageSize, off%pageSize
		p := new(page)
		if old := n.now.pages[i]; old != nil {
			*p = *old
		}
		k := copy(p[at:], data)
		n.put(i, p)
		off, data = off+int64(k), data[k:]
	}
	if off > n.now.size {
		n.resize(off)
	}
}

// put replaces a page.
func (n *node) put(i int64, p *page) {
	n.now.pages[i] = p
	n.dirty[i] = true
	n.versions[i] = append(n.versions[i], p)
}

func (n *node) resize(size int64) {
	n.now.size = size
	n.sizes = append(n.sizes, size)
}

func (n *node) truncate(size int64) {
	for i := range n.now.pages {
		if i*pageSize >= size {
			n.put(i, new(page))
			delete(n.now.pages, i)
		}
	}
	if p := n.now.pages[size/pageSize]; p != nil && size < n.now.size {
		cut := new(page)
		copy(cut[:size%pageSize], p[:])
		n.put(size/pageSize, cut)
	}
	n.resize(size)
}

func (n *node) sync() {
	for i := range n.dirty {
		if p := n.now.pages[i]; p != nil {
			n.durable.pages[i] = p
		} else {
			delete(n.durable.pages, i)
		}
		delete(n.versions, i)
	}
	clear(n.dirty)
	n.durable.size, n.sizes = n.now.size, nil
}

// read copies from the file and returns how much there was.
func (n *node) read(b []byte, off int64) int {
	if off >= n.now.size {
		return 0
	}
	b = b[:min(int64(len(b)), n.now.size-off)]
	for done := 0; done < len(b); {
		i, at := (off+int64(done))/pageSize, (off+int64(done))%pageSize
		var k int
		if p := n.now.pages[i]; p != nil {
			k = copy(b[done:], p[at:])
		} else {
			k = min(len(b)-done, int(pageSize-at))
			clear(b[done : done+k])
		}
		done += k
	}
	return len(b)
}

func (m image) clone() image { return image{maps.Clone(m.pages), m.size} }

// clone returns a tree that shares nothing with t that may change.
func (t *tree) clone() *tree {
	c := &tree{nodes: make(map[uint64]*node, len(t.nodes)), last: t.last, pending: slices.Clone(t.pending)}
	for ino, n := range t.nodes {
		d := *n
		d.names, d.durableNames = maps.Clone(n.names), maps.Clone(n.durableNames)
		d.now, d.durable = n.now.clone(), n.durable.clone()
		d.dirty, d.versions, d.sizes = maps.Clone(n.dirty), maps.Clone(n.versions), slices.Clone(n.sizes)
		for i, v := range d.versions {
			d.versions[i] = slices.Clone(v)
		}
		c.nodes[ino] = &d
	}
	return c
}

// crash makes of t what is on disk after a loss of power. With seed 0 that is
// what was durable, else also a random choice of what was not.
func (t *tree) crash(seed uint64) {
	l := &loss{}
	if seed != 0 {
		l.r = rand.New(rand.NewPCG(seed, 0xfa17))
		l.keep = []float64{0.1, 0.5, 0.9, 1}[l.r.IntN(4)]
		l.sector = []int{sectorSize, pageSize}[l.r.IntN(2)]
		l.inOrder = l.r.IntN(2) == 0
	}
	l.names(t)
	reached := map[uint64]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		reached[n.ino] = true
		n.names = maps.Clone(n.durableNames)
		for _, ino := range n.durableNames {
			if child := t.nodes[ino]; !reached[ino] && child.isDir() {
				walk(child)
			} else {
				reached[ino] = true
			}
		}
	}
	walk(t.nodes[rootIno])
	for _, ino := range slices.Sorted(maps.Keys(t.nodes)) { // in order, for the seed's sake
		n := t.nodes[ino]
		switch {
		case !reached[ino]:
			delete(t.nodes, ino)
		case !n.isDir():
			n.durable = l.content(n)
			n.now = n.durable.clone()
			n.sizes = nil
			clear(n.dirty)
			clear(n.versions)
		}
	}
	t.pending = nil
}

// loss is one choice of what a loss of power leaves.
type loss struct {
	r       *rand.Rand // nil: nothing that was not durable
	keep    float64    // chance of anything to be there in its newest form
	sector  int
	inOrder bool // names are kept in the order they changed, as a journal does it
}

func (l *loss) chance() bool { return l.r.Float64() < l.keep }

func (l *loss) names(t *tree) {
	if l.r == nil {
		return
	}
	var kept []*naming
	for _, c := range t.pending {
		if l.chance() {
			kept = append(kept, c)
		} else if l.inOrder {
			break
		}
	}
	for _, c := range kept {
		if slices.Contains(t.pending, c) { // it may have been taken along
			t.commit(c)
		}
	}
}

// pick returns one of n versions, mostly the newest.
func (l *loss) pick(n int) int {
	if l.chance() {
		return n - 1
	}
	return l.r.IntN(n)
}

func (l *loss) content(n *node) image {
	m := n.durable.clone()
	if l.r == nil {
		return m
	}
	for _, i := range slices.Sorted(maps.Keys(n.versions)) {
		was := m.pages[i]
		if was == nil {
			was = new(page)
		}
		versions := append([]*page{was}, n.versions[i]...)
		p := new(page)
		for at := 0; at < pageSize; at += l.sector {
			copy(p[at:at+l.sector], versions[l.pick(len(versions))][at:])
		}
		m.pages[i] = p
	}
	sizes := append([]int64{m.size}, n.sizes...)
	m.size = sizes[l.pick(len(sizes))]
	for i, p := range m.pages {
		switch {
		case i*pageSize >= m.size:
			delete(m.pages, i)
		case i == m.size/pageSize:
			cut := new(page)
			copy(cut[:m.size%pageSize], p[:])
			m.pages[i] = cut
		}
	}
	return m
}

// describe says what an operation does, for people.
func (t *tree) describe(o *operation) string {
	name := func(ino uint64) string {
		if n := t.nodes[ino]; n != nil && n.name != "" {
			return n.name
		}
		return "."
	}
	switch o.kind {
	case Write:
		return fmt.Sprintf("write %s [%d, %d)", name(o.ino), o.off, o.end)
	case Truncate, Fallocate:
		return fmt.Sprintf("%v %s to %d", o.kind, name(o.ino), o.end)
	case Fsync, FsyncDir, dropped:
		return fmt.Sprintf("%v %s", o.kind, name(o.ino))
	case Rename:
		return fmt.Sprintf("rename %s/%s to %s/%s", name(o.ino), o.name, name(o.to), o.newName)
	}
	return fmt.Sprintf("%v %s/%s", o.kind, name(o.ino), o.name)
}
