package clustertests

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// comparison is what systems came to beside each other.
type comparison struct {
	Method   string
	Systems  []compared     // ours first
	Absent   []string       // systems that could not be had
	Failures []string       // requests that were not carried out
	Rows     []*measurement // loads, and what else is measured
}

type compared struct{ Name, Version string }

var metrics = []metric{
	{"throughput", "Operations per second", true, true},
	{"p50", "Median latency, ms", false, false},
	{"p99", "99th percentile of latency, ms", false, true},
	{"cpu", "Processor time of all nodes per operation, µs", false, true},
	{"interruption", "After kill -9, ms", false, false},
}

// file is the name of the metric's picture.
func (m metric) file() string { return "peers-" + m.name + ".svg" }

// add keeps a figure of one round.
func (c *comparison) add(row, system, metric string, figure float64) {
	for _, r := range c.Rows {
		if r.Name == row {
			r.add(system, metric, figure)
			return
		}
	}
	r := &measurement{Name: row}
	r.add(system, metric, figure)
	c.Rows = append(c.Rows, r)
}

// toBest is our figure divided by that of the peer that is best; false when there is no such pair.
func (c *comparison) toBest(r *measurement, m metric) (float64, bool) {
	best, found := 0.0, false
	for _, s := range c.Systems {
		f, ok := r.figure(s.Name, m)
		if s.Name != ownName && ok && (!found || m.higher == (f > best)) {
			best, found = f, true
		}
	}
	ours, ok := r.figure(ownName, m)
	if !found || !ok || best == 0 {
		return 0, false
	}
	return ours / best, true
}

// with are the rows in which some system has a figure.
func (c *comparison) with(m metric) (rows []*measurement) {
	for _, r := range c.Rows {
		for _, s := range c.Systems {
			if _, ok := r.figure(s.Name, m); ok {
				rows = append(rows, r)
				break
			}
		}
	}
	return rows
}

// markdown is a table of each metric, and references to the pictures.
func (c *comparison) markdown() string {
	var b strings.Builder
	var names []string
	for _, s := range c.Systems {
		names = append(names, strings.TrimSpace(s.Name+" "+s.Version))
	}
	fmt.Fprintf(&b, "%s. %s.\n", strings.Join(names, ", "), c.Method)
	for _, a := range c.Absent {
		fmt.Fprintf(&b, "Left out: %s.\n", a)
	}
	for _, m := range metrics {
		rows := c.with(m)
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n**%s** (%s)\n\n| |", m.title, m.better())
		for _, s := range c.Systems {
			fmt.Fprintf(&b, " %s |", s.Name)
		}
		fmt.Fprintf(&b, " %s to the best peer |\n|---|%s--:|\n", ownName, strings.Repeat("--:|", len(c.Systems)))
		for _, r := range rows {
			fmt.Fprintf(&b, "| %s |", r.Name)
			for _, s := range c.Systems {
				fmt.Fprintf(&b, " %s |", shown(r.figure(s.Name, m)))
			}
			ratio := ""
			if f, ok := c.toBest(r, m); ok {
				ratio = fmt.Sprintf("%.2f", f)
			}
			fmt.Fprintf(&b, " %s |\n", ratio)
		}
		if m.picture {
			fmt.Fprintf(&b, "\n![%s](%s)\n", m.title, m.file())
		}
	}
	if len(c.Failures) > 0 {
		fmt.Fprintf(&b, "\nRequests that failed, and are in no figure:\n\n")
	}
	for _, f := range c.Failures {
		fmt.Fprintf(&b, "- %s\n", f)
	}
	return b.String()
}

// publication is the comparison as readers get it.
func (c *comparison) publication() publication {
	p := publication{name: "peers", text: c.markdown(), figures: c, pictures: map[string][]byte{}}
	for _, m := range metrics {
		if m.picture {
			p.pictures[m.file()] = c.picture(m)
		}
	}
	return p
}

// The look of bars, in pixels.
const (
	labelWidth  = 230
	figureWidth = 70 // right of a bar
	barHeight   = 14
	groupGap    = 12
)

