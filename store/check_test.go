package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// stoppedNode makes the data directory of a node that has stopped in an orderly
// way: keys changed and deleted, history partly compacted, a log that reaches back
// behind the state.
func stoppedNode(t testing.TB, kind string, seed uint64) string {
	t.Helper()
	const entries = 120
	r := rand.New(rand.NewPCG(seed, 5))
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	l := openTestLogs(t, d, kind)
	for from := uint64(1); from <= entries; from += 10 {
		appendEntries(t, l.Log, from, from+9, 1000)
	}
	if err := errors.Join(
		l.Stable.SetUint64([]byte(raftCurrentTerm), 3),
		l.Stable.SetUint64([]byte(raftLastVoteTerm), 2), l.Stable.Set([]byte(raftLastVoteCand), []byte("n1")),
		l.SetPeer("n2", PeerSeen{Starts: 3, LastIndex: 7}), d.SetCluster("c1", 1),
	); err != nil {
		t.Fatal(err)
	}
	s := openTestState(t, StateConfig{Dir: path})
	inOneEntry(t, s, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c1"}) })
	for s.appliedIndex() < entries {
		if s.appliedIndex() == entries/2 {
			inOneEntry(t, s, func(b *Batch) { b.Compact(b.Revision() / 2) })
			compactAll(t, s)
		}
		applyScript(t, s, randomEntry(r, s.appliedIndex()+1))
		if r.IntN(10) == 0 {
			mustFlush(t, s)
		}
	}
	if err := l.log.DeleteRange(1, 20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), d.writeLocked(d.id), l.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// checked runs Check and returns what it reported.
func checked(t testing.TB, dir string) (stats CheckStats, problems, notes []Problem) {
	t.Helper()
	stats, err := Check(dir, func(p Problem) {
		if p.Note {
			notes = append(notes, p)
		} else {
			problems = append(problems, p)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if stats.Problems != uint64(len(problems)) || stats.Notes != uint64(len(notes)) {
		t.Errorf("%+v counts not what was reported", stats)
	}
	return stats, problems, notes
}

func TestAWholeDirectoryIsCheckedWithoutAComplaintAndWithoutATrace(t *testing.T) {
	for _, kind := range []string{LogStoreWAL, LogStoreBolt} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprint(kind, seed), func(t *testing.T) {
				dir := stoppedNode(t, kind, seed)
				before := tree(t, dir)
				stats, problems, notes := checked(t, dir)
				if len(problems) > 0 || len(notes) > 0 {
					t.Errorf("problems %+v, notes %+v", problems, notes)
				}
				if after := tree(t, dir); after != before {
					t.Errorf("the check changed\n%s\nto\n%s", before, after)
				}
				s := openTestState(t, StateConfig{Dir: dir})
				if m := s.gen.Load().meta; stats.LogFirst != 21 || stats.LogLast != 120 || stats.LogEntries != 100 || stats.LogStore != kind ||
					stats.ID == "" || stats.Revision != m.Revision || stats.Keys != m.Keys || stats.DataBytes != m.DataBytes ||
					stats.Records != s.gen.Load().file.local().Records || stats.RaftIndex != 120 {
					t.Errorf("%+v\n%+v", stats, m)
				}
			})
		}
	}
}

func TestADirectoryThatCannotBeCheckedIsRefused(t *testing.T) {
	dir := stoppedNode(t, LogStoreWAL, 1)
	refused := func(dir, cause string) {
		t.Helper()
		before := tree(t, dir)
		_, err := Check(dir, func(p Problem) { t.Errorf("reported %+v", p) })
		oneLine(t, err, cause)
		if tree(t, dir) != before {
			t.Error("the refused check changed something")
		}
	}
	d := openTestDir(t, dir)
	refused(dir, "is in use by process")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	refused(filepath.Join(dir, "none"), "does not exist")
	refused(t.TempDir(), "holds no data of a node")
	refused(filepath.Join(dir, markerName), "cannot be read")
}

// A check in progress keeps a node from starting.
func TestNoNodeStartsDuringACheck(t *testing.T) {
	dir := stoppedNode(t, LogStoreWAL, 1)
	write(t, filepath.Join(dir, rewriteName), nil)
	id, _, _ := Inspect(dir)
	if _, err := Check(dir, func(Problem) {
		if _, err := OpenDir(dir, id, nil); err == nil {
			t.Error("the directory could be opened")
		}
	}); err != nil {
		t.Fatal(err)
	}
	openTestDir(t, dir)
}

// contents is all that a node has in its directory, as a start finds it.
type contents struct {
	head    Head
	applied uint64
	oldest  uint64
	records map[string]string
	past    map[string][]string
	entries map[uint64]raft.Log
	vote    string
}

// contentsOf opens a copy of a directory as a node does.
func contentsOf(t testing.TB, dir string) (c contents, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	defer os.RemoveAll(path)
	if err := os.CopyFS(path, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	c = contents{records: map[string]string{}, past: map[string][]string{}, entries: map[uint64]raft.Log{}}
	id, ok, err := Inspect(path)
	if err != nil {
		return c, err
	}
	if !ok {
		return c, errors.New("nothing there")
	}
	d, err := OpenDir(path, id, nil)
	if err != nil {
		return c, err
	}
	defer d.Close()
	l, err := d.OpenLogs(id.LogStore)
	if err != nil {
		return c, err
	}
	defer l.Close()
	first, last, err := l.Bounds()
	if err != nil {
		return c, err
	}
	for i := max(first, 1); i <= last; i++ {
		var e raft.Log
		if err := l.Log.GetLog(i, &e); err != nil {
			return c, err
		}
		c.entries[i] = e
	}
	term, err := l.Stable.GetUint64([]byte(raftLastVoteTerm))
	if err != nil {
		return c, err
	}
	candidate, err := l.Stable.Get([]byte(raftLastVoteCand))
	if err != nil {
		return c, err
	}
	c.vote = fmt.Sprint(term, string(candidate))
	s, err := OpenState(StateConfig{Dir: path, BufferAge: time.Hour, MaxData: 1 << 30})
	if err != nil {
		return c, err
	}
	defer s.Close()
	v, err := s.view()
	if err != nil {
		return c, err
	}
	defer v.Close()
	c.head, c.applied, c.oldest = s.Head(), s.appliedIndex(), s.OldestRevision()
	if err := v.Scan("", "", func(r command.Record) bool {
		c.records[r.Key] = fmt.Sprintf("%+v", r)
		return true
	}); err != nil {
		return c, err
	}
	for key := range c.records {
		if err := v.KeyHistory(key, func(ch command.Change) bool {
			c.past[key] = append(c.past[key], fmt.Sprintf("%+v", ch))
			return true
		}); err != nil {
			return c, err
		}
	}
	return c, nil
}

// same reports whether a start that finds c has lost nothing of what one that
// finds want has.
func (c contents) same(want contents) error {
	if c.head != want.head || c.oldest != want.oldest || c.vote != want.vote {
		return fmt.Errorf("head %+v, vote %q; want %+v, %q", c.head, c.vote, want.head, want.vote)
	}
	if len(c.records) != len(want.records) || len(c.past) != len(want.past) {
		return fmt.Errorf("%d keys; want %d", len(c.records), len(want.records))
	}
	for k, r := range want.records {
		if c.records[k] != r || !slices.Equal(c.past[k], want.past[k]) {
			return fmt.Errorf("key %q: %s %v; want %s %v", k, c.records[k], c.past[k], r, want.past[k])
		}
	}
	for i, e := range want.entries {
		if got, ok := c.entries[i]; !ok && i > want.applied || ok && !sameEntry(&got, &e) {
			return fmt.Errorf("entry %d differs", i)
		}
	}
	return nil
}

// dataFiles are the files of a directory, but the lock.
func dataFiles(t testing.TB, dir string) (files []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != lockFile {
			files = append(files, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

func TestAFlippedByteIsReportedOrHarmless(t *testing.T) {
	samples := 80
	if testing.Short() {
		samples = 15
	}
	for _, kind := range []string{LogStoreWAL, LogStoreBolt} {
		dir := stoppedNode(t, kind, 3)
		want, err := contentsOf(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(11, 5))
		for _, file := range dataFiles(t, dir) {
			t.Run(kind+"/"+filepath.Base(file), func(t *testing.T) {
				whole, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				defer write(t, file, whole)
				// Where something is written: most of a log is not yet.
				var at []int
				for i, b := range whole {
					if b != 0 {
						at = append(at, i)
					}
				}
				reported := 0
				for range samples {
					i := r.IntN(len(whole))
					if r.IntN(4) > 0 {
						i = at[r.IntN(len(at))]
					}
					bad := bytes.Clone(whole)
					bad[i] ^= 1 << r.IntN(8)
					write(t, file, bad)
					_, problems, notes := checked(t, dir)
					if len(problems)+len(notes) > 0 {
						reported++
						continue
					}
					got, err := contentsOf(t, dir)
					if err == nil {
						err = got.same(want)
					}
					if err != nil {
						t.Errorf("byte %d of %d, %#x to %#x, is not reported: %v", i, len(whole), whole[i], bad[i], err)
					}
				}
				t.Logf("%d of %d reported", reported, samples)
			})
		}
	}
}

func TestAFileThatIsCutShortIsReported(t *testing.T) {
	for _, kind := range []string{LogStoreWAL, LogStoreBolt} {
		dir := stoppedNode(t, kind, 3)
		want, err := contentsOf(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range dataFiles(t, dir) {
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{0, 1, 20, 4096, len(whole) / 2, len(whole) - 4096, len(whole) - 1} {
				if size < 0 || size >= len(whole) {
					continue
				}
				write(t, file, whole[:size])
				if _, problems, _ := checked(t, dir); len(problems) > 0 {
					continue
				}
				got, err := contentsOf(t, dir)
				if err == nil {
					err = got.same(want)
				}
				if err != nil {
					t.Errorf("%s %s cut from %d to %d bytes is not reported: %v", kind, filepath.Base(file), len(whole), size, err)
				}
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if _, problems, _ := checked(t, dir); len(problems) == 0 {
				t.Errorf("%s: the loss of %s is not reported", kind, filepath.Base(file))
			}
			write(t, file, whole)
		}
	}
}

// Damage no flipped bit makes: each part is valid by itself.
func TestPartsThatDoNotFitTogetherAreReported(t *testing.T) {
	// last is the position of a key's last change, and of the one before.
	last := func(tx *bbolt.Tx) (key []byte, at, prev position) {
		c := tx.Bucket(bucketHistory).Cursor()
		for k, v := c.Last(); ; k, v = c.Prev() {
			p, _ := positionOf(k)
			var ch change
			if err := ch.decode(p, v, ""); err != nil {
				t.Fatal(err)
			}
			if b := tx.Bucket(bucketKeys).Get([]byte(ch.rec.Key)); b == nil || ch.prev.zero() || ch.created() {
				continue
			} else if lead, _ := decodePointer([]byte(ch.rec.Key), b); lead.at == p {
				return []byte(ch.rec.Key), p, ch.prev
			}
		}
	}
	inMeta := func(fn func(*meta)) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			var m meta
			if err := openJSON("state", tx.Bucket(bucketMeta).Get(recordState), &m); err != nil {
				return err
			}
			fn(&m)
			return putMeta(tx, m, nil, false)
		}
	}
	pointerTo := func(tx *bbolt.Tx, at position) []byte {
		var ch change
		p := at.bytes()
		if err := ch.decode(at, tx.Bucket(bucketHistory).Get(p[:]), ""); err != nil {
			t.Fatal(err)
		}
		return encodePointer(nil, &ch)
	}
	for name, c := range map[string]struct {
		do   func(tx *bbolt.Tx) error
		want string
	}{
		"a key that leads to an older change": {func(tx *bbolt.Tx) error {
			k, _, prev := last(tx)
			return tx.Bucket(bucketKeys).Put(k, pointerTo(tx, prev))
		}, "but was changed at"},
		"a key whose pointer has another value's checksum": {func(tx *bbolt.Tx) error {
			k, _, _ := last(tx)
			p, err := decodePointer(k, tx.Bucket(bucketKeys).Get(k))
			p.sum++
			return errors.Join(err, tx.Bucket(bucketKeys).Put(k, p.append(nil, k)))
		}, "what its pointer says"},
		"a key that is missing": {func(tx *bbolt.Tx) error {
			k, _, _ := last(tx)
			return tx.Bucket(bucketKeys).Delete(k)
		}, "keys"},
		"a key that is held to be deleted": {func(tx *bbolt.Tx) error {
			k, at, _ := last(tx)
			return errors.Join(tx.Bucket(bucketKeys).Delete(k), tx.Bucket(bucketTombs).Put(k, pointerTo(tx, at)))
		}, "belongs in the other table"},
		"a change that is missing": {func(tx *bbolt.Tx) error {
			_, at, _ := last(tx)
			p := at.bytes()
			return tx.Bucket(bucketHistory).Delete(p[:])
		}, "which is missing"},
		"a change that was exchanged": {func(tx *bbolt.Tx) error {
			_, at, _ := last(tx)
			p := at.bytes()
			enc := bytes.Clone(tx.Bucket(bucketHistory).Get(p[:]))
			enc[len(enc)-1] ^= 1
			ch := change{at: at, enc: enc}
			ch.seal(ch.lineage())
			return tx.Bucket(bucketHistory).Put(p[:], enc)
		}, "lineage"},
		"a count of keys":     {inMeta(func(m *meta) { m.Keys++ }), "the state counts"},
		"a count of bytes":    {inMeta(func(m *meta) { m.DataBytes++ }), "the state counts"},
		"a count of changes":  {inMeta(func(m *meta) { m.Changes++ }), "the state counts"},
		"another lineage":     {inMeta(func(m *meta) { m.Lineage[0]++ }), "lineage"},
		"another revision":    {inMeta(func(m *meta) { m.Revision++ }), "history ends"},
		"a log behind a hole": {inMeta(func(m *meta) { m.RaftIndex, m.Applied = 10, 10 }), "the log begins at 21"},
		"a count of records": {func(tx *bbolt.Tx) error {
			var l local
			if err := openJSON("local", tx.Bucket(bucketMeta).Get(recordLocal), &l); err != nil {
				return err
			}
			l.Records++
			return putLocal(tx, l)
		}, "the file counts"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := stoppedNode(t, LogStoreWAL, 4)
			db, err := bbolt.Open(filepath.Join(dir, stateName), 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Update(c.do), db.Close()); err != nil {
				t.Fatal(err)
			}
			_, problems, _ := checked(t, dir)
			text := fmt.Sprintf("%+v", problems)
			if !strings.Contains(text, c.want) {
				t.Errorf("%q is not in %s", c.want, text)
			}
			remove(t, filepath.Join(dir, stateName)) // else the end of the test looks at it
		})
	}
}

// What a crash leaves is not damage.
func TestWhatACrashLeavesIsNoted(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			dir := stoppedNode(t, LogStoreWAL, seed)
			r := rand.New(rand.NewPCG(seed, 3))
			s := openTestState(t, StateConfig{Dir: dir})
			_, release := s.holdCompaction() // which would go on while the file is copied
			defer release()
			for index := uint64(121); index < 150; index++ {
				applyScript(t, s, randomEntry(r, index))
			}
			g := s.gen.Load()
			some := g.active.history[:1+r.IntN(len(g.active.history))]
			path := filepath.Join(t.TempDir(), "crashed")
			if err := os.CopyFS(path, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			f, _, _, err := openStateFile(filepath.Join(path, stateName), 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.update(func(tx *bbolt.Tx, l *local) error {
				l.Records += uint64(len(some))
				return putChanges(tx, some, false, func(c *change) bool {
					newest, _ := g.active.keys.Get(c.rec.Key)
					return newest == c
				})
			}), f.db.Close()); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(path, markerName), markerSlot{seq: 1, index: 120}.encode())
			write(t, filepath.Join(path, rewriteName), []byte("x"))
			write(t, filepath.Join(path, asideName+"3"), []byte("x"))
			_, problems, notes := checked(t, path)
			if len(problems) > 0 || len(notes) != 3 {
				t.Errorf("problems %+v, notes %+v", problems, notes)
			}
		})
	}
}

// A node that has shown what is in a kept delta has lost nothing; one whose kept
// delta is damaged has.
func TestAKeptDeltaCountsAsPartOfTheState(t *testing.T) {
	dir := stoppedNode(t, LogStoreWAL, 4)
	to := openTestState(t, StateConfig{Dir: dir})
	inOneEntry(t, to, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c"}) })
	mustFlush(t, to)
	from := openTestState(t, StateConfig{Dir: copyOfFiles(t, to)})
	for i := range 30 {
		putKey(t, from, fmt.Sprint("since/", i), "x")
	}
	stream := answer(t, from, to.CopyRequest(false))
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "crashed")
	if err := os.CopyFS(path, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(path, markerName), markerSlot{seq: 1, index: from.appliedIndex()}.encode())
	write(t, filepath.Join(path, keptName), stream)
	if _, problems, notes := checked(t, path); len(problems) > 0 || len(notes) == 0 {
		t.Errorf("problems %+v, notes %+v", problems, notes)
	}
	stream[len(stream)/2] ^= 1
	write(t, filepath.Join(path, keptName), stream)
	_, problems, _ := checked(t, path)
	if !slices.ContainsFunc(problems, func(p Problem) bool { return p.File == keptName }) {
		t.Errorf("problems %+v", problems)
	}
	// A start that sets the state aside does not meet it again.
	d := openTestDir(t, path)
	if _, err := OpenState(StateConfig{Dir: path, MaxData: 1 << 28}); !errors.Is(err, command.ErrDamaged) {
		t.Errorf("a start: %v", err)
	}
	if _, err := d.SetStateAside(); err != nil {
		t.Fatal(err)
	}
	openTestState(t, StateConfig{Dir: path})
}
