package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// flipIn flips a bit of the n-th place at which text stands in the state file.
func flipIn(t testing.TB, s *State, text string) {
	t.Helper()
	path := filepath.Join(s.cfg.Dir, stateName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := false
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte(text))
		if i < 0 {
			break
		}
		at += i
		found = true
		if _, err := f.WriteAt([]byte{b[at] ^ 4}, int64(at)); err != nil {
			t.Fatal(err)
		}
		at++
	}
	if !found {
		t.Fatalf("%q is not in the file", text)
	}
}

// tamper changes the file behind the state's back.
func tamper(t testing.TB, s *State, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	s.flushing.Lock()
	defer s.flushing.Unlock()
	if err := s.gen.Load().file.db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

// openDamaged opens a state whose file is not checked in the end.
func openDamaged(t testing.TB) *State {
	s, err := OpenState(StateConfig{Dir: t.TempDir(), BufferAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func fillFile(t testing.TB, s *State) {
	for i := range 500 {
		putKey(t, s, fmt.Sprintf("key/%03d", i), fmt.Sprintf("value-%03d-", i))
	}
	for i := range 50 {
		deleteKey(t, s, fmt.Sprintf("key/%03d", i*10))
	}
	putKey(t, s, "last", "x")
	mustFlush(t, s)
}

func noPause(int) error { return nil }

func TestADamagedRecordIsReportedAndNeverServed(t *testing.T) {
	s := openDamaged(t)
	fillFile(t, s)
	flipIn(t, s, "value-123-")
	if _, err := s.Get("key/123"); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("get: %v", err)
	}
	select {
	case <-s.DamageFound():
	default:
		t.Error("nobody was told")
	}
	found := s.Damaged()
	if len(found) != 1 || found[0].Table != "history" || found[0].From != "124.0" || found[0].To != found[0].From {
		t.Errorf("damaged: %+v", found)
	}
	v := mustView(t, s)
	defer v.Close()
	if err := v.Scan("", "", func(command.Record) bool { return true }); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("scan: %v", err)
	}
	if _, err := s.Get("key/124"); err != nil {
		t.Errorf("a sound record: %v", err)
	}
	if found := s.Damaged(); len(found) != 1 {
		t.Errorf("found once more: %+v", found)
	}
}

var damages = []struct {
	name  string
	table string
	make  func(t testing.TB, s *State)
}{
	{"a record", "history", func(t testing.TB, s *State) { flipIn(t, s, "value-123-") }},
	{"a pointer", "keys", func(t testing.TB, s *State) {
		tamper(t, s, func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketKeys).Put([]byte("key/123"), (&pointer{at: position{rev: 124}}).append(nil, []byte("key/124")))
		})
	}},
	{"a pointer that leads elsewhere", "keys", func(t testing.TB, s *State) {
		tamper(t, s, func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketKeys).Put([]byte("key/123"), (&pointer{at: position{rev: 125}}).append(nil, []byte("key/123")))
		})
	}},
	{"a pointer that lies about its record", "keys", func(t testing.TB, s *State) {
		tamper(t, s, func(tx *bbolt.Tx) error {
			key := []byte("key/123")
			p, err := decodePointer(key, tx.Bucket(bucketKeys).Get(key))
			p.size++
			return errors.Join(err, tx.Bucket(bucketKeys).Put(key, p.append(nil, key)))
		})
	}},
	{"a missing record", "history", func(t testing.TB, s *State) {
		tamper(t, s, func(tx *bbolt.Tx) error {
			at := position{rev: 124}.bytes()
			return tx.Bucket(bucketHistory).Delete(at[:])
		})
	}},
	{"a missing delete", "history", func(t testing.TB, s *State) {
		tamper(t, s, func(tx *bbolt.Tx) error {
			at := position{rev: 510}.bytes()
			return tx.Bucket(bucketHistory).Delete(at[:])
		})
	}},
	{"a hidden key", "keys", func(t testing.TB, s *State) {
		tamper(t, s, func(tx *bbolt.Tx) error { return tx.Bucket(bucketKeys).Delete([]byte("key/123")) })
	}},
	{"a tombstone's pointer", "tombs", func(t testing.TB, s *State) {
		tamper(t, s, func(tx *bbolt.Tx) error { return tx.Bucket(bucketTombs).Put([]byte("key/120"), []byte("bad")) })
	}},
}

