package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// twins are two states that hold the same.
func twins(t testing.TB) (from, to *State) {
	t.Helper()
	return twinsWith(t, StateConfig{})
}

func twinsWith(t testing.TB, cfg StateConfig) (from, to *State) {
	t.Helper()
	from, to = someState(t), openTestState(t, cfg)
	sendCopy(t, from, to)
	return from, to
}

// wantSame compares all that two states can be asked.
func wantSame(t testing.TB, from, to *State) {
	t.Helper()
	a, b := from.gen.Load().meta, to.gen.Load().meta
	if x, y := string(mustJSON(a)), string(mustJSON(b)); x != y {
		t.Errorf("states differ:\n%s\n%s", x, y)
	}
	if x, y := string(mustJSON(from.Members())), string(mustJSON(to.Members())); x != y {
		t.Errorf("members differ:\n%s\n%s", x, y)
	}
	for rev := max(a.Oldest, 1); rev <= a.Revision; rev += 1 + (a.Revision-a.Oldest)/8 {
		if x, y := everythingAt(t, from, rev), everythingAt(t, to, rev); x != y {
			t.Fatalf("at revision %d of %d\n%s\n%s", rev, a.Revision, x, y)
		}
	}
	if a.Oldest <= 1 && !bytes.Equal(history(t, from), history(t, to)) {
		t.Error("history differs")
	}
	if x, y := pointersOf(t, from), pointersOf(t, to); x != y {
		t.Errorf("keys differ:\n%s\n%s", x, y)
	}
}

func everythingAt(t testing.TB, s *State, rev uint64) string {
	t.Helper()
	v := mustView(t, s)
	defer v.Close()
	var all strings.Builder
	if err := v.ScanAt("", "", rev, func(r command.Record) bool {
		fmt.Fprintf(&all, "%s=%d/%d/%x ", r.Key, r.CreateRevision, r.ModifyRevision, r.Value)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"", "a/", "k1"} {
		n, err := v.PrefixRevisionAt(prefix, rev)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s:%d ", prefix, n)
	}
	return all.String()
}

// pointersOf is what all keys lead to, deleted ones among them.
func pointersOf(t testing.TB, s *State) string {
	t.Helper()
	v := mustView(t, s)
	defer v.Close()
	var all strings.Builder
	if err := v.scan("", "", true, func(key string, l located) (bool, error) {
		fmt.Fprintf(&all, "%s>%d.%d %v ", key, l.at.rev, l.at.k, l.deleted)
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// frames are the offsets at which the frames of a stream end, the magic first.
func frames(stream []byte) []int {
	ends := []int{len(copyMagic)}
	for at := ends[0]; at < len(stream); {
		at += frameHeadSize + int(binary.BigEndian.Uint32(stream[at+1:]))
		ends = append(ends, at)
	}
	return ends
}

// deltaWays are the states that lay a delta over their file, and put it into it.
var deltaWays = map[string]StateConfig{"over the file": {}, "into the file": {BufferBytes: 1}}

func TestADeltaBringsWhatHappenedSince(t *testing.T) {
	for name, cfg := range deltaWays {
		t.Run(name, func(t *testing.T) { bringsWhatHappenedSince(t, cfg) })
	}
}

func bringsWhatHappenedSince(t *testing.T, cfg StateConfig) {
	from, to := twinsWith(t, cfg)
	before := from.Revision()
	putKey(t, from, "new", "1")
	putKey(t, from, "k4", "again")
	deleteKey(t, from, "k6")
	deleteKey(t, from, "k7")
	mustFlush(t, from)
	putKey(t, from, "k7", "is back")
	putKey(t, from, "k3", "is back too")
	inOneEntry(t, from, func(b *Batch) {
		b.SetMember(command.Member{ID: "n"})
		b.RemoveMember("m")
		for i := range 30 {
			setKey(t, b, fmt.Sprint("many/", i), "x")
			b.Delete(fmt.Sprint("k", i))
		}
	})
	inOneEntry(t, from, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c", Epoch: 2}) })
	b := from.Begin()
	b.Configuration(b.Applied()+1, 2, raft.Configuration{Servers: []raft.Server{{ID: "n", Address: "n"}}})
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}

	index, _ := from.Applied()
	waited := make(chan error, 2)
	go func() { waited <- to.WaitApplied(t.Context(), index) }()
	go func() { waited <- to.WaitRevision(t.Context(), from.Revision()) }()
	st := sendCopy(t, from, to)
	if st.Kind != command.CopyDelta || st.Revision != from.Revision() || st.Records < 30 || st.Records != from.gen.Load().meta.Changes-beforeChanges(t, from, before) {
		t.Errorf("stats %+v", st)
	}
	for range 2 {
		if err := <-waited; err != nil {
			t.Error(err)
		}
	}
	wantSame(t, from, to)
	if i, _ := to.marker.decodeNow(t); i != index {
		t.Errorf("marker at %d", i)
	}
	wantSame(t, from, openTestState(t, StateConfig{Dir: copyOfFiles(t, to)})) // it is durable
	mustFlush(t, to)
	eventually(t, "what was kept goes", func() bool {
		_, err := os.Stat(filepath.Join(to.cfg.Dir, keptName))
		return errors.Is(err, fs.ErrNotExist)
	})
	to = reopen(t, to)
	wantSame(t, from, to)
	putKey(t, from, "goes", "on")
	putKey(t, to, "goes", "on")
	wantSame(t, from, to)

	st = sendCopy(t, from, to)
	if st.Kind != command.CopyDelta || st.Records != 0 {
		t.Errorf("between equals went %+v", st)
	}
}

// beforeChanges is how many changes were made up to a revision.
func beforeChanges(t testing.TB, s *State, rev uint64) uint64 {
	t.Helper()
	v := mustView(t, s)
	defer v.Close()
	h, err := v.header(rev + 1)
	if err != nil {
		t.Fatal(err)
	}
	return h.changes
}

// A model decides at random when to flush, compact, restart and catch up by which
// kind of copy.
func TestCopiesOfEveryKindEqualTheirSource(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 21))
			from := openTestState(t, StateConfig{BufferBytes: 6 << 10, BufferAge: time.Hour})
			inOneEntry(t, from, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c"}) })
			to := openTestState(t, StateConfig{})
			kinds := map[string]int{}
			for range 60 {
				for range 1 + r.IntN(40) {
					applyScript(t, from, randomEntry(r, from.appliedIndex()+1))
				}
				switch r.IntN(8) {
				case 0:
					mustFlush(t, from)
				case 1:
					inOneEntry(t, from, func(b *Batch) { b.Compact(b.Revision() - min(b.Revision(), uint64(r.IntN(60)))) })
				case 2:
					compactAll(t, from)
				case 3:
					compactAll(t, to)
				case 4:
					to = reopen(t, to)
				}
				if r.IntN(3) > 0 {
					continue
				}
				kinds[sendCopy(t, from, to).Kind]++
				wantSame(t, from, to)
			}
			if kinds[command.CopyDelta] == 0 || kinds[command.CopyFull] == 0 {
				t.Errorf("copies %v; not every kind came about", kinds)
			}
		})
	}
}

