package clustertests

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-db/holdfast/internal/bench"
)

// growth is how cost grew along some dimensions.
type growth struct {
	Method     string
	Dimensions []*grownDim
}

// grownDim is what came of the loads while one thing grew.
type grownDim struct {
	Name, Note string
	Loads      []string
	Points     []*grownPoint // ascending
	Troubles   []string      // what could not be measured, and requests that failed
}

// grownPoint has the figures of each load.
type grownPoint struct {
	measurement
	X float64 // how much of what grew there was
}

// growthMetrics are the columns of a table, as far as there are figures.
var growthMetrics = []metric{
	{"throughput", "per second", true, true},
	{"megabytes", "MB/s", true, true},
	{"p50", "p50 ms", false, true},
	{"p99", "p99 ms", false, true},
	{"cpu", "processor µs per operation", false, true},
	{"told", "told per second", true, false},
	{"told-p50", "delay p50 ms", false, true},
	{"told-p99", "delay p99 ms", false, true},
}

// atRest is the series of what a cluster without a load does.
const atRest = "at rest"

// dimension finds or makes the one that is measured.
func (g *growth) dimension(d *growthDim) *grownDim {
	for _, known := range g.Dimensions {
		if known.Name == d.name {
			return known
		}
	}
	made := &grownDim{Name: d.name, Note: d.note}
	for _, l := range d.loads {
		made.Loads = append(made.Loads, l.name)
	}
	g.Dimensions = append(g.Dimensions, made)
	return made
}

// point finds or makes a point. They come in ascending order.
func (d *grownDim) point(name string, x float64) *grownPoint {
	for _, known := range d.Points {
		if known.Name == name {
			return known
		}
	}
	made := &grownPoint{measurement{Name: name}, x}
	d.Points = append(d.Points, made)
	return made
}

func (d *grownDim) trouble(format string, args ...any) {
	d.Troubles = append(d.Troubles, fmt.Sprintf(format, args...))
}

// failed is how many requests failed in all rounds; false when it was not measured.
func (p *grownPoint) failed(load string) (string, bool) {
	all, ok := p.Of[load]["failed"]
	sum := 0.0
	for _, n := range all {
		sum += n
	}
	return grouped(fmt.Sprintf("%.0f", sum)), ok
}

// metrics are those of which there is a figure.
func (d *grownDim) metrics() (some []metric) {
	for _, m := range growthMetrics {
		if slices.ContainsFunc(d.Points, func(p *grownPoint) bool {
			return slices.ContainsFunc(d.Loads, func(l string) bool { _, ok := p.figure(l, m); return ok })
		}) {
			some = append(some, m)
		}
	}
	return some
}

func (d *grownDim) file() string { return "growth-" + d.Name + ".svg" }

// markdown is a table and a picture of each dimension.
func (g *growth) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n", g.Method)
	for _, d := range g.Dimensions {
		fmt.Fprintf(&b, "\n**%s** %s\n\n| load | %s |", capital(d.Name)+".", d.Note, d.Name)
		metrics := d.metrics()
		for _, m := range metrics {
			fmt.Fprintf(&b, " %s |", m.title)
		}
		fmt.Fprintf(&b, " failed |\n|---|--:|%s--:|\n", strings.Repeat("--:|", len(metrics)))
		for _, load := range d.Loads {
			for _, p := range d.Points {
				fmt.Fprintf(&b, "| %s | %s |", load, p.Name)
				for _, m := range metrics {
					fmt.Fprintf(&b, " %s |", shown(p.figure(load, m)))
				}
				failed, ok := p.failed(load)
				if !ok {
					failed = "not measured"
				}
				fmt.Fprintf(&b, " %s |\n", failed)
			}
		}
		var rests []string
		for _, p := range d.Points {
			if used, ok := p.figure(atRest, metric{name: "idle"}); ok {
				rests = append(rests, fmt.Sprintf("%.0f at %s", used, p.Name))
			}
		}
		if len(rests) > 0 {
			fmt.Fprintf(&b, "\nAt rest all nodes together use, in ms of a processor per second: %s.\n", strings.Join(rests, ", "))
		}
		if len(d.Troubles) > 0 {
			b.WriteString("\nIn no figure:\n\n")
		}
		for _, trouble := range d.Troubles {
			fmt.Fprintf(&b, "- %s\n", trouble)
		}
		if len(metrics) > 0 {
			fmt.Fprintf(&b, "\n![How cost grows with %s](%s)\n", d.Name, d.file())
		}
	}
	return b.String()
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// picture draws a panel for each metric.
func (d *grownDim) picture() []byte {
	var all []panel
	for _, m := range d.metrics() {
		if !m.picture {
			continue
		}
		c := panel{title: fmt.Sprintf("%s (%s)", m.title, m.better())}
		for _, p := range d.Points {
			c.ticks, c.x = append(c.ticks, p.Name), append(c.x, p.X)
		}
		for _, load := range d.Loads {
			var line []spot
			for _, p := range d.Points {
				f, ok := p.figure(load, m)
				line = append(line, spot{f, ok})
			}
			c.lines = append(c.lines, line)
		}
		all = append(all, c)
	}
	return panels(fmt.Sprintf("How cost grows with %s (logarithmic axes)", d.Name), d.Loads, all)
}

