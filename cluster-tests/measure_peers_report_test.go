package clustertests

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// comparison is what systems came to beside each other.
type comparison struct {
	Method   string
	Systems  []compared // ours first
	Absent   []string   // systems that could not be had
	Failures []string   // requests that were not carried out
	Rows     []*comparedRow
}

type compared struct{ Name, Version string }

// comparedRow is one load, or something else that is measured.
type comparedRow struct {
	Name string
	// Of has the figures of each round, by system and metric.
	Of map[string]map[string][]float64
}

// metric is a figure that systems are compared by.
type metric struct {
	name, title string
	higher      bool // is better
	picture     bool // it is shown as one, too
}

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
	var r *comparedRow
	for _, known := range c.Rows {
		if known.Name == row {
			r = known
		}
	}
	if r == nil {
		r = &comparedRow{Name: row, Of: map[string]map[string][]float64{}}
		c.Rows = append(c.Rows, r)
	}
	if r.Of[system] == nil {
		r.Of[system] = map[string][]float64{}
	}
	r.Of[system][metric] = append(r.Of[system][metric], figure)
}

// figure is a system's median; false when it has none.
func (r *comparedRow) figure(system string, m metric) (float64, bool) {
	all := r.Of[system][m.name]
	if len(all) == 0 {
		return 0, false
	}
	return median(all), true
}

// toBest is our figure divided by that of the peer that is best; false when there is no such pair.
func (c *comparison) toBest(r *comparedRow, m metric) (float64, bool) {
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
func (c *comparison) with(m metric) (rows []*comparedRow) {
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
		better := "less is better"
		if m.higher {
			better = "more is better"
		}
		fmt.Fprintf(&b, "\n**%s** (%s)\n\n| |", m.title, better)
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

// shown is a figure with three digits or all in front of the point; empty when there is none.
func shown(f float64, ok bool) string {
	switch {
	case !ok:
		return ""
	case f < 9.995:
		return fmt.Sprintf("%.2f", f)
	case f < 99.95:
		return fmt.Sprintf("%.1f", f)
	}
	text := fmt.Sprintf("%.0f", f)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func (c *comparison) json() []byte {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		panic(err) // strings and finite numbers always marshal
	}
	return append(b, '\n')
}

// The look of a picture, in pixels.
const (
	pictureWidth = 800
	labelWidth   = 230
	figureWidth  = 70 // right of a bar
	barHeight    = 14
	groupGap     = 12
	headHeight   = 64
)

// colours are those of the systems in their order.
var colours = []string{"#1f6feb", "#d29922", "#8b949e", "#bf4b8a"}

// picture draws a metric as SVG: a group of bars for each row. The longest bar of a group fills
// it, since rows are too far apart for one scale.
func (c *comparison) picture(m metric) []byte {
	rows := c.with(m)
	var b bytes.Buffer
	text := func(x, y float64, more, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f"%s>`, x, y, more)
		_ = xml.EscapeText(&b, []byte(s)) // to a buffer: no error
		b.WriteString("</text>\n")
	}
	group := barHeight*len(c.Systems) + groupGap
	height := headHeight + group*len(rows)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", pictureWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", pictureWidth, height)
	text(10, 22, ` font-size="15" font-weight="bold"`, m.title)
	for i, s := range c.Systems {
		x := float64(labelWidth + 110*i)
		fmt.Fprintf(&b, `<rect x="%.1f" y="34" width="10" height="10" fill="%s"/>`+"\n", x, colours[i%len(colours)])
		text(x+15, 43, "", s.Name)
	}
	text(10, 43, ` fill="#57606a"`, "each group has its own scale")
	for i, r := range rows {
		y := float64(headHeight + i*group)
		longest := 0.0
		for _, s := range c.Systems {
			f, _ := r.figure(s.Name, m)
			longest = math.Max(longest, f)
		}
		text(10, y+float64(barHeight*len(c.Systems))/2+4, "", r.Name)
		for j, s := range c.Systems {
			f, ok := r.figure(s.Name, m)
			if !ok {
				continue
			}
			width := 0.0
			if longest > 0 {
				width = f / longest * (pictureWidth - labelWidth - figureWidth)
			}
			top := y + float64(j*barHeight)
			fmt.Fprintf(&b, `<rect class="bar" x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, top, width, barHeight-2, colours[j%len(colours)])
			text(labelWidth+width+5, top+barHeight-4, "", shown(f, ok))
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// What stands between these marks is replaced.
const (
	beginMark = "<!-- make bench-peers DOCS=docs writes from here -->\n"
	endMark   = "<!-- to here -->\n"
)

// putBetweenMarks writes text into a page, in place of what is between its marks.
func putBetweenMarks(page, text string) error {
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(b), beginMark)
	_, after, ends := strings.Cut(rest, endMark)
	if !begins || !ends {
		return fmt.Errorf("%s has no place for the result: it lacks the line %q or, behind it, %q", page, strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	return os.WriteFile(page, []byte(before+beginMark+"\n"+text+"\n"+endMark+after), 0o644)
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
	if err := json.Unmarshal(c.json(), &back); err != nil || back.markdown() != text {
		t.Errorf("what is read back differs: %v\n%s", err, back.markdown())
	}
}

func TestPictureHasABarForEachFigure(t *testing.T) {
	var bars []float64
	var words []string
	d := xml.NewDecoder(bytes.NewReader(compareTwo().picture(metrics[0])))
	for {
		token, err := d.Token()
		if token == nil {
			if err.Error() != "EOF" {
				t.Fatal(err)
			}
			break
		}
		switch e := token.(type) {
		case xml.StartElement:
			var width float64
			isBar := false
			for _, a := range e.Attr {
				isBar = isBar || a.Name.Local == "class"
				if a.Name.Local == "width" {
					fmt.Sscan(a.Value, &width)
				}
			}
			if isBar {
				bars = append(bars, width)
			}
		case xml.CharData:
			words = append(words, strings.TrimSpace(string(e)))
		}
	}
	const full = pictureWidth - labelWidth - figureWidth
	if want := []float64{full / 2, full, full / 4, full}; fmt.Sprint(bars) != fmt.Sprint(want) {
		t.Errorf("bars of %v, want %v", bars, want)
	}
	all := strings.Join(words, "|")
	for _, want := range []string{"Operations per second", "a<b", "reads at a learner", "12,345,678"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %q", want, all)
		}
	}
}

func TestResultIsPutBetweenTheMarks(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("above\n"+beginMark+"old\n"+endMark+"below\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first\n", "second\n"} {
		if err := putBetweenMarks(page, text); err != nil {
			t.Fatal(err)
		}
		got, _ := os.ReadFile(page)
		if want := "above\n" + beginMark + "\n" + text + "\n" + endMark + "below\n"; string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, unmarked := range []string{"no marks", endMark + beginMark} {
		if err := os.WriteFile(page, []byte(unmarked), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := putBetweenMarks(page, "text\n"); err == nil {
			t.Errorf("%q: no error", unmarked)
		}
		if got, _ := os.ReadFile(page); string(got) != unmarked {
			t.Errorf("%q was changed to %q", unmarked, got)
		}
	}
	// The page that make bench-peers DOCS=docs writes to.
	b, err := os.ReadFile("../docs/PERFORMANCE.md")
	if err != nil || strings.Count(string(b), beginMark) != 1 || strings.Count(string(b), endMark) != 1 {
		t.Errorf("docs/PERFORMANCE.md has no place for the result (%v)", err)
	}
}
