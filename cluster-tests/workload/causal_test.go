package workload

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

func TestCausalJudgeCondemnsWhatIsBrokenAndNothingElse(t *testing.T) {
	carrying := func(o history.Op, token uint64) history.Op {
		r := o.In.(Read)
		r.MinIndex = token
		o.In = r
		return o
	}
	a, b := wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6)
	for _, c := range []struct {
		name  string
		ops   []history.Op // of one client
		kinds []string
	}{
		{"nothing", nil, nil},
		{"reads its own writes at every node", []history.Op{
			a, carrying(saw("e1", Stale, "k", "a", 5, 5, 11, 12), 5), b, carrying(saw("w1", Copied, "k", "b", 6, 6, 40, 50), 6),
		}, nil},
		{"without a token another node may be behind", []history.Op{
			a, b, saw("n2", Stale, "k", "b", 6, 6, 40, 50), saw("e1", Stale, "k", "a", 5, 5, 60, 70),
		}, nil},
		{"a token that is not heeded", []history.Op{
			a, b, carrying(saw("e1", Stale, "k", "a", 5, 5, 40, 50), 6),
		}, []string{"min_index ignored"}},
		{"an answer that claims to heed the token and does not", []history.Op{
			a, b, carrying(saw("e1", Stale, "k", "a", 5, 6, 40, 50), 6),
		}, []string{"no prefix"}},
		{"a node that goes back, without a token", []history.Op{
			a, b, saw("e1", Stale, "k", "b", 6, 6, 40, 50), saw("e1", Stale, "k", "a", 5, 5, 60, 70),
		}, []string{"went back"}},
		{"a write that comes before what was read", []history.Op{
			b, saw("e1", Stale, "k", "b", 6, 9, 40, 50), wrote("j", "c", 60, 70, 8),
		}, []string{"write before what was read"}},
		{"a write of unknown outcome", []history.Op{
			a, unsure(b), carrying(saw("e1", Stale, "k", "a", 5, 5, 40, 50), 5),
		}, nil},
		{"a request for the token that was refused", []history.Op{
			a, refused(carrying(saw("e1", Stale, "k", "", 0, 0, 40, 50), 5)),
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i := range c.ops {
				c.ops[i].ID = i
			}
			condemns(t, NewCausal(), c.ops, c.kinds...)
		})
	}
}

func TestCausalJudgeIsQuickOnLongHistories(t *testing.T) {
	var ops made
	for i := range 10_000 {
		at := time.Duration(4 * i)
		w, value := uint64(i+1), fmt.Sprint(i)
		ops = append(ops, wrote("k", value, at, at+1, w), saw("e1", Stale, "k", value, w, w, at+2, at+3))
	}
	began := time.Now()
	condemns(t, NewCausal(), ops)
	t.Logf("%d operations judged in %v", len(ops), time.Since(began))
}
