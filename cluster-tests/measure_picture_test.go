package clustertests

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

// The look of a picture, in pixels.
const (
	pictureWidth = 800
	headHeight   = 64 // title and legend
	legendEach   = 110
)

// colours are those of the series of a picture in their order.
var colours = []string{"#1f6feb", "#d29922", "#8b949e", "#bf4b8a"}

func colour(series int) string { return colours[series%len(colours)] }

// picture is an SVG under way.
type picture struct{ b bytes.Buffer }

// newPicture begins one with its title.
func newPicture(height int, title string) *picture {
	p := &picture{}
	fmt.Fprintf(&p.b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", pictureWidth, height)
	fmt.Fprintf(&p.b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", pictureWidth, height)
	p.text(10, 22, title, `font-size="15" font-weight="bold"`)
	return p
}

// text is put down with further attributes.
func (p *picture) text(x, y float64, s string, attributes ...string) {
	fmt.Fprintf(&p.b, `<text x="%.1f" y="%.1f" %s>`, x, y, strings.Join(attributes, " "))
	_ = xml.EscapeText(&p.b, []byte(s)) // to a buffer: no error
	p.b.WriteString("</text>\n")
}

// faint is the look of what explains.
const faint = `fill="#57606a"`

// legend names the series, from x on, so far from each other.
func (p *picture) legend(x, each float64, series []string) {
	for i, s := range series {
		fmt.Fprintf(&p.b, `<rect x="%.1f" y="34" width="10" height="10" fill="%s"/>`+"\n", x+each*float64(i), colour(i))
		p.text(x+each*float64(i)+15, 43, s)
	}
}

func (p *picture) end() []byte {
	p.b.WriteString("</svg>\n")
	return p.b.Bytes()
}

// spot is a figure in a line; false when there is none.
type spot struct {
	y  float64
	ok bool
}

// panel is a chart of lines with logarithmic axes, on which what grows in proportion is straight.
type panel struct {
	title string
	ticks []string  // names of the places on the x axis
	x     []float64 // their values, in ascending order; the first may be 0
	lines [][]spot  // of each series, as many as there are ticks
}

// The look of a panel, in pixels. Two stand beside each other.
const (
	panelWidth  = pictureWidth / 2
	panelHeight = 210
	panelLeft   = 62 // of the lines: names of the grid
	panelRight  = 32 // half of the name of the last tick
	panelTop    = 26 // title
	panelBottom = 34 // names of the ticks
)

// panels puts charts of the same series into one picture.
func panels(title string, series []string, all []panel) []byte {
	p := newPicture(headHeight+panelHeight*((len(all)+1)/2), title)
	p.legend(10, (pictureWidth-10)/float64(max(len(series), 3)), series)
	for i, c := range all {
		c.draw(p, float64(i%2*panelWidth), float64(headHeight+i/2*panelHeight))
	}
	return p.end()
}

// places are where the ticks are between 0 and 1. A 0 is as far from the next tick as those
// that are nearest to each other.
func (c panel) places() []float64 {
	x := slices.Clone(c.x)
	if len(x) > 1 && x[0] == 0 {
		nearest := math.Inf(1)
		for i := 2; i < len(x); i++ {
			nearest = min(nearest, x[i]/x[i-1])
		}
		if math.IsInf(nearest, 1) {
			nearest = 10
		}
		x[0] = x[1] / nearest
	}
	at := make([]float64, len(x))
	for i := range x {
		at[i] = 0.5
		if least, most := x[0], x[len(x)-1]; most > least {
			at[i] = math.Log(x[i]/least) / math.Log(most/least)
		}
	}
	return at
}

// grid is where lines of figures are: 1, 2 and 5 of each power of ten, from below the least to above the most
// of what is drawn; powers alone when that would be too many.
func (c panel) grid() []float64 {
	least, most := math.Inf(1), 0.0
	for _, l := range c.lines {
		for _, s := range l {
			if s.ok && s.y > 0 {
				least, most = min(least, s.y), max(most, s.y)
			}
		}
	}
	if most == 0 { // nothing, or zeros
		return []float64{1, 10}
	}
	var all []float64
	for _, steps := range [][]float64{{1, 2, 5}, {1}} {
		all = all[:0]
		for power := math.Floor(math.Log10(least)); power <= math.Ceil(math.Log10(most))+1; power++ {
			for _, s := range steps {
				all = append(all, s*math.Pow(10, power))
			}
		}
		for len(all) > 2 && all[1] <= least {
			all = all[1:]
		}
		for len(all) > 2 && all[len(all)-2] >= most {
			all = all[:len(all)-1]
		}
		if len(all) <= mostGrid {
			break
		}
	}
	return all
}

// mostGrid is how many lines with names a panel has room for.
const mostGrid = 8

func (c panel) draw(p *picture, left, top float64) {
	grid, places := c.grid(), c.places()
	width, height := float64(panelWidth-panelLeft-panelRight), float64(panelHeight-panelTop-panelBottom)
	low, high := grid[0], grid[len(grid)-1]
	xOf := func(i int) float64 { return left + panelLeft + places[i]*width }
	yOf := func(f float64) float64 { // what no logarithm has is at the bottom
		return top + panelTop + height*(1-math.Log(max(f, low)/low)/math.Log(high/low))
	}
	p.text(left+10, top+14, c.title, `font-weight="bold"`)
	for _, g := range grid {
		fmt.Fprintf(&p.b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#d0d7de"/>`+"\n", left+panelLeft, yOf(g), left+panelLeft+width, yOf(g))
		name := fmt.Sprintf("%.3g", g)
		if g >= 1 {
			name = grouped(fmt.Sprintf("%.0f", g))
		}
		p.text(left+panelLeft-6, yOf(g)+4, name, faint, `text-anchor="end"`)
	}
	for i, t := range c.ticks {
		p.text(xOf(i), top+panelTop+height+16, t, faint, `text-anchor="middle"`)
	}
	for series, l := range c.lines {
		var run []string
		flush := func() {
			if len(run) > 1 {
				fmt.Fprintf(&p.b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(run, " "), colour(series))
			}
			run = nil
		}
		for i, s := range l {
			if !s.ok {
				flush()
				continue
			}
			run = append(run, fmt.Sprintf("%.1f,%.1f", xOf(i), yOf(s.y)))
			fmt.Fprintf(&p.b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"><title>%s: %s</title></circle>`+"\n", xOf(i), yOf(s.y), colour(series), c.ticks[i], shown(s.y, true))
		}
		flush()
	}
}

// drawn is an element of a picture, or a text.
type drawn struct {
	name, text string
	attributes map[string]string
}

// number is an attribute that is one.
func (d drawn) number(attribute string) (f float64) {
	if _, err := fmt.Sscan(d.attributes[attribute], &f); err != nil {
		return math.NaN()
	}
	return f
}

// readPicture returns what is drawn, in order.
func readPicture(t *testing.T, svg []byte) (all []drawn) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		token, err := d.Token()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			attributes := map[string]string{}
			for _, a := range e.Attr {
				attributes[a.Name.Local] = a.Value
			}
			all = append(all, drawn{name: e.Name.Local, attributes: attributes})
		case xml.CharData:
			all[len(all)-1].text += strings.TrimSpace(string(e))
		}
	}
}

func TestPanelsHaveASpotForEachFigureOnLogarithmicAxes(t *testing.T) {
	c := panel{title: "a<b", ticks: []string{"none", "1", "10", "1,000"}, x: []float64{0, 1, 10, 1000}, lines: [][]spot{
		{{10, true}, {100, true}, {1000, true}, {10, true}}, // the range of all figures: three lines of the grid each way
		{{100, true}, {}, {100, true}, {0, true}},
	}}
	var x, y []float64
	var lines, words []string
	for _, d := range readPicture(t, panels("title", []string{"s1", "s2"}, []panel{c, {title: "empty"}})) {
		switch d.name {
		case "circle":
			x, y = append(x, d.number("cx")), append(y, d.number("cy"))
		case "polyline":
			lines = append(lines, d.attributes["points"])
		case "text":
			words = append(words, d.text)
		}
	}
	const step = (panelWidth - panelLeft - panelRight) / 4.0 // four powers of ten, with that between 0 and 1
	for i, want := range []float64{0, 1, 2, 4, 0, 2, 4} {
		if got := (x[i] - panelLeft) / step; math.Abs(got-want) > 0.01 {
			t.Errorf("spot %d is %.2f powers of ten from the left, want %v", i, got, want)
		}
	}
	if up := y[0] - y[1]; up <= 0 || math.Abs(y[1]-y[2]-up) > 0.2 || y[3] != y[0] || y[4] != y[1] || y[5] != y[1] {
		t.Errorf("heights %v: equal factors are not equally high", y)
	}
	if bottom := float64(headHeight + panelHeight - panelBottom); len(y) != 7 || y[6] != bottom {
		t.Errorf("seven spots, the last at the bottom, %v: %v", bottom, y)
	}
	if len(lines) != 2 || len(strings.Fields(lines[0])) != 4 || len(strings.Fields(lines[1])) != 2 {
		t.Errorf("a line of four, and one of the two that stand together: %q", lines)
	}
	all := strings.Join(words, "|")
	for _, want := range []string{"title", "a<b", "none", "1,000", "s1", "s2", "empty"} {
		if !slices.Contains(words, want) {
			t.Errorf("no %q in %q", want, all)
		}
	}
}

func TestGridEnclosesTheFigures(t *testing.T) {
	for _, c := range []struct {
		figures []float64
		want    string
	}{
		{[]float64{3, 4}, "[2 5]"},
		{[]float64{2, 5}, "[2 5]"},
		{[]float64{5}, "[5 10]"},
		{[]float64{0.03, 0.7}, "[0.02 0.05 0.1 0.2 0.5 1]"},
		{[]float64{9, 110_000}, "[1 10 100 1000 10000 100000 1e+06]"},
		{[]float64{0}, "[1 10]"},
		{nil, "[1 10]"},
	} {
		var line []spot
		for _, f := range c.figures {
			line = append(line, spot{f, true})
		}
		var rounded []float64
		for _, g := range (panel{lines: [][]spot{line}}).grid() {
			rounded = append(rounded, math.Round(g*1e6)/1e6)
		}
		if got := fmt.Sprint(rounded); got != c.want {
			t.Errorf("%v: %s, want %s", c.figures, got, c.want)
		}
	}
}