// publication is the growth as readers get it.
func (g *growth) publication() publication {
	p := publication{name: "growth", text: g.markdown(), figures: g, pictures: map[string][]byte{}}
	for _, d := range g.Dimensions {
		if len(d.metrics()) > 0 {
			p.pictures[d.file()] = d.picture()
		}
	}
	return p
}

// grownTwice is a dimension with two loads, of which the second has no figures at its second point, and
// one of which nothing could be measured.
func grownTwice(t *testing.T) *growth {
	g := &growth{Method: "how"}
	turn := &growthTurn{t: t, dim: &growthDim{name: "values", note: "A note.", loads: writesAndReads[:2]}}
	turn.result = g.dimension(turn.dim)
	each := 40.0
	one, two := writesAndReads[0].name, writesAndReads[1].name
	turn.result.point("1 KiB", 1<<10).add(atRest, "idle", 70)
	put := func(perSecond float64, errors map[string]int64) *bench.Result {
		return &bench.Result{
			ValueSize:  1 << 10,
			Operations: []bench.Operation{{Name: "put", Count: int64(perSecond), PerSecond: perSecond, Milliseconds: bench.Latency{P50: 2, P99: 12}, Errors: errors}},
			Server:     bench.CPU{MicrosecondsPerOperation: &each},
		}
	}
	for _, perSecond := range []float64{1000, 3000, 2000} { // rounds: median 2000
		p := turn.result.point("1 KiB", 1<<10)
		turn.keep(p, one, "values 1 KiB, "+one, put(perSecond, map[string]int64{"503 busy": 2}))
		turn.keep(p, two, "values 1 KiB, "+two, put(10*perSecond, nil))
		p = turn.result.point("16 KiB", 16<<10)
		unknown := put(500, nil)
		unknown.Server = bench.CPU{Problems: []string{"no meter"}}
		turn.keep(p, one, "values 16 KiB, "+one, unknown)
	}
	turn.keep(turn.result.point("16 KiB", 16<<10), two, "values 16 KiB, "+two, put(0, map[string]int64{"timeout": 7}))
	g.dimension(&growthDim{name: "keys", note: "Nothing.", loads: writesAndReads[:1]}).trouble("keys 10: not measured: the disk is full")
	return g
}

