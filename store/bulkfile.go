package store

import (
	"bytes"
	"hash/fnv"
	"os"

	"github.com/holdfast-db/holdfast/command"
)

// A bulkFile writes a file of the storage library from its front to its end. It is
// for tables whose records come in ascending order: there is nothing to be found,
// split or moved, and each page is written once. Nothing of it can be read before
// seal, with which it becomes a file like any other. The layout is that of
// boltPeek.
//
// The pages of the tables lie among one another in the order in which they were
// filled. What bbolt takes for granted holds: a page is used once; keys ascend; a
// branch has at least two pages below it, under the first key of each.
type bulkFile struct {
	f        *os.File
	pageSize int
	pages    uint64 // given out
	out      []byte // the last of them, not written yet
}

// bulkWrite is how many bytes are written at once.
const bulkWrite = 1 << 20

// bulkNoBucket is an empty bucket as it lies in its parent's leaf: its header and
// an empty leaf.
var bulkNoBucket = func() []byte {
	b := make([]byte, boltBucket+boltPageHeader)
	boltOrder.PutUint16(b[boltBucket+8:], boltLeafFlag)
	return b
}()

// newBulkFile begins to write f, which is empty and stays the caller's.
func newBulkFile(f *os.File) *bulkFile {
	return &bulkFile{f: f, pageSize: os.Getpagesize(), pages: 2} // the metas come last
}

// page gives out the pages for size bytes. They are zero, and to be filled before
// the next call.
func (b *bulkFile) page(size int) (id uint64, page []byte, err error) {
	if len(b.out) >= bulkWrite {
		if err := b.flush(); err != nil {
			return 0, nil, err
		}
	}
	n, have := (size+b.pageSize-1)/b.pageSize, len(b.out)
	b.out = append(b.out, make([]byte, n*b.pageSize)...)
	id, page = b.pages, b.out[have:]
	b.pages += uint64(n)
	boltOrder.PutUint64(page, id)
	boltOrder.PutUint32(page[12:], uint32(n-1))
	return id, page, nil
}

// flush writes the pages that were given out.
func (b *bulkFile) flush() error {
	at := int64(b.pages)*int64(b.pageSize) - int64(len(b.out))
	_, err := b.f.WriteAt(b.out, at)
	b.out = b.out[:0]
	return err
}

// bulkBucket is a table under its name.
type bulkBucket struct {
	name  []byte
	table *bulkTable
}

// seal writes what remains and makes the tables those of the file. Their names
// must ascend. Nothing is synced.
func (b *bulkFile) seal(tables []bulkBucket) error {
	top := b.plain(1)
	for _, t := range tables {
		root, err := t.table.finish()
		if err != nil {
			return err
		}
		bucket := make([]byte, boltBucket)
		boltOrder.PutUint64(bucket, root)
		if err := top.add(t.name, bucket, boltBucketFlag); err != nil {
			return err
		}
	}
	root, err := top.finish()
	if err != nil {
		return err
	}
	free, page, err := b.page(boltPageHeader) // an empty list
	if err != nil {
		return err
	}
	boltOrder.PutUint16(page[8:], boltFreeFlag)
	if err := b.flush(); err != nil {
		return err
	}
	metas := make([]byte, 2*b.pageSize)
	for i := range 2 {
		page := metas[i*b.pageSize:]
		boltOrder.PutUint64(page, uint64(i))
		boltOrder.PutUint16(page[8:], boltMetaFlag)
		meta := page[boltPageHeader:]
		boltOrder.PutUint32(meta, boltMagic)
		boltOrder.PutUint32(meta[4:], boltVersion)
		boltOrder.PutUint32(meta[8:], uint32(b.pageSize))
		boltOrder.PutUint64(meta[16:], root)
		boltOrder.PutUint64(meta[32:], free)
		boltOrder.PutUint64(meta[40:], b.pages)
		boltOrder.PutUint64(meta[48:], uint64(i)) // the transaction
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:56])
		boltOrder.PutUint64(meta[56:], sum.Sum64())
	}
	_, err = b.f.WriteAt(metas, 0)
	return err
}

// bulkTable is a table of a bulkFile. Of each level of its tree, from the leaves
// up, one page is being filled.
type bulkTable struct {
	file   *bulkFile
	full   int // bytes in a page, above which it takes no further element
	levels []bulkNode
	// records is how many were put.
	records uint64
}

// bulkNode is what a page is made of, and up to two elements of the next.
type bulkNode struct {
	items []bulkItem
	data  []byte // keys and values
	// fits is how many items the page takes; 0 while it takes them all.
	fits int
}

type bulkItem struct {
	at, key, value uint32 // where the key lies in data; lengths
	flags          uint32 // in a leaf
	child          uint64 // in a branch
}

// bulkLeast is how many elements a page has at least, unless it is a root: else
// bbolt could not merge it with its neighbour. A page runs on over several for it.
const bulkLeast = 2

