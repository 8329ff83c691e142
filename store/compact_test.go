package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func compactAll(t testing.TB, s *State) {
	t.Helper()
	mustFlush(t, s)
	for s.compactDue() {
		if err := s.compactOnce(); err != nil {
			t.Fatal(err)
		}
	}
}

// What a node still has of a forgotten delete, in memory or in its file, depends
// on when it flushed and compacted; what it decides must not.
func TestNodesThatCompactAtDifferentMomentsStayEqual(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 11))
			eager := openTestState(t, StateConfig{BufferBytes: 1, BufferAge: time.Millisecond})
			lazy := openTestState(t, StateConfig{BufferAge: time.Hour})
			_, release := lazy.holdCompaction()
			defer release()
			for index := uint64(1); index <= 150; index++ {
				e := randomEntry(r, index)
				applyScript(t, eager, e)
				applyScript(t, lazy, e)
				if index%7 == 0 {
					compactAll(t, eager)
				}
				if index%29 == 0 {
					lazy = reopen(t, lazy)
				}
				if a, b := eager.Head(), lazy.Head(); a != b {
					t.Fatalf("after entry %d\n%+v\n%+v", index, a, b)
				}
				if a, b := eager.gen.Load().meta, lazy.gen.Load().meta; a.DataBytes != b.DataBytes || a.Buried != b.Buried || a.Keys != b.Keys || a.ChangeBytes != b.ChangeBytes {
					t.Fatalf("after entry %d\n%+v\n%+v", index, a, b)
				}
			}
		})
	}
}

func TestCompactionDropsWhatNoReadNeeds(t *testing.T) {
	s := openTestState(t, StateConfig{})
	for i := range 50 {
		putKey(t, s, "kept", fmt.Sprint(i))
		putKey(t, s, fmt.Sprint("gone", i), "x")
		deleteKey(t, s, fmt.Sprint("gone", i))
	}
	now := s.Revision()
	inOneEntry(t, s, func(b *Batch) { b.Compact(now) })
	compactAll(t, s)
	if n := s.Stats().HistoryRecords; n > 3 { // the key, and revision now, which is kept whole
		t.Errorf("%d records are kept for one key", n)
	}
	v := mustView(t, s)
	defer v.Close()
	rec, err := v.Get("kept")
	wantValue(t, rec, err, "49")
	if _, err := v.GetAt("kept", now-1); !errors.Is(err, command.ErrCompacted) {
		t.Errorf("below the point: %v", err)
	}
	if got := s.DataBytes(); got != uint64(len("kept")+len("49")) {
		t.Errorf("data is %d bytes", got)
	}
}

func TestAnOldPrefixIndexLearnsOfAForgottenDelete(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a/1", "1")
	putKey(t, s, "a/2", "2")
	before := s.Revision()
	deleteKey(t, s, "a/2")
	for i := range 10 {
		putKey(t, s, "b", fmt.Sprint(i))
	}
	inOneEntry(t, s, func(b *Batch) { b.Compact(b.Revision()) })
	compactAll(t, s)
	v := mustView(t, s)
	defer v.Close()
	if index, err := v.PrefixRevision("a/"); err != nil || index <= before {
		t.Errorf("index of a/ is %d, %v; a client that knows %d would wait for ever", index, err, before)
	}
}

func TestRecordsStayWhileACopyNeedsThem(t *testing.T) {
	s := openTestState(t, StateConfig{})
	for i := range 20 {
		putKey(t, s, "k", fmt.Sprint(i))
	}
	done, release := s.holdCompaction()
	if done.Target != 0 {
		t.Fatalf("dropped for %d already", done.Target)
	}
	inOneEntry(t, s, func(b *Batch) { b.Compact(18) })
	compactAll(t, s)
	if n := s.Stats().HistoryRecords; n != 20 {
		t.Errorf("%d records are left while a copy needs all 20", n)
	}
	release()
	compactAll(t, s)
	if n := s.Stats().HistoryRecords; n != 3 {
		t.Errorf("%d records are left; revision 18 and later are 3", n)
	}
	if done, release := s.holdCompaction(); done.Target != 18 || done.NextRev != 19 {
		t.Errorf("the next copy is told of %+v", done)
	} else {
		release()
	}
}

func TestHistoryIsKeptByAgeCountAndBytes(t *testing.T) {
	s := openTestState(t, StateConfig{})
	for i := range 100 { // one change per entry, 1000 ns of cluster time apart
		putKey(t, s, fmt.Sprintf("%03d", i), "value")
	}
	const huge = 1 << 60
	size := s.gen.Load().meta.ChangeBytes / 100
	for _, c := range []struct {
		name string
		keep command.Retention
		want uint64 // oldest revision
	}{
		{"nothing asked for", command.Retention{Bytes: huge}, 100},
		{"by age", command.Retention{Age: 10 * 1000, Bytes: huge}, 90},
		{"by count", command.Retention{Changes: 30, Bytes: huge}, 70},
		{"the larger of both", command.Retention{Age: 50 * 1000, Changes: 30, Bytes: huge}, 50},
		{"more than there is", command.Retention{Age: time.Hour, Bytes: huge}, 0},
		{"but no more than the bytes", command.Retention{Age: time.Hour, Changes: huge, Bytes: 20*size + size/2}, 80},
	} {
		got, err := s.HistoryStart(c.keep)
		if err != nil || got != c.want {
			t.Errorf("%s: %d, %v; want %d", c.name, got, err, c.want)
		}
	}
	inOneEntry(t, s, func(b *Batch) { b.Compact(60) })
	if got, err := s.HistoryStart(command.Retention{Age: time.Hour, Bytes: huge}); err != nil || got != 60 {
		t.Errorf("below the point: %d, %v", got, err)
	}
}
