package store

import (
	"sort"
	"time"

	"github.com/tidwall/btree"
)

// keyTree is an ordered map from a key to its last change. Its copies are made
// in constant time and share what neither has changed since.
type keyTree = btree.Map[string, *change]

// layer is a run of changes that follows those in the state file. A published
// layer is immutable: a batch builds the next one from a copy of the tree and
// by appending behind the end of history.
type layer struct {
	keys    *keyTree
	history []*change // ascending by position
	bytes   int64     // memory held, roughly
	delta   int64     // of that, by a delta that was laid over the file
	members bool      // the members table changed within
	since   time.Time // when the first batch was published into it
}

// treeDegree trades the copying of nodes by each batch against the tree's
// depth; a small node wins, since most batches touch many nodes once.
const treeDegree = 16

func newLayer() *layer { return &layer{keys: btree.NewMap[string, *change](treeDegree)} }

// fork returns a layer that may be changed while l is being read. Only one fork
// of a layer may be published.
func (l *layer) fork() *layer {
	f := *l
	f.keys = l.keys.Copy()
	return &f
}

// changeOverhead is what a change costs in memory besides its encoding.
const changeOverhead = 240

func (l *layer) add(c *change) {
	l.history = append(l.history, c)
	l.bytes += int64(len(c.enc)+len(c.rec.Key)) + changeOverhead
	switch c.table {
	case tableKV:
		l.keys.Set(c.rec.Key, c)
	case tableMember:
		l.members = true
	}
}

// get returns the key's last change within the layer.
func (l *layer) get(key string) (*change, bool) {
	if l == nil {
		return nil, false
	}
	return l.keys.Get(key)
}

// at returns the change at exactly p, nil when the layer does not hold it.
func (l *layer) at(p position) *change {
	if l == nil {
		return nil
	}
	if i := l.from(p); i < len(l.history) && l.history[i].at == p {
		return l.history[i]
	}
	return nil
}

// from is the index of the first change at or after p.
func (l *layer) from(p position) int {
	return sort.Search(len(l.history), func(i int) bool { return !l.history[i].at.less(p) })
}

// generation is one published state: the file, the layers over it, and meta.
// It is immutable.
type generation struct {
	// seq counts what has been published; a flush covers all up to its seq.
	seq uint64
	// active takes the next batch. frozen, when not nil, is older, is being
	// written to the file, and stays until that transaction has committed.
	active, frozen *layer
	meta           meta
	members        []member // ascending by ID
	file           *stateFile
	// ahead: the file is ahead of meta, by what a delta is putting into it, and no
	// layer hides that. Views then look past it.
	ahead bool
}

// arena hands out memory in large pieces. What it handed out lives as long as
// anything of the same piece does. Not safe for concurrent use.
type arena struct{ free []byte }

const arenaPiece = 64 << 10

// reserve returns an empty slice with room for n bytes; keep then takes what
// was used of it.
func (a *arena) reserve(n int) []byte {
	if n > arenaPiece/4 {
		return make([]byte, 0, n)
	}
	if len(a.free) < n {
		a.free = make([]byte, arenaPiece)
	}
	return a.free[:0:n]
}

func (a *arena) keep(used []byte) {
	if len(used) > 0 && len(a.free) > 0 && &used[0] == &a.free[0] {
		a.free = a.free[len(used):]
	}
}

// copy returns a copy of b made in the arena.
func (a *arena) copy(b []byte) []byte {
	c := append(a.reserve(len(b)), b...)
	a.keep(c)
	return c[:len(c):len(c)]
}
