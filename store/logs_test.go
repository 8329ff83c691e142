package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

var entryTime = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)

// testEntry makes an entry whose contents follow from index and term.
func testEntry(index, term uint64, size int) *raft.Log {
	return &raft.Log{
		Index: index, Term: term, Type: raft.LogType(index % 2 * 5),
		Data:       bytes.Repeat([]byte{byte(index), byte(term)}, size/2),
		Extensions: []byte(fmt.Sprint(index)),
		AppendedAt: entryTime.Add(time.Duration(index)),
	}
}

func wantEntry(t testing.TB, s raft.LogStore, index, term uint64, size int) {
	t.Helper()
	var got raft.Log
	if err := s.GetLog(index, &got); err != nil {
		t.Fatalf("entry %d: %v", index, err)
	}
	if !sameEntry(&got, testEntry(index, term, size)) {
		t.Fatalf("entry %d: got %+v", index, got)
	}
}

func wantBounds(t testing.TB, l *Logs, first, last uint64) {
	t.Helper()
	f, n, err := l.Bounds()
	if err != nil || f != first || n != last {
		t.Fatalf("bounds %d to %d, %v; want %d to %d", f, n, err, first, last)
	}
}

// bothStores runs a test on each kind of log store. reopen closes the logs and
// the directory and opens both again, as a restart does.
func bothStores(t *testing.T, test func(t *testing.T, l *Logs, reopen func() *Logs)) {
	for _, kind := range []string{LogStoreWAL, LogStoreBolt} {
		t.Run(kind, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data")
			d := openTestDir(t, path)
			l := openTestLogs(t, d, kind)
			test(t, l, func() *Logs {
				t.Helper()
				if err := errors.Join(l.Close(), d.Close()); err != nil {
					t.Fatal(err)
				}
				d = openTestDir(t, path)
				l = openTestLogs(t, d, kind)
				return l
			})
		})
	}
}

func TestEmptyLogHasNoBounds(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		for range 2 {
			wantBounds(t, l, 0, 0)
			var e raft.Log
			if err := l.Log.GetLog(1, &e); err != raft.ErrLogNotFound { // Raft compares it so
				t.Errorf("GetLog: %v", err)
			}
			if err := l.Reset(); err != nil {
				t.Errorf("Reset: %v", err)
			}
			if n := l.EntryBytes(); n != 0 {
				t.Errorf("EntryBytes %d", n)
			}
			l = reopen()
		}
	})
}

func TestEntriesSurviveARestart(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		appendEntries(t, l.Log, 1, 400, 1000)
		if err := l.Log.StoreLog(testEntry(401, 1, 1000)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wantBounds(t, l, 1, 401)
			for i := uint64(1); i <= 401; i++ {
				wantEntry(t, l.Log, i, 1, 1000)
			}
			var e raft.Log
			for _, i := range []uint64{0, 402} {
				if err := l.Log.GetLog(i, &e); err != raft.ErrLogNotFound {
					t.Errorf("GetLog(%d): %v", i, err)
				}
			}
			l = reopen()
		}
	})
}

func TestEntryLargerThanASegmentIsKept(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		for i := uint64(1); i <= 3; i++ {
			if err := l.Log.StoreLog(testEntry(i, 1, 3*testSegment)); err != nil {
				t.Fatal(err)
			}
		}
		l = reopen()
		for i := uint64(1); i <= 3; i++ {
			wantEntry(t, l.Log, i, 1, 3*testSegment)
		}
	})
}

func TestOldEntriesAreDropped(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		appendEntries(t, l.Log, 1, 2000, 200)
		if err := l.Log.DeleteRange(1, 1500); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wantBounds(t, l, 1501, 2000)
			var e raft.Log
			for i := uint64(1); i <= 1500; i++ {
				if err := l.Log.GetLog(i, &e); err != raft.ErrLogNotFound {
					t.Fatalf("entry %d is still there: %v", i, err)
				}
			}
			wantEntry(t, l.Log, 1501, 1, 200)
			l = reopen()
		}
	})
}