func TestTheSenderChoosesByWhatIsKeptAndWhatItCosts(t *testing.T) {
	from, to := twins(t)
	for i := range 100 {
		putKey(t, from, fmt.Sprint("more", i), strings.Repeat("x", 100))
	}
	kind := func(req []byte) string {
		t.Helper()
		h, err := from.newCopyReader(t.Context(), bytes.NewReader(answer(t, from, req))).header()
		if err != nil {
			t.Fatal(err)
		}
		return h.Kind
	}
	edit := func(fn func(*copyRequest)) []byte {
		var req copyRequest
		if err := json.Unmarshal(to.CopyRequest(false), &req); err != nil {
			t.Fatal(err)
		}
		fn(&req)
		return mustJSON(req)
	}
	for _, c := range []struct {
		name string
		req  []byte
		want string
	}{
		{"history is kept", to.CopyRequest(false), command.CopyDelta},
		{"everything is asked for", to.CopyRequest(true), command.CopyFull},
		{"nothing is said", nil, command.CopyFull},
		{"of a new node", openTestState(t, StateConfig{}).CopyRequest(false), command.CopyFull},
		{"contents differ", edit(func(r *copyRequest) { r.Lineage[3] ^= 1 }), command.CopyFull},
	} {
		if got := kind(c.req); got != c.want {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
	}
	for what, want := range map[string]struct {
		req []byte
		err error
	}{
		"ahead in revision": {edit(func(r *copyRequest) { r.Revision += 1000 }), command.ErrNotReady},
		"ahead in index":    {edit(func(r *copyRequest) { r.Applied += 1000 }), command.ErrNotReady},
		"another cluster":   {edit(func(r *copyRequest) { r.Cluster = "other" }), command.ErrWrongCluster},
	} {
		var b bytes.Buffer
		if err := from.WriteCopy(t.Context(), want.req, &b); !errors.Is(err, want.err) || b.Len() > 0 {
			t.Errorf("%s: %v, and %d bytes", what, err, b.Len())
		}
	}
	inOneEntry(t, from, func(b *Batch) { b.Compact(to.Revision()) })
	if got := kind(to.CopyRequest(false)); got != command.CopyDelta {
		t.Errorf("the oldest revision is the asker's: %s", got)
	}
	inOneEntry(t, from, func(b *Batch) { b.Compact(to.Revision() + 1) })
	if got := kind(to.CopyRequest(false)); got != command.CopyFull {
		t.Errorf("the oldest revision is above the asker's: %s", got)
	}
	// Of 6 MB most were written since: building anew is cheaper.
	from, to = twins(t)
	for i := range 60 {
		putKey(t, from, fmt.Sprint("large", i), strings.Repeat("x", 100<<10))
	}
	if got := kind(to.CopyRequest(false)); got != command.CopyFull {
		t.Errorf("nearly all is new: %s", got)
	}
}

func TestALeapIsADeltaThatIsMuchAndFitsOrNothing(t *testing.T) {
	from, to := twins(t)
	for i := range 100 {
		putKey(t, from, fmt.Sprint("more", i), strings.Repeat("x", 100<<10))
	}
	edit := func(fn func(*copyRequest)) []byte {
		var req copyRequest
		if err := json.Unmarshal(to.LeapRequest(), &req); err != nil {
			t.Fatal(err)
		}
		fn(&req)
		return mustJSON(req)
	}
	refused := func(what string, req []byte) {
		t.Helper()
		var b bytes.Buffer
		if err := from.WriteCopy(t.Context(), req, &b); !errors.Is(err, command.ErrNotReady) || b.Len() > 0 {
			t.Errorf("%s: %v, and %d bytes", what, err, b.Len())
		}
	}
	if openTestState(t, StateConfig{}).LeapRequest() != nil {
		t.Error("a state without anything asks for a delta")
	}
	refused("too little", edit(func(r *copyRequest) { r.Least = 11 << 20 }))
	refused("too much", edit(func(r *copyRequest) { r.Most = 9 << 20 }))
	refused("contents differ", edit(func(r *copyRequest) { r.Lineage[3] ^= 1 }))
	refused("ahead", edit(func(r *copyRequest) { r.Applied += 1000 }))
	st, err := to.ReceiveCopy(t.Context(), bytes.NewReader(answer(t, from, to.LeapRequest())))
	if err != nil || st.Kind != command.CopyDelta || st.Records != 100 {
		t.Errorf("%+v, %v", st, err)
	}
	wantSame(t, from, to)
	refused("level", to.LeapRequest())
	for i := range 100 {
		putKey(t, from, fmt.Sprint("more", i), strings.Repeat("y", 100<<10))
	}
	inOneEntry(t, from, func(b *Batch) { b.Compact(to.Revision() + 1) })
	refused("history is not kept", to.LeapRequest())
}

// A delta may be larger than the buffer. Until it has been flushed, what is applied
// after it has the room of a buffer all the same, and no more.
func TestWhatFollowsADeltaIsAppliedBeforeThatIsFlushed(t *testing.T) {
	const bound = 64 << 10
	from, to := twinsWith(t, StateConfig{BufferBytes: bound})
	value := strings.Repeat("x", bound/4)
	for i := range 10 {
		putKey(t, from, fmt.Sprint("delta", i), value)
	}
	tx, err := to.gen.Load().file.db.Begin(true) // a flush freezes the buffer and waits
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // or a failed test would never end
	sendCopy(t, from, to)
	wantSame(t, from, to)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 20 {
			putKey(t, to, fmt.Sprint("after", i), value)
		}
	}()
	had := from.Revision()
	eventually(t, "a buffer full of what came after", func() bool { return to.Stats().BufferBytes > 10*bound/4+bound })
	for range 30 {
		if n := to.Revision() - had; n > 5 {
			t.Fatalf("%d changes are in memory beside the delta", n)
		}
		time.Sleep(time.Millisecond) // let a faulty writer run on
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	<-done
}

func TestADeltaThatDoesNotFitIsRefusedAndLeavesNothing(t *testing.T) {
	from, to := twins(t)
	other := openTestState(t, StateConfig{})
	sendCopy(t, from, other)
	putKey(t, other, "differs", "1")
	putKey(t, to, "differs", "2")
	putKey(t, other, "more", "1")

	var req copyRequest
	if err := json.Unmarshal(to.CopyRequest(false), &req); err != nil {
		t.Fatal(err)
	}
	v := mustView(t, other)
	h, err := v.header(req.Revision)
	v.Close()
	if err != nil {
		t.Fatal(err)
	}
	head, pointers := to.Head(), pointersOf(t, to)
	refused := func(what string, stream []byte) {
		t.Helper()
		if _, err := to.ReceiveCopy(t.Context(), bytes.NewReader(stream)); !errors.Is(err, command.ErrDiverged) {
			t.Errorf("%s: %v", what, err)
		}
		if to.Head() != head || pointersOf(t, to) != pointers || to.gen.Load().ahead {
			t.Errorf("%s: it left something", what)
		}
		if _, err := os.Stat(filepath.Join(to.cfg.Dir, incomingName)); !os.IsNotExist(err) {
			t.Errorf("%s: it left files: %v", what, err)
		}
	}
	req.Lineage = digest(h.lineage)
	refused("of another state at that revision", answer(t, other, mustJSON(req)))
	// The same, said to follow this state.
	stream := answer(t, other, mustJSON(req))
	own := mustJSON(copyHeader{Kind: command.CopyDelta, Format: stateFormat, Revision: head.Revision, Lineage: digest(head.Lineage)})
	var b bytes.Buffer
	w := newCopyWriter(t.Context(), &b)
	w.raw([]byte(copyMagic))
	_ = w.frame(frameHeader, own)
	_ = w.w.Flush()
	b.Write(stream[frames(stream)[1]:])
	refused("with a header that lies", b.Bytes())

	// What follows what this node has not, but is said to.
	older := openTestState(t, StateConfig{})
	sendCopy(t, from, older)
	late := answer(t, other, older.CopyRequest(false))
	refused("of a state that went another way meanwhile", late)
	mustFlush(t, to)
	wantFine(t, to)
}

// wantFine checks what a crash now would leave.
func wantFine(t testing.TB, s *State) { t.Helper(); inspect(t, copyOfFiles(t, s)) }

func TestADeltaMayComeToAStateThatMovedOn(t *testing.T) {
	from, to := twins(t)
	for i := range 10 {
		putKey(t, from, "a/x", fmt.Sprint(i))
	}
	stream := answer(t, from, to.CopyRequest(false))
	for i := range 4 {
		putKey(t, to, "a/x", fmt.Sprint(i))
	}
	receiveCopy(t, to, stream)
	wantSame(t, from, to)
	putKey(t, from, "a/x", "beyond")
	putKey(t, to, "a/x", "beyond")
	receiveCopy(t, to, stream)
	wantSame(t, from, to)
}

// A snapshot may be of an index that is a barrier, which only the sender's file
// stands for.
func TestADeltaBringsTheIndexRaftAsksFor(t *testing.T) {
	from, to := twins(t)
	index := from.appliedIndex() + 3
	sink, err := from.Snapshots().Create(1, index, 1, raft.Configuration{}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	announce(t, to, index, raft.Configuration{}, 0)
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("before the delta: %v", err)
	}
	sendCopy(t, from, to)
	if err := to.SwapCopy(false); err != nil {
		t.Error(err)
	}
	if l, err := to.Snapshots().List(); err != nil || len(l) != 1 || l[0].Index != index {
		t.Errorf("lists %v, %v", l, err)
	}
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("it is still announced: %v", err)
	}
}

