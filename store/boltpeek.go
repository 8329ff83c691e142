package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A boltPeek reads a bbolt file as it lies there. Opening it with bbolt would
// take a lock on it, and bbolt trusts what it reads: a file that was cut short
// ends the process. Here every offset is checked, and nothing is written.
//
// The layout: pages of one size, each starting with id (8 bytes), flags (2),
// count (2) and the number of pages it runs on over (4). Pages 0 and 1 are
// metas; the valid one with the higher transaction counts. Integers are in the
// machine's order.
type boltPeek struct {
	f    *os.File
	size int64  // of the file
	data []byte // the whole file, while verify runs
	boltMeta
}

type boltMeta struct {
	pageSize int64
	root     uint64 // page of the root bucket
	freelist uint64 // page of the list of free pages, or boltNoFreelist
	pages    uint64 // all pages in use have a lower id
	txid     uint64
}

const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	boltPageHeader = 16
	boltMetaSize   = 64
	boltElement    = 16
	boltBucket     = 16 // header of a bucket in its parent's leaf
	boltBranchFlag = 0x01
	boltLeafFlag   = 0x02
	boltMetaFlag   = 0x04
	boltFreeFlag   = 0x10
	boltBucketFlag = 0x01 // of an element: its value is a bucket
	boltNoFreelist = 1<<64 - 1
	boltMaxDepth   = 32
	boltMaxRead    = 64 << 20 // largest page, with its overflow, worth reading here
)

var boltOrder = binary.NativeEndian

// checkBoltFile returns an error when a bbolt file is absent or shorter than
// its own header says.
func checkBoltFile(path string) error {
	p, err := openBoltPeek(path)
	if err != nil {
		return err
	}
	return p.f.Close()
}

// openBoltPeek reads the header and compares it with the file's length.
func openBoltPeek(path string) (*boltPeek, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	p := &boltPeek{f: f}
	if err := p.readHeader(); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

func (p *boltPeek) readHeader() error {
	fi, err := p.f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errors.New("is not a file")
	}
	p.size = fi.Size()
	if p.size == 0 {
		return errors.New("is empty")
	}
	m0, ok0, err := p.readMeta(0)
	if err != nil {
		return err
	}
	var m1 boltMeta
	ok1 := false
	if ok0 {
		m1, ok1, err = p.readMeta(m0.pageSize)
	} else {
		// The first meta does not say how long a page is.
		for size := int64(1 << 10); size <= 1<<24 && !ok1 && err == nil; size <<= 1 {
			m1, ok1, err = p.readMeta(size)
			ok1 = ok1 && m1.pageSize == size
		}
	}
	if err != nil {
		return err
	}
	switch {
	case ok0 && (!ok1 || m0.txid > m1.txid):
		p.boltMeta = m0
	case ok1:
		p.boltMeta = m1
	default:
		return errors.New("has no valid header")
	}
	if p.pages > uint64(p.size)/uint64(p.pageSize) {
		return fmt.Errorf("is cut short: it has %d bytes of at least %d", p.size, p.pages*uint64(p.pageSize))
	}
	return nil
}

// readMeta reads the meta page at an offset. ok is false when there is none.
func (p *boltPeek) readMeta(off int64) (m boltMeta, ok bool, err error) {
	var b [boltPageHeader + boltMetaSize]byte
	if _, err := p.f.ReadAt(b[:], off); errors.Is(err, io.EOF) {
		return m, false, nil
	} else if err != nil {
		return m, false, err
	}
	meta := b[boltPageHeader:]
	sum := fnv.New64a()
	sum.Write(meta[:56])
	m = boltMeta{
		pageSize: int64(boltOrder.Uint32(meta[8:])),
		root:     boltOrder.Uint64(meta[16:]),
		freelist: boltOrder.Uint64(meta[32:]),
		pages:    boltOrder.Uint64(meta[40:]),
		txid:     boltOrder.Uint64(meta[48:]),
	}
	ok = boltOrder.Uint32(meta) == boltMagic && boltOrder.Uint32(meta[4:]) == boltVersion &&
		boltOrder.Uint64(meta[56:]) == sum.Sum64() &&
		m.pageSize >= 1<<10 && m.pages >= 2 && m.pages < 1<<48
	return m, ok, nil
}

var errBoltPage = errors.New("has a damaged page")