// A follower replaces what an old leader left it. What it keeps must be
// readable after a restart.
func TestConflictingEndIsReplaced(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		appendEntries(t, l.Log, 1, 20, 200)
		for term, from := uint64(2), uint64(15); from >= 5; term, from = term+1, from-5 {
			if err := l.Log.DeleteRange(from, 20); err != nil {
				t.Fatal(err)
			}
			wantBounds(t, l, 1, from-1)
			for i := from; i <= 20; i++ {
				if err := l.Log.StoreLog(testEntry(i, term, 200)); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 {
			wantBounds(t, l, 1, 20)
			for i := uint64(1); i <= 20; i++ {
				term := uint64(4)
				if i < 5 {
					term = 1
				}
				wantEntry(t, l.Log, i, term, 200)
			}
			l = reopen()
		}
	})
}

func TestResetLogTakesAnyIndex(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		appendEntries(t, l.Log, 1, 500, 500)
		next := uint64(100_000)
		for _, restart := range []bool{false, true} {
			if err := l.Reset(); err != nil {
				t.Fatal(err)
			}
			wantBounds(t, l, 0, 0)
			if restart {
				l = reopen()
				wantBounds(t, l, 0, 0)
			}
			appendEntries(t, l.Log, next, next+50, 500)
			wantBounds(t, l, next, next+50)
			l = reopen()
			wantBounds(t, l, next, next+50)
			wantEntry(t, l.Log, next, 1, 500)
			wantEntry(t, l.Log, next+50, 1, 500)
			next /= 10 // and a lower one
		}
	})
}

func TestMonotonicIsForwarded(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, _ func() *Logs) {
		if got := l.Log.(raft.MonotonicLogStore).IsMonotonic(); got != (l.Kind() == LogStoreWAL) {
			t.Errorf("%s: %v", l.Kind(), got)
		}
	})
}

// A member that takes a copy goes on with its log behind what the copy holds. Raft leaves
// older entries in a log that lets it, with none between.
func TestALogThatGoesOnBehindACopySurvivesARestart(t *testing.T) {
	d := openTestDir(t, filepath.Join(t.TempDir(), "data"))
	l := openTestLogs(t, d, LogStoreBolt)
	appendEntries(t, l.Log, 1, 13, 1000)
	for _, last := range []uint64{448, 449, 600} {
		appendEntries(t, l.Log, max(448, last-151), last, 200)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openTestLogs(t, d, LogStoreBolt)
		wantBounds(t, l, 1, last)
		if got := l.EntryBytes(); got < 200 || got > 400 {
			t.Errorf("EntryBytes %d with %d entries behind the copy", got, last-447)
		}
	}
}

func TestEntryBytesFollowsTheEntries(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		near := func(want uint64) {
			t.Helper()
			if got := l.EntryBytes(); got < want || got > want+want/5+2*entryOverhead {
				t.Errorf("EntryBytes %d, want about %d", got, want)
			}
		}
		appendEntries(t, l.Log, 1, 100, 1000)
		near(1000)
		appendEntries(t, l.Log, 101, 3000, 200)
		near(200)
		l = reopen()
		near(200)
	})
}

func TestRaftRunsAndRestartsOnBothStores(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		for start := 1; start <= 2; start++ {
			fsm := &raft.MockFSM{}
			addr, trans := raft.NewInmemTransport("n1")
			conf := raft.DefaultConfig()
			conf.LocalID, conf.Logger = "n1", hclog.NewNullLogger()
			conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
			snaps := raft.NewInmemSnapshotStore()
			if start == 1 {
				servers := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: addr}}}
				if err := raft.BootstrapCluster(conf, l.Log, l.Stable, snaps, trans, servers); err != nil {
					t.Fatal(err)
				}
			}
			r, err := raft.NewRaft(conf, fsm, l.Log, l.Stable, snaps, trans)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-r.LeaderCh():
			case <-time.After(10 * time.Second):
				t.Fatal("no leader")
			}
			for i := range 50 {
				if err := r.Apply([]byte(fmt.Sprintf("%d-%d", start, i)), 5*time.Second).Error(); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.Shutdown().Error(); err != nil {
				t.Fatal(err)
			}
			if got := len(fsm.Logs()); got != 50*start {
				t.Errorf("start %d: %d entries applied", start, got)
			}
			if _, last, _ := l.Bounds(); last < uint64(50*start) {
				t.Errorf("start %d: last index %d", start, last)
			}
			l = reopen()
		}
	})
}

