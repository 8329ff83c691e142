package history

import (
	"cmp"
	_ "embed"
	"html/template"
	"io"
	"maps"
	"slices"
	"time"
)

// Mark points to requests of a history that somebody is to look at.
type Mark struct {
	Title, Text string
	Ops         []int // their IDs
}

//go:embed timeline.html
var timelineText string

var timelinePage = template.Must(template.New("timeline").Parse(timelineText))

// WriteTimeline draws the history as one HTML page without any other file: time runs
// to the right, each client has a lane beside those of its workload, faults are bands over all of them, and marks
// are links to what they point at.
func (h *History) WriteTimeline(w io.Writer, title string, marks []Mark) error {
	type bar struct {
		Lane    int    `json:"l"`
		From    int64  `json:"f"` // µs
		To      int64  `json:"t"`
		Outcome string `json:"o"`
		Text    string `json:"x"`
		ID      int    `json:"i"`
	}
	type band struct {
		From int64  `json:"f"`
		To   int64  `json:"t"`
		Text string `json:"x"`
	}
	type lane struct {
		workload string
		client   int
	}
	page := struct {
		Title string
		End   int64
		Lanes []string
		Bars  []bar
		Bands []band
		Marks []Mark
	}{Title: title, Marks: marks, Lanes: []string{}, Bars: []bar{}, Bands: []band{}}
	ops, faults := h.Ops(""), h.Faults()
	end := time.Duration(1)
	for _, o := range ops {
		end = max(end, o.Call)
		if o.Return != Never {
			end = max(end, o.Return)
		}
	}
	micros := func(d time.Duration) int64 { return min(d, end).Microseconds() }
	lanes := map[lane]int{}
	for _, o := range ops {
		lanes[lane{o.Workload, o.Client}] = 0
	}
	byName := func(a, b lane) int {
		return cmp.Or(cmp.Compare(a.workload, b.workload), cmp.Compare(a.client, b.client))
	}
	for i, l := range slices.SortedFunc(maps.Keys(lanes), byName) {
		lanes[l] = i
		page.Lanes = append(page.Lanes, l.workload)
	}
	for _, o := range ops {
		page.Bars = append(page.Bars, bar{lanes[lane{o.Workload, o.Client}], micros(o.Call), micros(o.Return), o.Outcome.String(), o.String(), o.ID})
	}
	for _, f := range faults {
		page.Bands = append(page.Bands, band{micros(f.From), micros(f.To), f.Name + " " + f.On})
	}
	page.End = micros(end)
	return timelinePage.Execute(w, page)
}