func TestGrowthHasARowForEachLoadAndPoint(t *testing.T) {
	g := grownTwice(t)
	text := g.markdown()
	for _, want := range []string{
		"how.\n\n**Values.** A note.\n\n| load | values | per second | MB/s | p50 ms | p99 ms | processor µs per operation | failed |\n|---|--:|--:|--:|--:|--:|--:|--:|\n" +
			"| writes, the leader | 1 KiB | 2,000 | 2.05 | 2.00 | 12.0 | 40.0 | 6 |\n" +
			"| writes, the leader | 16 KiB | 500 | 0.51 | 2.00 | 12.0 |  | 0 |\n" +
			"| stale reads, a follower | 1 KiB | 20,000 | 20.5 | 2.00 | 12.0 | 40.0 | 0 |\n" +
			"| stale reads, a follower | 16 KiB |  |  |  |  |  | 7 |\n",
		"\nAt rest all nodes together use, in ms of a processor per second: 70 at 1 KiB.\n\nIn no figure:\n\n- values 1 KiB, writes, the leader: 2 of 1002 requests failed: 503 busy\n",
		"- values 16 KiB, writes, the leader: the processor time is not known: no meter\n",
		"- values 16 KiB, stale reads, a follower: 7 of 7 requests failed: timeout\n- values 16 KiB, stale reads, a follower: not measured: no request was carried out\n",
		"\n![How cost grows with values](growth-values.svg)\n",
		"\n**Keys.** Nothing.\n\n| load | keys | failed |\n|---|--:|--:|\n\nIn no figure:\n\n- keys 10: not measured: the disk is full\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	pictures := g.publication().pictures
	if len(pictures) != 1 || strings.Contains(text, "growth-keys.svg") {
		t.Errorf("pictures %q: want one of what has figures, in\n%s", slices.Collect(maps.Keys(pictures)), text)
	}
	circles := 0
	for _, d := range readPicture(t, pictures["growth-values.svg"]) {
		if d.name == "circle" {
			circles++
		}
	}
	if circles != 5*3-1 { // throughput, MB/s, p50, p99, processor: three figures each but for one
		t.Errorf("%d spots", circles)
	}
}

func TestGrowthKeepsWhatWatchersWereTold(t *testing.T) {
	g := &growth{Method: "how"}
	turn := &growthTurn{t: t, dim: &growthDim{name: "watchers", loads: watchedWrites[:1]}}
	turn.result = g.dimension(turn.dim)
	load := watchedWrites[0].name
	for n, told := range map[float64]bench.Operation{
		1: {Name: watchedOp, Errors: map[string]int64{"connection lost": 3}},
		2: {Name: watchedOp, Count: 50, PerSecond: 25, Milliseconds: bench.Latency{P50: 1, P99: 7}},
	} {
		turn.keep(turn.result.point(fmt.Sprint(n), n), load, fmt.Sprint("watchers ", n), &bench.Result{Unsent: 4,
			Operations: []bench.Operation{{Name: "put", Count: 100, PerSecond: 50, Milliseconds: bench.Latency{P50: 2, P99: 3}}, told}})
	}
	text := g.markdown()
	for _, want := range []string{
		"| per second | p50 ms | p99 ms | told per second | delay p50 ms | delay p99 ms | failed |\n",
		"| writes, streams | 1 | 50.0 | 2.00 | 3.00 | 0.00 |  |  | 3 |\n",
		"| writes, streams | 2 | 50.0 | 2.00 | 3.00 | 25.0 | 1.00 | 7.00 | 0 |\n",
		"- watchers 1, watchers: 3 of 3 requests failed: connection lost\n",
		"- watchers 1: no watcher was told of anything\n",
		"- watchers 2: 4 requests were due and could not be sent\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestGrowthDimensionsChangeOneThing(t *testing.T) {
	for _, d := range growthDims {
		if !slices.IsSorted(d.points) {
			t.Errorf("%s: %v does not grow", d.name, d.points)
		}
		for _, n := range d.points {
			s, base := growthBase, growthBase
			d.set(&s, n)
			changed := 0
			for _, same := range []bool{s.keys == base.keys || d.name == "values", s.value == base.value, s.connections == base.connections, s.learners == base.learners, s.watchers == base.watchers} {
				if !same {
					changed++
				}
			}
			if changed > 1 || s.keys*s.value > max(mostFill, growthBase.keys*growthBase.value) && d.name != "keys" {
				t.Errorf("%s %d: %+v", d.name, n, s)
			}
		}
	}
}

func TestHearingRemembersTheFirstFailure(t *testing.T) {
	failing := &silent{TB: t}
	h := &hearing{TB: failing}
	if h.first() != "" {
		t.Errorf("%q before any failure", h.first())
	}
	h.Errorf("not within %v\ntable", 2)
	h.Fatal("later")
	if h.first() != "not within 2" || failing.times != 2 {
		t.Errorf("%q, and %d failures were passed on", h.first(), failing.times)
	}
}

// silent counts failures instead of failing.
type silent struct {
	testing.TB
	times int
}

func (s *silent) Errorf(string, ...any) { s.times++ }
func (s *silent) Fatal(...any)          { s.times++ }