// failingLog fails as its fields say.
type failingLog struct {
	raft.LogStore
	store, del error
	block      chan struct{} // when set, StoreLogs waits for it
	calls      int
	wrong      bool // GetLog gives the next entry
}

func (f *failingLog) GetLog(i uint64, l *raft.Log) error {
	if f.wrong {
		i++
	}
	return f.LogStore.GetLog(i, l)
}

func (f *failingLog) StoreLogs(logs []*raft.Log) error {
	f.calls++
	if f.block != nil {
		<-f.block
	}
	if f.store != nil {
		return f.store
	}
	return f.LogStore.StoreLogs(logs)
}

func (f *failingLog) DeleteRange(a, b uint64) error {
	f.calls++
	if f.del != nil {
		return f.del
	}
	return f.LogStore.DeleteRange(a, b)
}

func (f *failingLog) Close() error { return nil }

type failingStable struct {
	stableBackend
	set error
}

func (f *failingStable) Set(k, v []byte) error {
	if f.set != nil {
		return f.set
	}
	return f.stableBackend.Set(k, v)
}

// injected opens real logs and puts failing backends in front of them.
func injected(t *testing.T) (*Logs, *failingLog, *failingStable) {
	l := openTestLogs(t, openTestDir(t, filepath.Join(t.TempDir(), "data")), LogStoreBolt)
	fl := &failingLog{LogStore: l.log.db}
	fs := &failingStable{stableBackend: l.stable.db}
	l.log.db = struct {
		raft.LogStore
		io.Closer
	}{fl, l.log.db}
	l.stable.db = fs
	return l, fl, fs
}

func TestFirstFailureIsFinal(t *testing.T) {
	cases := []struct {
		name string
		fail func(l *Logs, fl *failingLog, fs *failingStable) error
	}{
		{"append", func(l *Logs, fl *failingLog, _ *failingStable) error {
			fl.store = syscall.EIO
			return l.Log.StoreLog(testEntry(2, 1, 10))
		}},
		{"delete", func(l *Logs, fl *failingLog, _ *failingStable) error {
			fl.del = syscall.EIO
			return l.Log.DeleteRange(1, 1)
		}},
		{"vote", func(l *Logs, _ *failingLog, fs *failingStable) error {
			fs.set = syscall.EIO
			l.Stable.SetUint64([]byte(raftLastVoteTerm), 9)
			return l.Stable.Set([]byte(raftLastVoteCand), []byte("n2"))
		}},
		{"peer", func(l *Logs, _ *failingLog, fs *failingStable) error {
			fs.set = syscall.EIO
			return l.SetPeer("n2", PeerSeen{Starts: 1})
		}},
		{"term", func(l *Logs, _ *failingLog, fs *failingStable) error {
			fs.set = syscall.EIO
			if err := l.Stable.SetUint64([]byte(raftCurrentTerm), 9); err != nil {
				return fmt.Errorf("Raft would have ended the process: %w", err)
			}
			return l.Err()
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, fl, fs := injected(t)
			appendEntries(t, l.Log, 1, 1, 10)
			first := c.fail(l, fl, fs)
			if !errors.Is(first, syscall.EIO) {
				t.Fatalf("got %v", first)
			}
			select {
			case err := <-l.Failed():
				if err != first {
					t.Errorf("Failed delivered %v, not %v", err, first)
				}
			default:
				t.Fatal("Failed delivered nothing")
			}
			if _, more := <-l.Failed(); more {
				t.Error("Failed delivered twice")
			}
			// The disk is well again, but this process does not trust it.
			fl.store, fl.del, fs.set = nil, nil, nil
			calls := fl.calls
			for name, err := range map[string]error{
				"append": l.Log.StoreLog(testEntry(2, 1, 10)),
				"delete": l.Log.DeleteRange(1, 1),
				"reset":  l.Reset(),
				"vote":   l.Stable.Set([]byte(raftLastVoteCand), []byte("n3")),
				"peer":   l.SetPeer("n3", PeerSeen{Starts: 1}),
			} {
				if err != first {
					t.Errorf("%s after the failure: %v", name, err)
				}
			}
			if fl.calls != calls {
				t.Error("the log store was touched after the failure")
			}
			// Reads go on, and Raft can follow newer terms.
			wantEntry(t, l.Log, 1, 1, 10)
			if err := l.Stable.SetUint64([]byte(raftCurrentTerm), 12); err != nil {
				t.Error(err)
			}
			if term, err := l.Stable.GetUint64([]byte(raftCurrentTerm)); term != 12 || err != nil {
				t.Errorf("term %d, %v", term, err)
			}
		})
	}
}

