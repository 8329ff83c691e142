package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/metadb"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"

	"golang.org/x/sys/unix"
)

// testSegment keeps segment files small, so that a test may fill several.
const testSegment = 64 << 10

func openTestDir(t testing.TB, path string) *Dir {
	t.Helper()
	id, ok, err := Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		id = NewIdentity("n1", "home")
	}
	d, err := OpenDir(path, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.walSegment = testSegment
	t.Cleanup(func() { d.Close() })
	return d
}

func openTestLogs(t testing.TB, d *Dir, kind string) *Logs {
	t.Helper()
	l, err := d.OpenLogs(kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// testStateFile puts a bbolt file of some pages where the state belongs.
func testStateFile(t testing.TB, dir string) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, stateName), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("b"))
		if err != nil {
			return err
		}
		for i := range 200 {
			if err := b.Put(fmt.Appendf(nil, "key%04d", i), make([]byte, 500)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wholeDir makes the directory of a node that has run: state, marker, votes
// and a log of several segments.
func wholeDir(t testing.TB, kind string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	testStateFile(t, path)
	if err := os.WriteFile(filepath.Join(path, markerName), []byte("marker"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := openTestLogs(t, d, kind)
	appendEntries(t, l.Log, 1, 300, 1000)
	if err := l.Stable.SetUint64([]byte(raftCurrentTerm), 3); err != nil {
		t.Fatal(err)
	}
	if err := d.SetCluster("c1", 1); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// tree describes everything under a path, so that two trees compare equal only
// when nothing was touched.
func tree(t testing.TB, path string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d %v", p, fi.Mode(), fi.Size(), fi.ModTime().UnixNano())
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(data))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// oneLine checks that an error is one line with a cause and a remedy.
func oneLine(t testing.TB, err error, cause string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one about %q", cause)
	}
	s := err.Error()
	before, remedy, ok := strings.Cut(s, "; ")
	if strings.Contains(s, "\n") || !ok || len(remedy) < 10 || !strings.Contains(before, cause) {
		t.Errorf("error %q: want one line with %q before the semicolon and a remedy after it", s, cause)
	}
}

func cut(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, walLogDir, "*.wal"))
	if err != nil || len(names) < 3 {
		t.Fatalf("segments %v, %v: the test needs three", names, err)
	}
	return names
}

func TestBadDirectoryIsRefusedAndLeftAsItWas(t *testing.T) {
	in := filepath.Join
	rewriteIdentity := func(t testing.TB, d string, change func(*Identity)) {
		id, err := readIdentity(d)
		if err != nil {
			t.Fatal(err)
		}
		change(&id)
		b, err := encodeIdentity(id)
		if err != nil {
			t.Fatal(err)
		}
		write(t, in(d, identityFile), b)
	}
	cases := []struct {
		name  string
		kind  string // of the log store; "" for an absent directory
		spoil func(t testing.TB, dir string) (path string)
		cause string
	}{
		{"no path is given", "", func(testing.TB, string) string { return "" }, "no data directory is given"},
		{"it is a file", "", func(t testing.TB, d string) string { write(t, d, nil); return d }, "is not a directory"},
		{"it lies under a file", "", func(t testing.TB, d string) string { write(t, d, nil); return in(d, "x") }, "lies under a file"},
		{"it lies deep under a file", "", func(t testing.TB, d string) string { write(t, d, nil); return in(d, "x", "y") }, "lies under a file"},
		{"it is somebody else's", "", func(t testing.TB, d string) string {
			os.Mkdir(d, 0o700)
			write(t, in(d, "thesis.tex"), []byte("x"))
			return d
		}, "not Holdfast's: it holds thesis.tex"},

		{"the identity was not copied", LogStoreWAL, func(t testing.TB, d string) string { remove(t, in(d, identityFile)); return d }, "no identity.json: it was copied only in part"},
		{"only the state was copied", "", func(t testing.TB, d string) string { os.Mkdir(d, 0o700); testStateFile(t, d); return d }, "holds state.db but no identity.json"},
		{"the identity is cut short", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, identityFile), 40); return d }, "has a damaged identity.json"},
		{"the identity is empty", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, identityFile), 0); return d }, "has a damaged identity.json"},
		{"the identity was edited", LogStoreWAL, func(t testing.TB, d string) string {
			b, _ := os.ReadFile(in(d, identityFile))
			write(t, in(d, identityFile), bytes.Replace(b, []byte(`"home"`), []byte(`"away"`), 1))
			return d
		}, "does not match its checksum"},
		{"a newer release wrote it", LogStoreWAL, func(t testing.TB, d string) string {
			rewriteIdentity(t, d, func(id *Identity) { id.Format = 7 })
			return d
		}, "its format is 7, this build knows up to 1"},
		{"the log store is unknown", LogStoreWAL, func(t testing.TB, d string) string {
			rewriteIdentity(t, d, func(id *Identity) { id.LogStore = "tape" })
			return d
		}, `log store "tape" is not known`},

		{"the state was not copied", LogStoreWAL, func(t testing.TB, d string) string { remove(t, in(d, stateName)); return d }, "state.db is missing"},
		{"the state is cut short", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, stateName), 40<<10); return d }, "state.db is cut short: it has 40960 bytes of at least"},
		{"the state is cut in its header", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, stateName), 50); return d }, "state.db has no valid header"},
		{"the state is empty", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, stateName), 0); return d }, "state.db is empty"},
		{"the state is a directory", LogStoreWAL, func(t testing.TB, d string) string {
			remove(t, in(d, stateName))
			os.Mkdir(in(d, stateName), 0o700)
			return d
		}, "state.db is not a file"},
		{"the marker was not copied", LogStoreWAL, func(t testing.TB, d string) string { remove(t, in(d, markerName)); return d }, "marker is missing"},
		{"the marker is empty", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, markerName), 0); return d }, "marker is empty"},
		{"the votes were not copied", LogStoreWAL, func(t testing.TB, d string) string { remove(t, in(d, stableFile)); return d }, "stable.db is missing"},
		{"the votes are cut short", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, stableFile), 8<<10); return d }, "stable.db is cut short"},

		{"the wal was not copied", LogStoreWAL, func(t testing.TB, d string) string { remove(t, in(d, walLogDir)); return d }, "log is missing"},
		{"the wal is a file", LogStoreWAL, func(t testing.TB, d string) string {
			remove(t, in(d, walLogDir))
			write(t, in(d, walLogDir), []byte("x"))
			return d
		}, "log is not a directory"},
		{"the wal lacks its table", LogStoreWAL, func(t testing.TB, d string) string { remove(t, in(d, walLogDir, metadb.FileName)); return d }, "log lacks wal-meta.db"},
		{"the wal's table is cut short", LogStoreWAL, func(t testing.TB, d string) string { cut(t, in(d, walLogDir, metadb.FileName), 8<<10); return d }, "wal-meta.db is cut short"},
		{"the wal lacks its first segment", LogStoreWAL, func(t testing.TB, d string) string { remove(t, segments(t, d)[0]); return d }, "log lacks segment 00000000000000000001-"},
		{"the wal lacks its last segment", LogStoreWAL, func(t testing.TB, d string) string {
			s := segments(t, d)
			remove(t, s[len(s)-1])
			return d
		}, "log lacks segment"},
		{"the wal's first segment is cut short", LogStoreWAL, func(t testing.TB, d string) string { cut(t, segments(t, d)[0], 30<<10); return d }, "log has a segment cut short"},
		{"the wal's last segment is cut short", LogStoreWAL, func(t testing.TB, d string) string {
			s := segments(t, d)
			cut(t, s[len(s)-1], 30<<10)
			return d
		}, "log has a segment cut short"},
		{"a wal segment is another's", LogStoreWAL, func(t testing.TB, d string) string {
			s := segments(t, d)
			b, _ := os.ReadFile(s[1])
			write(t, s[0], b)
			return d
		}, "log has a segment with another's content"},
		{"the boltdb log was not copied", LogStoreBolt, func(t testing.TB, d string) string { remove(t, in(d, boltLogFile)); return d }, "log.db is missing"},
		{"the boltdb log is cut short", LogStoreBolt, func(t testing.TB, d string) string { cut(t, in(d, boltLogFile), 100<<10); return d }, "log.db is cut short"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if c.kind != "" {
				dir = wholeDir(t, c.kind)
			}
			path := c.spoil(t, dir)
			before := tree(t, filepath.Dir(dir))
			_, _, err := Inspect(path)
			oneLine(t, err, c.cause)
			d, err := OpenDir(path, NewIdentity("n1", "home"), nil)
			if d != nil {
				d.Close()
			}
			oneLine(t, err, c.cause)
			if after := tree(t, filepath.Dir(dir)); after != before {
				t.Errorf("the directory was changed:\n%s\nto\n%s", before, after)
			}
		})
	}
}