// manyChanges makes a delta of more than one transaction.
func manyChanges(t testing.TB, s *State) {
	for i := range 12 {
		inOneEntry(t, s, func(b *Batch) {
			for k := range 1000 {
				switch name := fmt.Sprintf("bulk/%04d", (i*331+k)%3000); {
				case i > 3 && k%3 == 0:
					b.Delete(name)
				default:
					setKey(t, b, name, fmt.Sprint(i))
				}
			}
			setKey(t, b, "round", fmt.Sprint(i))
		})
	}
}

func TestViewsSeeTheStateBeforeADeltaOrAfterIt(t *testing.T) {
	for name, cfg := range deltaWays {
		t.Run(name, func(t *testing.T) { viewsSeeBeforeOrAfter(t, cfg) })
	}
}

func viewsSeeBeforeOrAfter(t *testing.T, cfg StateConfig) {
	from, to := twinsWith(t, cfg)
	for i := range 3000 {
		putKey(t, from, fmt.Sprintf("bulk/%04d", i), "before")
	}
	sendCopy(t, from, to)
	manyChanges(t, from)
	want := map[uint64]string{}
	describe := func(s *State) string {
		v := mustView(t, s)
		defer v.Close()
		var all strings.Builder
		fmt.Fprint(&all, v.Revision(), v.Applied(), v.KVRevision(), len(v.gen.members))
		if err := v.ScanKeys("", "", func(k string, rev uint64) bool { fmt.Fprint(&all, k, rev, " "); return true }); err != nil {
			t.Error(err)
		}
		if err := v.Scan("bulk/2", "", func(r command.Record) bool { fmt.Fprint(&all, r.Key, string(r.Value)); return true }); err != nil {
			t.Error(err)
		}
		for _, k := range []string{"round", "bulk/0001", "bulk/0003", "k4", "k5", "nothing"} {
			rec, err := v.Get(k)
			fmt.Fprint(&all, k, string(rec.Value), err)
			n := 0
			if err := v.KeyHistory(k, func(c command.Change) bool { n++; fmt.Fprint(&all, c.At, c.Prev); return true }); err != nil {
				t.Error(err)
			}
		}
		n, err := v.PrefixRevision("bulk/1")
		fmt.Fprint(&all, n, err)
		return all.String()
	}
	old, new := to.Revision(), from.Revision()
	want[old], want[new] = describe(to), describe(from)
	open := mustView(t, to)
	stop := make(chan struct{})
	var during atomic.Int64
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			last := uint64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if to.gen.Load().ahead {
					during.Add(1)
				}
				before := to.Revision()
				got := describe(to)
				after := to.Revision()
				if got != want[old] && got != want[new] || got == want[old] && before == new || got == want[new] && after == old || before < last {
					t.Errorf("between revisions %d and %d, a view shows neither", before, after)
				}
				last = before
			}
		})
	}
	if st := sendCopy(t, from, to); st.Kind != command.CopyDelta {
		t.Fatalf("it was a %s copy", st.Kind)
	}
	mustFlush(t, to)
	close(stop)
	readers.Wait()
	if cfg.BufferBytes > 0 && during.Load() == 0 {
		t.Error("no view was opened while the delta was being put in place")
	}
	rec, err := open.Get("bulk/0001")
	wantValue(t, rec, err, "before")
	if _, err := open.Get("round"); !errors.Is(err, command.ErrKeyNotFound) {
		t.Errorf("a view from before: %v", err)
	}
	open.Close()
	wantSame(t, from, to)
}

