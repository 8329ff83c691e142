package workload

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// The list of changes of a prefix is the order in which everything happened, told by
// the cluster itself. Judges that need this order have each node asked for the list
// at the end, hold it against what clients were answered, and then against the
// promise.

// Change is one of a list of changes. KV is the key as the change left it; of a
// delete only its name and the index. Prev is the key's change before, if it was
// there.
type Change struct {
	Index uint64
	Op    string
	KV    Entry
	Prev  struct{ ModifyIndex uint64 }
}

// Page is a list of changes as one answer gives it.
type Page struct {
	Changes []Change
	// Index is that of the answer: of the page's end, if more is there.
	Index uint64
	// Next is the index to go on from.
	Next uint64
	// Oldest is above 0 where history does not go back to where the list was to begin.
	// Then there is nothing else.
	Oldest uint64
}

// changesPath asks for changes under a prefix, from an index on. more are further
// parameters.
func changesPath(prefix string, from uint64, more string) string {
	return fmt.Sprintf("/v1/changes/%s?from=%d&%s", prefix, from, more)
}

// page is what came of changesPath. The error says that the answer is neither 200 nor
// 410, or cannot be understood.
func (a Answer) page() (p Page, err error) {
	switch a.Status {
	case http.StatusGone:
		if p.Oldest, err = a.number("X-Holdfast-Oldest"); err == nil && p.Oldest == 0 {
			err = errors.New("history is said to go back to 0, and not far enough")
		}
		return p, err
	case http.StatusOK:
	default:
		return p, fmt.Errorf("status %d %.200q", a.Status, a.Body)
	}
	if err = json.Unmarshal(a.Body, &p.Changes); err != nil {
		return p, err
	}
	if p.Index, err = a.Index(); err != nil {
		return p, err
	}
	p.Next, err = a.number("X-Holdfast-Next")
	return p, err
}

// changes asks a node for one page. The error says that there was no sound answer.
func (n *Node) changes(ctx context.Context, prefix string, from uint64, more string) (p Page, err error) {
	a, err := n.Do(ctx, http.MethodGet, changesPath(prefix, from, more), nil)
	if err == nil {
		p, err = a.page()
	}
	if err == nil && p.Oldest > 0 && p.Oldest <= from {
		err = fmt.Errorf("history goes back to %d", p.Oldest)
	}
	if err != nil {
		return p, fmt.Errorf("changes from %d at %s: %w", from, n, err)
	}
	return p, nil
}

// Log is what one node tells of a prefix.
type Log struct {
	// From is the first index it speaks of, To the last. From is above 1 where
	// history does not go back further.
	From, To uint64
	// Sum is that of all changes.
	Sum string
	// Changes are left out where Sum is that of a node that was asked before.
	Changes []Change
}

func (l Log) String() string {
	return fmt.Sprintf("changes of indexes %d to %d with sum %.8s", l.From, l.To, l.Sum)
}

// tellAll has each node tell its list of changes of a workload's keys, in one
// request of the name "log".
func (e *Env) tellAll(ctx context.Context, workload string) error {
	var first Log
	for i, n := range e.Nodes {
		p := e.History.Call(history.Op{Workload: workload, Client: teller, Node: n.Name, Name: "log"})
		l, err := e.tell(ctx, n, workload+"/", first.To)
		if err != nil {
			p.Unknown(err.Error())
			return err
		}
		if i == 0 {
			first = l
		} else if l.Sum == first.Sum {
			l.Changes = nil
		}
		p.Decided(l)
	}
	return nil
}

// teller is the client that asks for lists of changes.
const teller = 1_000_000

// tell reads a node's whole list of changes under a prefix, up to an index; 0 is
// the newest there is.
func (e *Env) tell(ctx context.Context, n *Node, prefix string, to uint64) (Log, error) {
	l := Log{From: 1, To: to}
	more := consistent
	if to > 0 {
		more += fmt.Sprintf("&to=%d", to)
	}
	for next, attempt := l.From, 0; ; {
		page, err := n.changes(ctx, prefix, next, more)
		if err != nil {
			if attempt++; attempt > 50 || ctx.Err() != nil {
				return l, err
			}
			Rest(ctx, 100*time.Millisecond)
			continue
		}
		if page.Oldest > 0 {
			l.From, next, l.Changes = page.Oldest, page.Oldest, nil
			continue
		}
		l.Changes = append(l.Changes, page.Changes...)
		next = page.Next
		if len(page.Changes) == 0 || to > 0 && next > to {
			l.To = max(page.Index, to)
			break
		}
	}
	sum := sha256.New()
	for _, c := range l.Changes {
		fmt.Fprintf(sum, "%+v\n", c)
	}
	l.Sum = fmt.Sprintf("%x", sum.Sum(nil))
	return l, nil
}

