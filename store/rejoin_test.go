package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

func asideLinesOf(t *testing.T, path string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var c asideChange
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, c.Op+" "+c.Key+"="+string(c.Value))
	}
	return lines
}

func TestWhatIsSetAsideAreTheChangesBehindARevision(t *testing.T) {
	s := openTestState(t, StateConfig{})
	common := putKey(t, s, "a", "1")
	first := putKey(t, s, "a", "2")
	putKey(t, s, "b", "")
	deleteKey(t, s, "a")
	inOneEntry(t, s, func(b *Batch) { b.SetSession(&command.Session{ID: "x"}) }) // is no key
	last := putKey(t, s, "c", "3")
	path := filepath.Join(t.TempDir(), "aside")
	a, err := s.SetAside(t.Context(), common, path)
	if want := (Aside{Changes: 4, Keys: 3, First: first, Last: last}); err != nil || a != want {
		t.Errorf("%+v, %v; want %+v", a, err, want)
	}
	if got := asideLinesOf(t, path); !slices.Equal(got, []string{"put a=2", "put b=", "delete a=", "put c=3"}) {
		t.Errorf("%q", got)
	}
	if _, err := s.SetAside(t.Context(), common, path); err == nil {
		t.Error("a file was replaced")
	}
	none := filepath.Join(t.TempDir(), "none")
	if a, err := s.SetAside(t.Context(), last, none); err != nil || a != (Aside{}) {
		t.Errorf("behind the last one: %+v, %v", a, err)
	}
	if names, err := filepath.Glob(none + "*"); err != nil || len(names) > 0 {
		t.Errorf("it left %q", names)
	}
}

// Of what history does not have any more, the last value of each key is left.
func TestWhatIsSetAsideSaysWhatHistoryHasDropped(t *testing.T) {
	s := openTestState(t, StateConfig{})
	common := putKey(t, s, "old", "1")
	putKey(t, s, "a", "1")
	putKey(t, s, "a", "2")
	putKey(t, s, "gone", "1")
	oldest := deleteKey(t, s, "gone")
	inOneEntry(t, s, func(b *Batch) { b.Compact(oldest) })
	putKey(t, s, "b", "1")
	path := filepath.Join(t.TempDir(), "aside")
	a, err := s.SetAside(t.Context(), common, path)
	if err != nil || a.Compacted != oldest || a.Changes != 2 {
		t.Errorf("%+v, %v", a, err)
	}
	if got := asideLinesOf(t, path); !slices.Equal(got, []string{"put a=2", "put b=1"}) {
		t.Errorf("%q", got)
	}
}

// An emptied directory takes a new member; one that is emptied half-way takes nobody
// before the rest is done.
func TestADirectoryIsEmptiedToTheEndOrNotUsed(t *testing.T) {
	newDir := func() (string, *Dir) {
		path := filepath.Join(t.TempDir(), "n1")
		d, err := OpenDir(path, NewIdentity("n1", "home"), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{AsidePrefix + "x.jsonl", stateName, "ballast"} {
			if err := os.WriteFile(filepath.Join(path, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return path, d
	}
	path, d := newDir()
	if err := d.Empty(); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := Inspect(path); ok || err != nil {
		t.Errorf("an emptied directory: %v, %v", ok, err)
	}
	if _, err := os.Stat(filepath.Join(path, AsidePrefix+"x.jsonl")); err != nil {
		t.Errorf("what was set aside: %v", err)
	}

	path, d = newDir()
	if err := d.change("that it is emptied", func(id *Identity) { id.Emptied = true }); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Inspect(path); err == nil || !strings.Contains(err.Error(), "holdfast rejoin") {
		t.Errorf("one that is being emptied: %v", err)
	}
	if done, err := EmptyRest(path); !done || err != nil {
		t.Errorf("the rest: %v, %v", done, err)
	}
	if _, ok, err := Inspect(path); ok || err != nil {
		t.Errorf("after the rest: %v, %v", ok, err)
	}
	if done, err := EmptyRest(path); done || err != nil {
		t.Errorf("once more: %v, %v", done, err)
	}
}