// What a value is replaced by does not depend on it, so it need not be sound. To
// say that it stays takes reading it.
func TestADamagedValueCanBeReplacedButNotCompared(t *testing.T) {
	s := openDamaged(t)
	fillFile(t, s)
	rec, err := s.Get("key/123")
	if err != nil {
		t.Fatal(err)
	}
	flipIn(t, s, "value-123-")
	b := s.Begin()
	b.Entry(b.Applied()+1, 1, 0, time.Time{})
	if err := b.Set("key/123", rec.Value, rec.Flags); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("to set what it has: %v", err)
	}
	b.Discard()
	inOneEntry(t, s, func(b *Batch) {
		if err := b.Set("key/123", []byte("anew"), rec.Flags); err != nil {
			t.Error(err)
		}
	})
	if got, err := s.Get("key/123"); err != nil || string(got.Value) != "anew" || got.CreateRevision != rec.CreateRevision {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTheScrubFindsWhatNoReaderHasMet(t *testing.T) {
	s := openDamaged(t)
	fillFile(t, s)
	if err := s.scrub(noPause); err != nil || len(s.Damaged()) > 0 {
		t.Fatalf("a sound file: %v, %+v", err, s.Damaged())
	}
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			s := openDamaged(t)
			fillFile(t, s)
			d.make(t, s)
			if err := s.scrub(noPause); err != nil {
				t.Fatal(err)
			}
			found := s.Damaged()
			if len(found) == 0 || found[0].Table != d.table {
				t.Errorf("found %+v; want damage of %s", found, d.table)
			}
		})
	}
}

func TestTheScrubAllowsForWhatGoesOnMeanwhile(t *testing.T) {
	s := openTestState(t, StateConfig{BufferBytes: 4 << 10, BufferAge: time.Millisecond, ScrubPeriod: time.Millisecond})
	r := rand.New(rand.NewPCG(1, 1))
	deadline := time.Now().Add(20 * time.Second)
	for index := uint64(1); index < 3000 || s.Stats().Scrubbed.IsZero(); index++ {
		applyScript(t, s, randomEntry(r, index))
		if time.Now().After(deadline) {
			t.Fatal("no pass came to its end")
		}
	}
	if found := s.Damaged(); len(found) > 0 {
		t.Errorf("found %+v in a sound file", found)
	}
}

func TestAPassOfTheScrubFillsItsPeriod(t *testing.T) {
	s := openTestState(t, StateConfig{BufferAge: time.Hour})
	fillFile(t, s)
	s.cfg.ScrubPeriod = 400 * time.Millisecond
	began := time.Now()
	if err := s.scrub(s.scrubPace()); err != nil {
		t.Fatal(err)
	}
	// The records are only a part of the file's pages, so a pass may be shorter.
	if took := time.Since(began); took < s.cfg.ScrubPeriod/10 {
		t.Errorf("a pass took %v of a period of %v", took, s.cfg.ScrubPeriod)
	}
}

// mend brings what from has to what to asked for, and returns the kind of copy.
func mend(t testing.TB, to, from *State) (CopyStats, error) {
	t.Helper()
	var stream bytes.Buffer
	if err := from.WriteCopy(t.Context(), to.CopyRequest(false), &stream); err != nil {
		return CopyStats{}, err
	}
	return to.ReceiveCopy(t.Context(), &stream)
}

