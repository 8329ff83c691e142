package workload

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// made is a history made by hand. Each request is by its own client, so any two may
// overlap; moments are in milliseconds.
type made []history.Op

func (m *made) op(call, ret time.Duration, name string, in, out any) {
	*m = append(*m, history.Op{ID: len(*m), Client: len(*m), Node: "n1", Name: name, In: in, Out: out,
		Call: call * time.Millisecond, Return: ret * time.Millisecond, Outcome: history.Decided})
}

func (m *made) unknown(call time.Duration, name string, in any) {
	*m = append(*m, history.Op{ID: len(*m), Client: len(*m), Node: "n1", Name: name, In: in,
		Call: call * time.Millisecond, Return: history.Never, Why: "cut off"})
}

func (m *made) refused(call, ret time.Duration, name string, in any) {
	*m = append(*m, history.Op{ID: len(*m), Client: len(*m), Node: "n1", Name: name, In: in,
		Call: call * time.Millisecond, Return: ret * time.Millisecond, Outcome: history.Refused, Why: "409"})
}

// condemns demands that a judge finds exactly these kinds of anomalies.
func condemns(t *testing.T, w Workload, ops made, kinds ...string) {
	t.Helper()
	var found []string
	for _, a := range w.Check(ops) {
		if !slices.Contains(found, a.Kind) {
			found = append(found, a.Kind)
		}
	}
	slices.Sort(found)
	slices.Sort(kinds)
	if !slices.Equal(found, kinds) {
		t.Errorf("found %q, not %q, in\n%v", found, kinds, ops)
	}
}
