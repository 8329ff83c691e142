package clustertests

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// tally is what all rounds of TestJepsen came to.
type tally struct {
	mu        sync.Mutex
	began     time.Time
	rounds    int
	workloads []string // in their order
	faults    map[string]*faultTally
	without   map[string]int // operations under no fault, by workload
	anomalies map[string]int // by workload, then by kind
	lost      map[string]int
	outcomes  map[history.Outcome]int
	lacking   map[string][]string // by runtime and reason: faults
}

// faultTally is the row of a fault.
type faultTally struct {
	Injected map[string]int // by runtime
	Missed   int            // times the moment did not come
	Failed   int
	// Operations that were under way while it acted, and anomalies of those, by workload.
	Operations map[string]int
	Anomalies  map[string]int
}

func newTally() *tally {
	return &tally{
		began: time.Now(), faults: map[string]*faultTally{}, without: map[string]int{}, anomalies: map[string]int{}, lost: map[string]int{},
		outcomes: map[history.Outcome]int{}, lacking: map[string][]string{},
	}
}

// row is a fault's; mu is held.
func (y *tally) row(name string) *faultTally {
	if y.faults[name] == nil {
		y.faults[name] = &faultTally{Injected: map[string]int{}, Operations: map[string]int{}, Anomalies: map[string]int{}}
	}
	return y.faults[name]
}

// lacks notes a fault that cannot act on a runtime or a cluster.
func (y *tally) lacks(runtime string, f fault.Fault, why error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	reason := runtime + ": " + why.Error()
	if !slices.Contains(y.lacking[reason], f.Name) {
		y.lacking[reason] = append(y.lacking[reason], f.Name)
	}
}

// struck notes a fault that has acted.
func (y *tally) struck(runtime string, f fault.Record) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, name := range fault.Split(f.Fault) {
		switch row := y.row(name); {
		case f.Err == nil:
			row.Injected[runtime]++
		case errors.Is(f.Err, fault.ErrMissed):
			row.Missed++
		default:
			row.Failed++
		}
	}
}

// judged notes a round.
func (y *tally) judged(all []workload.Workload, h *history.History, found []workload.Anomaly) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.rounds++
	for _, w := range all {
		if !slices.Contains(y.workloads, w.Name()) {
			y.workloads = append(y.workloads, w.Name())
		}
	}
	ops, faults := h.Ops(""), h.Faults()
	under := func(o history.Op, f history.Fault) bool { return o.Call <= f.To && o.Return >= f.From }
	for _, o := range ops {
		y.outcomes[o.Outcome]++
		calm := true
		for _, f := range faults {
			if under(o, f) {
				calm = false
				for _, name := range fault.Split(f.Name) {
					y.row(name).Operations[o.Workload]++
				}
			}
		}
		if calm {
			y.without[o.Workload]++
		}
	}
	for _, a := range found {
		y.anomalies[a.Workload+": "+a.Kind]++
		if strings.Contains(a.Kind, "lost") {
			y.lost[a.Workload]++
		}
		for _, f := range faults {
			if slices.ContainsFunc(a.Ops, func(id int) bool { return id < len(ops) && under(ops[id], f) }) {
				for _, name := range fault.Split(f.Name) {
					y.row(name).Anomalies[a.Workload]++
				}
			}
		}
	}
}

// String is the report as markdown.
func (y *tally) String() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	var b strings.Builder
	sum := func(m map[string]int) (n int) {
		for _, v := range m {
			n += v
		}
		return n
	}
	total := 0
	for _, n := range y.outcomes {
		total += n
	}
	fmt.Fprintf(&b, "\n%d clusters, %d workloads, %v\n\n", y.rounds, len(y.workloads), time.Since(y.began).Round(time.Second))
	fmt.Fprintf(&b, "| fault | injected | missed | operations under it | anomalies |%s\n", strings.Join(append(y.workloads, ""), " | "))
	fmt.Fprintf(&b, "|---|---:|---:|---:|---:|%s\n", strings.Repeat("---:|", len(y.workloads)))
	line := func(name, injected, missed string, ops, anomalies map[string]int) {
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %d |", name, injected, missed, sum(ops), sum(anomalies))
		for _, w := range y.workloads {
			fmt.Fprintf(&b, " %d |", ops[w])
		}
		fmt.Fprintln(&b)
	}
	line("none", "", "", y.without, nil)
	for _, f := range fault.All() {
		row := y.faults[f.Name]
		if row == nil {
			continue
		}
		var times []string
		for _, rt := range slices.Sorted(maps.Keys(row.Injected)) {
			times = append(times, fmt.Sprintf("%s %d", rt, row.Injected[rt]))
		}
		missed := fmt.Sprint(row.Missed)
		if row.Failed > 0 {
			missed += fmt.Sprintf(", failed %d", row.Failed)
		}
		line(f.Name, strings.Join(times, ", "), missed, row.Operations, row.Anomalies)
	}
	fmt.Fprintf(&b, "\n%d operations: %d decided, %d refused, %d with an unknown outcome. Anomalies: %d. Acknowledged and lost: %d.\n",
		total, y.outcomes[history.Decided], y.outcomes[history.Refused], y.outcomes[history.Unknown], sum(y.anomalies), sum(y.lost))
	for _, kind := range slices.Sorted(maps.Keys(y.anomalies)) {
		fmt.Fprintf(&b, "ANOMALIES: %d of %s\n", y.anomalies[kind], kind)
	}
	for _, reason := range slices.Sorted(maps.Keys(y.lacking)) {
		fmt.Fprintf(&b, "SKIPPED: %s: %s\n", reason, strings.Join(y.lacking[reason], " "))
	}
	return b.String()
}

// write writes the report for people and for programs.
func (y *tally) write(path string) error {
	if err := os.WriteFile(path+".md", []byte(y.String()), 0o644); err != nil {
		return err
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	b, err := json.MarshalIndent(struct {
		Began     time.Time
		Seconds   float64
		Clusters  int
		Workloads []string
		Faults    map[string]*faultTally
		Without   map[string]int
		Anomalies map[string]int
		Lost      map[string]int
		Outcomes  map[history.Outcome]int
		Skipped   map[string][]string
	}{y.began, time.Since(y.began).Seconds(), y.rounds, y.workloads, y.faults, y.without, y.anomalies, y.lost, y.outcomes, y.lacking}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path+".json", b, 0o644)
}
