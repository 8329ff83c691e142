package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// openTestState opens a state that flushes only when asked, unless cfg says
// otherwise, and checks when the test ends that the file is in order.
func init() { flushPages = 32 }

func openTestState(t testing.TB, cfg StateConfig) *State {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.BufferAge == 0 {
		cfg.BufferAge = time.Hour
	}
	cfg.MaxData = 1 << 30
	s, err := OpenState(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && s.Err() == nil {
			t.Error(err)
		}
		inspect(t, cfg.Dir)
	})
	return s
}

// inspect checks a closed state file: the pages, that each pointer leads to the
// last change of its key, that every change leads to the one before, the counts,
// and the lineage of each revision, computed anew.
func inspect(t testing.TB, dir string) {
	t.Helper()
	f, m, _, err := openStateFile(filepath.Join(dir, stateName), 1<<30)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.db.Close()
	tx, err := f.begin()
	if err != nil {
		t.Error(err)
		return
	}
	defer tx.close()
	for err := range tx.tx.Check() {
		t.Errorf("pages: %v", err)
	}
	last := map[string]*change{}
	pointers := map[string]position{}
	var open []*change
	var lineage digest
	h := sha256.New()
	closeRevision := func() {
		if len(open) == 0 || open[0].at.rev < m.Oldest {
			open = open[:0]
			return
		}
		if open[0].at.rev == m.Oldest { // where the chain begins
			lineage, open = digest(open[0].lineage()), open[:0]
			return
		}
		lineage = extendLineage(h, lineage, open[0].at.rev, open)
		if digest(open[0].lineage()) != lineage {
			t.Errorf("lineage of revision %d", open[0].at.rev)
		}
		open = open[:0]
	}
	n := uint64(0)
	l := f.local()
	compacted := l.Target == m.Oldest && l.NextRev > l.Target
	err = tx.tx.Bucket(bucketHistory).ForEach(func(k, v []byte) error {
		if isMark(k, v) {
			return nil
		}
		at, err := positionOf(k)
		c := &change{}
		if err == nil {
			err = c.decode(at, v, "")
		}
		if err != nil {
			return err
		}
		if len(open) > 0 && open[0].at.rev != at.rev {
			closeRevision()
		}
		if uint32(len(open)) != at.k && at.rev >= m.Oldest {
			t.Errorf("revision %d has a gap before %d", at.rev, at.k)
		}
		open = append(open, c)
		n++
		if c.table != tableKV {
			return nil
		}
		var prev position
		if p := last[c.rec.Key]; p != nil {
			prev = p.at
		}
		if c.prev != prev && (c.prev.rev >= m.Oldest || c.prev.zero() || !c.created() && c.at.rev > m.Oldest) {
			t.Errorf("revision %d.%d of key %q follows %v, it says %v", at.rev, at.k, c.rec.Key, prev, c.prev)
		}
		if old := last[c.rec.Key]; old != nil && compacted && c.at.rev <= m.Oldest && old.at.rev < m.Oldest {
			t.Errorf("revision %d.%d of key %q is superfluous at %d", old.at.rev, old.at.k, c.rec.Key, m.Oldest)
		}
		if c.deleted && compacted && c.at.rev < m.Oldest {
			t.Errorf("delete %d.%d of key %q is superfluous at %d", at.rev, at.k, c.rec.Key, m.Oldest)
		}
		last[c.rec.Key] = c
		if c.deleted && c.at.rev < m.Oldest {
			delete(last, c.rec.Key)
		}
		return nil
	})
	closeRevision()
	keys := uint64(0)
	for _, bucket := range [][]byte{bucketKeys, bucketTombs} {
		err = errors.Join(err, tx.tx.Bucket(bucket).ForEach(func(k, v []byte) error {
			if isMark(k, v) {
				return nil
			}
			p, err := decodePointer(k, v)
			at := p.at
			if _, dup := pointers[string(k)]; dup {
				t.Errorf("key %q is both there and deleted", k)
			}
			if bytes.Equal(bucket, bucketTombs) && at.rev < m.Oldest {
				if compacted {
					t.Errorf("the delete %d.%d of key %q is remembered at %d", at.rev, at.k, k, m.Oldest)
				}
				return err
			}
			pointers[string(k)] = at
			if c := last[string(k)]; c == nil || c.at != at || c.deleted != bytes.Equal(bucket, bucketTombs) {
				t.Errorf("pointer of key %q in %s is %v, its last change %+v", k, bucket, at, c)
			}
			if bytes.Equal(bucket, bucketKeys) {
				keys++
			}
			return err
		}))
	}
	if err != nil || keys != m.Keys || n != l.Records || len(pointers) != len(last) || lineage != m.Lineage {
		t.Errorf("%d keys of %d, %d changes of %d, %d pointers for %d keys, lineage %x of %x, %v",
			keys, m.Keys, n, l.Records, len(pointers), len(last), lineage, m.Lineage, err)
	}
}