// A heartbeat that was compared with one term must not store it over the next one.
func TestTheTermStandsWhileAHeartbeatIsHandledAndNeverGoesBack(t *testing.T) {
	d := openTestDir(t, filepath.Join(t.TempDir(), "data"))
	l := openTestLogs(t, d, LogStoreWAL)
	set := func(term uint64) error { return l.Stable.SetUint64([]byte(raftCurrentTerm), term) }
	if err := set(3); err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	if !l.InTerm(3, func() {
		go func() { next <- set(4) }()
		if err := set(3); err != nil { // as Raft does for a heartbeat
			t.Error(err)
		}
		if l.stable.changing.TryLock() {
			t.Error("nothing holds the next term back")
		}
	}) {
		t.Error("it is term 3")
	}
	if err := <-next; err != nil {
		t.Fatal(err)
	}
	if l.InTerm(3, func() { t.Error("called in term 4") }) || l.InTerm(5, func() {}) {
		t.Error("it is term 4")
	}
	if err := set(3); err == nil {
		t.Error("the term went back")
	}
	l.stable.changing.Lock() // a new one is on its way to the disk
	if l.InTerm(4, func() { t.Error("called while the term changes") }) {
		t.Error("it is about to be another term")
	}
	l.stable.changing.Unlock()
	if term, err := l.Stable.GetUint64([]byte(raftCurrentTerm)); term != 4 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
}

func TestDamagedEntryIsReportedAndFinal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	l := openTestLogs(t, d, LogStoreWAL)
	appendEntries(t, l.Log, 1, 300, 1000)
	name := segments(t, path)[0]
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[500] ^= 1
	write(t, name, b)
	var e raft.Log
	if err := l.Log.GetLog(1, &e); !errors.Is(err, command.ErrDamaged) {
		t.Fatalf("got %v", err)
	}
	if err := <-l.Failed(); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("Failed delivered %v", err)
	}
	if err := l.Log.StoreLog(testEntry(301, 1, 10)); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("append after it: %v", err)
	}
	wantEntry(t, l.Log, 2, 1, 1000)
}

// What an entry carries is a byte of a page like any other to bbolt, and would go to
// the followers as it is.
func TestNoFlippedBitOfABoltEntryIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	l := openTestLogs(t, d, LogStoreBolt)
	mark := bytes.Repeat([]byte("marked"), 20)
	entry := testEntry(1, 3, 0)
	entry.Data, entry.Extensions = mark, []byte("extended")
	if err := errors.Join(l.Log.StoreLog(entry), l.Log.StoreLog(testEntry(2, 3, 100)), l.Close()); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(path, boltLogFile)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range [][]byte{mark, []byte("extended"), []byte("AppendedAt")} {
		b := bytes.Clone(whole)
		for at, last := bytes.Index(b, part), 0; at >= 0; at = bytes.Index(b[last:], part) {
			last += at + len(part)
			b[last-1] ^= 4
		}
		write(t, name, b)
		_, err := d.OpenLogs(LogStoreBolt)
		oneLine(t, err, "read entry 1 of the boltdb log: stored record is damaged")
	}
	write(t, name, whole)
	l = openTestLogs(t, d, LogStoreBolt)
	var got raft.Log
	if err := l.Log.GetLog(1, &got); err != nil || !sameEntry(&got, entry) {
		t.Errorf("entry 1: %+v, %v", got, err)
	}
}

