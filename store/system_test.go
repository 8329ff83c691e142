package store

import (
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// The system's records are in the tree, and in nothing that users see.
func TestTheSystemsOwnRecordsAreHiddenFromUsers(t *testing.T) {
	s := openTestState(t, StateConfig{Dir: t.TempDir()})
	b := s.Begin()
	b.Entry(1, 1, 10, time.Unix(1, 0))
	b.Put(command.Record{Key: "a", Value: []byte("1"), CreateRevision: b.NextRevision()})
	b.Step()
	kv := b.Revision()
	b.Put(command.Record{Key: SpaceSessions + "id", Value: []byte(`{"id":"id","behavior":"release"}`), CreateRevision: b.NextRevision()})
	b.Put(command.Record{Key: SpaceHolds + "id/a", CreateRevision: b.NextRevision()})
	b.Step()
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	for _, flushed := range []bool{false, true} {
		if flushed {
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		v, err := s.view()
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		record := func(r command.Record) bool { seen = append(seen, r.Key); return true }
		key := func(k string, _ uint64) bool { seen = append(seen, k); return true }
		change := func(c command.Change) bool { seen = append(seen, c.Record.Key); return true }
		for _, err := range []error{
			v.Scan("", "", record), v.ScanKeys("", "", key), v.ScanAt("", "", v.Revision(), record), v.ChangesAfter("", command.Position{}, v.Revision(), change),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, k := range seen {
			if k != "a" {
				t.Errorf("%q is shown to users", k)
			}
		}
		if len(seen) != 4 {
			t.Errorf("seen %q", seen)
		}
		if at, err := v.KVRevisionAt(v.Revision()); v.KVRevision() != kv || at != kv || err != nil {
			t.Errorf("a key changed at %d, %d (%v); not at %d", v.KVRevision(), at, err, kv)
		}
		if st := s.Stats(); st.Keys != 1 || s.DataBytes() != 2 {
			t.Errorf("%d keys, %d bytes", st.Keys, s.DataBytes())
		}
		if v.SessionsRevision() != v.Revision() {
			t.Errorf("a session was made at %d", v.SessionsRevision())
		}
		if got, err := v.Session("id"); err != nil || got.ID != "id" || got.CreateRevision != v.Revision() {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := v.Session("none"); err == nil {
			t.Error("a session that is not there")
		}
		v.Close()
	}
}
