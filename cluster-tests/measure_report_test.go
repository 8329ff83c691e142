package clustertests

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// measured skips what measures, unless it was asked for, which target does.
func measured(t *testing.T, target string) {
	t.Helper()
	if !*measureFlag {
		t.Skip("run by " + target)
	}
	if raceDetector {
		t.Fatal("figures under the race detector say nothing")
	}
}

// eachReport runs parts that have a report of their own.
func eachReport(t *testing.T, parts map[string]func(*testing.T, *report)) {
	for name, run := range parts {
		t.Run(name, func(t *testing.T) {
			r := &report{t: t}
			defer r.print()
			run(t, r)
		})
	}
}

// report is a table that is printed when its part ends.
type report struct {
	t    *testing.T
	data string // what is written; empty: as the store's parts write it
	head []string
	rows [][]string
}

func (r *report) columns(names ...string) { r.head = names }

func (r *report) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case time.Duration:
			row[i] = fmt.Sprintf("%.3g ms", millis(c))
			if c >= time.Second {
				row[i] = fmt.Sprintf("%.2f s", c.Seconds())
			}
		case mebibytes:
			row[i] = fmt.Sprintf("%.0f", float64(c)/(1<<20))
		case float64:
			row[i] = fmt.Sprintf("%.0f", c)
		default:
			row[i] = fmt.Sprint(c)
		}
	}
	r.rows = append(r.rows, row)
	r.t.Log(strings.Join(row, " | "))
}

// mebibytes is a number of bytes shown in MiB.
type mebibytes int64

func (r *report) print() {
	var b strings.Builder
	data := cmp.Or(r.data, fmt.Sprintf("keys of 24 bytes, values of %d", storeValue))
	fmt.Fprintf(&b, "\n### %s\n\n%d processors (load included), %s, load average %s\n\n", r.t.Name(), runtime.NumCPU(), data, loadAverage())
	fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(r.head, " | "), strings.Repeat("---|", len(r.head)))
	for _, row := range r.rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	fmt.Println(b.String())
}

// loadAverage tells a reader of the figures what else the machine was doing.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return string(bytes.Join(bytes.Fields(b)[:2], []byte(" ")))
}