// inOneEntry applies fn as the only command of the next entry.
func inOneEntry(t testing.TB, s *State, fn func(b *Batch)) uint64 {
	t.Helper()
	b := s.Begin()
	defer b.Discard()
	i := b.Applied() + 1
	b.Entry(i, 1, command.Stamp(i)*1000, time.Unix(int64(i), 0))
	fn(b)
	rev := b.Step()
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	return rev
}

func putKey(t testing.TB, s *State, key, value string) uint64 {
	t.Helper()
	return inOneEntry(t, s, func(b *Batch) { setKey(t, b, key, value) })
}

// setKey sets a key, also to what it is already.
func setKey(t testing.TB, b *Batch, key, value string) {
	rec, ok, err := b.Get(key)
	if err != nil {
		t.Error(err)
		return
	}
	if !ok {
		rec = command.Record{Key: key, CreateRevision: b.NextRevision()}
	}
	rec.Value = []byte(value)
	b.Put(rec)
}

func deleteKey(t testing.TB, s *State, key string) uint64 {
	t.Helper()
	return inOneEntry(t, s, func(b *Batch) { b.Delete(key) })
}

func mustFlush(t testing.TB, s *State) {
	t.Helper()
	if err := s.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func mustView(t testing.TB, s *State) *View {
	t.Helper()
	v, err := s.view()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func reopen(t testing.TB, s *State) *State {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return openTestState(t, s.cfg)
}

// eventually waits until cond holds, for at most ten seconds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within ten seconds", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// wantValue checks what Get gives; "-" stands for no such key.
func wantValue(t testing.TB, got command.Record, err error, want string) {
	t.Helper()
	switch {
	case want == "-":
		if !errors.Is(err, command.ErrKeyNotFound) {
			t.Errorf("got %q, %v; want no such key", got.Value, err)
		}
	case err != nil || string(got.Value) != want:
		t.Errorf("got %q, %v; want %q", got.Value, err, want)
	}
}

func TestNothingOfABatchIsSeenBeforePublishAndAllOfItAfter(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a", "1")
	b := s.Begin()
	setKey(t, b, "a", "2")
	setKey(t, b, "b", "2")
	b.Step()
	b.Entry(2, 1, 0, time.Time{})
	rec, err := s.Get("a")
	wantValue(t, rec, err, "1")
	before := mustView(t, s)
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"a": "1", "b": "-"} {
		rec, err := before.Get(key)
		wantValue(t, rec, err, want)
		rec, err = mustView(t, s).Get(key)
		wantValue(t, rec, err, "2")
	}
	if i, term := s.Applied(); i != 2 || term != 1 || s.Revision() != 2 {
		t.Errorf("applied %d in term %d at revision %d", i, term, s.Revision())
	}
}

func TestADiscardedBatchLeavesNoTrace(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		s := openTestState(t, StateConfig{})
		putKey(t, s, "a", "1")
		if flushed {
			mustFlush(t, s)
		}
		head := s.Head()
		b := s.Begin()
		setKey(t, b, "a", "lost")
		b.SetMember(command.Member{ID: "x"})
		b.Step()
		b.Discard()
		b.Discard()
		if s.Head() != head {
			t.Errorf("state moved from %v to %v", head, s.Head())
		}
		putKey(t, s, "b", "2")
		rec, err := s.Get("a")
		wantValue(t, rec, err, "1")
		s = reopen(t, s)
		rec, err = s.Get("b")
		wantValue(t, rec, err, "2")
		if m := s.Members(); len(m) != 0 {
			t.Errorf("members %v", m)
		}
	}
}

