package workload

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Append is transactions that read lists and append to lists, several in one, after
// Kingsbury and Alvaro: Elle (2020). Each element is appended once, so that a list
// tells in which order its elements came, and which transactions a reader has seen.
// From that follows which transaction must come before which, and that there is an
// order of all of them at all: no cycle.
//
// The promise: transactions are strictly serializable, where a read that is not
// `consistent` may be of an earlier state, but of one state; what a transaction that
// was refused appended, nobody sees; of others they see all or nothing.
//
// There are two kinds of list. A value list is a key that has the whole list: who
// appends has read it before, and the transaction demands that it is the same still
// (cas, check-index, check-not-exists). A tree list is a prefix with a key for each
// element, in the order in which they were created: who appends need not know the
// list.
type Append struct {
	mu      sync.Mutex
	element int            // the last that was handed out
	lists   [listSlots]int // the number of the list that each slot is at
	planned [listSlots]int // how many elements were handed out for it
}

const (
	// listSlots is how many lists are in use at the same time, every other a tree.
	listSlots = 6
	// listLength is for how many elements a list is used, more or less: whoever reads
	// it reads all of it.
	listLength = 24

	valueLists = "append/value/"
	treeLists  = "append/tree/"
)

// NewAppend makes the workload.
func NewAppend() *Append {
	a := &Append{}
	for slot := range a.lists {
		a.lists[slot] = slot
	}
	return a
}

// Name implements Workload.
func (*Append) Name() string { return "append" }

// Setup implements Workload.
func (*Append) Setup(context.Context, *Env) error { return nil }

// Step is one step of a transaction: it appends an element to a list or reads the list.
type Step struct {
	List string `json:"list"`
	// Append is the element, 0 for a read.
	Append int `json:"append,omitempty"`
	// Seen are the elements that were read, if Known. A read that is Known before the
	// transaction is sent is one whose truth the transaction demands.
	Seen  []int `json:"seen,omitempty"`
	Known bool  `json:"known,omitempty"`
	// At is the revision of the last change of the list that was read, 0 if it is empty
	// or was not asked for.
	At uint64 `json:"at,omitempty"`
}

func (s Step) String() string {
	switch {
	case s.Append > 0:
		return fmt.Sprintf("%s += %d", s.List, s.Append)
	case s.Known:
		return fmt.Sprintf("%s = %v", s.List, s.Seen)
	}
	return s.List + "?"
}

func (s Step) tree() bool { return strings.HasPrefix(s.List, treeLists) }

// Transaction is In of a request and, with all its reads Known, Out of a decided one.
type Transaction struct {
	// Mode is how one that only reads does so.
	Mode  string `json:"mode,omitempty"`
	Steps []Step `json:"steps"`
	// Revision is the one it made, or that of the state it read.
	Revision uint64 `json:"revision,omitempty"`
}

func (t Transaction) String() string {
	s := t.Mode
	if t.Revision > 0 {
		s += fmt.Sprintf("@%d", t.Revision)
	}
	if n := len(t.Steps); n > 2*listSlots {
		return fmt.Sprintf("%s{%d steps}", s, n)
	}
	return fmt.Sprintf("%s%v", s, t.Steps)
}

func (t Transaction) writes() bool {
	return slices.ContainsFunc(t.Steps, func(s Step) bool { return s.Append > 0 })
}

// Clients implements Workload: of four transactions one only reads.
func (w *Append) Clients(ctx context.Context, e *Env) {
	e.each(e.Clients, func(id int) {
		r := e.Rand(w.Name(), id)
		e.loop(ctx, r, e.Nodes, func(n *Node, _ int) bool {
			var o history.Outcome
			if r.IntN(4) == 0 {
				_, o = w.read(ctx, e, n, id, readModes[r.IntN(len(readModes))], w.someLists(r))
			} else {
				o = w.write(ctx, e, n, id, r)
			}
			return o == history.Decided
		})
	})
}

// listName is where the list of a number is.
func listName(number int) string {
	if number%2 == 1 {
		return fmt.Sprintf("%s%06d/", treeLists, number)
	}
	return fmt.Sprintf("%s%06d/", valueLists, number)
}

// someLists are two or three of those in use.
func (w *Append) someLists(r *rand.Rand) (lists []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, slot := range r.Perm(listSlots)[:2+r.IntN(2)] {
		lists = append(lists, listName(w.lists[slot]))
	}
	return lists
}

// next hands out an element for a list.
func (w *Append) next(list string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	number, err := strconv.Atoi(strings.Split(list, "/")[2])
	if err != nil {
		panic("append: no list of ours: " + list)
	}
	if slot := number % listSlots; w.lists[slot] == number {
		if w.planned[slot]++; w.planned[slot] == listLength {
			w.lists[slot] += listSlots
			w.planned[slot] = 0
		}
	}
	w.element++
	return w.element
}

