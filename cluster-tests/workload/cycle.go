package workload

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// A dependency says why one transaction must come before another in every order
// that explains a history (Adya, Liskov, O'Neil: Generalized Isolation Level
// Definitions, 2000). An order exists if and only if the dependencies have no cycle.
type dependency uint8

const (
	writeWrite dependency = 1 << iota // the second wrote right behind the first
	writeRead                         // the second read what the first wrote
	readWrite                         // the first read what was there right before the second wrote
	realTime                          // the first was over before the second began
)

func (d dependency) String() string {
	return map[dependency]string{writeWrite: "ww", writeRead: "wr", readWrite: "rw", realTime: "real time"}[d]
}

// edge leads from one transaction to another that must come later.
type edge struct {
	to   int
	kind dependency
	why  reason
}

// reason is what an edge is inferred from: the element of a list that the second
// transaction appended, or that it read.
type reason struct {
	list    string
	element int
}

// graph holds transactions, numbered from 0, and their dependencies. Behind the
// transactions come moments: real time is a chain of them, on which each
// transaction has a place where it was over and one where it began, so that n
// transactions need no n*n edges.
type graph struct {
	transactions int
	out          [][]edge
}

func newGraph(transactions int) *graph {
	return &graph{transactions, make([][]edge, transactions)}
}

// add notes a dependency of two different transactions; of one on itself is none.
func (g *graph) add(from, to int, kind dependency, why reason) {
	if from != to {
		g.out[from] = append(g.out[from], edge{to, kind, why})
	}
}

// moment adds a moment behind another, or behind none if after is negative.
func (g *graph) moment(after int) int {
	g.out = append(g.out, nil)
	m := len(g.out) - 1
	if after >= 0 {
		g.add(after, m, realTime, reason{})
	}
	return m
}

// link is a dependency in a cycle.
type link struct {
	from int
	edge
}

// cycle is a chain of dependencies that ends where it begins, and what it is called.
type cycle struct {
	kind  string
	links []link
}

// phenomenon is a kind of cycle: one dependency that closes it, and those that the
// rest of it is made of.
type phenomenon struct {
	name          string
	closing, path dependency
}

// phenomena are ordered by what they break: a cycle of a later kind says less where
// there is one of an earlier kind. What needs real time to be a cycle breaks strict
// serializability alone.
var phenomena = []phenomenon{
	{"G0", writeWrite, writeWrite},
	{"G1c", writeRead, writeWrite | writeRead},
	{"G-single", readWrite, writeWrite | writeRead},
	{"G2", readWrite, writeWrite | writeRead | readWrite},
	{"G0-realtime", writeWrite, writeWrite | realTime},
	{"G1c-realtime", writeRead, writeWrite | writeRead | realTime},
	{"G-single-realtime", readWrite, writeWrite | writeRead | realTime},
	{"G2-realtime", readWrite, writeWrite | writeRead | readWrite | realTime},
}

// mostClosings is how many dependencies are tried, for each phenomenon of a tangle,
// as the one that closes the shortest cycle.
const mostClosings = 300

// cycles finds, for each set of transactions that depend on each other, a shortest
// cycle of the first phenomenon there is. Without cycles that takes linear time.
func (g *graph) cycles() (found []cycle) {
	all := make([]int, len(g.out))
	for i := range all {
		all[i] = i
	}
	for _, tangle := range g.tangles(all, math.MaxUint8) {
		for _, p := range phenomena {
			if c := g.shortest(tangle, p); c != nil {
				found = append(found, cycle{p.name, c})
				break
			}
		}
	}
	return found
}

// tangles are the strongly connected components, of two nodes or more, of the part of
// the graph that has these nodes and the dependencies of mask (Tarjan, 1972).
func (g *graph) tangles(nodes []int, mask dependency) (found [][]int) {
	const unseen, done = 0, -1
	order := make(map[int]int, len(nodes)) // when a node was reached; done once it has its component
	within := make(map[int]bool, len(nodes))
	for _, v := range nodes {
		within[v] = true
	}
	type frame struct{ node, next, low int }
	var stack []int
	var frames []frame
	reached := 0
	enter := func(v int) {
		reached++
		order[v] = reached
		stack = append(stack, v)
		frames = append(frames, frame{v, 0, reached})
	}
	for _, root := range nodes {
		if order[root] != unseen {
			continue
		}
		for enter(root); len(frames) > 0; {
			f := &frames[len(frames)-1]
			if f.next < len(g.out[f.node]) {
				e := g.out[f.node][f.next]
				f.next++
				switch at := order[e.to]; {
				case e.kind&mask == 0 || !within[e.to] || at == done:
				case at == unseen:
					enter(e.to)
				default:
					f.low = min(f.low, at)
				}
				continue
			}
			v, low := f.node, f.low
			if frames = frames[:len(frames)-1]; len(frames) > 0 {
				above := &frames[len(frames)-1]
				above.low = min(above.low, low)
			}
			if low != order[v] {
				continue
			}
			i := len(stack) - 1
			for stack[i] != v {
				i--
			}
			component := slices.Clone(stack[i:])
			stack = stack[:i]
			for _, v := range component {
				order[v] = done
			}
			if len(component) > 1 {
				slices.Sort(component)
				found = append(found, component)
			}
		}
	}
	return found
}

