package workload

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// dated is a request that belongs to a revision: that which it made, or that of the
// state it read.
type dated struct {
	op       history.Op
	revision uint64
	// newest: it is a write, or a read that promises the newest state.
	newest bool
}

// readsOfThePast looks for requests at a revision older than one that somebody had
// seen, or made, before they began.
func readsOfThePast(all []dated) (found []Anomaly) {
	byCall, byReturn := slices.Clone(all), slices.Clone(all)
	slices.SortFunc(byCall, func(a, b dated) int { return cmp.Compare(a.op.Call, b.op.Call) })
	slices.SortFunc(byReturn, func(a, b dated) int { return cmp.Compare(a.op.Return, b.op.Return) })
	var last dated // of those that are over, the one of the greatest revision
	for _, d := range byCall {
		for ; len(byReturn) > 0 && byReturn[0].op.Before(d.op); byReturn = byReturn[1:] {
			if byReturn[0].revision > last.revision {
				last = byReturn[0]
			}
		}
		if d.newest && d.revision < last.revision {
			found = append(found, anomaly("read of the past", fmt.Sprintf("at revision %d, when there was %d", d.revision, last.revision), last.op, d.op))
		}
	}
	return found
}