func TestDamagedFileIsRefusedWithoutEndingTheProcess(t *testing.T) {
	for _, c := range []struct{ kind, file string }{
		{LogStoreWAL, stableFile},
		{LogStoreWAL, filepath.Join(walLogDir, metadb.FileName)},
		{LogStoreBolt, boltLogFile},
	} {
		t.Run(c.file, func(t *testing.T) {
			path := wholeDir(t, c.kind)
			d := openTestDir(t, path)
			name := filepath.Join(path, c.file)
			whole, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b := bytes.Clone(whole)
			for i := 2 * os.Getpagesize(); i < len(b); i++ { // all but the header
				b[i] = 0xff
			}
			write(t, name, b)
			_, err = d.OpenLogs(c.kind)
			oneLine(t, err, "cannot be opened")
			// One word at a time in the headers of pages and elements.
			pages := len(whole) / os.Getpagesize()
			for page := 2; page < pages; page += 1 + pages/12 {
				for i := 0; i < 48; i += 4 {
					b := bytes.Clone(whole)
					b[page*os.Getpagesize()+i] ^= 0x81
					write(t, name, b)
					if verifyBoltFile(name) == nil {
						if l, err := d.OpenLogs(c.kind); err == nil {
							l.Close()
						}
					}
				}
			}
		})
	}
}

