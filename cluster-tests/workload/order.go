package workload

import (
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// appendJudge infers, from what was appended to lists and read of them, in which order the
// transactions of Append must have come. It knows them by their places in ops.
type appendJudge struct {
	ops   []history.Op
	found []Anomaly
	// steps are those of each transaction: of one that was not decided, as it was sent.
	steps [][]Step
	// happened says of each transaction that it was decided, or that what it appended
	// was seen.
	happened []bool
	// writers are where elements come from.
	writers map[int]place
	// reads are those of each transaction, of what others wrote.
	reads [][]listRead
	// orders are the lists as they came to be.
	orders map[string]*listOrder
	// revisions are those of the transactions; 0 if not known.
	revisions []uint64
}

// place is where an element was appended.
type place struct {
	list string
	by   int
	// last: nothing came behind it in the same transaction.
	last bool
}

// listRead is what a transaction saw of a list, without its own elements.
type listRead struct {
	list string
	seen []int
	at   uint64 // if nothing of its own was there
}

// listOrder is a list as it was seen when it was longest.
type listOrder struct {
	elements []int
	by       int // who saw it so
	// lastRead is the consistent read of the list that was called last, if read.
	lastRead int
	read     bool
}

func (j *appendJudge) anomaly(kind, text string, by ...int) {
	var ops []history.Op
	for _, i := range by {
		ops = append(ops, j.ops[i])
	}
	j.found = append(j.found, anomaly(kind, text, ops...))
}

// collect takes the steps of all transactions and where each element comes from.
func (j *appendJudge) collect() {
	j.steps, j.reads = make([][]Step, len(j.ops)), make([][]listRead, len(j.ops))
	for i, o := range j.ops {
		in := o.In.(Transaction)
		j.steps[i] = in.Steps
		if out, ok := o.Out.(Transaction); ok {
			j.steps[i], j.revisions[i], j.happened[i] = out.Steps, out.Revision, true
		}
		last := map[string]int{}
		for _, s := range in.Steps {
			if s.Append == 0 {
				continue
			}
			if before := last[s.List]; before > 0 {
				j.writers[before] = place{s.List, i, false}
			}
			j.writers[s.Append] = place{s.List, i, true}
			last[s.List] = s.Append
		}
	}
	for i := range j.ops {
		j.look(i)
	}
}

// look finds what a transaction read of others, and demands that it saw its own
// elements and the rest unchanged.
func (j *appendJudge) look(i int) {
	own, before := map[string][]int{}, map[string][]int{}
	for _, s := range j.steps[i] {
		mine := own[s.List]
		if s.Append > 0 {
			own[s.List] = append(mine, s.Append)
			continue
		}
		if !s.Known {
			continue
		}
		theirs := len(s.Seen) - len(mine)
		if theirs < 0 || !slices.Equal(s.Seen[theirs:], mine) {
			j.anomaly("internal", fmt.Sprintf("it had appended %v to %s and read %v", mine, s.List, s.Seen), i)
			continue
		}
		seen := s.Seen[:theirs]
		if earlier, ok := before[s.List]; ok {
			if !slices.Equal(earlier, seen) {
				j.anomaly("internal", fmt.Sprintf("it read %s as %v and then as %v", s.List, earlier, seen), i)
			}
			continue
		}
		before[s.List] = seen
		read := listRead{list: s.List, seen: seen}
		if len(mine) == 0 {
			read.at = s.At
		}
		j.reads[i] = append(j.reads[i], read)
	}
}

// consistent says that a transaction read the newest state.
func (j *appendJudge) consistent(i int) bool {
	in := j.ops[i].In.(Transaction)
	return in.writes() || in.Mode == consistent
}

// inferOrders takes the longest read of each list for the order of its elements, of
// which all others must be beginnings.
func (j *appendJudge) inferOrders() {
	for i := range j.ops {
		if !j.happened[i] {
			continue
		}
		for _, s := range j.steps[i] {
			if s.Append > 0 || !s.Known {
				continue
			}
			o := j.orders[s.List]
			if o == nil {
				o = &listOrder{by: i}
				j.orders[s.List] = o
			}
			if len(s.Seen) > len(o.elements) {
				o.elements, o.by = s.Seen, i
			}
			if j.consistent(i) && (!o.read || j.ops[i].Call > j.ops[o.lastRead].Call) {
				o.lastRead, o.read = i, true
			}
		}
	}
	told := map[string]bool{} // one branch of a list is followed by many reads
	for i := range j.ops {
		if !j.happened[i] {
			continue
		}
		for _, s := range j.steps[i] {
			if s.Append > 0 || !s.Known || told[s.List] {
				continue
			}
			if o := j.orders[s.List]; !slices.Equal(s.Seen, o.elements[:len(s.Seen)]) {
				told[s.List] = true
				j.anomaly("incompatible order", fmt.Sprintf("%s was seen as %v and as %v", s.List, s.Seen, o.elements), i, o.by)
				j.judgeList(s.List, s.Seen, i)
			}
		}
	}
}

// judgeElements holds the elements of each list against those who appended them, and
// finds out which transactions of unknown outcome have happened.
func (j *appendJudge) judgeElements() {
	for _, list := range slices.Sorted(maps.Keys(j.orders)) {
		o := j.orders[list]
		j.judgeList(list, o.elements, o.by)
	}
	for i := range j.ops {
		if !j.happened[i] {
			continue
		}
		for _, read := range j.reads[i] {
			if len(read.seen) == 0 {
				continue
			}
			last := read.seen[len(read.seen)-1]
			if w, ok := j.writers[last]; ok && !w.last && w.by != i {
				j.anomaly("G1b", fmt.Sprintf("%d is the last of %s, to which the transaction appended more", last, read.list), i, w.by)
			}
		}
	}
}

// judgeList judges the elements of a list as a transaction saw it.
func (j *appendJudge) judgeList(list string, elements []int, by int) {
	there := map[int]bool{}
	for _, element := range elements {
		w, ok := j.writers[element]
		switch {
		case there[element]:
			j.anomaly("duplicate", fmt.Sprintf("%d is in %s twice: %v", element, list, elements), by)
		case !ok || w.list != list:
			j.anomaly("out of nothing", fmt.Sprintf("nobody appended %d to %s", element, list), by)
		case j.ops[w.by].Outcome == history.Refused:
			j.anomaly("G1a", fmt.Sprintf("%d is in %s, and the transaction was refused", element, list), by, w.by)
		default:
			j.happened[w.by] = true
		}
		there[element] = true
	}
}

// judgeLosses looks for appended elements that are missing where they must have been
// seen: those that were acknowledged before the last consistent read of their list
// began, and those of a transaction of which others had been seen by then.
func (j *appendJudge) judgeLosses() {
	there := map[int]bool{}
	for _, o := range j.orders {
		for _, element := range o.elements {
			there[element] = true
		}
	}
	lost := func(element int, after history.Op) bool {
		o := j.orders[j.writers[element].list]
		return !there[element] && o != nil && o.read && after.Before(j.ops[o.lastRead])
	}
	for _, element := range slices.Sorted(maps.Keys(j.writers)) {
		w := j.writers[element]
		if j.ops[w.by].Outcome == history.Decided && lost(element, j.ops[w.by]) {
			j.anomaly("lost", fmt.Sprintf("%d was appended to %s and is not there", element, w.list), w.by, j.orders[w.list].lastRead)
			continue
		}
		if !there[element] || j.ops[w.by].Outcome == history.Decided {
			continue
		}
		saw := j.orders[w.list].by
		for _, s := range j.steps[w.by] {
			if s.Append > 0 && lost(s.Append, j.ops[saw]) {
				j.anomaly("half a transaction", fmt.Sprintf("%d is in %s, but %d is not in %s", element, w.list, s.Append, s.List), w.by, saw, j.orders[s.List].lastRead)
			}
		}
	}
}

// judgeRevisions holds what was seen against the revisions that came with it: each
// transaction that writes has one of its own, which all that it wrote shares, and
// each read sees the state of one, exactly.
func (j *appendJudge) judgeRevisions() {
	for i := range j.ops {
		if !j.happened[i] {
			continue
		}
		for _, read := range j.reads[i] {
			if len(read.seen) == 0 || read.at == 0 {
				continue
			}
			w, ok := j.writers[read.seen[len(read.seen)-1]]
			switch {
			case !ok || w.by == i:
			case j.revisions[w.by] == 0:
				j.revisions[w.by] = read.at
			case j.revisions[w.by] != read.at:
				j.anomaly("two revisions of one transaction", fmt.Sprintf("what it appended to %s is of %d, not %d", read.list, read.at, j.revisions[w.by]), w.by, i)
			}
		}
	}
	owner := map[uint64]int{}
	for i := range j.ops {
		if !j.happened[i] || j.revisions[i] == 0 || !j.ops[i].In.(Transaction).writes() {
			continue
		}
		if other, ok := owner[j.revisions[i]]; ok {
			j.anomaly("one revision of two transactions", fmt.Sprint(j.revisions[i]), i, other)
		}
		owner[j.revisions[i]] = i
	}
	for i := range j.ops {
		at := j.revisions[i]
		if !j.happened[i] || at == 0 {
			continue
		}
		if j.ops[i].In.(Transaction).writes() {
			at-- // it reads what was there before
		}
		for _, read := range j.reads[i] {
			last, next := j.around(i, read)
			if last >= 0 && j.revisions[last] > at {
				j.anomaly("state of another revision", fmt.Sprintf("at %d it read of %s what came at %d", at, read.list, j.revisions[last]), i, last)
			}
			if next >= 0 && j.revisions[next] > 0 && j.revisions[next] <= at {
				j.anomaly("state of another revision", fmt.Sprintf("at %d it missed of %s what came at %d", at, read.list, j.revisions[next]), i, next)
			}
		}
	}
}

// around are the transactions, others than i, that wrote the last element that i read
// of a list and the one behind it; -1 where there is none.
func (j *appendJudge) around(i int, read listRead) (last, next int) {
	writer := func(element int) int {
		if w, ok := j.writers[element]; ok && w.by != i && w.list == read.list {
			return w.by
		}
		return -1
	}
	last, next = -1, -1
	n := len(read.seen)
	if n > 0 {
		last = writer(read.seen[n-1])
	}
	if elements := j.orders[read.list].elements; n < len(elements) && slices.Equal(read.seen, elements[:n]) {
		next = writer(elements[n])
	}
	return last, next
}

// judgeOrder looks for cycles.
func (j *appendJudge) judgeOrder() {
	g := newGraph(len(j.ops))
	for _, list := range slices.Sorted(maps.Keys(j.orders)) {
		o := j.orders[list]
		for k := 1; k < len(o.elements); k++ {
			before, ok1 := j.writers[o.elements[k-1]]
			behind, ok2 := j.writers[o.elements[k]]
			if ok1 && ok2 {
				g.add(before.by, behind.by, writeWrite, reason{list, o.elements[k]})
			}
		}
	}
	var spans []span
	for i, o := range j.ops {
		if !j.happened[i] {
			continue
		}
		for _, read := range j.reads[i] {
			last, next := j.around(i, read)
			if last >= 0 {
				g.add(last, i, writeRead, reason{read.list, read.seen[len(read.seen)-1]})
			}
			if next >= 0 {
				g.add(i, next, readWrite, reason{read.list, j.orders[read.list].elements[len(read.seen)]})
			}
		}
		spans = append(spans, span{i, o.Call, o.Return, o.Return != history.Never, j.consistent(i)})
	}
	g.inRealTime(spans)
	for _, c := range g.cycles() {
		text := ""
		var ops []int
		for _, l := range c.links {
			text += fmt.Sprintf("#%d %v\n  ", j.ops[l.from].ID, l)
			ops = append(ops, l.from)
		}
		text += fmt.Sprintf("#%d, the first again", j.ops[c.links[0].from].ID)
		j.anomaly(c.kind, text, ops...)
	}
}