// appendPlan is a transaction that is to be sent.
type appendPlan struct {
	steps []Step
	ops   []txnOp
	of    []int // the step of each operation
}

// do adds a step and, unless it is a mere consequence of the next, its operation.
func (p *appendPlan) do(s Step, ops ...txnOp) {
	for _, op := range ops {
		p.ops = append(p.ops, op)
		p.of = append(p.of, len(p.steps))
	}
	p.steps = append(p.steps, s)
}

func (p *appendPlan) get(list string) {
	if s := (Step{List: list}); s.tree() {
		p.do(s, txnOp{Verb: "get-tree", Key: list})
	} else {
		p.do(s, txnOp{Verb: "get-or-empty", Key: list})
	}
}

// send makes a transaction. steps have what was read, and are nil unless there was a
// sound answer.
func (w *Append) send(ctx context.Context, e *Env, n *Node, client int, mode string, p *appendPlan) (steps []Step, o history.Outcome) {
	t := Transaction{Mode: mode, Steps: p.steps}
	name := "read"
	if t.writes() {
		name = "transaction"
	}
	pending := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: name, In: t})
	a, err := n.txn(ctx, mode, p.ops)
	o = ended(pending, a, err, func(a Answer) (_ any, err error) {
		out := Transaction{Mode: mode}
		if t.writes() {
			out.Revision, err = a.Index()
		} else {
			out.Revision, err = a.Applied()
		}
		if err != nil {
			return nil, err
		}
		entries, err := a.results()
		if err != nil {
			return nil, err
		}
		if out.Steps, err = p.answered(entries, out.Revision); err != nil {
			return nil, err
		}
		steps = out.Steps
		return out, nil
	})
	return steps, o
}

// answered are the steps with what the operations gave; revision is that of the whole.
func (p *appendPlan) answered(entries []Entry, revision uint64) ([]Step, error) {
	steps := slices.Clone(p.steps)
	for i, op := range p.ops {
		if op.Verb == "check-not-exists" {
			continue
		}
		if op.Verb == "get-tree" {
			n := 0
			// What a set gave in the tree has no value.
			for n < len(entries) && strings.HasPrefix(entries[n].Key, op.Key) && len(entries[n].Value) > 0 {
				n++
			}
			s, err := treeList(op.Key, entries[:n])
			if err != nil {
				return nil, err
			}
			steps[p.of[i]], entries = s, entries[n:]
			continue
		}
		if len(entries) == 0 || entries[0].Key != op.Key {
			return nil, fmt.Errorf("no result of %s %s, but %+v", op.Verb, op.Key, entries)
		}
		entry := entries[0]
		entries = entries[1:]
		switch op.Verb {
		case "get-or-empty":
			s, err := valueList(entry)
			if err != nil {
				return nil, err
			}
			steps[p.of[i]] = s
		case "set", "cas":
			if entry.ModifyIndex != revision {
				return nil, fmt.Errorf("%s %s at %d in a transaction of revision %d", op.Verb, op.Key, entry.ModifyIndex, revision)
			}
		}
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("results of no operation: %+v", entries)
	}
	return steps, nil
}

// treeList is the list of these entries. Those of one transaction have one index, and
// were appended as they are numbered.
func treeList(list string, entries []Entry) (Step, error) {
	s := Step{List: list, Known: true}
	type element struct {
		number int
		at     uint64
	}
	elements := make([]element, len(entries))
	for i, entry := range entries {
		number, err := strconv.Atoi(strings.TrimPrefix(entry.Key, list))
		if err != nil {
			return s, fmt.Errorf("key %q is no element of %s", entry.Key, list)
		}
		elements[i] = element{number, entry.CreateIndex}
	}
	slices.SortFunc(elements, func(a, b element) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.number, b.number))
	})
	for _, element := range elements {
		s.Seen, s.At = append(s.Seen, element.number), element.at
	}
	return s, nil
}

// valueList is the list that a key has.
func valueList(entry Entry) (Step, error) {
	s := Step{List: entry.Key, Known: true, At: entry.ModifyIndex}
	for _, word := range strings.Fields(string(entry.Value)) {
		number, err := strconv.Atoi(word)
		if err != nil {
			return s, fmt.Errorf("value %q of %s is no list", entry.Value, entry.Key)
		}
		s.Seen = append(s.Seen, number)
	}
	return s, nil
}

