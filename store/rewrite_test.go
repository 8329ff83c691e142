package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// wasteful is a state whose file is mostly free pages.
func wasteful(t testing.TB, cfg StateConfig, keys int) *State {
	s := openTestState(t, cfg)
	inOneEntry(t, s, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c"}); b.SetMember(command.Member{ID: "m"}) })
	for i := 0; i < keys; {
		inOneEntry(t, s, func(b *Batch) {
			for range 500 {
				setKey(t, b, fmt.Sprintf("key/%06d", i), strings.Repeat("v", 500))
				i++
			}
		})
	}
	mustFlush(t, s)
	for i := 0; i < keys; {
		inOneEntry(t, s, func(b *Batch) {
			for range 500 {
				if i%10 != 0 {
					b.Delete(fmt.Sprintf("key/%06d", i))
				}
				i++
			}
		})
	}
	inOneEntry(t, s, func(b *Batch) { b.Compact(b.Revision()) })
	compactAll(t, s)
	return s
}

func fileSize(t testing.TB, s *State) int64 {
	t.Helper()
	free, size, err := freeBytes(filepath.Join(s.cfg.Dir, stateName))
	if err != nil || free < 0 || free > size {
		t.Fatalf("%d of %d bytes are free, %v", free, size, err)
	}
	return size
}

func TestARewriteGivesSpaceBackAndChangesNothing(t *testing.T) {
	s := wasteful(t, StateConfig{RewriteFree: 1 << 20}, 10_000)
	twin := openTestState(t, StateConfig{})
	sendCopy(t, s, twin)
	big := fileSize(t, s)
	if due, err := s.rewriteDue(); err != nil || !due {
		t.Fatalf("a file that is mostly free is not due to be rewritten: %v", err)
	}
	open := mustView(t, s)
	batch := s.Begin() // a batch that is under way meanwhile
	done := make(chan error, 1)
	go func() { done <- s.rewrite() }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if small := fileSize(t, s); small > big/4 {
		t.Errorf("the file went from %d to %d bytes", big, small)
	}
	if due, _ := s.rewriteDue(); due {
		t.Error("the rewritten file is due again")
	}
	setKey(t, batch, "key/000010", "changed") // looks the key up in the file
	batch.Step()
	index := batch.Applied() + 1
	batch.Entry(index, 1, 0, time.Time{})
	if err := batch.Publish(); err != nil {
		t.Fatal(err)
	}
	rec, err := open.Get("key/000010")
	wantValue(t, rec, err, strings.Repeat("v", 500))
	open.Close()
	s.copies.retiring.Wait()
	rec, err = s.Get("key/000010")
	wantValue(t, rec, err, "changed")

	b := twin.Begin()
	setKey(t, b, "key/000010", "changed")
	b.Step()
	b.Entry(index, 1, 0, time.Time{})
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, twin, s)
	mustFlush(t, s)
	wantSame(t, twin, s)
	wantSame(t, twin, openTestState(t, StateConfig{Dir: copyOfFiles(t, s)}))
	s = reopen(t, s)
	wantSame(t, twin, s)
	compactAll(t, s)
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, rewriteName)); !os.IsNotExist(err) {
		t.Errorf("something is left over: %v", err)
	}
}

// Writes go on during a rewrite, and what is flushed meanwhile is in the new file.
func TestNothingIsLostThatIsWrittenDuringARewrite(t *testing.T) {
	s := wasteful(t, StateConfig{BufferBytes: 64 << 10, BufferAge: 5 * time.Millisecond}, 5000)
	want := map[string]string{}
	stop, wrote := make(chan struct{}), make(chan struct{})
	var longest time.Duration
	go func() {
		defer close(wrote)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			k := fmt.Sprintf("key/%06d", i*7%6000)
			began := time.Now()
			if i%3 == 0 {
				deleteKey(t, s, k)
				delete(want, k)
			} else {
				want[k] = fmt.Sprint(i)
				putKey(t, s, k, want[k])
			}
			longest = max(longest, time.Since(began))
		}
	}()
	for range 5 {
		if err := s.rewrite(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-wrote
	t.Logf("the longest write took %v", longest)
	check := func(s *State) {
		t.Helper()
		for i := range 6000 {
			k := fmt.Sprintf("key/%06d", i)
			rec, err := s.Get(k)
			if w, ok := want[k]; ok && string(rec.Value) != w {
				t.Fatalf("%s is %q, %v; want %q", k, rec.Value, err, w)
			}
		}
	}
	check(s)
	mustFlush(t, s)
	wantFine(t, s)
	check(openTestState(t, StateConfig{Dir: copyOfFiles(t, s)}))
}

func TestARewriteGivesWayToASwapAndADelta(t *testing.T) {
	from := wasteful(t, StateConfig{}, 2000)
	to := openTestState(t, StateConfig{})
	sendCopy(t, from, to)
	for i := range 20 {
		putKey(t, from, fmt.Sprint("round", i), "x")
		var copying sync.WaitGroup
		copying.Go(func() {
			if i%2 == 0 {
				sendCopy(t, from, to)
				return
			}
			receiveCopy(t, to, writeCopy(t, from))
			if err := to.SwapCopy(false); err != nil {
				t.Error(err)
			}
		})
		if err := to.rewrite(); err != nil && !strings.Contains(err.Error(), "replaced meanwhile") {
			t.Error(err)
		}
		copying.Wait()
		wantSame(t, from, to)
		wantFine(t, to)
	}
}

func TestAnUnfinishedRewriteIsRemovedByTheNextStart(t *testing.T) {
	s := someState(t)
	mustFlush(t, s)
	dir := copyOfFiles(t, s)
	path := filepath.Join(dir, rewriteName)
	if err := os.WriteFile(path, []byte("half of a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	openTestState(t, StateConfig{Dir: dir})
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestCloseEndsARewrite(t *testing.T) {
	s := wasteful(t, StateConfig{}, 2000)
	done := make(chan error, 1)
	go func() { done <- s.rewrite() }()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil && !errors.Is(err, command.ErrStopping) {
		t.Error(err)
	}
	if err := s.rewrite(); err == nil {
		t.Error("a closed state was rewritten")
	}
}

// The longest time a write took while files were being rewritten, and while they
// were not.
func BenchmarkWriteDuringRewrite(b *testing.B) {
	for _, rewriting := range []bool{false, true} {
		b.Run(fmt.Sprint("rewriting ", rewriting), func(b *testing.B) {
			s := benchState(b, 200_000)
			ctx, cancel := context.WithCancel(context.Background())
			var background sync.WaitGroup
			rounds := 0
			if rewriting {
				background.Go(func() {
					for ctx.Err() == nil {
						if err := s.rewrite(); err != nil {
							b.Error(err)
						}
						rounds++
					}
				})
			}
			value, n := strings.Repeat("w", 256), 0
			var longest time.Duration
			for b.Loop() {
				began := time.Now()
				n++
				putKey(b, s, benchKey(n*7919%200_000), value)
				longest = max(longest, time.Since(began))
				time.Sleep(200 * time.Microsecond) // the pace of a busy cluster
			}
			cancel()
			background.Wait()
			b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
			b.ReportMetric(float64(rounds), "rewrites")
		})
	}
}
