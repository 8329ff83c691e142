package clustertests

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-db/holdfast/internal/bench"
)

var (
	measureOut  = flag.String("measure-out", "", "TestMeasurePeers, TestMeasureGrowth: write tables, figures and pictures to this `folder`")
	measureDocs = flag.String("measure-docs", "", "TestMeasurePeers, TestMeasureGrowth: write the pictures to this `folder`, and the tables into its PERFORMANCE.md")
)

// metric is a figure of which tables and pictures are made.
type metric struct {
	name, title string
	higher      bool // is better
	picture     bool // it is shown as one, too
}

// better says which way a metric is to be read.
func (m metric) better() string {
	if m.higher {
		return "more is better"
	}
	return "less is better"
}

// measurement is something that was measured, once or more often, of several alike.
type measurement struct {
	Name string
	// Of has the figures of each round by series, such as a system or a load, and metric.
	Of map[string]map[string][]float64
}

// add keeps a figure of one round.
func (r *measurement) add(series, metric string, figure float64) {
	if r.Of == nil {
		r.Of = map[string]map[string][]float64{}
	}
	if r.Of[series] == nil {
		r.Of[series] = map[string][]float64{}
	}
	r.Of[series][metric] = append(r.Of[series][metric], figure)
}

// figure is a median; false when there is none.
func (r *measurement) figure(series string, m metric) (float64, bool) {
	all := r.Of[series][m.name]
	if len(all) == 0 {
		return 0, false
	}
	return median(all), true
}

// failures describes the requests of an operation that were not carried out, kind by kind.
func failures(of string, o bench.Operation) (all []string) {
	sum := o.Count
	for _, n := range o.Errors {
		sum += n
	}
	for _, trouble := range slices.Sorted(maps.Keys(o.Errors)) {
		all = append(all, fmt.Sprintf("%s: %d of %d requests failed: %s", of, o.Errors[trouble], sum, trouble))
	}
	return all
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
	return grouped(fmt.Sprintf("%.0f", f))
}

// grouped puts commas between the thousands of a whole number.
func grouped(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// publication is what a measurement leaves for readers.
type publication struct {
	name     string // of its files; bench-NAME is the target that makes it
	text     string // Markdown, which shows the pictures
	figures  any    // all of them
	pictures map[string][]byte
}

// publish prints the text, and writes everything where the flags say. A result of a test that failed
// is none for the manual.
func (p publication) publish(t *testing.T) {
	t.Helper()
	fmt.Print("\n", p.text)
	if *measureOut != "" {
		if err := p.write(*measureOut); err != nil {
			t.Error(err)
		}
	}
	if *measureDocs != "" && !t.Failed() {
		if err := p.document(*measureDocs); err != nil {
			t.Error(err)
		}
	}
}

// write puts all of it into a folder.
func (p publication) write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	figures, err := json.MarshalIndent(p.figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, p.name+".json"), append(figures, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, p.name+".md"), []byte(p.text), 0o644); err != nil {
		return err
	}
	return p.writePictures(folder)
}

func (p publication) writePictures(folder string) error {
	for file, picture := range p.pictures {
		if err := os.WriteFile(filepath.Join(folder, file), picture, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// document puts the pictures into the manual's folder, and the text into its page, in place of what
// is between the marks there.
func (p publication) document(folder string) error {
	page := filepath.Join(folder, "PERFORMANCE.md")
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(b), p.beginMark())
	_, after, ends := strings.Cut(rest, endMark)
	if !begins || !ends {
		return fmt.Errorf("%s has no place for the result: it lacks the line %q or, behind it, %q", page, strings.TrimSpace(p.beginMark()), strings.TrimSpace(endMark))
	}
	if err := p.writePictures(folder); err != nil {
		return err
	}
	return os.WriteFile(page, []byte(before+p.beginMark()+"\n"+p.text+"\n"+endMark+after), 0o644)
}

func (p publication) beginMark() string {
	return fmt.Sprintf("<!-- make bench-%s DOCS=docs writes from here -->\n", p.name)
}

const endMark = "<!-- to here -->\n"

func TestResultIsPutBetweenItsMarks(t *testing.T) {
	folder := t.TempDir()
	page := filepath.Join(folder, "PERFORMANCE.md")
	one, other := publication{name: "one", pictures: map[string][]byte{"one.svg": []byte("drawn")}}, publication{name: "other"}
	begins := "above\n" + other.beginMark() + "another's\n" + endMark + one.beginMark()
	if err := os.WriteFile(page, []byte(begins+"old\n"+endMark+"below\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, one.text = range []string{"first\n", "second\n"} {
		if err := one.document(folder); err != nil {
			t.Fatal(err)
		}
		got, _ := os.ReadFile(page)
		if want := begins + "\n" + one.text + "\n" + endMark + "below\n"; string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(folder, "one.svg")); string(got) != "drawn" {
		t.Errorf("the picture is %q", got)
	}
	for _, unmarked := range []string{"no marks", endMark + one.beginMark(), other.beginMark() + endMark} {
		if err := os.WriteFile(page, []byte(unmarked), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := one.document(folder); err == nil {
			t.Errorf("%q: no error", unmarked)
		}
		if got, _ := os.ReadFile(page); string(got) != unmarked {
			t.Errorf("%q was changed to %q", unmarked, got)
		}
	}
	// The page that the targets write to with DOCS=docs.
	b, err := os.ReadFile("../docs/PERFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []publication{(&comparison{}).publication(), (&growth{}).publication()} {
		if strings.Count(string(b), p.beginMark()) != 1 {
			t.Errorf("docs/PERFORMANCE.md has no place for the result of make bench-%s", p.name)
		}
	}
	if places := strings.Count(string(b), "writes from here -->\n"); strings.Count(string(b), endMark) != places {
		t.Errorf("docs/PERFORMANCE.md has %d places for results, and another number of ends", places)
	}
}

func TestResultIsWrittenWhole(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "new")
	p := publication{name: "x", text: "text\n", figures: &measurement{Name: "m"}, pictures: map[string][]byte{"x.svg": []byte("drawn")}}
	if err := p.write(folder); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"x.md": "text\n", "x.json": "{\n  \"Name\": \"m\",\n  \"Of\": null\n}\n", "x.svg": "drawn"} {
		if got, _ := os.ReadFile(filepath.Join(folder, file)); string(got) != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}
