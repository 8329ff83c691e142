package workload

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Set is a set of numbers to which clients add, each number once, and which they
// read whole. The promise: what was acknowledged is there for ever after, for every
// consistent read that began later; what was refused never is; nothing is there
// that nobody added; and at the end all nodes have the same.
type Set struct{}

// NewSet makes the workload.
func NewSet() *Set { return &Set{} }

// Name implements Workload.
func (*Set) Name() string { return "set" }

// Setup implements Workload.
func (*Set) Setup(context.Context, *Env) error { return nil }

// Clients implements Workload: of three requests two add and one reads.
func (s *Set) Clients(ctx context.Context, e *Env) {
	e.each(e.Clients, func(id int) {
		r := e.Rand(s.Name(), id)
		e.loop(ctx, r, e.Nodes, func(n *Node, seq int) bool {
			if r.IntN(3) > 0 {
				return s.add(ctx, e, n, id, id+seq*e.Clients) == history.Decided
			}
			return s.read(ctx, e, n, id) == history.Decided
		})
	})
}

func (s *Set) add(ctx context.Context, e *Env, n *Node, client, number int) history.Outcome {
	p := e.History.Call(history.Op{Workload: s.Name(), Client: client, Node: n.Name, Name: "add", In: number})
	a, err := n.Do(ctx, http.MethodPut, Key(fmt.Sprintf("set/%08d", number)), nil)
	return ended(p, a, err, func(a Answer) (any, error) {
		if !a.True() {
			return nil, fmt.Errorf("a plain put answered %.100q", a.Body)
		}
		return a.Index()
	})
}

func (s *Set) read(ctx context.Context, e *Env, n *Node, client int) history.Outcome {
	p := e.History.Call(history.Op{Workload: s.Name(), Client: client, Node: n.Name, Name: "read"})
	a, err := n.Do(ctx, http.MethodGet, Key("set/")+"?keys&consistent", nil)
	return ended(p, a, err, func(a Answer) (any, error) {
		if a.Status == http.StatusNotFound {
			return []int(nil), nil
		}
		var keys []string
		if err := json.Unmarshal(a.Body, &keys); err != nil {
			return nil, err
		}
		var numbers []int
		for _, key := range keys {
			number, err := strconv.Atoi(strings.TrimPrefix(key, "set/"))
			if err != nil {
				return nil, err
			}
			numbers = append(numbers, number)
		}
		return numbers, nil
	}, http.StatusNotFound)
}

// Finish implements Workload: a read at each node.
func (s *Set) Finish(ctx context.Context, e *Env) error {
	for i, n := range e.Nodes {
		s.read(ctx, e, n, e.Clients+i)
	}
	return nil
}

// Check implements Workload.
func (*Set) Check(ops []history.Op) []Anomaly {
	found := broken(ops)
	adds := map[int]history.Op{}
	var acknowledged []history.Op // adds, by their return
	highest := 0
	for _, o := range ops {
		if o.Name == "add" {
			adds[o.In.(int)] = o
			highest = max(highest, o.In.(int))
			if o.Outcome == history.Decided {
				acknowledged = append(acknowledged, o)
			}
		}
	}
	has := make([]bool, highest+1) // what a read has of what was ever added
	slices.SortStableFunc(acknowledged, func(a, b history.Op) int { return cmp.Compare(a.Return, b.Return) })
	for _, read := range ops {
		seen, ok := read.Out.([]int)
		if !ok {
			continue
		}
		clear(has)
		for _, number := range seen {
			if number < len(has) {
				has[number] = true
			}
			switch add, ok := adds[number]; {
			case !ok:
				found = append(found, anomaly("out of nothing", fmt.Sprintf("nobody added %d", number), read))
			case add.Outcome == history.Refused:
				found = append(found, anomaly("refused but there", fmt.Sprintf("%d was refused", number), add, read))
			case read.Before(add):
				found = append(found, anomaly("read of the future", fmt.Sprintf("%d was added later", number), add, read))
			}
		}
		for _, add := range acknowledged {
			if !add.Before(read) {
				break
			}
			if number := add.In.(int); !has[number] {
				found = append(found, anomaly("lost", fmt.Sprintf("%d was acknowledged and is not there", number), add, read))
			}
		}
	}
	return found
}