func TestAKeyThatCannotBeStoredFailsItsBatchAndNothingElse(t *testing.T) {
	s := openTestState(t, StateConfig{})
	for _, key := range []string{"", strings.Repeat("k", longestKey)} {
		b := s.Begin()
		b.Put(command.Record{Key: key})
		b.Put(command.Record{Key: "fine"})
		b.Step()
		b.Entry(9, 1, 0, time.Time{})
		if err := b.Publish(); !errors.Is(err, command.ErrInvalidCommand) {
			t.Errorf("key of %d bytes: %v", len(key), err)
		}
		putKey(t, s, "a", "1")
	}
}

func TestAnEntryIsNeverAppliedTwice(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a", "1")
	head := s.Head()
	for _, again := range []func(b *Batch){
		func(b *Batch) { setKey(t, b, "a", "2"); b.Step(); b.Entry(1, 1, 0, time.Time{}) },
		func(b *Batch) { b.Configuration(1, 1, raft.Configuration{}) },
	} {
		b := s.Begin()
		again(b)
		if err := b.Publish(); err == nil || s.Head() != head {
			t.Errorf("%v: head %v", err, s.Head())
		}
	}
}

func TestStepCountsOnlyWhatChangesSomething(t *testing.T) {
	s := openTestState(t, StateConfig{})
	b := s.Begin()
	if r := b.Step(); r != 0 {
		t.Errorf("empty step gave revision %d", r)
	}
	b.Delete("absent")
	b.RemoveMember("absent")
	if r := b.Step(); r != 0 {
		t.Errorf("deleting what is absent gave revision %d", r)
	}
	setKey(t, b, "a", "1")
	setKey(t, b, "b", "1")
	if r := b.Step(); r != 1 {
		t.Errorf("two keys in one step gave revision %d", r)
	}
	b.SetMember(command.Member{ID: "m"})
	if r := b.Step(); r != 2 {
		t.Errorf("a member gave revision %d", r)
	}
	b.Entry(1, 1, 0, time.Time{})
	b.Configuration(2, 1, raft.Configuration{})
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	v := mustView(t, s)
	if v.Revision() != 2 || v.KVRevision() != 1 || v.MembersRevision() != 2 || v.Applied() != 2 {
		t.Errorf("revision %d, of keys %d, of members %d, applied %d", v.Revision(), v.KVRevision(), v.MembersRevision(), v.Applied())
	}
}

func TestMembersClusterConfigurationAndTimeSurviveARestart(t *testing.T) {
	for _, crash := range []bool{false, true} {
		s := openTestState(t, StateConfig{})
		c := command.Cluster{ID: "c", Datacenter: "dc1", HomeSite: "home", Epoch: 1}
		conf := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}}}
		b := s.Begin()
		b.Configuration(1, 1, conf)
		b.SetCluster(c)
		for _, id := range []string{"n3", "n1", "n2"} {
			b.SetMember(command.Member{ID: id, Name: id})
		}
		b.Step()
		b.SetMember(command.Member{ID: "n2", Name: "renamed"})
		b.RemoveMember("n3")
		b.Step()
		b.Entry(2, 1, 77, time.Unix(5, 6))
		if err := b.Publish(); err != nil {
			t.Fatal(err)
		}
		mustFlush(t, s)
		before := s.Head()
		if crash {
			s = openTestState(t, StateConfig{Dir: copyOfFiles(t, s)})
		} else {
			s = reopen(t, s)
		}
		v := mustView(t, s)
		members, err := v.Members()
		if err != nil || len(members) != 2 || members[0].ID != "n1" || members[1].Name != "renamed" {
			t.Errorf("members %v, %v", members, err)
		}
		got, at := s.Configuration()
		stamp, wall := s.Stamp()
		if v.Cluster() != c || at != 1 || len(got.Servers) != 1 || stamp != 77 || !wall.Equal(time.Unix(5, 6)) || s.Head() != before {
			t.Errorf("cluster %v, configuration %v at %d, stamp %d, wall %v, head %v", v.Cluster(), got, at, stamp, wall, s.Head())
		}
	}
}