func TestDamageIsMendedByJustTheRangeFromAPeer(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			s, peer := openTestState(t, StateConfig{BufferAge: time.Hour}), openTestState(t, StateConfig{BufferAge: time.Hour})
			fillFile(t, s)
			fillFile(t, peer)
			putKey(t, peer, "key/123", "newer") // the peer may be ahead
			d.make(t, s)
			if err := s.scrub(noPause); err != nil {
				t.Fatal(err)
			}
			stats, err := mend(t, s, peer)
			if err != nil || stats.Kind != command.CopyRange {
				t.Fatalf("%+v, %v", stats, err)
			}
			if found := s.Damaged(); len(found) > 0 {
				t.Fatalf("still damaged: %+v", found)
			}
			if err := s.scrub(noPause); err != nil || len(s.Damaged()) > 0 {
				t.Fatalf("damaged after the repair: %v, %+v", err, s.Damaged())
			}
			rec, err := s.Get("key/123")
			wantValue(t, rec, err, "value-123-")
			// What is decided next is decided alike.
			for _, st := range []*State{s, peer} {
				if st == s {
					putKey(t, s, "key/123", "newer")
				}
				putKey(t, st, "key/120", "again")
				deleteKey(t, st, "key/121")
			}
			if s.Head() != peer.Head() {
				t.Errorf("heads differ\n%+v\n%+v", s.Head(), peer.Head())
			}
		})
	}
}

func TestDamageThatNoRangeMendsAsksForAFullCopy(t *testing.T) {
	s, peer := openDamaged(t), openTestState(t, StateConfig{})
	fillFile(t, s)
	fillFile(t, peer)
	flipIn(t, s, "value-123-")
	_, _ = s.Get("key/123")
	inOneEntry(t, peer, func(b *Batch) { b.Compact(b.Revision()) }) // it has forgotten deletes that s has not
	stats, err := mend(t, s, peer)
	if err != nil || stats.Kind != command.CopyFull {
		t.Fatalf("%+v, %v", stats, err)
	}
	if err := s.SwapCopy(true); err != nil {
		t.Fatal(err)
	}
	if found := s.Damaged(); len(found) > 0 {
		t.Errorf("still damaged: %+v", found)
	}
	rec, err := s.Get("key/123")
	wantValue(t, rec, err, "value-123-")
}

func TestWhatThePeerLacksStaysDamaged(t *testing.T) {
	s, peer := openDamaged(t), openDamaged(t)
	fillFile(t, s)
	fillFile(t, peer)
	for _, st := range []*State{s, peer} {
		flipIn(t, st, "value-123-")
	}
	_, _ = s.Get("key/123")
	if stats, err := mend(t, s, peer); err == nil {
		t.Errorf("a damaged peer mended it: %+v", stats)
	}
	if len(s.Damaged()) != 1 || len(peer.Damaged()) != 1 {
		t.Errorf("damaged: %+v and %+v", s.Damaged(), peer.Damaged())
	}
}

func TestDamageThatTouchesIsOneRange(t *testing.T) {
	var d damageList
	at := func(rev uint64) error { return damagedChange(position{rev: rev}, command.ErrDamaged.With("x")) }
	for _, rev := range []uint64{5, 9, 7} {
		_ = d.note(at(rev))
	}
	wide := &damageError{table: "history", problem: "y"}
	from, to := position{rev: 6}.bytes(), position{rev: 9, k: 1}.bytes()
	wide.from, wide.to = from[:], to[:]
	_ = d.note(wide)
	if got := d.ranges(); len(got) != 2 {
		t.Errorf("%d ranges: %+v", len(got), got)
	}
	for rev := range uint64(3 * damageBound) {
		_ = d.note(at(100 + 2*rev))
	}
	if got := d.ranges(); len(got) > damageBound {
		t.Errorf("%d ranges are kept", len(got))
	}
	for i, r := range d.ranges() {
		if i > 0 && !d.ranges()[i-1].before(&r) {
			t.Errorf("range %d is out of order", i)
		}
	}
}