// What bbolt finds in order must pass.
func TestVerifyAcceptsWhatBoltWrote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 30 {
		err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(fmt.Appendf(nil, "b%d", round%3))
			if err != nil {
				return err
			}
			switch round {
			case 20:
				return tx.DeleteBucket([]byte("b0"))
			case 21:
				if _, err := b.CreateBucket([]byte("inner")); err != nil {
					return err
				}
			}
			for range r.IntN(2000) {
				k := fmt.Appendf(nil, "%d", r.IntN(3000))
				if r.IntN(3) == 0 {
					err = b.Delete(k)
				} else {
					err = b.Put(k, make([]byte, r.IntN(300)*r.IntN(30)))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := verifyBoltFile(path); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// raft-wal ends a log where it meets something that it cannot make sense of, and starts
// over there: as it must when a crash has cut a write short. But what comes after such a
// write was never written, so where something does, entries are lost that were
// acknowledged.
func TestALogWithDamageBeforeItsEndIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	l := openTestLogs(t, d, LogStoreWAL)
	for i := range uint64(20) {
		appendEntries(t, l.Log, 3*i+1, 3*i+3, 100)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(path, walLogDir, "*.wal"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	name := names[0]
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	frames := walFrames(whole)
	opens := func(b []byte) error {
		write(t, name, b)
		l, err := d.OpenLogs(LogStoreWAL)
		if err == nil {
			err = l.Close()
		}
		return err
	}
	for i, at := range frames[:len(frames)-8] {
		if i%7 != 0 && whole[at] != segment.FrameCommit {
			continue
		}
		// The kind, and bits of the length that move the end. What moves none is found when
		// the entry is read.
		for _, flip := range []struct {
			off int
			bit byte
		}{{0, 1}, {0, 2}, {0, 0x40}, {4, 0x10}, {4, 0x80}, {5, 1}} {
			b := bytes.Clone(whole)
			if b[at+flip.off] ^= flip.bit; flip.off > 0 && whole[at] == segment.FrameCommit {
				continue // the checksum of a write that is not the last one is not looked at
			}
			if err := opens(b); err == nil {
				t.Errorf("frame %d of %d: byte %d was flipped by %#x, and nobody noticed", i, len(frames), flip.off, flip.bit)
			} else {
				oneLine(t, err, "log cannot be opened")
			}
		}
	}
	// A write that was cut short, whatever of it there is, and what is left of one that was
	// written over.
	last := frames[len(frames)-4]
	for n := 0; n < len(whole[last:]) && n < 600; n += 16 {
		b := bytes.Clone(whole)
		clear(b[last+n : last+n+8])
		if err := opens(b); err != nil {
			t.Errorf("without the bytes from %d of the last write: %v", n, err)
		}
	}
	b := bytes.Clone(whole)
	clear(b[last : last+8])
	write(t, name, b)
	l = openTestLogs(t, d, LogStoreWAL)
	wantBounds(t, l, 1, 57)
	appendEntries(t, l.Log, 58, 58, 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTestLogs(t, d, LogStoreWAL)
	wantBounds(t, l, 1, 58)
}

// walFrames is where the frames of a segment begin.
func walFrames(b []byte) (at []int) {
	for i := walFileHeader; b[i] != 0; {
		at = append(at, i)
		size := 0
		if b[i] != segment.FrameCommit {
			size = int(binary.LittleEndian.Uint32(b[i+4:]))
		}
		i += walFrameHeader + (size+walFrameHeader-1)/walFrameHeader*walFrameHeader
	}
	return at
}

func TestMisplacedEntryIsReported(t *testing.T) {
	l, fl, _ := injected(t)
	appendEntries(t, l.Log, 1, 300, 10)
	fl.wrong = true
	var e raft.Log
	if err := l.Log.GetLog(5, &e); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func TestNearlyFullDiskIsRefusedButNotFinal(t *testing.T) {
	l, fl, _ := injected(t)
	limits := DefaultDiskLimits
	free := limits.floor() - 1
	l.log.disk.space = func(string) (uint64, error) { return free, nil }
	err := l.Log.StoreLog(testEntry(1, 1, 10))
	if !errors.Is(err, ErrNoSpace) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("got %v", err)
	}
	if fl.calls != 0 {
		t.Error("the file was touched")
	}
	if l.Err() != nil {
		t.Error("it counts as a failure")
	}
	if err := l.Log.DeleteRange(1, 1); err != nil { // gives space back
		t.Error(err)
	}
	free = limits.floor()
	if err := l.Log.StoreLog(testEntry(1, 1, 10)); err != nil {
		t.Error(err)
	}
}

func TestVoteIsOneRecord(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		want := func(term uint64, candidate string) {
			t.Helper()
			gotTerm, terr := l.Stable.GetUint64([]byte(raftLastVoteTerm))
			got, cerr := l.Stable.Get([]byte(raftLastVoteCand))
			if term == 0 {
				if terr == nil || terr.Error() != "not found" || cerr == nil || cerr.Error() != "not found" {
					t.Fatalf("no vote: %v, %v", terr, cerr)
				}
				return
			}
			if terr != nil || cerr != nil || gotTerm != term || string(got) != candidate {
				t.Fatalf("vote (%d, %q), %v, %v; want (%d, %q)", gotTerm, got, terr, cerr, term, candidate)
			}
		}
		set := func(term uint64, candidate string) {
			t.Helper()
			if err := l.Stable.SetUint64([]byte(raftLastVoteTerm), term); err != nil {
				t.Fatal(err)
			}
			if candidate == "" {
				return // the crash comes here
			}
			if err := l.Stable.Set([]byte(raftLastVoteCand), []byte(candidate)); err != nil {
				t.Fatal(err)
			}
		}
		want(0, "")
		set(4, "")
		want(0, "")
		l = reopen()
		want(0, "")
		set(5, "n1")
		want(5, "n1")
		set(6, "")
		want(5, "n1")
		l = reopen()
		want(5, "n1")
		set(7, "n2")
		l = reopen()
		want(7, "n2")
	})
}

// A term that reads as a lower one, a vote that is missing, or a file that has gone back
// by one write is a vote given twice.
func TestNoFlippedBitOfTheStableStoreIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	l := openTestLogs(t, d, LogStoreWAL)
	if err := errors.Join(
		l.Stable.SetUint64([]byte(raftCurrentTerm), 1<<40+5),
		l.Stable.SetUint64([]byte(raftLastVoteTerm), 1<<40+5),
		l.Stable.Set([]byte(raftLastVoteCand), []byte("n1-0123456789abcdef")),
		l.SetPeer("n2-0123456789abcdef", PeerSeen{Starts: 3, LastIndex: 70}),
		l.Close(),
	); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(path, stableFile)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	for _, spoil := range []struct {
		what string
		do   func(b []byte)
	}{
		{"the first header", func(b []byte) { b[60] ^= 1 }},
		{"the second header", func(b []byte) { b[page+60] ^= 1 }},
		{"the record", func(b []byte) { flipBehind(b, `"term":`, 2) }},
		{"its name", func(b []byte) { flipBehind(b, stableKey, -1) }},
	} {
		b := bytes.Clone(whole)
		spoil.do(b)
		write(t, name, b)
		l, err := d.OpenLogs(LogStoreWAL)
		if err == nil {
			l.Close()
			t.Errorf("%s was flipped, and nobody noticed", spoil.what)
			continue
		}
		oneLine(t, err, "stable.db cannot be opened")
	}
}

// flipBehind flips the lowest bit of the byte at an offset behind each place where a
// text stands.
func flipBehind(b []byte, text string, off int) {
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte(text))
		if i < 0 {
			return
		}
		at += i + len(text)
		b[at+off] ^= 1
	}
}