// What a delta has shown is there after a crash, though it is neither in the state
// file nor in the log yet.
func TestAStartTakesInAKeptDelta(t *testing.T) {
	for name, cfg := range deltaWays {
		t.Run(name, func(t *testing.T) {
			from, to := twins(t)
			other := openTestState(t, StateConfig{Dir: copyOfFiles(t, to)})
			putKey(t, other, "k1", "other")
			before := openTestState(t, StateConfig{Dir: copyOfFiles(t, to)})
			putKey(t, from, "k1", "new")
			deleteKey(t, from, "k2")
			stream := answer(t, from, to.CopyRequest(false))
			mustFlush(t, from)
			mustFlush(t, other)
			start := func(s *State, stream []byte) (*State, error) {
				dir := copyOfFiles(t, s)
				if err := os.WriteFile(filepath.Join(dir, keptName), stream, 0o600); err != nil {
					t.Fatal(err)
				}
				return OpenState(StateConfig{Dir: dir, MaxData: 1 << 28, BufferAge: time.Hour, BufferBytes: cfg.BufferBytes})
			}
			takes := func(s *State, stream []byte, want *State) {
				t.Helper()
				left, err := start(s, stream)
				if err != nil {
					t.Fatal(err)
				}
				defer left.Close()
				wantSame(t, want, left)
				list, err := left.Snapshots().List()
				if index := left.gen.Load().meta.RaftIndex; err != nil || len(list) != 1 || list[0].Index != index {
					t.Errorf("the state stands for %d, Raft sees %+v, %v", index, list, err)
				}
				wantSame(t, want, openTestState(t, StateConfig{Dir: copyOfFiles(t, left)}))
				if err := left.Close(); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(filepath.Join(left.cfg.Dir, keptName)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("it is still there: %v", err)
				}
				inspect(t, left.cfg.Dir)
			}
			takes(before, stream, from)
			takes(from, stream, from)   // the file holds it already
			takes(other, stream, other) // another state has taken the place
			for end := range frames(stream) {
				end := frames(stream)[end] - 1
				flipped := bytes.Clone(stream)
				flipped[end] ^= 1
				for what, bad := range map[string][]byte{"cut short": stream[:end], "flipped": flipped} {
					left, err := start(before, bad)
					if end < len(copyMagic) && what == "flipped" { // no copy at all
						if err == nil {
							t.Error("it was taken for a copy")
						}
					} else if !errors.Is(err, command.ErrDamaged) {
						t.Errorf("%s at byte %d: %v", what, end, err)
					}
					if err == nil {
						_ = left.Close()
					}
				}
			}
		})
	}
}