func TestFlushMakesDurableAllThatWasApplied(t *testing.T) {
	s := openTestState(t, StateConfig{})
	for i := range 100 {
		putKey(t, s, fmt.Sprintf("k%02d", i), "v")
	}
	mustFlush(t, s)
	putKey(t, s, "later", "v")
	crashed := openTestState(t, StateConfig{Dir: copyOfFiles(t, s)})
	if i, _ := crashed.Applied(); i != 100 || crashed.Revision() != 100 {
		t.Errorf("after the crash: applied %d, revision %d", i, crashed.Revision())
	}
	if i, clean := crashed.Marker(); i != 101 || !clean {
		t.Errorf("marker at %d, clean %v; want 101", i, clean)
	}
}

func TestFlushesHappenByThemselves(t *testing.T) {
	for name, cfg := range map[string]StateConfig{
		"by age":   {BufferAge: time.Millisecond},
		"by bytes": {BufferBytes: 10 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTestState(t, cfg)
			for i := range 20 {
				putKey(t, s, fmt.Sprint(i), strings.Repeat("v", 1<<10))
			}
			eventually(t, "flush", func() bool { return s.Stats().Flushes > 0 })
		})
	}
}

func TestApplyingWaitsWhileTwiceTheBoundIsInMemory(t *testing.T) {
	const bound = 64 << 10
	s := openTestState(t, StateConfig{BufferBytes: bound})
	s.flushing.Lock() // no flush gets on
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 400 {
			putKey(t, s, fmt.Sprint(i), strings.Repeat("v", 1<<10))
		}
	}()
	eventually(t, "a full buffer", func() bool { return s.Stats().BufferBytes > 2*bound })
	for range 30 {
		if n := s.Stats().BufferBytes; n > 2*bound+4<<10 {
			t.Fatalf("buffer grew to %d bytes", n)
		}
		time.Sleep(time.Millisecond) // let a faulty writer run on
	}
	s.flushing.Unlock()
	<-done
	if s.Stats().Keys != 400 {
		t.Errorf("%d keys", s.Stats().Keys)
	}
}

// What is being flushed counts too, or a slow disk would see the buffer fill twice.
func TestAFlushUnderWayCountsAgainstTheBound(t *testing.T) {
	const bound = 64 << 10
	s := openTestState(t, StateConfig{BufferBytes: bound})
	tx, err := s.gen.Load().file.db.Begin(true) // a flush freezes the buffer and waits
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 400 {
			putKey(t, s, fmt.Sprint(i), strings.Repeat("v", 1<<10))
		}
	}()
	eventually(t, "a full buffer", func() bool { return s.gen.Load().frozen != nil && s.Stats().BufferBytes > 2*bound })
	for range 30 {
		if n := s.Stats().BufferBytes; n > 2*bound+4<<10 {
			t.Fatalf("%d bytes are in memory", n)
		}
		time.Sleep(time.Millisecond) // let a faulty writer run on
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	<-done
}

func TestAFailedFlushIsFinalAndReadsGoOn(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "durable", "v")
	mustFlush(t, s)
	s.gen.Load().file.db.MaxSize = 1 << 20
	putKey(t, s, "big", strings.Repeat("v", 20<<20))
	if err := s.Flush(context.Background()); err == nil {
		t.Fatal("flush beyond the size limit succeeded")
	}
	b := s.Begin()
	setKey(t, b, "after", "v")
	b.Step()
	if err := b.Publish(); err == nil || !errors.Is(err, s.Err()) {
		t.Errorf("publish after a failed flush: %v", err)
	}
	for _, key := range []string{"durable", "big"} {
		if _, err := mustView(t, s).Get(key); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	crashed := openTestState(t, StateConfig{Dir: copyOfFiles(t, s)})
	rec, err := crashed.Get("durable")
	wantValue(t, rec, err, "v")
	if i, _ := crashed.Marker(); i != 2 {
		t.Errorf("marker at %d", i)
	}
}