func TestStableValuesSurviveARestart(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		if _, err := l.Stable.GetUint64([]byte(raftCurrentTerm)); err == nil || err.Error() != "not found" {
			t.Errorf("absent term: %v", err)
		}
		if err := l.Stable.SetUint64([]byte(raftCurrentTerm), 17); err != nil {
			t.Fatal(err)
		}
		l = reopen()
		if term, err := l.Stable.GetUint64([]byte(raftCurrentTerm)); term != 17 || err != nil {
			t.Errorf("term %d, %v", term, err)
		}
	})
}

func TestPeersSeenSurviveARestart(t *testing.T) {
	bothStores(t, func(t *testing.T, l *Logs, reopen func() *Logs) {
		want := map[string]PeerSeen{"n2-a": {Starts: 3, LastIndex: 70}, "n3-b": {Starts: 1, LastIndex: 9}}
		for id, v := range want {
			if err := l.SetPeer(id, PeerSeen{Starts: 1}); err != nil {
				t.Fatal(err)
			}
			if err := l.SetPeer(id, v); err != nil {
				t.Fatal(err)
			}
		}
		l.Peers()["n4"] = PeerSeen{} // a copy
		l = reopen()
		if got := l.Peers(); !reflect.DeepEqual(got, want) {
			t.Errorf("peers %v", got)
		}
		if err := l.SetPeer("n2-a", PeerSeen{}); err != nil {
			t.Fatal(err)
		}
		l = reopen()
		if delete(want, "n2-a"); !reflect.DeepEqual(l.Peers(), want) {
			t.Errorf("peers %v", l.Peers())
		}
	})
}

func TestRecentEntriesAreBounded(t *testing.T) {
	var r recentEntries
	check := func() {
		t.Helper()
		bytes, n := 0, 0
		for _, e := range r.ring {
			if e != nil {
				bytes += len(e.Data)
				n++
			}
		}
		if bytes != r.bytes || bytes > recentBytes || uint64(n) != r.next-r.low {
			t.Fatalf("%d entries of %d bytes; noted %d to %d, %d bytes", n, bytes, r.low, r.next, r.bytes)
		}
		for i := r.low; i < r.next; i++ {
			var e raft.Log
			if !r.get(i, &e) || e.Index != i {
				t.Fatalf("entry %d: %+v", i, e)
			}
		}
	}
	has := func(i uint64, want bool) {
		t.Helper()
		var e raft.Log
		if got := r.get(i, &e); got != want {
			t.Fatalf("entry %d is held: %v", i, got)
		}
	}
	add := func(first, last uint64, size int) {
		for i := first; i <= last; i++ {
			r.add([]*raft.Log{{Index: i, Data: make([]byte, size)}})
			check()
		}
	}
	has(0, false)
	add(1, 1000, 100)
	has(1000, true)
	has(800, false)
	add(1001, 1040, 1<<20) // few large ones
	has(1040, true)
	has(1020, false)
	r.forget(1, 1030)
	check()
	has(1030, false)
	has(1031, true)
	r.forget(1035, 1040)
	check()
	has(1035, false)
	add(1035, 1036, 10)
	has(1036, true)
	add(5000, 5001, 10) // after a reset
	has(1036, false)
	has(5000, true)
	add(5002, 5002, recentBytes+1)
	has(5002, false)
	add(5003, 5003, 1)
	has(5003, true)
}

// noRotation is a table of segments that refuses a second segment: the crash
// between the append that fills the first one and the start of the next.
type noRotation struct{ *walMeta }

func (m noRotation) CommitState(s types.PersistentState) error {
	if len(s.Segments) > 1 {
		return errors.New("crash")
	}
	return m.walMeta.CommitState(s)
}

