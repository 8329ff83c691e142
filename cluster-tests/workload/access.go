package workload

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// ReadMode is how a read is asked for.
type ReadMode string

// The modes. What each promises is in docs/MANUAL.md, "Reading".
const (
	Consistent ReadMode = "consistent"
	// Default is no mode, at a voter.
	Default ReadMode = "default"
	Stale   ReadMode = "stale"
	// Copied is no mode, at a learner, where it means stale.
	Copied ReadMode = "default at a learner"
)

// local says whether the node answers from its own state, as it has it.
func (m ReadMode) local() bool { return m == Stale || m == Copied }

// Read is Op.In of "read": one key.
type Read struct {
	Key  string
	Mode ReadMode
	// MaxStale is the bound of the answer's age that was asked for, 0 for none.
	MaxStale time.Duration
	// MinIndex is the revision that the answer has to know of, 0 for none.
	MinIndex uint64
	// Crowded marks one of too many at once for the judge of linearizability. What it
	// may miss is judged by the state that answered, and by the staleness that says.
	Crowded bool
}

// Seen is Op.Out of a read.
type Seen struct {
	// Found says whether there was a record; Value and Revision are its.
	Found    bool
	Value    string
	Revision uint64
	// Applied is the revision of the state that answered.
	Applied        uint64
	Staleness      time.Duration
	StalenessKnown bool
}

// Write is Op.In of "put", "cas" and "delete". Every value is written once in a
// history, so that a value tells which write a read saw.
type Write struct {
	Key, Value string
	// Index is the revision that "cas" demands of the record; 0: that there is none.
	Index uint64
}

// Written is Op.Out of a write.
type Written struct {
	// OK says whether it happened, Revision which one it made, or at which it was
	// decided that it does not.
	OK       bool
	Revision uint64
}

// write makes one write and records it. No node has a reason to refuse it.
func (e *Env) write(ctx context.Context, workload string, client int, n *Node, name string, w Write) (history.Outcome, Written) {
	p := e.History.Call(history.Op{Workload: workload, Client: client, Node: n.Name, Name: name, In: w})
	method, path, body := http.MethodPut, Key(w.Key), []byte(w.Value)
	switch name {
	case "cas":
		path += fmt.Sprintf("?cas=%d", w.Index)
	case "delete":
		method, body = http.MethodDelete, nil
	}
	a, err := n.Do(ctx, method, path, body)
	if err == nil && a.Status != http.StatusOK && a.Status < 500 {
		p.Decided(Broken{fmt.Sprintf("refused with %d: %.200s", a.Status, a.Body)})
		return history.Unknown, Written{}
	}
	var got Written
	outcome := ended(p, a, err, func(a Answer) (_ any, err error) {
		got.OK = a.True()
		if got.Revision, err = a.Index(); err == nil && got.Revision == 0 {
			err = fmt.Errorf("revision 0")
		}
		if name == "put" && !got.OK {
			err = fmt.Errorf("a plain put answered %.100q", a.Body)
		}
		return got, err
	})
	return outcome, got
}

// read makes one read and records it. One that fails has the outcome refused: it did
// nothing. ok says whether it was answered.
func (e *Env) read(ctx context.Context, workload string, client int, n *Node, r Read) (seen Seen, ok bool) {
	p := e.History.Call(history.Op{Workload: workload, Client: client, Node: n.Name, Name: "read", In: r})
	query := url.Values{}
	switch {
	case r.MaxStale > 0:
		query.Set("max_stale", r.MaxStale.String())
	case r.Mode == Consistent || r.Mode == Stale:
		query.Set(string(r.Mode), "")
	}
	if r.MinIndex > 0 {
		query.Set("min_index", fmt.Sprint(r.MinIndex))
		query.Set("wait", minIndexWait.String())
	}
	a, err := n.Do(ctx, http.MethodGet, Key(r.Key)+"?"+query.Encode(), nil)
	switch {
	case err != nil:
		p.Refused(err.Error())
		return Seen{}, false
	case a.Status != http.StatusOK && a.Status != http.StatusNotFound:
		p.Refused(fmt.Sprintf("%d %.200s", a.Status, a.Body))
		return Seen{}, false
	}
	if seen, err = a.seen(n, r); err != nil {
		p.Decided(Broken{err.Error()})
		return Seen{}, false
	}
	p.Decided(seen)
	return seen, true
}

// minIndexWait is how long a node may take to get to a revision.
const minIndexWait = 2 * time.Second

// seen is what a read of one key was answered with.
func (a Answer) seen(n *Node, r Read) (s Seen, err error) {
	if by := a.Header.Get("X-Holdfast-Node"); by != n.Name {
		return s, fmt.Errorf("%s was asked, %q answered", n, by)
	}
	if s.Applied, err = a.Applied(); err != nil {
		return s, err
	}
	if s.Staleness, s.StalenessKnown, err = a.Staleness(); err != nil {
		return s, err
	}
	// It is said in milliseconds, rounded up.
	if r.MaxStale > 0 && (!s.StalenessKnown || s.Staleness > r.MaxStale+time.Millisecond) {
		return s, fmt.Errorf("it was to be at most %v old, and says that it is %v (known: %v)", r.MaxStale, s.Staleness, s.StalenessKnown)
	}
	entries, err := a.Entries()
	if err != nil || len(entries) == 0 && a.Status == http.StatusNotFound {
		return s, err
	}
	if len(entries) != 1 || entries[0].Key != r.Key || entries[0].CreateIndex == 0 || entries[0].CreateIndex > entries[0].ModifyIndex {
		return s, fmt.Errorf("read of %s answered %+v", r.Key, entries)
	}
	s.Found, s.Value, s.Revision = true, string(entries[0].Value), entries[0].ModifyIndex
	return s, nil
}

// kind is what an access asks for.
type kind uint8

const (
	putOp kind = iota
	casOp
	deleteOp
	readOp
)

// access is a read or a write as the judges take it.
type access struct {
	history.Op
	kind kind
	key  string
	// Of a read that was answered.
	read Read
	seen Seen
	// Of a write. The revision of one of unknown outcome is that at which a read saw
	// it, 0 when none did.
	write   Write
	written Written
}

// accesses are the reads that were answered, and all writes. A write whose answer was
// broken is one of unknown outcome.
func accesses(ops []history.Op) []access {
	var all []access
	seen := map[string]uint64{} // by key and value
	for _, o := range ops {
		a := access{Op: o}
		switch in := o.In.(type) {
		case Read:
			var ok bool
			if a.seen, ok = o.Out.(Seen); !ok {
				continue
			}
			a.kind, a.key, a.read = readOp, in.Key, in
			if a.seen.Found {
				seen[a.key+"\x00"+a.seen.Value] = a.seen.Revision
			}
		case Write:
			a.kind, a.key, a.write = map[string]kind{"put": putOp, "cas": casOp, "delete": deleteOp}[o.Name], in.Key, in
			var ok bool
			if a.written, ok = o.Out.(Written); !ok && o.Outcome == history.Decided {
				a.Outcome, a.Return = history.Unknown, history.Never
			}
		default:
			continue
		}
		all = append(all, a)
	}
	for i, a := range all {
		if a.Outcome == history.Unknown && a.kind != deleteOp {
			all[i].written.Revision = seen[a.key+"\x00"+a.write.Value]
		}
	}
	return all
}

// changed says that the access is a write that certainly took effect.
func (a access) changed() bool {
	return a.kind != readOp && a.Outcome == history.Decided && a.written.OK
}