func TestAfterCloseEverythingSaysStopping(t *testing.T) {
	s := openTestState(t, StateConfig{})
	b := s.Begin()
	setKey(t, b, "a", "1")
	b.Step()
	b.Entry(1, 1, 0, time.Time{})
	waiting, closed := make(chan error), make(chan error)
	go func() { waiting <- s.WaitApplied(context.Background(), 5) }()
	go func() { closed <- s.Close() }()
	waitErr := <-waiting
	publishErr := b.Publish() // Close waits for the batch
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	_, viewErr := s.View()
	_, getErr := s.Get("a")
	s.Certify(time.Now())
	if s.Err() != nil {
		t.Errorf("a stopped store has failed: %v", s.Err())
	}
	for what, err := range map[string]error{
		"swap": s.SwapCopy(false), "copy": s.WriteCopy(t.Context(), nil, io.Discard), "publish later": publishLate(s),
		"publish": publishErr, "view": viewErr, "get": getErr, "wait": waitErr,
		"wait later": s.WaitRevision(context.Background(), 5),
	} {
		if !errors.Is(err, command.ErrStopping) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func publishLate(s *State) error {
	b := s.Begin()
	defer b.Discard()
	b.Entry(b.Applied()+1, 1, 0, time.Time{})
	return b.Publish()
}

func TestCloseWaitsForViews(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a", "1")
	mustFlush(t, s)
	v := mustView(t, s)
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	eventually(t, "closing", func() bool { return errors.Is(s.WaitApplied(t.Context(), 9), command.ErrStopping) })
	rec, err := v.Get("a")
	wantValue(t, rec, err, "1")
	select {
	case <-closed:
		t.Error("Close returned under an open view")
	default:
	}
	v.Close()
	v.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := v.Get("a"); !errors.Is(err, command.ErrStopping) {
		t.Errorf("closed view: %v", err)
	}
}

func TestAWaiterIsWokenByItsOwnIndexOnly(t *testing.T) {
	w := newWaitlist()
	var mu sync.Mutex
	var now uint64
	current := func() uint64 { mu.Lock(); defer mu.Unlock(); return now }
	move := func(to uint64) {
		mu.Lock()
		now = to
		mu.Unlock()
		w.advance(to)
	}
	woken := make(chan uint64, 10)
	var all sync.WaitGroup
	for _, target := range []uint64{5, 3, 7, 3} {
		all.Go(func() {
			if err := w.wait(context.Background(), target, current); err != nil {
				t.Error(err)
			}
			woken <- target
		})
	}
	waiting := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.waiting) }
	eventually(t, "four waiters", func() bool { return waiting() == 4 })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.wait(ctx, 4, current); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
	move(2)
	if waiting() != 4 {
		t.Errorf("index 2 left %d waiters", waiting())
	}
	move(3)
	if a, b := <-woken, <-woken; a != 3 || b != 3 || waiting() != 2 {
		t.Errorf("index 3 woke %d and %d, %d wait", a, b, waiting())
	}
	move(6)
	if a := <-woken; a != 5 {
		t.Errorf("index 6 woke %d", a)
	}
	move(100)
	all.Wait()
	if err := w.wait(context.Background(), 100, current); err != nil {
		t.Error(err)
	}
}

func TestWaitersNeverMissTheirRevision(t *testing.T) {
	s := openTestState(t, StateConfig{})
	const last = 300
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for rev := uint64(1); rev <= last; rev++ {
				if err := s.WaitRevision(t.Context(), rev); err != nil {
					t.Error(err)
					return
				}
				if err := s.WaitApplied(t.Context(), rev); err != nil || s.Revision() < rev {
					t.Errorf("woken for %d at %d: %v", rev, s.Revision(), err)
					return
				}
			}
		})
	}
	for i := range last {
		putKey(t, s, "k", fmt.Sprint(i))
	}
	readers.Wait()
}

