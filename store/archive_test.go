package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// archiveOf is an archive of what a state holds now.
func archiveOf(t testing.TB, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Archive(context.Background(), func(uint64) io.Writer { return &b }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// archivedKeys is what an archive holds of users.
func archivedKeys(t testing.TB, archive []byte) (ArchiveInfo, map[string]command.Record) {
	t.Helper()
	keys := map[string]command.Record{}
	a, err := readArchive(bytes.NewReader(archive), archiveTaker{
		begin: func(*ArchiveInfo) error { return nil },
		record: func(_ position, rec *command.Record) error {
			if !isSystem(rec.Key) {
				own := *rec
				own.Value = bytes.Clone(rec.Value)
				keys[rec.Key] = own
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a.info, keys
}

// putSession puts a session and the locks that it holds.
func putSession(b *Batch, id string, locked ...string) {
	b.SetSession(&command.Session{ID: id, Name: "of " + id, TTL: "15s"})
	for _, key := range locked {
		b.Put(command.Record{Key: key, Value: []byte(id), LockIndex: 1, Session: id, CreateRevision: b.NextRevision()})
		b.Put(command.Record{Key: SpaceHolds + id + "/" + key, CreateRevision: b.NextRevision()})
	}
}

func TestAnArchiveMadeWhileWritesRunIsOfOneRevision(t *testing.T) {
	s := openTestState(t, StateConfig{BufferBytes: 64 << 10})
	const keys = 500
	write := func(round int) {
		inOneEntry(t, s, func(b *Batch) {
			for i := range keys {
				switch {
				case i%7 == round%7:
					b.Delete(fmt.Sprintf("key/%04d", i))
				default:
					setKey(t, b, fmt.Sprintf("key/%04d", i), fmt.Sprintf("%d of round %d", i, round))
				}
			}
		})
	}
	write(0)
	var (
		mu     sync.Mutex
		rounds = map[uint64]int{s.Revision(): 0}
		stop   = make(chan struct{})
		done   = make(chan struct{})
	)
	go func() {
		defer close(done)
		for round := 1; ; round++ {
			select {
			case <-stop:
				return
			default:
			}
			mu.Lock() // an archive begins before a round or after it
			write(round)
			rounds[s.Revision()] = round
			mu.Unlock()
			inOneEntry(t, s, func(b *Batch) { b.Compact(b.Revision()) }) // which forgets deletes at once
		}
	}()
	for range 10 {
		info, got := archivedKeys(t, archiveOf(t, s))
		mu.Lock()
		round := rounds[info.Revision]
		mu.Unlock()
		want := 0
		for i := range keys {
			rec, ok := got[fmt.Sprintf("key/%04d", i)]
			if i%7 == round%7 {
				if ok {
					t.Fatalf("key %d, deleted in round %d, is there", i, round)
				}
				continue
			}
			want++
			if value := fmt.Sprintf("%d of round %d", i, round); string(rec.Value) != value || rec.ModifyRevision != info.Revision {
				t.Fatalf("%q of revision %d in an archive of %d, not %q", rec.Value, rec.ModifyRevision, info.Revision, value)
			}
		}
		if len(got) != want || info.Keys != uint64(want) {
			t.Fatalf("%d keys, it says %d; want %d", len(got), info.Keys, want)
		}
	}
	close(stop)
	<-done
}

func TestAnArchiveHoldsWhatTheModelHolds(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 7))
		s, m := openTestState(t, StateConfig{BufferBytes: 4 << 10}), newModel()
		for index := uint64(1); index <= 300; index++ {
			e := randomEntry(r, index)
			applyScript(t, s, e)
			m.apply(e)
			if index%100 == 50 {
				compactAll(t, s)
			}
		}
		info, got := archivedKeys(t, archiveOf(t, s))
		now := m.under(uint64(len(m.past)-1), "", "")
		var list []command.Record
		for _, rec := range now {
			list = append(list, got[rec.Key])
		}
		if !sameRecords(list, now) || len(got) != len(now) {
			t.Fatalf("seed %d: the archive of revision %d differs from the model", seed, info.Revision)
		}
	}
}

// repack makes an archive of files, in order.
func repack(t testing.TB, files ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	w := tar.NewWriter(zip)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o600, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zip.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(t testing.TB, archive []byte) (files [][2]string) {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, [2]string{h.Name, string(b)})
	}
}

// withState repacks an archive with another state.bin and sums that fit.
func withState(t testing.TB, archive []byte, state string) []byte {
	files := unpack(t, archive)
	meta := strings.Replace(files[0][1], fmt.Sprintf(`"Size":%d`, len(files[1][1])), fmt.Sprintf(`"Size":%d`, len(state)), 1)
	sums := fmt.Sprintf("%x  %s\n%x  %s\n", sha256.Sum256([]byte(meta)), archiveMeta, sha256.Sum256([]byte(state)), archiveState)
	return repack(t, [2]string{archiveMeta, meta}, [2]string{archiveState, state}, [2]string{archiveSums, sums})
}

func item(kind byte, body string) string { return string(appendItem(nil, kind, []byte(body))) }

func TestAnArchiveThatIsNotExactlyOneIsRefused(t *testing.T) {
	s := openTestState(t, StateConfig{})
	inOneEntry(t, s, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c", Datacenter: "dc1"}) })
	for i := range 20 {
		putKey(t, s, fmt.Sprint("key/", i), strings.Repeat("v", i*100))
	}
	good := archiveOf(t, s)
	info, meta, err := CheckArchive(bytes.NewReader(good), t.TempDir())
	if err != nil || info.Keys != 20 || info.Cluster != "c" || info.Datacenter != "dc1" || info.Revision != s.Revision() || meta.Version != 1 || meta.Index != s.appliedIndex() {
		t.Fatalf("%+v %+v %v", info, meta, err)
	}
	files := unpack(t, good)
	state := files[1][1]
	a := &archiver{}
	record := func(at position, key string) string {
		return string(a.record(at, &command.Record{Key: key, CreateRevision: 1}))
	}
	header := func(i ArchiveInfo) string {
		i.Format, i.Revision = 1, 9
		return archiveMagic + item(itemHeader, string(mustJSON(&i)))
	}
	two := ArchiveInfo{Keys: 2, Bytes: 2}
	for what, bad := range map[string][]byte{
		"nothing":                    {},
		"no gzip":                    []byte("hello"),
		"cut short":                  good[:len(good)-1],
		"cut in half":                good[:len(good)/2],
		"something behind it":        append(bytes.Clone(good), 0),
		"two of them":                append(bytes.Clone(good), good...),
		"a flipped bit":              func() []byte { b := bytes.Clone(good); b[len(b)/2] ^= 4; return b }(),
		"files in another order":     repack(t, files[1], files[0], files[2]),
		"a file missing":             repack(t, files[0], files[1]),
		"a file too many":            repack(t, files[0], files[1], files[2], [2]string{"more", ""}),
		"sums of something else":     repack(t, files[0], files[1], [2]string{archiveSums, strings.Repeat("0", 64) + "  meta.json\n"}),
		"another program's state":    withState(t, good, "consul's own"),
		"an empty state":             withState(t, good, ""),
		"a state that is cut short":  withState(t, good, state[:len(state)-10]),
		"a state with more behind":   withState(t, good, state+"x"),
		"records out of order":       withState(t, good, header(two)+record(position{2, 0}, "a")+record(position{1, 0}, "b")+item(itemEnd, "\x02")),
		"a record beyond it":         withState(t, good, header(two)+record(position{2, 0}, "a")+record(position{10, 0}, "b")+item(itemEnd, "\x02")),
		"a key twice":                withState(t, good, header(two)+record(position{1, 0}, "a")+record(position{2, 0}, "a")+item(itemEnd, "\x02")),
		"a record too few":           withState(t, good, header(two)+record(position{1, 0}, "a")+item(itemEnd, "\x02")),
		"an empty key":               withState(t, good, header(ArchiveInfo{Keys: 1})+record(position{1, 0}, "")+item(itemEnd, "\x01")),
		"a record of the system":     withState(t, good, header(ArchiveInfo{Keys: 1, Bytes: 4})+record(position{1, 0}, SpaceOnce+"x")+item(itemEnd, "\x01")),
		"a session that is none":     withState(t, good, header(ArchiveInfo{Sessions: 1})+record(position{1, 0}, SpaceSessions+"x")+item(itemEnd, "\x01")),
		"a session of an odd name":   withState(t, good, header(ArchiveInfo{Sessions: 1})+string(a.record(position{1, 0}, &command.Record{Key: SpaceSessions + "a/b", Value: []byte(`{"id":"a/b"}`), CreateRevision: 1}))+item(itemEnd, "\x01")),
		"an item of an unknown kind": withState(t, good, header(ArchiveInfo{})+item('X', "")+item(itemEnd, "\x00")),
		"a length without end":       withState(t, good, header(ArchiveInfo{})+"R\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
		"another format":             withState(t, good, archiveMagic+item(itemHeader, `{"Format":2}`)+item(itemEnd, "\x00")),
		"a revision without another": withState(t, good, archiveMagic+item(itemHeader, `{"Format":1,"Revision":18446744073709551615}`)+item(itemEnd, "\x00")),
	} {
		if _, _, err := CheckArchive(bytes.NewReader(bad), t.TempDir()); !errors.Is(err, command.ErrArchive) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := CheckArchive(bytes.NewReader(withState(t, good, state)), t.TempDir()); err != nil {
		t.Errorf("packed anew: %v", err)
	}
}

func TestKeysAreSortedInBoundedMemory(t *testing.T) {
	defer func(was int) { sorterBytes = was }(sorterBytes)
	sorterBytes = 1000
	dir := t.TempDir()
	s := keySorter{dir: dir}
	defer s.close()
	var want []string
	for i := range 1000 {
		want = append(want, fmt.Sprintf("%x", i*7919%10007))
		if err := s.add(want[i], pointer{at: position{uint64(i + 1), 3}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.spilt) < 10 {
		t.Fatalf("only %d files of sorted keys", len(s.spilt))
	}
	slices.Sort(want)
	var got []string
	if err := s.each(func(page []byte) error {
		return eachPointer(page, func(key, encoded []byte, _ bool) error {
			got = append(got, string(key))
			_, err := decodePointer(key, encoded)
			return err
		})
	}); err != nil || !slices.Equal(got, want) {
		t.Fatalf("%d keys, %v", len(got), err)
	}
}

func TestAnArchiveIsReadAsRaftAndPeopleReadIt(t *testing.T) {
	s := openTestState(t, StateConfig{})
	b := s.Begin()
	b.Configuration(1, 1, raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}}})
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	putKey(t, s, "a", "1")
	files := unpack(t, archiveOf(t, s))
	if len(files) != 3 || files[0][0] != "meta.json" || files[1][0] != "state.bin" || files[2][0] != "SHA256SUMS" {
		t.Fatalf("files %q", files)
	}
	want := fmt.Sprintf("%x  meta.json\n%x  state.bin\n", sha256.Sum256([]byte(files[0][1])), sha256.Sum256([]byte(files[1][1])))
	if files[2][1] != want {
		t.Errorf("sums %q, not %q", files[2][1], want)
	}
	_, meta, err := CheckArchive(bytes.NewReader(archiveOf(t, s)), "")
	if err != nil || meta.ID == "" || meta.Term != 1 || meta.Index != 2 || meta.ConfigurationIndex != 1 || len(meta.Configuration.Servers) != 1 || meta.Size != int64(len(files[1][1])) {
		t.Errorf("%+v, %v", meta, err)
	}
}

func FuzzArchiveReader(f *testing.F) {
	s := openTestState(f, StateConfig{})
	inOneEntry(f, s, func(b *Batch) { putSession(b, "s1", "locked") })
	putKey(f, s, "a", "1")
	good := archiveOf(f, s)
	f.Add([]byte(unpack(f, good)[1][1]))
	f.Add([]byte(archiveMagic))
	f.Fuzz(func(t *testing.T, state []byte) {
		// The checksums fit, so that the fuzzer gets behind them.
		info, _, err := CheckArchive(bytes.NewReader(withState(t, good, string(state))), t.TempDir())
		if err != nil {
			if !errors.Is(err, command.ErrArchive) {
				t.Fatal(err)
			}
			return
		}
		// What is not refused can be restored.
		to := openTestState(t, StateConfig{})
		if rev := restoreInto(t, to, withState(t, good, string(state))); rev != info.Revision+1 && rev != to.Revision() {
			t.Fatalf("revision %d of an archive of %d", rev, info.Revision)
		}
	})
}

func BenchmarkArchive(b *testing.B) {
	s := openTestState(b, StateConfig{})
	for i := 0; i < 100_000; {
		inOneEntry(b, s, func(batch *Batch) {
			for range 1000 {
				setKey(b, batch, fmt.Sprintf("key/%08d", i*7919%100_003), strings.Repeat("v", 256))
				i++
			}
		})
	}
	mustFlush(b, s)
	b.SetBytes(int64(s.DataBytes()))
	for b.Loop() {
		if err := s.Archive(context.Background(), func(uint64) io.Writer { return io.Discard }); err != nil {
			b.Fatal(err)
		}
	}
}
