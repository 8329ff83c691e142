package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

type pair struct{ key, value []byte }

// ascending makes pairs in the order of their keys.
func ascending(n int, key func(i int) []byte, size func(i int) int) []pair {
	all := make([]pair, n)
	for i := range all {
		all[i] = pair{key(i), bytes.Repeat([]byte{byte(i)}, size(i))}
	}
	return all
}

func number(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }

func always(n int) func(int) int { return func(int) int { return n } }

// bulkWritten makes a file with one table for each name, which ascend.
func bulkWritten(t *testing.T, names []string, tables [][]pair) string {
	path := filepath.Join(t.TempDir(), "bulk.db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := newBulkFile(f)
	var buckets []bulkBucket
	for _, name := range names {
		buckets = append(buckets, bulkBucket{[]byte(name), b.table(0.9)})
	}
	// In turn, as far as each goes: their pages lie among one another.
	for i, more := 0, true; more; i++ {
		more = false
		for j, records := range tables {
			if i < len(records) {
				more = true
				if err := buckets[j].table.put(records[i].key, records[i].value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for j, records := range tables {
		if n := buckets[j].table.records; n != uint64(len(records)) {
			t.Fatalf("%d records were counted, %d put", n, len(records))
		}
	}
	if err := b.seal(buckets); err != nil {
		t.Fatal(err)
	}
	return path
}

// sound fails the test when bbolt finds a fault in its file, or when a table holds
// something else.
func sound(t *testing.T, db *bbolt.DB, names []string, tables [][]pair) {
	t.Helper()
	if err := db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		for j, name := range names {
			table, i := tx.Bucket([]byte(name)), 0
			for k, v := firstRecord(table.Cursor()); k != nil; i++ {
				if i == len(tables[j]) || !bytes.Equal(k, tables[j][i].key) || !bytes.Equal(v, tables[j][i].value) {
					return fmt.Errorf("table %s: record %d is not what was put", name, i)
				}
				c := table.Cursor()
				c.Seek(k) // each is found from the root down as well
				k, v = c.Next()
			}
			if i != len(tables[j]) {
				return fmt.Errorf("table %s: %d records of %d", name, i, len(tables[j]))
			}
			if m := table.Bucket(tableMark); m == nil || table.Root() == 0 {
				return fmt.Errorf("table %s has no mark, or lies within its parent", name)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// What a bulkFile writes is a file of bbolt with the same records, from which bbolt
// can remove them one by one, and to which it can add.
func TestABulkFileIsAFileOfBbolt(t *testing.T) {
	page := os.Getpagesize()
	r := rand.New(rand.NewPCG(1, 2))
	small := func(int) int { return r.IntN(300) }
	mixed := func(int) int {
		if r.IntN(8) == 0 {
			return r.IntN(20 * page)
		}
		return r.IntN(page)
	}
	long := func(i int) []byte { return append(number(i), bytes.Repeat([]byte("x"), 20<<10)...) }
	for name, all := range map[string][]pair{
		"empty":             nil,
		"one record":        ascending(1, number, always(10)),
		"one large record":  ascending(1, number, always(3*page)),
		"several levels":    ascending(60_000, number, always(100)),
		"small and uneven":  ascending(10_000, number, small),
		"mixed":             ascending(1000, number, mixed),
		"all large":         ascending(300, number, always(2*page+1)),
		"longer than write": ascending(5, number, always(bulkWrite+1)),
		"no values":         ascending(5000, number, always(0)),
		"long keys":         ascending(100, long, always(16)),
	} {
		t.Run(name, func(t *testing.T) {
			names := []string{"all", "none", "some"}
			tables := [][]pair{all, nil, all[:len(all)/3]}
			path := bulkWritten(t, names, tables)
			if err := verifyBoltFile(path); err != nil {
				t.Fatal(err)
			}
			if err := checkBoltFile(path); err != nil {
				t.Fatal(err)
			}
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, FreelistType: bbolt.FreelistMapType})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			sound(t, db, names, tables)
			more := pair{bytes.Repeat([]byte{0xff}, 9), make([]byte, page)}
			if err := db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("none")).Put(more.key, more.value) }); err != nil {
				t.Fatal(err)
			}
			tables[1] = []pair{more}
			for order := r.Perm(len(all)); len(order) > 0; {
				n := min(len(order), len(all)/4+1)
				if err := db.Update(func(tx *bbolt.Tx) error {
					for _, i := range order[:n] {
						if err := tx.Bucket([]byte("all")).Delete(all[i].key); err != nil {
							return err
						}
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				order = order[n:]
				slices.Sort(order)
				tables[0] = nil
				for _, i := range order {
					tables[0] = append(tables[0], all[i])
				}
				r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
				sound(t, db, names, tables)
			}
		})
	}
}

// For each number of records around those that fill pages and levels, no page but a
// root has fewer elements than bbolt needs to merge it.
func TestAPageOfABulkFileHasTwoElements(t *testing.T) {
	wide := func(i int) []byte { return append(number(i), make([]byte, 1000)...) } // few fit a page
	for n := range 200 {
		all := ascending(n, wide, always(1))
		path := bulkWritten(t, []string{"all"}, [][]pair{all})
		p, err := openBoltPeek(path)
		if err != nil {
			t.Fatal(err)
		}
		for id := uint64(2); id < p.pages; {
			page, err := p.page(id)
			if err != nil {
				t.Fatal(err)
			}
			id += uint64(len(page)) / uint64(p.pageSize)
			if flags := boltOrder.Uint16(page[8:]); flags == boltFreeFlag {
				continue
			}
			leaf, count, err := boltElements(page)
			if err != nil {
				t.Fatal(err)
			}
			e, err := boltElementAt(page, leaf, 0)
			if err != nil {
				t.Fatal(err)
			}
			root := leaf && (e.bucket || n == 0)
			if count < bulkLeast && !root {
				t.Fatalf("%d records: page %d has %d elements", n, boltOrder.Uint64(page), count)
			}
		}
		_ = p.f.Close()
	}
}

func TestABulkFileTakesNoRecordOutOfOrder(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "bulk.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table := newBulkFile(f).table(1)
	for _, r := range []struct {
		key  string
		good bool
	}{{"", false}, {string(tableMark), false}, {"b", true}, {"b", false}, {"a", false}, {"c", true}} {
		if err := table.put([]byte(r.key), nil); errors.Is(err, command.ErrDamaged) == r.good {
			t.Errorf("key %q: %v", r.key, err)
		}
	}
	if table.records != 2 {
		t.Errorf("%d records", table.records)
	}
}

// The disk's refusal is not lost between the writes.
func TestABulkFileReportsThatItCannotBeWritten(t *testing.T) {
	f, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := newBulkFile(f)
	table := b.table(1)
	for i := range 5 {
		if err = errors.Join(err, table.put(number(i+1), make([]byte, bulkWrite))); err != nil {
			return
		}
	}
	t.Error("records went nowhere")
}