func TestWholeDirectoryIsInspectedWithoutATrace(t *testing.T) {
	for _, kind := range []string{LogStoreWAL, LogStoreBolt} {
		t.Run(kind, func(t *testing.T) {
			dir := wholeDir(t, kind)
			before := tree(t, dir)
			id, ok, err := Inspect(dir)
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			if id.Name != "n1" || id.Site != "home" || id.LogStore != kind || id.ClusterID != "c1" || id.Starts != 1 || !id.HasState || !id.HasMarker {
				t.Errorf("identity %+v", id)
			}
			if after := tree(t, dir); after != before {
				t.Errorf("the directory was changed:\n%s\nto\n%s", before, after)
			}
		})
	}
}

func TestOtherNodesDirectoryIsRefused(t *testing.T) {
	dir := wholeDir(t, LogStoreWAL)
	before := tree(t, dir)
	_, err := OpenDir(dir, NewIdentity("n2", "home"), nil)
	oneLine(t, err, "belongs to node n1-")
	if after := tree(t, dir); after != before {
		t.Error("the directory was changed")
	}
}

func TestDirectoryInUseIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, dir)
	before := tree(t, dir)
	_, err := OpenDir(dir, d.Identity(), nil)
	oneLine(t, err, fmt.Sprintf("is in use by process %d", os.Getpid()))
	if after := tree(t, dir); after != before {
		t.Error("the directory was changed")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	openTestDir(t, dir)
}