// shortest finds a shortest cycle of a phenomenon within a tangle; nil when there is
// none.
func (g *graph) shortest(tangle []int, p phenomenon) (best []link) {
	for _, nodes := range g.tangles(tangle, p.closing|p.path) {
		within := make(map[int]bool, len(nodes))
		for _, v := range nodes {
			within[v] = true
		}
		var closings []link
		for _, v := range nodes {
			for _, e := range g.out[v] {
				if e.kind == p.closing && within[e.to] {
					closings = append(closings, link{v, e})
				}
			}
		}
		step := 1 + len(closings)/mostClosings
		for i := 0; i < len(closings); i += step {
			closing := closings[i]
			if path := g.path(closing.to, closing.from, p.path, within); path != nil && (best == nil || len(path)+1 < len(best)) {
				best = append([]link{closing}, path...)
			}
		}
	}
	return best
}

// path is a shortest one between two transactions: steps over moments count nothing
// and are left out. nil when there is none.
func (g *graph) path(from, to int, mask dependency, within map[int]bool) []link {
	type visit struct {
		by   link
		cost int
	}
	visits := map[int]visit{from: {}}
	// Those at the present cost, and those at one more.
	near, far := []int{from}, []int(nil)
	for cost := 0; len(near) > 0 || len(far) > 0; {
		if len(near) == 0 {
			near, far, cost = far, nil, cost+1
		}
		v := near[len(near)-1]
		near = near[:len(near)-1]
		if visits[v].cost < cost {
			continue
		}
		if v == to {
			break
		}
		for _, e := range g.out[v] {
			if e.kind&mask == 0 || !within[e.to] {
				continue
			}
			next := cost
			if e.to < g.transactions {
				next++
			}
			if old, ok := visits[e.to]; ok && old.cost <= next {
				continue
			}
			visits[e.to] = visit{link{v, e}, next}
			if next == cost {
				near = append(near, e.to)
			} else {
				far = append(far, e.to)
			}
		}
	}
	if _, ok := visits[to]; !ok {
		return nil
	}
	var path []link
	for v := to; v != from; {
		l := visits[v].by
		for l.from >= g.transactions { // came by moments
			l.from = visits[l.from].by.from
		}
		path = append(path, l)
		v = l.from
	}
	slices.Reverse(path)
	return path
}

// span is when a transaction ran, on the history's clock. One that may still run is
// not over. One that may read an older state is not bound by what was over before it,
// while what comes later is bound by what it saw.
type span struct {
	transaction int
	begin, end  time.Duration
	over, bound bool
}

// inRealTime adds the order of real time: what was over before another began comes
// first.
func (g *graph) inRealTime(spans []span) {
	type event struct {
		at    time.Duration
		begin bool
		span  span
	}
	var events []event
	for _, s := range spans {
		if s.bound {
			events = append(events, event{s.begin, true, s})
		}
		if s.over {
			events = append(events, event{s.end, false, s})
		}
	}
	slices.SortFunc(events, func(a, b event) int {
		if a.at == b.at && a.begin != b.begin { // what ends when another begins is not over before it
			if a.begin {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.at, b.at)
	})
	last, open := -1, -1 // the last closed moment, and the one that takes ends
	for _, e := range events {
		if !e.begin {
			if open < 0 {
				open = g.moment(last)
			}
			g.add(e.span.transaction, open, realTime, reason{})
			continue
		}
		if open >= 0 {
			last, open = open, -1
		}
		if last >= 0 {
			g.add(last, e.span.transaction, realTime, reason{})
		}
	}
}

func (l link) String() string {
	switch l.kind {
	case writeWrite:
		return fmt.Sprintf("-ww-> which appended %d to %s right behind it", l.why.element, l.why.list)
	case writeRead:
		return fmt.Sprintf("-wr-> which read its %d as the last of %s", l.why.element, l.why.list)
	case readWrite:
		return fmt.Sprintf("-rw-> which appended %d to %s, where the former had read the list without it", l.why.element, l.why.list)
	}
	return "-real time-> which began when the former was over"
}