// theLog is the list of changes that all nodes told, and what is wrong when they
// did not tell the same. ok is false before anybody was asked.
func theLog(ops []history.Op) (l Log, ok bool, found []Anomaly) {
	var first history.Op
	for _, o := range ops {
		told, ok := o.Out.(Log)
		switch {
		case !ok:
		case l.Sum == "":
			l, first = told, o
		case told.From == l.From && told.Sum != l.Sum:
			found = append(found, anomaly("nodes differ", "two nodes tell different changes: "+unlike(l.Changes, told.Changes), first, o))
		}
	}
	return l, l.Sum != "", found
}

// whole says that the log begins with the cluster.
func (l Log) whole() bool { return l.From <= 1 }

// indexes calls yield with the changes of each index.
func (l Log) indexes(yield func([]Change) bool) {
	for rest := l.Changes; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Index == rest[0].Index {
			n++
		}
		if !yield(rest[:n]) {
			return
		}
		rest = rest[n:]
	}
}

func unlike(a, b []Change) string {
	for i := range min(len(a), len(b)) {
		if x, y := fmt.Sprintf("%+v", a[i]), fmt.Sprintf("%+v", b[i]); x != y {
			return fmt.Sprintf("%s, and %s", x, y)
		}
	}
	return fmt.Sprintf("%d of them, and %d", len(a), len(b))
}

// Edit is a write of one key, or the delete of all under a prefix.
type Edit struct {
	Target, Value string // a value that nothing else writes; of a delete none
	Delete        bool
}

// last is the value of what is written when all is over, until that succeeds.
const last = "last"

// edit makes a write, or several in one transaction.
func (e *Env) edit(ctx context.Context, n *Node, workload string, client int, edits ...Edit) history.Outcome {
	p := e.History.Call(history.Op{Workload: workload, Client: client, Node: n.Name, Name: "edit", In: edits})
	method, path, body := http.MethodPut, "/v1/txn", []byte(nil)
	switch edit := edits[0]; {
	case len(edits) > 1:
		var ops []txnOp
		for _, edit := range edits {
			op := txnOp{Verb: "set", Key: edit.Target, Value: []byte(edit.Value)}
			if edit.Delete {
				op = txnOp{Verb: "delete", Key: edit.Target}
			}
			ops = append(ops, op)
		}
		body = txnBody(ops...)
	case edit.Delete && strings.HasSuffix(edit.Target, "/"):
		method, path = http.MethodDelete, Key(edit.Target)+"?recurse"
	case edit.Delete:
		method, path = http.MethodDelete, Key(edit.Target)
	default:
		path, body = Key(edit.Target), []byte(edit.Value)
	}
	a, err := n.Do(ctx, method, path, body)
	return ended(p, a, err, func(a Answer) (any, error) {
		if len(edits) == 1 && !a.True() {
			return nil, fmt.Errorf("an unconditional write answered %.100q", a.Body)
		}
		return a.Index()
	})
}

// editUntilDone makes a write at one node after the other until it is acknowledged.
func (e *Env) editUntilDone(ctx context.Context, workload string, edit Edit) error {
	for i := range 50 {
		if e.edit(ctx, e.Nodes[i%len(e.Nodes)], workload, teller, edit) == history.Decided {
			return nil
		}
		Rest(ctx, 100*time.Millisecond)
	}
	return fmt.Errorf("%+v is not acknowledged by anybody", edit)
}

// past is the state at each index, as far as the log goes.
type past struct {
	Log
	names []string // of keys, in order
	keys  map[string][]Change
}

func newPast(l Log) *past {
	p := &past{Log: l, keys: map[string][]Change{}}
	for _, c := range l.Changes {
		p.keys[c.KV.Key] = append(p.keys[c.KV.Key], c)
	}
	for key := range p.keys {
		p.names = append(p.names, key)
	}
	slices.Sort(p.names)
	return p
}

