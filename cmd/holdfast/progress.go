package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// progress shows on one line of a terminal how a long transfer goes. Where
// nobody looks it shows nothing.
type progress struct {
	w     io.Writer // nil: nobody looks
	now   func() time.Time
	begin time.Time
	every time.Duration

	mu      sync.Mutex // guards all below, and writes
	shown   time.Time
	visible bool
}

func newProgress(w io.Writer) *progress {
	p := &progress{now: time.Now, every: 100 * time.Millisecond}
	if isTerminal(w) {
		p.w = w
	}
	p.begin = p.now()
	return p
}

// transfer is how far it is.
type transfer struct {
	records, bytes uint64
	// done of total is what share of the whole that is; total 0: not known.
	done, total int64
	// waiting says why it stands still, when it does.
	waiting string
}

// show draws the line, unless it was drawn a moment ago.
func (p *progress) show(t transfer) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if p.visible && t.waiting == "" && now.Sub(p.shown) < p.every {
		return
	}
	p.shown, p.visible = now, true
	_, _ = fmt.Fprintf(p.w, "\r%s\x1b[K", t.line(now.Sub(p.begin)))
}

// clear takes the line away, so that other output can follow.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.visible {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
		p.visible = false
	}
}

func (p *progress) elapsed() time.Duration { return p.now().Sub(p.begin) }

const barWidth = 24

func (t transfer) line(elapsed time.Duration) string {
	var parts []string
	if t.total > 0 {
		share := min(1, float64(t.done)/float64(t.total))
		full := int(share * barWidth)
		parts = append(parts, fmt.Sprintf("[%s%s] %3.0f%%", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*share))
	}
	parts = append(parts, plural(t.records, "record"), size(t.bytes))
	if s := elapsed.Seconds(); s >= 0.5 {
		parts = append(parts, size(uint64(float64(t.bytes)/s))+"/s")
		if t.total > 0 && t.done > 0 && t.done < t.total && t.waiting == "" {
			left := time.Duration(float64(elapsed) * float64(t.total-t.done) / float64(t.done))
			parts = append(parts, "about "+left.Round(time.Second).String()+" left")
		}
	}
	if t.waiting != "" {
		parts = append(parts, "waiting: "+t.waiting)
	}
	return strings.Join(parts, "  ")
}