// A crash at any moment of putting a delta in place leaves the state before it,
// and one after the last moment the state after it.
func TestACrashDuringADeltaLeavesOneOfTwoStates(t *testing.T) {
	from, to := twins(t)
	old := openTestState(t, StateConfig{Dir: copyOfFiles(t, to)})
	putKey(t, from, "k1", "new")
	deleteKey(t, from, "k2")
	putKey(t, from, "k3", "anew") // it was deleted
	deleteKey(t, from, "k4")
	putKey(t, from, "k4", "anew")
	inOneEntry(t, from, func(b *Batch) {
		for i := range 30 {
			setKey(t, b, fmt.Sprint("many/", i), "x")
		}
		b.SetMember(command.Member{ID: "n"})
	})
	deleteKey(t, from, "many/3")

	stream := answer(t, from, to.CopyRequest(false))
	in := to.newCopyReader(t.Context(), bytes.NewReader(stream))
	h, err := in.header()
	if err != nil {
		t.Fatal(err)
	}
	sp, err := newSpool(filepath.Join(t.TempDir(), "delta"), revisionMark{h.Revision, h.Lineage}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer sp.file.Close()
	state, err := in.body(sp)
	if err == nil {
		err = sp.complete(&state.Meta)
	}
	if err != nil {
		t.Fatal(err)
	}
	scratch := openTestState(t, StateConfig{Dir: copyOfFiles(t, to)})
	crashed := func(want *State) {
		t.Helper()
		left := openTestState(t, StateConfig{Dir: copyOfFiles(t, scratch)})
		wantSame(t, want, left)
		if err := left.Close(); err != nil {
			t.Fatal(err)
		}
	}
	file := scratch.gen.Load().file
	crashed(old)
	var all []*change
	if err := sp.each(func(c *change) error {
		all = append(all, c)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// History comes in pieces, and after some of them the keys lead there.
	for len(all) > 0 {
		some := all[:min(7, len(all))]
		all = all[len(some):]
		for _, c := range some {
			if err := file.extend([]*change{c}, false, func(*change) bool { return false }); err != nil {
				t.Fatal(err)
			}
			crashed(old)
		}
		newest := newestOf(some)
		for _, c := range some {
			if c.table != tableKV || !newest(c) {
				continue
			}
			if err := file.update(func(tx *bbolt.Tx, _ *local) error { return putPointers(tx, []lead{{c.rec.Key, c.pointer()}}, false) }); err != nil {
				t.Fatal(err)
			}
			crashed(old)
		}
	}
	if err := file.update(func(tx *bbolt.Tx, _ *local) error { return putHead(tx, state.Meta, state.Members, true) }); err != nil {
		t.Fatal(err)
	}
	crashed(from)
}

// breaking reads a stream up to a place.
func breaking(stream []byte, at int) io.Reader { return bytes.NewReader(stream[:min(at, len(stream))]) }

func TestACopyThatBreaksOffIsTakenUpWhereItWas(t *testing.T) {
	for _, kind := range []string{command.CopyFull, command.CopyDelta} {
		for name, end := range map[string]func(stream []byte, n int) int{
			"after every frame":       func(s []byte, n int) int { return frames(s)[n] },
			"within every frame":      func(s []byte, n int) int { f := frames(s); return (f[n] + f[n+1]) / 2 },
			"within every frame head": func(s []byte, n int) int { return frames(s)[n] + frameHeadSize/2 },
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				from, to := twins(t)
				second := openTestState(t, StateConfig{})
				fill := func(s *State) {
					for i := range 13 {
						inOneEntry(t, s, func(b *Batch) {
							for k := range 400 {
								setKey(t, b, fmt.Sprintf("%s/%d", strings.Repeat("long", 20), (i*400+k)%5000), strings.Repeat("x", 50+k))
							}
						})
					}
				}
				if kind == command.CopyFull {
					fill(from)
					to = openTestState(t, StateConfig{})
				} else {
					sendCopy(t, from, to)
					for i := range 30 {
						putKey(t, from, fmt.Sprint("since", i), strings.Repeat("y", 30<<10))
					}
				}
				sendCopy(t, from, second)
				senders := [2]*State{from, second}
				took, whole := 0, len(answer(t, from, to.CopyRequest(false)))
				for n := 0; ; n++ {
					if n > 100 {
						t.Fatal("it comes no further")
					}
					stream := answer(t, senders[n%2], to.CopyRequest(false))
					if len(frames(stream)) <= 4 { // nothing but header, state and end
						if st := receiveCopy(t, to, stream); st.Kind != kind {
							t.Errorf("it was a %s copy", st.Kind)
						}
						took += len(stream)
						break
					}
					// Two frames come: the header and one more.
					cut := end(stream, 2)
					took += cut
					if _, err := to.ReceiveCopy(t.Context(), breaking(stream, cut)); !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatal(err)
					}
					if n == 3 { // life goes on
						for _, s := range senders {
							putKey(t, s, "meanwhile", "1")
							deleteKey(t, s, "k1")
						}
					}
				}
				if kind == command.CopyFull {
					if err := to.SwapCopy(false); err != nil {
						t.Fatal(err)
					}
				}
				if took > 2*whole {
					t.Errorf("%d bytes came for a copy of %d", took, whole)
				}
				wantSame(t, from, to)
			})
		}
	}
}