func TestAbsentOrEmptyDirectoryCanBeCreated(t *testing.T) {
	cases := []struct {
		name string
		make func(t *testing.T, base string) string
	}{
		{"absent", func(_ *testing.T, b string) string { return filepath.Join(b, "data") }},
		{"absent with its parents", func(_ *testing.T, b string) string { return filepath.Join(b, "a", "b", "data") }},
		{"empty", func(_ *testing.T, b string) string { return b }},
		{"a mount point", func(t *testing.T, b string) string {
			os.Mkdir(filepath.Join(b, "lost+found"), 0o700)
			return b
		}},
		{"left by a first start cut short", func(t *testing.T, b string) string {
			write(t, filepath.Join(b, lockFile), []byte("1\n"))
			write(t, filepath.Join(b, identityTmpFile), []byte(`{"crc`))
			return b
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			path := c.make(t, base)
			before := tree(t, base)
			if _, ok, err := Inspect(path); ok || err != nil {
				t.Fatalf("Inspect: %v, %v", ok, err)
			}
			if after := tree(t, base); after != before {
				t.Error("Inspect changed it")
			}
			d := openTestDir(t, path)
			if d.Identity().Starts != 1 {
				t.Errorf("starts %d", d.Identity().Starts)
			}
		})
	}
}

func TestStartsAreCountedAndIdentityStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	var id string
	for n := uint64(1); n <= 3; n++ {
		d := openTestDir(t, path)
		if n == 1 {
			id = d.Identity().ID
		}
		got, ok, err := Inspect(path) // what is on disk, while in use
		if err != nil || !ok || !reflect.DeepEqual(got, d.Identity()) || got.ID != id || got.Starts != n {
			t.Fatalf("start %d: %+v, %v, %v", n, got, ok, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIdentitiesAreDistinct(t *testing.T) {
	a, b := NewIdentity("n1", "home"), NewIdentity("n1", "home")
	if a.ID == b.ID || !strings.HasPrefix(a.ID, "n1-") || len(a.ID) != len("n1-")+16 {
		t.Errorf("ids %s and %s", a.ID, b.ID)
	}
}

func TestClusterOfADirectoryNeverChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	steps := []struct {
		cluster string
		epoch   uint64
		want    error
	}{
		{"c1", 1, nil},
		{"c1", 1, nil},
		{"c2", 2, command.ErrWrongCluster},
		{"c1", 3, nil},
		{"c1", 2, command.ErrStaleEpoch},
	}
	for _, s := range steps {
		if err := d.SetCluster(s.cluster, s.epoch); !errors.Is(err, s.want) {
			t.Errorf("SetCluster(%s, %d): %v, want %v", s.cluster, s.epoch, err, s.want)
		}
	}
	if err := d.SetCluster("", 9); err == nil {
		t.Error("an empty cluster id was taken")
	}
	id, _, err := Inspect(path)
	if err != nil || id.ClusterID != "c1" || id.Epoch != 3 {
		t.Errorf("on disk: %+v, %v", id, err)
	}
}

func TestIdentityIsOldOrNewAfterACrash(t *testing.T) {
	crash := errors.New("crash")
	for stop := 1; ; stop++ {
		path := filepath.Join(t.TempDir(), "data")
		d := openTestDir(t, path)
		if err := d.SetCluster("c1", 1); err != nil {
			t.Fatal(err)
		}
		n := 0
		d.hook = func(string) error {
			if n++; n == stop {
				return crash
			}
			return nil
		}
		err := d.SetCluster("c1", 2)
		d.Close()
		id, ok, ierr := Inspect(path)
		if ierr != nil || !ok || id.ClusterID != "c1" || id.Epoch < 1 || id.Epoch > 2 {
			t.Fatalf("crash at step %d: %+v, %v, %v", stop, id, ok, ierr)
		}
		if again := openTestDir(t, path); again.Identity().Starts != 2 {
			t.Fatalf("crash at step %d: starts %d", stop, again.Identity().Starts)
		}
		if err == nil {
			if id.Epoch != 2 || stop < 4 {
				t.Fatalf("epoch %d after %d steps", id.Epoch, stop-1)
			}
			return
		}
	}
}

// A state that the first start had no time to finish is no loss.
func TestUnfinishedStateOfAFirstStartIsNoLoss(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	write(t, filepath.Join(path, stateName), nil)
	d.Close()
	d = openTestDir(t, path)
	if d.Identity().HasState {
		t.Error("an empty file counts as a state")
	}
}

func TestPeekReadsWhatBoltWrote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	err = db.Update(func(tx *bbolt.Tx) error {
		small, err := tx.CreateBucket([]byte("small")) // lies in the root's leaf
		if err != nil {
			return err
		}
		small.Put([]byte("k"), []byte("v"))
		large, err := tx.CreateBucket([]byte("large"))
		if err != nil {
			return err
		}
		for i := range 3000 { // several levels, and values over several pages
			k, v := fmt.Sprintf("key%05d", i*7), strings.Repeat("x", i*11%9000)
			want[k] = v
			if err := large.Put([]byte(k), []byte(v)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := openBoltPeek(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.f.Close()
	if v, err := p.get("small", "k"); err != nil || string(v) != "v" {
		t.Errorf("small: %q, %v", v, err)
	}
	for k, v := range want {
		if got, err := p.get("large", k); err != nil || string(got) != v {
			t.Fatalf("%s: %d bytes, %v", k, len(got), err)
		}
	}
	for _, absent := range []string{"", "key00001", "zzz"} {
		if v, err := p.get("large", absent); v != nil || err != nil {
			t.Errorf("%q: %q, %v", absent, v, err)
		}
	}
	if v, err := p.get("none", "k"); v != nil || err != nil {
		t.Errorf("no bucket: %q, %v", v, err)
	}
}

// A file that is cut anywhere, or has any byte changed, is reported or read,
// and never ends the process.
func TestPeekSurvivesDamage(t *testing.T) {
	dir := wholeDir(t, LogStoreWAL)
	path := filepath.Join(dir, walLogDir, metadb.FileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n += 509 {
		write(t, path, whole[:n])
		checkWAL(filepath.Dir(path))
	}
	for i := 0; i < len(whole); i += 13 {
		b := bytes.Clone(whole)
		b[i] ^= 0xff
		f := filepath.Join(dir, "flipped")
		write(t, f, b)
		p, err := openBoltPeek(f)
		if err != nil {
			continue
		}
		p.get(metadb.MetaBucket, metadb.MetaKey)
		p.get(metadb.StableBucket, walInUse)
		p.f.Close()
	}
}

func FuzzIdentity(f *testing.F) {
	b, err := encodeIdentity(NewIdentity("n1", "home"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"crc32c":"","identity":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := decodeIdentity(b)
		if err != nil {
			return
		}
		again, err := encodeIdentity(id)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeIdentity(again); err != nil || !reflect.DeepEqual(got, id) {
			t.Fatalf("%+v became %+v, %v", id, got, err)
		}
	})
}

func TestIdentityFileIsForPeopleToo(t *testing.T) {
	dir := wholeDir(t, LogStoreWAL)
	b, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Identity struct{ Name, Site string }
	}
	if err := json.Unmarshal(b, &v); err != nil || v.Identity.Name != "n1" || v.Identity.Site != "home" {
		t.Errorf("%s: %v", b, err)
	}
}

// appendEntries stores entries first to last, in batches, and returns them.
func appendEntries(t testing.TB, s raft.LogStore, first, last uint64, size int) {
	t.Helper()
	for i := first; i <= last; {
		var batch []*raft.Log
		for ; i <= last && len(batch) < 16; i++ {
			batch = append(batch, testEntry(i, 1, size))
		}
		if err := s.StoreLogs(batch); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that starts another one has, for a moment, a child with copies of all
// its files.
func TestAClosedDirectoryIsFreeThoughAChildIsBeingStarted(t *testing.T) {
	path := t.TempDir()
	d := openTestDir(t, path)
	child, err := unix.Dup(int(d.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	openTestDir(t, path)
}