// picture draws a metric as SVG: a group of bars for each row. The longest bar of a group fills
// it, since rows are too far apart for one scale.
func (c *comparison) picture(m metric) []byte {
	type bar struct {
		system int
		figure float64
	}
	rows := c.with(m)
	groups := make([][]bar, len(rows))
	height := headHeight
	for i, r := range rows {
		for system, s := range c.Systems {
			if f, ok := r.figure(s.Name, m); ok {
				groups[i] = append(groups[i], bar{system, f})
			}
		}
		height += barHeight*len(groups[i]) + groupGap
	}
	p := newPicture(height, fmt.Sprintf("%s (%s)", m.title, m.better()))
	p.text(10, 43, "each group has its own scale", faint)
	var names []string
	for _, s := range c.Systems {
		names = append(names, s.Name)
	}
	p.legend(labelWidth, legendEach, names)
	y := float64(headHeight)
	for i, r := range rows {
		longest := 0.0
		for _, b := range groups[i] {
			longest = math.Max(longest, b.figure)
		}
		p.text(10, y+float64(barHeight*len(groups[i]))/2+3, r.Name)
		for _, b := range groups[i] {
			width := 0.0
			if longest > 0 {
				width = b.figure / longest * (pictureWidth - labelWidth - figureWidth)
			}
			fmt.Fprintf(&p.b, `<rect class="bar" x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, y, width, barHeight-2, colour(b.system))
			p.text(labelWidth+width+5, y+barHeight-4, shown(b.figure, true))
			y += barHeight
		}
		y += groupGap
	}
	return p.end()
}

// compareTwo is a comparison with one peer that is faster, and one that has no figure for the second row.
func compareTwo() *comparison {
	c := &comparison{Method: "how", Systems: []compared{{ownName, ""}, {"fast", "v1"}, {"a<b", ""}}, Absent: []string{"gone: why"}}
	for _, f := range []float64{1000, 3000, 2000} { // median 2000
		c.add("writes", ownName, "throughput", f)
	}
	c.add("writes", "fast", "throughput", 4000)
	c.add("writes", "a<b", "throughput", 1000)
	c.add("writes", ownName, "p99", 3)
	c.add("writes", "fast", "p99", 12)
	c.add("writes", "a<b", "p99", 6)
	c.add("reads at a learner", ownName, "throughput", 12345678)
	return c
}

func TestComparisonHasMediansAndRatiosToTheBestPeer(t *testing.T) {
	c := compareTwo()
	c.Failures = []string{"fast failed"}
	text := c.markdown()
	for _, want := range []string{
		"Holdfast, fast v1, a<b. how.\nLeft out: gone: why.\n",
		"| | Holdfast | fast | a<b | Holdfast to the best peer |\n|---|--:|--:|--:|--:|\n",
		"| writes | 2,000 | 4,000 | 1,000 | 0.50 |\n",     // more is better: the best peer is the fastest
		"| writes | 3.00 | 12.0 | 6.00 | 0.50 |\n",        // less is better
		"| reads at a learner | 12,345,678 |  |  |  |\n",  // nobody to be compared with
		"](peers-throughput.svg)\n", "](peers-p99.svg)\n", // pictures of what there is
		"in no figure:\n\n- fast failed\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "peers-cpu.svg") || strings.Contains(text, "Processor time") {
		t.Errorf("nothing was measured of the processors:\n%s", text)
	}
	var back comparison
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &back); err != nil || back.markdown() != text {
		t.Errorf("what is read back differs: %v\n%s", err, back.markdown())
	}
}

func TestPictureHasABarForEachFigure(t *testing.T) {
	var bars, tops []float64
	var words []string
	for _, d := range readPicture(t, compareTwo().picture(metrics[0])) {
		switch {
		case d.attributes["class"] == "bar":
			bars, tops = append(bars, d.number("width")), append(tops, d.number("y"))
		case d.name == "text":
			words = append(words, d.text)
		}
	}
	const full = pictureWidth - labelWidth - figureWidth
	if want := []float64{full / 2, full, full / 4, full}; !slices.Equal(bars, want) {
		t.Errorf("bars of %v, want %v", bars, want)
	}
	const below = barHeight + groupGap
	if want := []float64{headHeight, headHeight + barHeight, headHeight + 2*barHeight, headHeight + 2*barHeight + below}; !slices.Equal(tops, want) {
		t.Errorf("bars at %v, want %v", tops, want)
	}
	for _, want := range []string{"Operations per second (more is better)", "a<b", "reads at a learner", "12,345,678"} {
		if !slices.Contains(words, want) {
			t.Errorf("no %q in %q", want, words)
		}
	}
}