// What was taken of a copy is worth nothing once another kind of stream comes, or
// one that does not go on with it.
func TestARestOfACopyIsDroppedWhenItCannotBeContinued(t *testing.T) {
	from := someState(t)
	for i := range 100 {
		putKey(t, from, fmt.Sprint("large", i), strings.Repeat("x", 10<<10))
	}
	to := openTestState(t, StateConfig{})
	stream := writeCopy(t, from)
	broken := func() {
		t.Helper()
		if _, err := to.ReceiveCopy(t.Context(), breaking(stream, frames(stream)[3])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	}
	broken()
	rest := answer(t, from, to.CopyRequest(true))
	if len(rest) >= len(stream)-(200<<10) {
		t.Errorf("the rest of %d bytes has %d", len(stream), len(rest))
	}
	receiveCopy(t, to, stream) // but everything comes
	if err := to.SwapCopy(false); err != nil {
		t.Fatal(err)
	}
	wantSame(t, from, to)
	if _, err := to.ReceiveCopy(t.Context(), bytes.NewReader(rest)); err == nil {
		t.Error("the rest of a copy was taken without its beginning")
	}

	to = openTestState(t, StateConfig{})
	broken()
	putKey(t, from, "later", "1")
	inOneEntry(t, from, func(b *Batch) { b.Compact(b.Revision()) })
	if again := answer(t, from, to.CopyRequest(false)); len(again) < len(rest) {
		t.Errorf("a sender that forgot the anchor sent %d bytes", len(again))
	} else {
		receiveCopy(t, to, again)
	}
	if err := to.SwapCopy(false); err != nil {
		t.Fatal(err)
	}
	wantSame(t, from, to)
}

func TestDamageOnTheWayDropsWhatCameOfACopy(t *testing.T) {
	from, to := twins(t)
	for i := range 40 {
		putKey(t, from, "k1", fmt.Sprint("value ", i))
	}
	stream := answer(t, from, to.CopyRequest(false))
	head := to.Head()
	for n := 0; n < len(stream); n += 1 + len(stream)/80 {
		bad := bytes.Clone(stream)
		bad[n] ^= 0x10
		if _, err := to.ReceiveCopy(t.Context(), bytes.NewReader(bad)); err == nil {
			t.Fatalf("flipped bit at %d of %d went unnoticed", n, len(stream))
		}
		if to.Head() != head {
			t.Fatalf("flipped bit at %d of %d changed the state", n, len(stream))
		}
	}
	receiveCopy(t, to, stream)
	wantSame(t, from, to)
}

// duringWriter runs a function once, when enough has been written.
type duringWriter struct {
	bytes.Buffer
	after int
	run   func()
}

func (w *duringWriter) Write(p []byte) (int, error) {
	if w.run != nil && w.Len() >= w.after {
		run := w.run
		w.run = nil
		run()
	}
	return w.Buffer.Write(p)
}

// While a copy is sent, a delete whose time has come is not dropped after the
// record it deletes was sent.
func TestACopyMadeDuringCompactionHasNothingSuperfluousForEver(t *testing.T) {
	from := openTestState(t, StateConfig{})
	for i := range 3000 {
		putKey(t, from, fmt.Sprint(i), strings.Repeat("x", 200))
	}
	for i := range 3000 {
		deleteKey(t, from, fmt.Sprint(i))
	}
	putKey(t, from, "last", "1")
	w := &duringWriter{after: 400 << 10, run: func() {
		inOneEntry(t, from, func(b *Batch) { b.Compact(b.Revision()) })
		compactAll(t, from)
	}}
	if err := from.WriteCopy(t.Context(), nil, w); err != nil || w.run != nil {
		t.Fatal(err, w.Len())
	}
	to := openTestState(t, StateConfig{})
	receiveCopy(t, to, w.Bytes())
	if err := to.SwapCopy(false); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{from, to} {
		compactAll(t, s)
		wantFine(t, s)
		if n := s.Stats().HistoryRecords; n != 1 {
			t.Errorf("%d records are kept for one key", n)
		}
	}
}

func TestSeveralReceiversAreServedAtOnce(t *testing.T) {
	from, to := twins(t)
	manyChanges(t, from)
	states := []*State{to, openTestState(t, StateConfig{}), openTestState(t, StateConfig{})}
	var all sync.WaitGroup
	for _, s := range states {
		all.Go(func() {
			r, w := io.Pipe()
			go func() { _ = w.CloseWithError(from.WriteCopy(context.Background(), s.CopyRequest(false), w)) }()
			if _, err := s.ReceiveCopy(context.Background(), r); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, s := range states {
		if i > 0 {
			if err := s.SwapCopy(false); err != nil {
				t.Error(err)
			}
		}
		wantSame(t, from, s)
	}
}

func TestAForcedSwapTakesLessThanTheStateHolds(t *testing.T) {
	from, to := twins(t)
	putKey(t, to, "wrong", "1")
	putKey(t, to, "wrong", "2")
	had, _ := to.Applied()
	receiveCopy(t, to, answer(t, from, to.CopyRequest(true)))
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("without force: %v", err)
	}
	if err := to.SwapCopy(true); err != nil {
		t.Fatal(err)
	}
	wantSame(t, from, to)
	if i, _ := to.marker.decodeNow(t); i != had {
		t.Errorf("marker at %d: after a crash the node must apply its log up to %d", i, had)
	}
}

// A delete that was dropped before it was sent cannot be made up for, so the copy
// begins anew; once all history has come, it goes on.
func TestACopyIsOnlyTakenUpWhereNothingWasDroppedThatItNeeds(t *testing.T) {
	for _, c := range []struct {
		name    string
		cut     func(ends []int, stream []byte) int
		resumed bool
	}{
		{"within history", func(ends []int, _ []byte) int { return ends[3] }, false},
		{"among the keys", func(ends []int, stream []byte) int {
			for i, end := range ends {
				if stream[end] == framePointers {
					return ends[i+1]
				}
			}
			return 0
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := openTestState(t, StateConfig{})
			inOneEntry(t, from, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c"}) })
			for i := range 3000 {
				inOneEntry(t, from, func(b *Batch) {
					setKey(t, b, fmt.Sprintf("%05d", i), strings.Repeat("x", 300))
					if i >= 2000 {
						b.Delete(fmt.Sprintf("%05d", i-2000))
					}
				})
			}
			inOneEntry(t, from, func(b *Batch) {
				for i := range 13_000 {
					setKey(t, b, fmt.Sprintf("%05d", 2000+i), strings.Repeat("y", 50))
				}
			})
			mustFlush(t, from)
			stream := writeCopy(t, from)
			to := openTestState(t, StateConfig{})
			if _, err := to.ReceiveCopy(t.Context(), breaking(stream, c.cut(frames(stream), stream))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
			inOneEntry(t, from, func(b *Batch) { b.Compact(b.Revision()) })
			compactAll(t, from)
			rest := answer(t, from, to.CopyRequest(false))
			h, err := from.newCopyReader(t.Context(), bytes.NewReader(rest)).header()
			if err != nil || h.Resumed != c.resumed {
				t.Errorf("resumed %v, %v", h.Resumed, err)
			}
			receiveCopy(t, to, rest)
			if err := to.SwapCopy(false); err != nil {
				t.Fatal(err)
			}
			wantSame(t, from, to)
			compactAll(t, to)
			if a, b := from.Stats().HistoryRecords, to.Stats().HistoryRecords; a != b {
				t.Errorf("%d records, its source has %d", b, a)
			}
			wantFine(t, to)
		})
	}
}