// get returns the value of a key in a bucket at the root; nil when there is
// none.
func (p *boltPeek) get(bucket, key string) ([]byte, error) {
	root, err := p.page(p.root)
	if err != nil {
		return nil, err
	}
	b, isBucket, err := p.find(root, bucket)
	if err != nil || b == nil {
		return nil, err
	}
	if !isBucket || len(b) < boltBucket {
		return nil, errBoltPage
	}
	top := b[boltBucket:] // a small bucket lies in its parent's leaf
	if id := boltOrder.Uint64(b); id != 0 {
		if top, err = p.page(id); err != nil {
			return nil, err
		}
	}
	v, isBucket, err := p.find(top, key)
	if err == nil && isBucket {
		err = errBoltPage
	}
	return v, err
}

// find looks for a key in the tree under a page.
func (p *boltPeek) find(page []byte, key string) (value []byte, isBucket bool, err error) {
	for range boltMaxDepth {
		leaf, count, err := boltElements(page)
		if err != nil {
			return nil, false, err
		}
		next, found := uint64(0), false
		for i := range count {
			e, err := boltElementAt(page, leaf, i)
			switch {
			case err != nil:
				return nil, false, err
			case leaf && string(e.key) == key:
				return bytes.Clone(e.value), e.bucket, nil
			case !leaf && string(e.key) <= key:
				next, found = e.child, true
			}
		}
		if !found {
			return nil, false, nil
		}
		if page, err = p.page(next); err != nil {
			return nil, false, err
		}
	}
	return nil, false, errBoltPage
}

// boltElements reads the header of a page: its kind and how many elements it
// has.
func boltElements(page []byte) (leaf bool, count int, err error) {
	if len(page) < boltPageHeader {
		return false, 0, errBoltPage
	}
	flags, count := boltOrder.Uint16(page[8:]), int(boltOrder.Uint16(page[10:]))
	if flags != boltLeafFlag && flags != boltBranchFlag || boltPageHeader+count*boltElement > len(page) {
		return false, 0, errBoltPage
	}
	return flags == boltLeafFlag, count, nil
}

// A boltItem is one element of a page. Its slices are the page's.
type boltItem struct {
	key    []byte
	value  []byte // in a leaf
	bucket bool   // in a leaf: the value is a bucket
	child  uint64 // in a branch: the page below
}

func boltElementAt(page []byte, leaf bool, i int) (e boltItem, err error) {
	head := page[boltPageHeader+i*boltElement:]
	var pos, ksize, vsize int
	if leaf {
		e.bucket = boltOrder.Uint32(head)&boltBucketFlag != 0
		pos, ksize, vsize = int(boltOrder.Uint32(head[4:])), int(boltOrder.Uint32(head[8:])), int(boltOrder.Uint32(head[12:]))
	} else {
		pos, ksize, e.child = int(boltOrder.Uint32(head)), int(boltOrder.Uint32(head[4:])), boltOrder.Uint64(head[8:])
	}
	if pos+ksize+vsize > len(head) {
		return e, errBoltPage
	}
	e.key, e.value = head[pos:pos+ksize], head[pos+ksize:pos+ksize+vsize]
	return e, nil
}

