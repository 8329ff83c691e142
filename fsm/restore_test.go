package fsm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

func archiveOf(t *testing.T, s *store.State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Archive(context.Background(), func(uint64) io.Writer { return &b }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// staging returns the commands that put an archive aside, and the one that restores it.
func staging(id string, archive []byte) (pieces []command.Command, restore *command.Restore) {
	restore = &command.Restore{ID: id, SHA256: sha256.Sum256(archive)}
	for data := range slices.Chunk(archive, 100) {
		pieces = append(pieces, &command.Stage{ID: id, Piece: restore.Pieces, Data: data})
		restore.Pieces++
	}
	return pieces, restore
}

func staged(t *testing.T, s *store.State) (keys []string) {
	t.Helper()
	v, err := s.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.ScanKeys(store.SpaceStage, "", func(key string, _ uint64) bool {
		keys = append(keys, key)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestOfTwoArchivesPutAsideTheLaterOneStays(t *testing.T) {
	f, s := newFSM(t)
	stage := func(index uint64, id string, piece uint64, data string) command.Result {
		return apply(t, f, entry(index, 0, &command.Stage{ID: id, Piece: piece, Data: []byte(data)}))[0]
	}
	for i, c := range []struct {
		id    string
		piece uint64
		data  string
		ok    bool
		left  []string
	}{
		{"a", 1, "x", false, nil}, // nothing was begun
		{"a", 0, "x", true, []string{store.StageKey("a", 0)}},
		{"a", 1, "y", true, []string{store.StageKey("a", 0), store.StageKey("a", 1)}},
		{"a", 1, "y", true, []string{store.StageKey("a", 0), store.StageKey("a", 1)}}, // once more
		{"b", 0, "z", true, []string{store.StageKey("b", 0)}},
		{"a", 2, "x", false, []string{store.StageKey("b", 0)}},
		{"a", 0, "", true, []string{store.StageKey("b", 0)}}, // the other's end does not touch it
		{"b", 0, "", true, nil},
	} {
		res := stage(uint64(i+1), c.id, c.piece, c.data)
		if res.OK != c.ok || errors.Is(res.Err, command.ErrArchive) == c.ok {
			t.Errorf("step %d: %+v", i, res)
		}
		if left := staged(t, s); !slices.Equal(left, c.left) {
			t.Errorf("step %d: left %q, want %q", i, left, c.left)
		}
	}
}

// However the entries around a restore come in, each has its result, is told of
// once, and leaves the same state.
func TestARestoreAmongOtherWritesComesOutTheSameInAnyBatching(t *testing.T) {
	f, s := newFSM(t)
	apply(t, f, entry(1, 0, &command.Put{Key: "archived", Value: []byte("1")}))
	archive := archiveOf(t, s)
	pieces, restore := staging("x", archive)
	other := &command.Restore{ID: "y", Pieces: 1}
	logs := []*raft.Log{
		entry(1, 0, &command.Put{Key: "before", Value: []byte("1")}, &command.MemberSet{Member: command.Member{ID: "n1"}}),
		entry(2, 0, pieces...),
		entry(3, 0, &command.Put{Key: "before", Value: []byte("2")}),
		// The restore comes last in its entry, wherever it stands.
		entry(4, 0, other, restore, &command.Put{Key: "with", Value: []byte("3")}, restore, &command.Term{}),
		entry(5, 0, &command.Put{Key: "after", Value: []byte("4")}),
		entry(6, 0, restore, &command.Put{Key: "after", Value: []byte("5")}),
	}
	var first store.Head
	for batching, sizes := range [][]int{{6}, {1, 1, 1, 1, 1, 1}, {3, 3}, {4, 2}} {
		f, s := newFSM(t)
		var told []uint64
		f.Observe(func(index, _ uint64, e *command.Entry, results []command.Result) {
			if e == nil {
				return // the state held it before
			}
			told = append(told, index)
			if len(results) != len(e.Commands) {
				t.Errorf("entry %d has %d results", index, len(results))
			}
			if applied, _ := s.Applied(); applied < index {
				t.Errorf("entry %d was told of before it was visible", index)
			}
		})
		var results [][]command.Result
		rest := logs
		for _, n := range sizes {
			for _, r := range f.ApplyBatch(rest[:n]) {
				results = append(results, r.([]command.Result))
			}
			rest = rest[n:]
		}
		if !slices.Equal(told, []uint64{1, 2, 3, 4, 5, 6}) {
			t.Errorf("batching %d: told of %d", batching, told)
		}
		r := results[3]
		if !errors.Is(r[0].Err, command.ErrArchive) || !r[1].OK || !r[2].OK || !errors.Is(r[3].Err, command.ErrArchive) || r[1].Revision != r[2].Revision+1 {
			t.Errorf("batching %d: results %+v", batching, r)
		}
		if r := results[5]; !errors.Is(r[0].Err, command.ErrArchive) || !r[1].OK {
			t.Errorf("batching %d: results %+v after the restore", batching, r)
		}
		if f.Term() != 1 {
			t.Errorf("batching %d: term %d", batching, f.Term())
		}
		for key, want := range map[string]bool{"archived": true, "before": false, "with": false, "after": true} {
			if _, ok := get(t, s, key); ok != want {
				t.Errorf("batching %d: key %s is there: %v", batching, key, ok)
			}
		}
		if len(s.Members()) != 1 || len(staged(t, s)) != 0 {
			t.Errorf("batching %d: members %v, staged %q", batching, s.Members(), staged(t, s))
		}
		if batching == 0 {
			first = s.Head()
		} else if s.Head() != first {
			t.Errorf("batching %d: %+v, not %+v", batching, s.Head(), first)
		}
		// Handed over again after a restart, nothing happens twice.
		if r := f.ApplyBatch(logs); slices.ContainsFunc(r, func(r any) bool { return r != nil }) || s.Head() != first {
			t.Errorf("batching %d: again: %v", batching, fmt.Sprint(r))
		}
	}
}