func encodeList(parts ...[]int) []byte {
	var b []byte
	for _, number := range slices.Concat(parts...) {
		b = strconv.AppendInt(b, int64(number), 10)
		b = append(b, ' ')
	}
	return b
}

func (w *Append) read(ctx context.Context, e *Env, n *Node, client int, mode string, lists []string) (steps []Step, o history.Outcome) {
	var p appendPlan
	for _, list := range lists {
		p.get(list)
	}
	return w.send(ctx, e, n, client, mode, &p)
}

// write is a transaction that appends, and may read. It reads first what it needs to
// know, in any mode: that an old state is no harm is what its conditions are for.
func (w *Append) write(ctx context.Context, e *Env, n *Node, client int, r *rand.Rand) (o history.Outcome) {
	lists := w.someLists(r)
	var known []Step
	if values := slices.DeleteFunc(slices.Clone(lists), func(l string) bool { return Step{List: l}.tree() }); len(values) > 0 {
		if known, o = w.read(ctx, e, n, client, readModes[r.IntN(len(readModes))], values); known == nil {
			return o
		}
	}
	_, o = w.send(ctx, e, n, client, byDefault, w.plan(lists, known, r))
	return o
}

// plan makes a transaction on lists, of which those that are values are known.
func (w *Append) plan(lists []string, known []Step, r *rand.Rand) *appendPlan {
	d := &appendDraft{w: w, r: r, lists: map[string]*draftedList{}}
	for _, list := range lists {
		d.lists[list] = &draftedList{}
	}
	for i := range known {
		d.lists[known[i].List].base = &known[i]
	}
	for range 2 + r.IntN(3) {
		if list := lists[r.IntN(len(lists))]; r.IntN(2) == 0 {
			d.read(list)
		} else {
			d.append(list)
		}
	}
	if !(Transaction{Steps: d.steps}).writes() {
		d.append(lists[r.IntN(len(lists))])
	}
	return &d.appendPlan
}

// appendDraft is a transaction that is being planned.
type appendDraft struct {
	appendPlan
	w     *Append
	r     *rand.Rand
	lists map[string]*draftedList
}

// draftedList is a list within a draft.
type draftedList struct {
	base    *Step // of a value list: as it was read before
	guarded bool  // there is a condition that it is so still
	read    bool  // it has been read since the last append
	own     []int // appended so far
}

func (d *appendDraft) read(list string) {
	l := d.lists[list]
	if l.read {
		return // two trees in a row could not be told apart
	}
	l.read = true
	if l.base == nil || l.guarded || d.r.IntN(2) == 0 {
		d.get(list)
		return
	}
	op := txnOp{Verb: "check-index", Key: list, Index: l.base.At}
	if op.Index == 0 {
		op.Verb = "check-not-exists"
	}
	l.guarded = true
	d.do(Step{List: list, Seen: l.base.Seen, Known: true}, op)
}

func (d *appendDraft) append(list string) {
	l := d.lists[list]
	s := Step{List: list, Append: d.w.next(list)}
	l.read, l.own = false, append(l.own, s.Append)
	switch {
	case l.base == nil:
		// What a get gives has a value, what a set gives has none.
		d.do(s, txnOp{Verb: "set", Key: fmt.Sprintf("%s%08d", list, s.Append), Value: []byte("1")})
	case l.guarded:
		d.do(s, txnOp{Verb: "set", Key: list, Value: encodeList(l.base.Seen, l.own)})
	default:
		l.guarded = true
		d.do(Step{List: list, Seen: l.base.Seen, Known: true}) // so says the condition
		d.do(s, txnOp{Verb: "cas", Key: list, Index: l.base.At, Value: encodeList(l.base.Seen, l.own)})
	}
}

// finishLists is how many lists a last read has.
const finishLists = 100

// Finish implements Workload: reads of all lists at each node.
func (w *Append) Finish(ctx context.Context, e *Env) error {
	var lists []string
	for number := range slices.Max(w.lists[:]) + 1 {
		lists = append(lists, listName(number))
	}
	for i, n := range e.Nodes {
		for some := range slices.Chunk(lists, finishLists) {
			err := lastRead(ctx, n, func() history.Outcome {
				_, o := w.read(ctx, e, n, e.Clients+i, consistent, some)
				return o
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Check implements Workload.
func (*Append) Check(ops []history.Op) []Anomaly {
	j := appendJudge{ops: ops, writers: map[int]place{}, orders: map[string]*listOrder{}, revisions: make([]uint64, len(ops)), happened: make([]bool, len(ops))}
	j.found = broken(ops)
	j.collect()
	j.inferOrders()
	j.judgeElements()
	j.judgeLosses()
	j.judgeRevisions()
	j.judgeOrder()
	return j.found
}
