package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

var conversions = []struct{ from, to string }{
	{LogStoreWAL, LogStoreBolt},
	{LogStoreBolt, LogStoreWAL},
}

// convertible makes a directory with a log in one kind of store: entries 501
// to 1600, as after a snapshot, and a vote.
func convertible(t *testing.T, kind string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	l := openTestLogs(t, d, kind)
	appendEntries(t, l.Log, 1, 1600, 100)
	if err := l.Log.DeleteRange(1, 500); err != nil {
		t.Fatal(err)
	}
	l.Stable.SetUint64([]byte(raftLastVoteTerm), 5)
	l.Stable.Set([]byte(raftLastVoteCand), []byte("n1"))
	if err := errors.Join(l.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantConvertible opens the directory with a kind and checks all it held.
func wantConvertible(t *testing.T, path, kind string) {
	t.Helper()
	d := openTestDir(t, path)
	l := openTestLogs(t, d, kind)
	wantBounds(t, l, 501, 1600)
	for i := uint64(501); i <= 1600; i++ {
		wantEntry(t, l.Log, i, 1, 100)
	}
	if v, err := l.Stable.Get([]byte(raftLastVoteCand)); string(v) != "n1" || err != nil {
		t.Fatalf("vote %q, %v", v, err)
	}
	appendEntries(t, l.Log, 1601, 1601, 100)
	if err := l.Log.DeleteRange(1601, 1601); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	id, ok, err := Inspect(path)
	if err != nil || !ok || id.LogStore != kind {
		t.Fatalf("identity %+v, %v, %v; want log store %s", id, ok, err, kind)
	}
	if _, err := os.Stat(filepath.Join(path, logStorePath(otherLogStore(kind)))); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the other log is still there: %v", err)
	}
}

func TestLogMovesToTheOtherStore(t *testing.T) {
	for _, c := range conversions {
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			path := convertible(t, c.from)
			wantConvertible(t, path, c.to)
			wantConvertible(t, path, c.to)
			wantConvertible(t, path, c.from)
		})
	}
}