// verifyBoltFile reads the whole tree of a bbolt file that nobody has open and
// returns an error when a page is not what it should be. bbolt itself looks
// for that when it opens a file without a list of free pages, but on a
// goroutine of its own, where what it finds ends the process.
func verifyBoltFile(path string) (err error) {
	p, err := openBoltPeek(path)
	if err != nil {
		return err
	}
	defer p.f.Close()
	if p.data, err = unix.Mmap(int(p.f.Fd()), 0, int(p.size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return err
	}
	defer unix.Munmap(p.data)
	return openGuarded(path, func() error { // a page the disk cannot read is a fault
		used := make(map[uint64]bool)
		if err := p.verifyTree(p.root, nil, nil, used, 0); err != nil {
			return err
		}
		return p.verifyFreelist(used)
	})
}

// verifyFreelist checks that the list of free pages, if the file has one,
// names no page that is in use.
func (p *boltPeek) verifyFreelist(used map[uint64]bool) error {
	if p.freelist == boltNoFreelist {
		return nil
	}
	page, err := p.page(p.freelist)
	if err != nil || used[p.freelist] || boltOrder.Uint16(page[8:]) != boltFreeFlag {
		return errBoltPage
	}
	ids, count := page[boltPageHeader:], uint64(boltOrder.Uint16(page[10:]))
	if count == 0xffff { // too many for the header: the first item is the number
		count, ids = boltOrder.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return errBoltPage
	}
	last := uint64(1)
	for i := range count {
		id := boltOrder.Uint64(ids[8*i:])
		if id <= last || id >= p.pages || used[id] {
			return errBoltPage
		}
		last = id
	}
	return nil
}

// freePages is how many pages are free, or will be once no reader needs them.
func (p *boltPeek) freePages() (n uint64, err error) {
	if p.freelist == boltNoFreelist {
		return 0, nil
	}
	if p.freelist >= p.pages {
		return 0, errBoltPage
	}
	var head [boltPageHeader + 8]byte
	if _, err := p.f.ReadAt(head[:], int64(p.freelist)*p.pageSize); err != nil {
		return 0, err
	}
	if boltOrder.Uint64(head[:]) != p.freelist || boltOrder.Uint16(head[8:]) != boltFreeFlag {
		return 0, errBoltPage
	}
	if n = uint64(boltOrder.Uint16(head[10:])); n == 0xffff {
		n = boltOrder.Uint64(head[boltPageHeader:]) // too many for the header
	}
	if n > p.pages {
		return 0, errBoltPage
	}
	return n, nil
}

// verifyTree checks the pages under one: each is used once and holds, in
// ascending order, keys that are at least low and, unless high is nil, below
// it.
func (p *boltPeek) verifyTree(id uint64, low, high []byte, used map[uint64]bool, depth int) error {
	page, err := p.page(id)
	if err != nil || depth > boltMaxDepth {
		return errBoltPage
	}
	for i := range uint64(len(page)) / uint64(p.pageSize) {
		if used[id+i] {
			return errBoltPage
		}
		used[id+i] = true
	}
	leaf, count, err := boltElements(page)
	if err != nil {
		return err
	}
	var items []boltItem // of a branch
	for i := range count {
		e, err := boltElementAt(page, leaf, i)
		if err != nil {
			return err
		}
		if c := bytes.Compare(low, e.key); c > 0 || c == 0 && i > 0 || high != nil && bytes.Compare(e.key, high) >= 0 {
			return errBoltPage
		}
		low = e.key
		switch {
		case !leaf:
			items = append(items, e)
		case e.bucket:
			if err := p.verifyBucket(e.value, used, depth+1); err != nil {
				return err
			}
		}
	}
	for i, e := range items {
		below := high
		if i+1 < len(items) {
			below = items[i+1].key
		}
		if err := p.verifyTree(e.child, e.key, below, used, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *boltPeek) verifyBucket(b []byte, used map[uint64]bool, depth int) error {
	if len(b) < boltBucket {
		return errBoltPage
	}
	if root := boltOrder.Uint64(b); root != 0 {
		return p.verifyTree(root, nil, nil, used, depth)
	}
	page := b[boltBucket:] // a small bucket lies in its parent's leaf
	leaf, count, err := boltElements(page)
	if err != nil || !leaf {
		return errBoltPage
	}
	for i := range count {
		if _, err := boltElementAt(page, leaf, i); err != nil {
			return err
		}
	}
	return nil
}

// page reads a page and those it runs on over.
func (p *boltPeek) page(id uint64) ([]byte, error) {
	if id >= p.pages {
		return nil, errBoltPage
	}
	off := int64(id) * p.pageSize
	if p.data != nil {
		page := p.data[off:]
		n := (int64(boltOrder.Uint32(page[12:])) + 1) * p.pageSize
		if boltOrder.Uint64(page) != id || n > int64(len(page)) {
			return nil, errBoltPage
		}
		return page[:n], nil
	}
	var head [boltPageHeader]byte
	if _, err := p.f.ReadAt(head[:], off); err != nil {
		return nil, err
	}
	n := (int64(boltOrder.Uint32(head[12:])) + 1) * p.pageSize
	if boltOrder.Uint64(head[:]) != id || n > boltMaxRead || off+n > p.size {
		return nil, errBoltPage
	}
	b := make([]byte, n)
	_, err := p.f.ReadAt(b, off)
	return b, err
}