// Two keys are always written together, the state is flushed all the time, and
// readers look at it through every combination of file and layers.
func TestViewsAreConsistentAndNeverGoBackWhileFlushing(t *testing.T) {
	s := openTestState(t, StateConfig{BufferBytes: 8 << 10, BufferAge: time.Millisecond})
	const last = 1500
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			var before uint64
			for {
				select {
				case <-stop:
					return
				default:
				}
				v, err := s.View()
				if err != nil {
					t.Error(err)
					return
				}
				var seen []string
				err = v.Scan("pair/", "", func(r command.Record) bool {
					seen = append(seen, string(r.Value))
					return true
				})
				rec, gerr := v.Get("pair/b")
				rev := v.Revision()
				v.Close()
				if rev < before {
					t.Errorf("revision went from %d back to %d", before, rev)
				}
				before = rev
				if rev == 0 {
					continue
				}
				want := fmt.Sprint(rev)
				if err != nil || gerr != nil || !slices.Equal(seen, []string{want, want}) || string(rec.Value) != want {
					t.Errorf("at revision %d: scan %v, get %q, %v, %v", rev, seen, rec.Value, err, gerr)
					return
				}
			}
		})
	}
	for i := 1; i <= last; i++ {
		inOneEntry(t, s, func(b *Batch) {
			setKey(t, b, "pair/a", fmt.Sprint(i))
			setKey(t, b, fmt.Sprintf("other/%d", i%50), strings.Repeat("x", 100))
			setKey(t, b, "pair/b", fmt.Sprint(i))
		})
	}
	close(stop)
	readers.Wait()
	if s.Stats().Flushes < 5 {
		t.Errorf("only %d flushes", s.Stats().Flushes)
	}
}

func TestARecordOutlivesItsView(t *testing.T) {
	s := openTestState(t, StateConfig{})
	want := bytes.Repeat([]byte("v"), 100)
	putKey(t, s, "a", string(want))
	mustFlush(t, s)
	v := mustView(t, s)
	got, err := v.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	var scanned command.Record
	if err := v.Scan("", "", func(r command.Record) bool { scanned = r; return true }); err != nil {
		t.Fatal(err)
	}
	v.Close()
	for i := range 20 {
		putKey(t, s, "a", strings.Repeat(fmt.Sprint(i), 60))
		mustFlush(t, s)
	}
	if !bytes.Equal(got.Value, want) || !bytes.Equal(scanned.Value, want) || scanned.Key != "a" {
		t.Errorf("values became %q and %q", got.Value, scanned.Value)
	}
}

func TestEqualEntriesGiveEqualLineageHoweverTheyAreGroupedAndFlushed(t *testing.T) {
	one := openTestState(t, StateConfig{})
	two := openTestState(t, StateConfig{BufferBytes: 4 << 10})
	r := rand.New(rand.NewPCG(1, 2))
	var entries []scriptEntry
	for i := uint64(1); i <= 300; i++ {
		entries = append(entries, randomEntry(r, i))
	}
	for _, e := range entries {
		applyScript(t, one, e)
	}
	for i := 0; i < len(entries); {
		n := min(1+r.IntN(9), len(entries)-i)
		applyScript(t, two, entries[i:i+n]...)
		i += n
		if r.IntN(20) == 0 {
			two = reopen(t, two)
		}
	}
	if one.Head() != two.Head() {
		t.Errorf("one stands at %v, the other at %v", one.Head(), two.Head())
	}
	b := two.Begin()
	b.Entry(301, 1, 1, time.Unix(0, 0))
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	if h1, h2 := one.Head(), two.Head(); h1.Lineage != h2.Lineage || h1.Hash == h2.Hash {
		t.Error("an entry without changes must move the second hash, and not the lineage")
	}
}

func TestLineageTellsContentsApart(t *testing.T) {
	seen := map[command.Lineage]string{}
	for name, fn := range map[string]func(b *Batch){
		"value":   func(b *Batch) { b.Put(command.Record{Key: "a", Value: []byte("1")}) },
		"other":   func(b *Batch) { b.Put(command.Record{Key: "a", Value: []byte("2")}) },
		"key":     func(b *Batch) { b.Put(command.Record{Key: "b", Value: []byte("1")}) },
		"flags":   func(b *Batch) { b.Put(command.Record{Key: "a", Value: []byte("1"), Flags: 1}) },
		"lock":    func(b *Batch) { b.Put(command.Record{Key: "a", Value: []byte("1"), LockIndex: 1}) },
		"session": func(b *Batch) { b.Put(command.Record{Key: "a", Value: []byte("1"), Session: "s"}) },
		"created": func(b *Batch) { b.Put(command.Record{Key: "a", Value: []byte("1"), CreateRevision: 1}) },
		"member":  func(b *Batch) { b.SetMember(command.Member{ID: "a"}) },
		"cluster": func(b *Batch) { b.SetCluster(command.Cluster{ID: "a"}) },
		"two":     func(b *Batch) { setKey(t, b, "a", "1"); setKey(t, b, "b", "1") },
		"swapped": func(b *Batch) { setKey(t, b, "b", "1"); setKey(t, b, "a", "1") },
		"nothing": func(*Batch) {},
	} {
		s := openTestState(t, StateConfig{})
		inOneEntry(t, s, fn)
		l := s.Head().Lineage
		if other, dup := seen[l]; dup {
			t.Errorf("%q and %q have the same lineage", name, other)
		}
		seen[l] = name
	}
}