// table returns a new table, with its mark. fill is the part of a page to be used.
func (b *bulkFile) table(fill float64) *bulkTable {
	t := b.plain(fill)
	t.levels[0].append(bulkItem{flags: boltBucketFlag}, tableMark, bulkNoBucket, t.full)
	return t
}

func (b *bulkFile) plain(fill float64) *bulkTable {
	return &bulkTable{file: b, full: int(fill * float64(b.pageSize)), levels: make([]bulkNode, 1)}
}

// put adds a record, whose key must follow all before. It does not keep key and
// value.
func (t *bulkTable) put(key, value []byte) error {
	leaf := &t.levels[0]
	last := leaf.items[len(leaf.items)-1] // the mark, if nothing else
	if bytes.Compare(key, leaf.keyOf(last)) <= 0 {
		return command.ErrDamaged.With("key %q comes after the place it belongs to", key)
	}
	t.records++
	return t.add(key, value, 0)
}

func (t *bulkTable) add(key, value []byte, flags uint32) error {
	t.levels[0].append(bulkItem{flags: flags}, key, value, t.full)
	return t.settle(0)
}

// settle closes the page of a level when the next one has all it needs.
func (t *bulkTable) settle(level int) error {
	n := &t.levels[level]
	if n.fits == 0 || len(n.items) < n.fits+bulkLeast {
		return nil
	}
	return t.closePage(level, n.fits)
}

// closePage writes the first items of a level as a page and hangs it into the level
// above.
func (t *bulkTable) closePage(level, items int) error {
	id, err := t.write(level, items)
	if err != nil {
		return err
	}
	if level+1 == len(t.levels) {
		t.levels = append(t.levels, bulkNode{})
	}
	n := &t.levels[level]
	t.levels[level+1].append(bulkItem{child: id}, n.keyOf(n.items[0]), nil, t.full)
	n.drop(items)
	return t.settle(level + 1)
}

// finish closes all pages and returns the root.
func (t *bulkTable) finish() (root uint64, err error) {
	for level := 0; ; level++ {
		n := &t.levels[level]
		if n.fits > 0 && len(n.items) >= 2*bulkLeast { // what is left is too little for a page
			if err := t.closePage(level, len(n.items)-bulkLeast); err != nil {
				return 0, err
			}
			n = &t.levels[level]
		}
		if level+1 == len(t.levels) {
			return t.write(level, len(n.items))
		}
		if err := t.closePage(level, len(n.items)); err != nil {
			return 0, err
		}
	}
}

// write writes the first items of a level as a page.
func (t *bulkTable) write(level, items int) (id uint64, err error) {
	n := &t.levels[level]
	data := n.data[:n.end(items)]
	id, page, err := t.file.page(boltPageHeader + items*boltElement + len(data))
	if err != nil {
		return 0, err
	}
	flag := uint16(boltBranchFlag)
	if level == 0 {
		flag = boltLeafFlag
	}
	boltOrder.PutUint16(page[8:], flag)
	boltOrder.PutUint16(page[10:], uint16(items))
	heads := page[boltPageHeader:]
	for i := range n.items[:items] {
		item, head := &n.items[i], heads[i*boltElement:]
		pos := item.at + uint32((items-i)*boltElement) // from the head on
		if level == 0 {
			boltOrder.PutUint32(head, item.flags)
			boltOrder.PutUint32(head[4:], pos)
			boltOrder.PutUint32(head[8:], item.key)
			boltOrder.PutUint32(head[12:], item.value)
		} else {
			boltOrder.PutUint32(head, pos)
			boltOrder.PutUint32(head[4:], item.key)
			boltOrder.PutUint64(head[8:], item.child)
		}
	}
	copy(heads[items*boltElement:], data)
	return id, nil
}

// append adds an item. Pages are full at that many bytes.
func (n *bulkNode) append(item bulkItem, key, value []byte, full int) {
	item.at, item.key, item.value = uint32(len(n.data)), uint32(len(key)), uint32(len(value))
	n.items = append(n.items, item)
	n.data = append(append(n.data, key...), value...)
	if n.fits == 0 && len(n.items) > bulkLeast && boltPageHeader+len(n.items)*boltElement+len(n.data) > full {
		n.fits = len(n.items) - 1
	}
}

// drop removes the first items.
func (n *bulkNode) drop(items int) {
	end := n.end(items)
	n.items = n.items[:copy(n.items, n.items[items:])]
	n.data = n.data[:copy(n.data, n.data[end:])]
	for i := range n.items {
		n.items[i].at -= end
	}
	n.fits = 0
}

// end is where the data of the first items ends.
func (n *bulkNode) end(items int) uint32 {
	if items == len(n.items) {
		return uint32(len(n.data))
	}
	return n.items[items].at
}

func (n *bulkNode) keyOf(item bulkItem) []byte { return n.data[item.at : item.at+item.key] }