func TestEmptyLogMovesToo(t *testing.T) {
	for _, c := range conversions {
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data")
			for _, kind := range []string{c.from, c.to} {
				d := openTestDir(t, path)
				l := openTestLogs(t, d, kind)
				wantBounds(t, l, 0, 0)
				if err := errors.Join(l.Close(), d.Close()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The conversion is stopped after each of its changes on disk in turn, and the
// directory is then started with either kind.
func TestConversionMayStopAnywhere(t *testing.T) {
	crash := errors.New("crash")
	for _, c := range conversions {
		for _, then := range []string{c.from, c.to} {
			t.Run(fmt.Sprintf("%s to %s, then %s", c.from, c.to, then), func(t *testing.T) {
				var steps []string
				source := convertible(t, c.from)
				for stop := 1; ; stop++ {
					path := filepath.Join(t.TempDir(), "data")
					if err := os.CopyFS(path, os.DirFS(source)); err != nil {
						t.Fatal(err)
					}
					d := openTestDir(t, path)
					steps = steps[:0]
					d.hook = func(step string) error {
						if steps = append(steps, step); len(steps) == stop {
							return crash
						}
						return nil
					}
					l, err := d.OpenLogs(c.to)
					if err == nil {
						l.Close()
					} else if !errors.Is(err, crash) {
						t.Fatal(err)
					}
					d.Close()
					if _, ok, err := Inspect(path); !ok || err != nil {
						t.Fatalf("stopped after %q: %v, %v", steps, ok, err)
					}
					// A second crash at the same point must not matter either.
					if stop%2 == 0 && err != nil {
						d = openTestDir(t, path)
						n := 0
						d.hook = func(string) error {
							if n++; n == stop {
								return crash
							}
							return nil
						}
						if l, err := d.OpenLogs(c.to); err == nil {
							l.Close()
						}
						d.Close()
					}
					wantConvertible(t, path, then)
					if err == nil {
						break
					}
				}
				want := []string{"create " + c.to, "copy batch", "copy batch", "copy batch", "verify",
					"create identity.json.tmp", "write identity.json.tmp", "rename identity.json.tmp", "switch", "remove " + c.from}
				if !slices.Equal(steps, want) {
					t.Errorf("steps %q, want %q", steps, want)
				}
			})
		}
	}
}

// Below a gap, which a restored snapshot leaves in a boltdb log, nothing is of
// use any more.
func TestOnlyTheUnbrokenEndMoves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	l := openTestLogs(t, d, LogStoreBolt)
	appendEntries(t, l.Log, 1, 50, 100)
	appendEntries(t, l.Log, 90, 95, 100)
	appendEntries(t, l.Log, 101, 200, 100)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTestLogs(t, d, LogStoreWAL)
	wantBounds(t, l, 101, 200)
	wantEntry(t, l.Log, 101, 1, 100)
}

func TestDamagedLogIsNotConverted(t *testing.T) {
	path := convertible(t, LogStoreWAL)
	names := segments(t, path)
	b, err := os.ReadFile(names[1])
	if err != nil {
		t.Fatal(err)
	}
	for i := 1 << 10; i < 16<<10; i++ { // frames in the middle
		b[i] = 0xff
	}
	write(t, names[1], b)
	d := openTestDir(t, path)
	_, err = d.OpenLogs(LogStoreBolt)
	oneLine(t, err, "convert the Raft log from wal to boltdb")
	if got := d.Identity().LogStore; got != LogStoreWAL {
		t.Errorf("the log counts as %s", got)
	}
	l := openTestLogs(t, d, LogStoreWAL)
	wantBounds(t, l, 501, 1600)
}

func TestVerificationNoticesADifference(t *testing.T) {
	d := openTestDir(t, filepath.Join(t.TempDir(), "data"))
	src, err := d.openBackend(LogStoreWAL)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	appendEntries(t, src, 1, 20, 100)
	cases := map[string]func(dst logBackend) error{
		"missing end":   func(dst logBackend) error { return dst.DeleteRange(20, 20) },
		"missing start": func(dst logBackend) error { return dst.DeleteRange(1, 1) },
		"hole":          func(dst logBackend) error { return dst.DeleteRange(7, 7) },
		"other term":    func(dst logBackend) error { return dst.StoreLog(testEntry(7, 2, 100)) },
		"other data": func(dst logBackend) error {
			e := testEntry(7, 1, 100)
			e.Data[9]++
			return dst.StoreLog(e)
		},
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			if err := d.removeLog(LogStoreBolt); err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.copyLog(src, LogStoreBolt); err != nil {
				t.Fatal(err)
			}
			if err := d.verifyLog(src, LogStoreBolt, 1, 20); err != nil {
				t.Fatal(err)
			}
			dst, err := d.openBackend(LogStoreBolt)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(spoil(dst), dst.Close()); err != nil {
				t.Fatal(err)
			}
			if err := d.verifyLog(src, LogStoreBolt, 1, 20); err == nil {
				t.Error("not noticed")
			}
		})
	}
}

func TestUnknownLogStoreIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	before := tree(t, path)
	_, err := d.OpenLogs("tape")
	oneLine(t, err, `log store "tape" is not known`)
	if tree(t, path) != before {
		t.Error("the directory was changed")
	}
}

func TestLogsAreOpenedOnce(t *testing.T) {
	d := openTestDir(t, filepath.Join(t.TempDir(), "data"))
	l := openTestLogs(t, d, LogStoreWAL)
	if _, err := d.OpenLogs(LogStoreWAL); err == nil {
		t.Error("opened twice")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTestLogs(t, d, LogStoreWAL)
	if err := errors.Join(l.Close(), l.Close(), d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if _, err := d.OpenLogs(LogStoreWAL); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	var _ raft.LogStore = l.Log
}
