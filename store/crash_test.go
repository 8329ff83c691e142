package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const crashDirVar = "HOLDFAST_TEST_CRASH_DIR"

func crashEntry(index uint64) scriptEntry {
	return randomEntry(rand.New(rand.NewPCG(9, index)), index)
}

// TestCrashingProcess is not a test: it is the process that the next one kills.
// It applies entries for ever and tells of each once it is published.
func TestCrashingProcess(t *testing.T) {
	dir := os.Getenv(crashDirVar)
	if dir == "" {
		t.Skip("runs as a child of TestReadsNeverGoBackWhenTheProcessIsKilled")
	}
	s := openTestState(t, StateConfig{Dir: dir, BufferBytes: 32 << 10, BufferAge: 3 * time.Millisecond})
	for index := s.appliedIndex() + 1; ; index++ {
		applyScript(t, s, crashEntry(index))
		fmt.Printf("published %d\n", index)
	}
}

func TestReadsNeverGoBackWhenTheProcessIsKilled(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(3, 4))
	m, applied := newModel(), uint64(0)
	for round := range 5 {
		child := exec.Command(os.Args[0], "-test.run=^TestCrashingProcess$")
		child.Env = append(os.Environ(), crashDirVar+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines, published := bufio.NewScanner(out), uint64(0)
		for n := 50 + r.IntN(300); lines.Scan(); n-- {
			if i, err := strconv.ParseUint(strings.TrimPrefix(lines.Text(), "published "), 10, 64); err == nil {
				published = i
			}
			if n == 0 {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait()
		if published == 0 {
			t.Fatal("the child published nothing")
		}

		s := openTestState(t, StateConfig{Dir: dir})
		marker, clean := s.Marker()
		index := s.appliedIndex()
		if marker < published || index > marker || !clean {
			t.Errorf("round %d: published %d, marker at %d (clean %v), state at %d", round, published, marker, clean, index)
		}
		if index < applied {
			t.Errorf("round %d: the file went from %d back to %d", round, applied, index)
		}
		for ; applied < index; applied++ {
			m.apply(crashEntry(applied + 1))
		}
		m.check(t, s, r)
		// As a node does on start: apply the log up to the marker.
		for ; applied < marker; applied++ {
			applyScript(t, s, crashEntry(applied+1))
			m.apply(crashEntry(applied + 1))
		}
		m.check(t, s, r)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStateFileCutShortIsRefused(t *testing.T) {
	s := someState(t)
	mustFlush(t, s)
	whole := copyOfFiles(t, s)
	info, err := os.Stat(filepath.Join(whole, stateName))
	if err != nil {
		t.Fatal(err)
	}
	used := int64(0) // the file is longer than its pages in use
	v := mustView(t, s)
	used = v.file.tx.Size()
	v.Close()
	for _, size := range []int64{1, 100, 4096, 8192, used / 2, used - 1} {
		dir := copyOfFiles(t, s)
		if err := os.Truncate(filepath.Join(dir, stateName), min(size, info.Size())); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenState(StateConfig{Dir: dir}); !errors.Is(err, command.ErrDamaged) {
			t.Errorf("cut at %d of %d: %v", size, used, err)
		}
	}
}

func TestADamagedRecordIsNeverServed(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a", "kept")
	putKey(t, s, "b", "to be damaged")
	putKey(t, s, "c", "kept")
	mustFlush(t, s)
	dir := copyOfFiles(t, s)
	flip(t, filepath.Join(dir, stateName), "to be damaged")
	s = openTestState(t, StateConfig{Dir: dir})
	v := mustView(t, s)
	rec, err := v.Get("a")
	wantValue(t, rec, err, "kept")
	rec, err = v.Get("c")
	wantValue(t, rec, err, "kept")
	_, err = v.Get("b")
	_, pastErr := v.GetAt("b", 2)
	for what, err := range map[string]error{
		"get": err, "get in the past": pastErr,
		"scan":   v.Scan("", "", func(command.Record) bool { return true }),
		"export": s.Export(context.Background(), "", 0, func(command.Record) error { return nil }),
		"copy":   s.WriteCopy(context.Background(), nil, &bytes.Buffer{}),
	} {
		if !errors.Is(err, command.ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b := s.Begin()
	if _, _, err := b.Get("b"); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("batch: %v", err)
	}
	if err := b.Publish(); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("publish of a batch that met damage: %v", err)
	}
	// A copy from a peer heals it.
	from := openTestState(t, StateConfig{})
	for i, value := range []string{"kept", "healed", "kept"} {
		putKey(t, from, string(rune('a'+i)), value)
	}
	receiveCopy(t, s, writeCopy(t, from))
	if err := s.SwapCopy(false); err != nil {
		t.Fatal(err)
	}
	rec, err = s.Get("b")
	wantValue(t, rec, err, "healed")
}

// flip changes one bit in the file, in each place where text is found.
func flip(t testing.TB, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(text)) {
		t.Fatalf("%q is not in the file", text)
	}
	bad := []byte(text)
	bad[len(bad)/2] ^= 1
	if err := os.WriteFile(path, bytes.ReplaceAll(b, []byte(text), bad), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNoFlippedBitGivesAWrongAnswerOrEndsTheProcess(t *testing.T) {
	s := someState(t)
	mustFlush(t, s)
	truth := map[string]string{}
	v := mustView(t, s)
	used := int(v.file.tx.Size())
	if err := v.Scan("", "", func(r command.Record) bool { truth[r.Key] = string(r.Value); return true }); err != nil {
		t.Fatal(err)
	}
	v.Close()
	good := copyOfFiles(t, s)
	whole, err := os.ReadFile(filepath.Join(good, stateName))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	dir := t.TempDir()
	refused := 0
	for range 400 {
		bad := bytes.Clone(whole[:used])
		at := r.IntN(used)
		bad[at] ^= 1 << r.IntN(8)
		_ = os.Remove(filepath.Join(dir, stateName))
		if err := os.WriteFile(filepath.Join(dir, stateName), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		f, _, _, err := openStateFile(filepath.Join(dir, stateName), 1<<30)
		if err != nil {
			refused++
			continue
		}
		tx, err := f.begin()
		if err == nil {
			o := overlay{top: newLayer(), file: tx}
			err = o.scanRecords("", "", func(r command.Record) bool {
				if want, ok := truth[r.Key]; ok && want != string(r.Value) {
					t.Errorf("flipped bit at %d: key %q has value %q", at, r.Key, r.Value)
				}
				return true
			})
			for k, want := range truth {
				l, ok, ferr := o.find(k, true)
				if ferr != nil || !ok || l.deleted {
					continue
				}
				rec, gerr := o.record(k, l, nil)
				if gerr == nil && string(rec.Value) != want {
					t.Errorf("flipped bit at %d: key %q has value %q", at, k, rec.Value)
				}
			}
			tx.close()
		}
		if err != nil {
			refused++
		}
		if err := f.db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}