func TestPointersKeepWhatTheySay(t *testing.T) {
	for _, c := range []change{
		{at: position{1, 0}, rec: command.Record{Key: "k", CreateRevision: 1}},
		{at: position{9, 3}, deleted: true, rec: command.Record{Key: "k"}},
		{at: position{1 << 60, 1 << 31}, rec: command.Record{Key: "k", CreateRevision: 7, Flags: math.MaxUint64, Value: make([]byte, 70_000)}},
		{at: position{9, 0}, rec: command.Record{Key: "k", CreateRevision: 9, LockIndex: 1, Value: []byte("v")}},
		{at: position{9, 0}, rec: command.Record{Key: "k", CreateRevision: 9, Session: "s", Value: []byte("v")}},
	} {
		b := encodePointer([]byte("before"), &c)[len("before"):]
		if len(b) > longestPointer {
			t.Errorf("%+v takes %d bytes", c.pointer(), len(b))
		}
		if p, err := decodePointer([]byte("k"), b); err != nil || p != c.pointer() {
			t.Errorf("%+v became %+v, %v", c.pointer(), p, err)
		}
		if _, err := decodePointer([]byte("other"), b); !errors.Is(err, command.ErrDamaged) {
			t.Errorf("the pointer of another key: %v", err)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 4
			if p, err := decodePointer([]byte("k"), bad); !errors.Is(err, command.ErrDamaged) {
				t.Errorf("byte %d flipped: %+v, %v", i, p, err)
			}
			if p, err := decodePointer([]byte("k"), b[:i]); !errors.Is(err, command.ErrDamaged) {
				t.Errorf("cut to %d bytes: %+v, %v", i, p, err)
			}
		}
	}
}

// A session or a lock is not in the pointer, so it must come from the record.
func TestSetKeepsTheLockOfAKey(t *testing.T) {
	s := openTestState(t, StateConfig{})
	locked := command.Record{Key: "k", CreateRevision: 1, LockIndex: 5, Session: "s", Value: []byte("v")}
	inOneEntry(t, s, func(b *Batch) { b.Put(locked) })
	mustFlush(t, s)
	inOneEntry(t, s, func(b *Batch) {
		if err := b.Set("k", []byte("other"), 3); err != nil {
			t.Error(err)
		}
	})
	got, err := s.Get("k")
	locked.ModifyRevision, locked.Value, locked.Flags = 2, []byte("other"), 3
	if err != nil || !reflect.DeepEqual(got, locked) {
		t.Errorf("%+v, %v; want %+v", got, err, locked)
	}
}

func TestSettingWhatAKeyHasMakesNoRevision(t *testing.T) {
	s := openTestState(t, StateConfig{})
	set := func(value string, flags uint64) uint64 {
		return inOneEntry(t, s, func(b *Batch) {
			if err := b.Set("k", []byte(value), flags); err != nil {
				t.Error(err)
			}
		})
	}
	for _, flushed := range []bool{false, true} {
		was := set("a", 1)
		for i, c := range []struct {
			value string
			flags uint64
		}{{"a", 1}, {"a", 2}, {"b", 2}, {"", 2}, {"", 2}, {"longer", 2}} {
			if flushed {
				mustFlush(t, s)
			}
			want := was + 1
			if i == 0 || i == 4 {
				want = was
			}
			if was = set(c.value, c.flags); was != want {
				t.Errorf("flushed %v, %q with flags %d: revision %d, want %d", flushed, c.value, c.flags, was, want)
			}
		}
	}
}
