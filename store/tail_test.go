package store

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// A crash between two transactions of a flush leaves a file with changes its
// meta knows nothing of.
func TestAFileAheadOfItsMetaIsTakenBackWhenOpened(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			s := openTestState(t, StateConfig{BufferAge: time.Hour})
			m := newModel()
			index := uint64(0)
			apply := func(n int) (entries []scriptEntry) {
				for range n {
					index++
					entries = append(entries, randomEntry(r, index))
				}
				applyScript(t, s, entries...)
				return entries
			}
			for _, e := range apply(30) {
				m.apply(e)
			}
			mustFlush(t, s)
			before := index
			apply(30) // in memory only

			// What a flush of these writes before its last transaction.
			ahead := filepath.Join(t.TempDir(), stateName)
			s.flushing.Lock()
			g := s.gen.Load()
			some := g.active.history[:r.IntN(len(g.active.history)+1)]
			err := g.file.db.View(func(tx *bbolt.Tx) error { return tx.CopyFile(ahead, 0o600) })
			s.flushing.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			f, _, _, err := openStateFile(ahead, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			for from := 0; from < len(some); {
				to := min(from+1+r.IntN(10), len(some))
				if err := f.update(func(tx *bbolt.Tx, l *local) error {
					l.Records += uint64(to - from)
					return putChanges(tx, some[from:to], false, func(c *change) bool {
						newest, _ := g.active.keys.Get(c.rec.Key)
						return newest == c
					})
				}); err != nil {
					t.Fatal(err)
				}
				from = to
			}
			if err := f.db.Close(); err != nil {
				t.Fatal(err)
			}

			opened := openTestState(t, StateConfig{Dir: filepath.Dir(ahead), BufferAge: time.Hour})
			if opened.appliedIndex() != before {
				t.Fatalf("opened at entry %d; want %d", opened.appliedIndex(), before)
			}
			m.check(t, opened, r)
			index = before
			s = opened
			for _, e := range apply(10) {
				m.apply(e)
			}
			m.check(t, s, r)
		})
	}
}