// under calls fn for each key that a target, a key or a prefix, means.
func (p *past) under(target string, fn func(key string, changes []Change)) {
	if !strings.HasSuffix(target, "/") {
		fn(target, p.keys[target])
		return
	}
	i, _ := slices.BinarySearch(p.names, target)
	for ; i < len(p.names) && strings.HasPrefix(p.names[i], target); i++ {
		fn(p.names[i], p.keys[p.names[i]])
	}
}

// upTo are the changes up to an index.
func upTo(changes []Change, index uint64) []Change {
	return changes[:sort.Search(len(changes), func(i int) bool { return changes[i].Index > index })]
}

// next is the first index above one at which a target changed; 0 when there is none.
func (p *past) next(target string, index uint64) (first uint64) {
	p.under(target, func(_ string, changes []Change) {
		if rest := changes[len(upTo(changes, index)):]; len(rest) > 0 && (first == 0 || rest[0].Index < first) {
			first = rest[0].Index
		}
	})
	return first
}

// differs says how entries differ from what was there under a target at an index;
// empty when they do not. last is when the target changed last until then.
func (p *past) differs(target string, at uint64, entries []Entry) (last uint64, what string) {
	got := map[string]Entry{}
	for _, e := range entries {
		got[e.Key] = e
	}
	p.under(target, func(key string, changes []Change) {
		changes = upTo(changes, at)
		e, ok := got[key]
		if len(changes) == 0 {
			return
		}
		delete(got, key)
		newest := changes[len(changes)-1]
		last = max(last, newest.Index)
		switch there := newest.Op != "delete"; {
		case !there && ok:
			what = fmt.Sprintf("%s was deleted at %d", key, newest.Index)
		case there && !ok:
			what = fmt.Sprintf("%s is missing, which was written at %d", key, newest.Index)
		case there && !e.equal(newest.KV):
			what = fmt.Sprintf("at %d there was %+v", at, newest.KV)
		}
	})
	if what == "" && len(got) > 0 && p.whole() {
		what = fmt.Sprintf("at %d there was not yet: %+v", at, got)
	}
	return last, what
}

// judgeWriters holds what writers were told against the log. p is nil before anybody was
// asked for it.
func judgeWriters(ops []history.Op) (p *past, found []Anomaly) {
	l, ok, found := theLog(ops)
	found = append(found, broken(ops)...)
	if !ok {
		return nil, found
	}
	p = newPast(l)
	return p, append(found, p.edits(ops)...)
}

// edits holds what writers were told against the log.
func (p *past) edits(ops []history.Op) (found []Anomaly) {
	made := map[string]history.Op{}
	var deletes []history.Op
	for _, o := range ops {
		edits, _ := o.In.([]Edit)
		for _, edit := range edits {
			if !edit.Delete {
				made[edit.Target+"="+edit.Value] = o
			} else if len(edits) == 1 {
				deletes = append(deletes, o)
			}
		}
	}
	at := map[string]uint64{}
	for _, key := range p.names {
		for _, c := range p.keys[key] {
			name := key + "=" + string(c.KV.Value)
			o, ok := made[name]
			switch {
			case c.Op == "delete":
				continue
			case !ok:
				found = append(found, Anomaly{Kind: "out of nothing", Text: fmt.Sprintf("%+v", c)})
			case o.Outcome == history.Refused:
				found = append(found, anomaly("refused but there", fmt.Sprintf("at index %d", c.Index), o))
			case at[name] > 0 && string(c.KV.Value) != last: // which is written until that succeeds
				found = append(found, anomaly("happened twice", fmt.Sprintf("at indexes %d and %d", at[name], c.Index), o))
			}
			at[name] = c.Index
		}
	}
	if !p.whole() {
		return found
	}
	for name, o := range made {
		if index, ok := o.Out.(uint64); ok && at[name] != index && !strings.HasSuffix(name, "="+last) {
			found = append(found, anomaly("lost", fmt.Sprintf("the log has it at %d", at[name]), o))
		}
	}
	for _, o := range deletes {
		index, ok := o.Out.(uint64)
		if !ok {
			continue
		}
		p.under(o.In.([]Edit)[0].Target, func(key string, changes []Change) {
			changes = upTo(changes, index)
			if len(changes) > 0 && changes[len(changes)-1].Op != "delete" {
				found = append(found, anomaly("lost", fmt.Sprintf("%s is there at index %d", key, index), o))
			}
		})
	}
	return found
}
