package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// copyOfFiles copies the data directory as a crash of the process would leave
// it: what is in memory only is lost, what was handed to the system is not.
func copyOfFiles(t testing.TB, s *State) string {
	t.Helper()
	s.flushing.Lock() // a copy made during a commit is not what a crash leaves
	defer s.flushing.Unlock()
	to := t.TempDir()
	for _, name := range []string{stateName, markerName, keptName} {
		b, err := os.ReadFile(filepath.Join(s.cfg.Dir, name))
		if name == keptName && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// writeCopy is a full copy.
func writeCopy(t testing.TB, s *State) []byte {
	t.Helper()
	return answer(t, s, nil)
}

// answer is the copy that a state answers a request with.
func answer(t testing.TB, s *State, request []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteCopy(context.Background(), request, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sendCopy brings to up to from.
func sendCopy(t testing.TB, from, to *State) CopyStats {
	t.Helper()
	st := receiveCopy(t, to, answer(t, from, to.CopyRequest(false)))
	if st.Kind == command.CopyFull {
		if err := to.SwapCopy(false); err != nil {
			t.Fatal(err)
		}
	}
	if from.Head() != to.Head() {
		t.Fatalf("copied %+v, got %+v", from.Head(), to.Head())
	}
	return st
}

func receiveCopy(t testing.TB, s *State, stream []byte) CopyStats {
	t.Helper()
	st, err := s.ReceiveCopy(context.Background(), bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// throughACopy moves a state into a new one by a full copy.
func throughACopy(t testing.TB, from *State) *State {
	t.Helper()
	to := openTestState(t, StateConfig{BufferBytes: from.cfg.BufferBytes})
	putKey(t, to, "of its own", "before the copy")
	receiveCopy(t, to, writeCopy(t, from))
	if err := to.SwapCopy(true); err != nil {
		t.Fatal(err)
	}
	if from.Head() != to.Head() {
		t.Fatalf("copied %v, got %v", from.Head(), to.Head())
	}
	return to
}

// history is all that a state holds, as bytes.
func history(t testing.TB, s *State) []byte {
	t.Helper()
	var all []byte
	v := mustView(t, s)
	defer v.Close()
	if err := v.walk(position{}, s.Revision(), func(at position, enc []byte) (bool, error) {
		all = appendChange(all, at, enc)
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func someState(t testing.TB) *State {
	s := openTestState(t, StateConfig{})
	b := s.Begin()
	b.SetCluster(command.Cluster{ID: "c"})
	b.SetMember(command.Member{ID: "m"})
	b.Step()
	b.Configuration(1, 1, raft.Configuration{Servers: []raft.Server{{ID: "m", Address: "m"}}})
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		putKey(t, s, fmt.Sprintf("k%d", i%20), strings.Repeat("v", i*10))
	}
	deleteKey(t, s, "k3")
	mustFlush(t, s)
	putKey(t, s, "k4", "in memory")
	deleteKey(t, s, "k5")
	return s
}

func TestACopyHoldsEverything(t *testing.T) {
	from := someState(t)
	to := openTestState(t, StateConfig{})
	st := receiveCopy(t, to, writeCopy(t, from))
	if i, _ := to.Applied(); i != 0 {
		t.Error("a staged copy is visible")
	}
	if err := to.SwapCopy(false); err != nil {
		t.Fatal(err)
	}
	want, _ := from.Applied()
	if st.Revision != from.Revision() || st.Index != want || st.Records != from.Stats().HistoryRecords || st.Bytes == 0 {
		t.Errorf("stats %+v", st)
	}
	same := func(to *State) {
		t.Helper()
		g1, g2 := from.gen.Load().meta, to.gen.Load().meta
		if fmt.Sprint(g1) != fmt.Sprint(g2) || len(to.Members()) != 1 || !bytes.Equal(history(t, from), history(t, to)) {
			t.Errorf("states differ:\n%+v\n%+v", g1, g2)
		}
		rec, err := to.Get("k4")
		wantValue(t, rec, err, "in memory")
		rec, err = to.Get("k5")
		wantValue(t, rec, err, "-")
	}
	same(to)
	same(openTestState(t, StateConfig{Dir: copyOfFiles(t, to)}))
	if i, _ := to.marker.decodeNow(t); i != want {
		t.Errorf("marker at %d", i)
	}
	putKey(t, to, "goes", "on")
	putKey(t, from, "goes", "on")
	same(reopen(t, to))
}

// decodeNow reads the marker file as the next process would.
func (m *marker) decodeNow(t *testing.T) (index uint64, wall int64) {
	t.Helper()
	var newest markerSlot
	for i := range int64(2) {
		b := make([]byte, markerSize)
		if _, err := m.file.ReadAt(b, i*markerSpacing); err != nil {
			continue
		}
		var s markerSlot
		if s.decode(b) && s.seq > newest.seq {
			newest = s
		}
	}
	return newest.index, newest.wall
}

func TestACutOrDamagedCopyIsRefused(t *testing.T) {
	stream := writeCopy(t, someState(t))
	to := openTestState(t, StateConfig{})
	for n := 0; n < len(stream); n += 1 + len(stream)/60 {
		_, err := to.ReceiveCopy(context.Background(), bytes.NewReader(stream[:n]))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: %v", n, len(stream), err)
		}
		bad := bytes.Clone(stream)
		bad[n] ^= 0x10
		if _, err = to.ReceiveCopy(context.Background(), bytes.NewReader(bad)); err == nil {
			t.Fatalf("flipped bit at %d of %d went unnoticed", n, len(stream))
		}
		if err := to.SwapCopy(true); !errors.Is(err, command.ErrNotReady) {
			t.Fatalf("swapped in a bad copy: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(to.cfg.Dir, incomingName)); !os.IsNotExist(err) {
		t.Errorf("a refused copy left files: %v", err)
	}
}

func TestSwapCopyRefusesACopyThatIsTooOld(t *testing.T) {
	from := someState(t)
	index, _ := from.Applied()
	to := openTestState(t, StateConfig{})
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("nothing staged: %v", err)
	}
	receiveCopy(t, to, writeCopy(t, from))
	b := to.Begin()
	b.Entry(index+5, 1, 0, time.Time{})
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("below what is applied: %v", err)
	}
	announce(t, to, index+1, raft.Configuration{}, 0)
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("below the announced snapshot: %v", err)
	}
}

// A new leader whose state machine lags may send a snapshot of less than a copy
// from its predecessor already brought. Both are prefixes of one history.
func TestACopyOfLessThanTheStateHoldsTakesNothingBack(t *testing.T) {
	from := someState(t)
	index, _ := from.Applied()
	to := openTestState(t, StateConfig{})
	take := func(announced uint64) {
		t.Helper()
		receiveCopy(t, to, writeCopy(t, from))
		announce(t, to, announced, raft.Configuration{}, 0)
		if err := to.SwapCopy(false); err != nil {
			t.Fatal(err)
		}
	}
	take(index)
	b := to.Begin()
	b.Put(command.Record{Key: "later"})
	b.Step()
	b.Entry(index+5, 1, 0, time.Time{})
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	take(index - 1)
	if i, _ := to.Applied(); i != index+5 {
		t.Errorf("applied %d after a copy at %d came to a state at %d", i, index, index+5)
	}
	if _, err := to.Get("later"); err != nil {
		t.Errorf("a later change is gone: %v", err)
	}
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("the copy is still staged: %v", err)
	}
}

// announce does what Raft does with an incoming snapshot before it restores.
func announce(t testing.TB, s *State, index uint64, conf raft.Configuration, confIndex uint64) string {
	t.Helper()
	sink, err := s.Snapshots().Create(1, index, 1, conf, confIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(sink, strings.NewReader(snapshotDescriptor)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	return sink.ID()
}

func TestACopyOfAnotherClusterIsNotSwappedIn(t *testing.T) {
	to := openTestState(t, StateConfig{})
	inOneEntry(t, to, func(b *Batch) { b.SetCluster(command.Cluster{ID: "mine"}) })
	receiveCopy(t, to, writeCopy(t, someState(t)))
	if err := to.SwapCopy(true); !errors.Is(err, command.ErrWrongCluster) {
		t.Error(err)
	}
}

func TestViewsStayWhereTheyAreThroughASwap(t *testing.T) {
	from := someState(t)
	to := openTestState(t, StateConfig{})
	putKey(t, to, "old", "1")
	mustFlush(t, to)
	putKey(t, to, "older", "2")
	v := mustView(t, to)
	receiveCopy(t, to, writeCopy(t, from))
	waited := make(chan error, 1)
	index, _ := from.Applied()
	go func() { waited <- to.WaitApplied(t.Context(), index) }()
	if err := to.SwapCopy(false); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	for key, want := range map[string]string{"old": "1", "older": "2", "k4": "-"} {
		rec, err := v.Get(key)
		wantValue(t, rec, err, want)
	}
	rec, err := to.Get("old")
	wantValue(t, rec, err, "-")
	v.Close()
	to.copies.retiring.Wait()
}

func TestAStagedCopyIsDroppedByARestart(t *testing.T) {
	to := openTestState(t, StateConfig{})
	receiveCopy(t, to, writeCopy(t, someState(t)))
	to = reopen(t, to)
	if err := to.SwapCopy(false); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("got %v", err)
	}
}

func TestACopyMadeUnderLoadIsOneConsistentState(t *testing.T) {
	from := openTestState(t, StateConfig{BufferBytes: 32 << 10})
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			inOneEntry(t, from, func(b *Batch) {
				setKey(t, b, "pair/a", fmt.Sprint(i))
				setKey(t, b, fmt.Sprintf("fill/%d", i%500), strings.Repeat("x", 500))
				setKey(t, b, "pair/b", fmt.Sprint(i))
			})
		}
	})
	for range 5 {
		to := openTestState(t, StateConfig{})
		receiveCopy(t, to, writeCopy(t, from))
		if err := to.SwapCopy(true); err != nil {
			t.Fatal(err)
		}
		a, _ := to.Get("pair/a")
		b, _ := to.Get("pair/b")
		if !bytes.Equal(a.Value, b.Value) {
			t.Errorf("the copy holds %q and %q", a.Value, b.Value)
		}
		// What was made of a prefix of the log must become equal when it goes on.
		if err := to.Export(context.Background(), "", 0, func(command.Record) error { return nil }); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	writer.Wait()
}

// slowWriter takes two seconds for every write, and lets the sender write more
// while it does.
type slowWriter struct {
	bytes.Buffer
	during func()
}

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Second)
	w.during()
	return w.Buffer.Write(p)
}

func TestALongCopyEndsWithWhatWasWrittenMeanwhile(t *testing.T) {
	dir, dir2 := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := openTestState(t, StateConfig{Dir: dir, BufferAge: time.Second})
		defer s.Close()
		for i := range 300 {
			putKey(t, s, fmt.Sprint(i), strings.Repeat("x", 2000))
		}
		start, writes := s.Revision(), 0
		w := &slowWriter{during: func() { writes++; putKey(t, s, "meanwhile", fmt.Sprint(writes)) }}
		if err := s.WriteCopy(context.Background(), nil, w); err != nil {
			t.Fatal(err)
		}
		to := openTestState(t, StateConfig{Dir: dir2})
		defer to.Close()
		st := receiveCopy(t, to, w.Bytes())
		if st.Revision < start+5 || st.Revision > s.Revision() {
			t.Errorf("the copy is at revision %d, it began at %d and ended at %d", st.Revision, start, s.Revision())
		}
	})
}

func TestOneCopyIsReceivedAtATime(t *testing.T) {
	to := openTestState(t, StateConfig{})
	r, w := io.Pipe()
	first := make(chan error)
	go func() {
		_, err := to.ReceiveCopy(context.Background(), r)
		first <- err
	}()
	if _, err := w.Write([]byte(copyMagic)); err != nil {
		t.Fatal(err)
	}
	if _, err := to.ReceiveCopy(context.Background(), strings.NewReader("")); err == nil {
		t.Error("two copies at once")
	}
	w.Close()
	if err := <-first; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}