func TestFullSegmentIsMendedAfterACrash(t *testing.T) {
	for _, torn := range []bool{false, true} {
		t.Run(fmt.Sprintf("torn=%v", torn), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), walLogDir)
			last := fillSegment(t, dir)
			if torn {
				// The append that filled the segment reached the disk in part:
				// its index is there, its end is not.
				name := filepath.Join(dir, "00000000000000000001-0000000000000000.wal")
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				end := len(bytes.TrimRight(b, "\x00"))
				clear(b[end-6:])
				write(t, name, b)
				last--
			}
			for range 3 { // opened twice without an append, too
				w, err := openWAL(dir, testSegment, nil, hclog.NewNullLogger())
				if err != nil {
					t.Fatal(err)
				}
				got, err := w.LastIndex()
				if err != nil || got != last {
					t.Fatalf("last index %d, %v; want %d", got, err, last)
				}
				for i := uint64(1); i <= last; i++ {
					wantEntry(t, w, i, 1, 1000)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
			}
			w, err := openWAL(dir, testSegment, nil, hclog.NewNullLogger())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			appendEntries(t, w, last+1, last+200, 1000)
			for i := uint64(1); i <= last+200; i++ {
				wantEntry(t, w, i, 1, 1000)
			}
			if err := checkWAL(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// A segment that was listed but not yet made when the crash came is no loss.
func TestUnusedSegmentMayBeAbsent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), walLogDir)
	w, err := openWAL(dir, testSegment, nil, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	appendEntries(t, w, 1, 10, 100)
	if err := w.DeleteRange(1, 10); err != nil { // begins a segment
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*.wal"))
	if len(names) != 1 {
		t.Fatal(names)
	}
	remove(t, names[0])
	if err := checkWAL(dir); err != nil {
		t.Fatal(err)
	}
	if w, err = openWAL(dir, testSegment, nil, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	appendEntries(t, w, 11, 12, 100)
	if err := checkWAL(dir); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, kind := range []string{LogStoreWAL, LogStoreBolt} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%dx256B", kind, n), func(b *testing.B) {
				d := openTestDir(b, filepath.Join(b.TempDir(), "data"))
				d.walSegment = walSegmentBytes
				l := openTestLogs(b, d, kind)
				data := make([]byte, 256)
				next := uint64(1)
				b.ReportAllocs()
				for b.Loop() {
					batch := make([]*raft.Log, n)
					for i := range batch {
						batch[i] = &raft.Log{Index: next, Term: 1, Data: data, AppendedAt: entryTime}
						next++
					}
					if err := l.Log.StoreLogs(batch); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/entry")
			})
		}
	}
}

// fillSegment fills the first segment of a new log and stops before the next
// one begins. It returns the last index.
func fillSegment(t *testing.T, dir string) uint64 {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	db := &metadb.BoltMetaDB{}
	files := &walFiles{Filer: segment.NewFiler(dir, walfs.New()), dir: dir, meta: db}
	meta := noRotation{&walMeta{BoltMetaDB: db, files: files}}
	w, err := wal.Open(dir, wal.WithMetaStore(meta), wal.WithSegmentFiler(files), wal.WithCodec(walCodec{}), wal.WithSegmentSize(testSegment), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(w.Close(), meta.Close()); err != nil {
			t.Fatal(err)
		}
	}()
	for i := uint64(1); ; i++ {
		err := w.StoreLog(testEntry(i, 1, 1000))
		if errors.Is(err, wal.ErrSealed) {
			return i - 1
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Raft goes on as if a deleted end of the log were there until it has appended what
// takes its place: it would look for these entries, and end the process.
func TestAnEndOfTheLogThatCannotBeReplacedIsFinal(t *testing.T) {
	l, _, _ := injected(t)
	appendEntries(t, l.Log, 1, 9, 10)
	limits := DefaultDiskLimits
	free := limits.floor() - 1
	l.log.disk.space = func(string) (uint64, error) { return free, nil }
	if err := l.Log.DeleteRange(1, 3); err != nil { // the front, behind a snapshot
		t.Fatal(err)
	}
	if err := l.Log.StoreLog(testEntry(10, 1, 10)); !errors.Is(err, ErrNoSpace) || l.Err() != nil {
		t.Fatalf("behind the end: %v, final: %v", err, l.Err())
	}
	if err := l.Log.DeleteRange(8, 9); err != nil {
		t.Fatal(err)
	}
	if err := l.Log.StoreLog(testEntry(8, 2, 10)); !errors.Is(err, ErrNoSpace) || l.Err() == nil {
		t.Fatalf("in the place of others: %v, final: %v", err, l.Err())
	}
	free = 1 << 40
	if err := l.Log.StoreLog(testEntry(8, 2, 10)); err == nil {
		t.Error("an entry is taken again")
	}
	if err := <-l.log.disk.Failed(); !errors.Is(err, command.ErrDiskFull) {
		t.Errorf("the node hears of %v", err)
	}
}
