package fault

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Line is how bad the line between a site and the others is. The zero value is
// a good one.
type Line struct {
	Delay  time.Duration // added to each packet, one way
	Jitter time.Duration // up to this much more, drawn for each packet; order is kept
	// Parts of a thousand packets that
	Loss      int // are lost
	Duplicate int // arrive twice
	Reorder   int // are overtaken by those behind them
	Corrupt   int // arrive with bits flipped
	Rate      int // bytes per second and direction; 0 for no limit
}

func (l Line) String() string {
	var parts []string
	add := func(name string, set bool, v any) {
		if set {
			parts = append(parts, fmt.Sprintf("%s %v", name, v))
		}
	}
	add("delay", l.Delay > 0, l.Delay)
	add("jitter", l.Jitter > 0, l.Jitter)
	add("loss ‰", l.Loss > 0, l.Loss)
	add("duplicate ‰", l.Duplicate > 0, l.Duplicate)
	add("reorder ‰", l.Reorder > 0, l.Reorder)
	add("corrupt ‰", l.Corrupt > 0, l.Corrupt)
	add("bytes/s", l.Rate > 0, l.Rate)
	return strings.Join(parts, ", ")
}

// Lines is a target whose sites are joined by lines that can be made bad.
type Lines interface {
	// SetLine makes the line of a site without voters so, in both directions, for
	// packets sent from now on. The zero Line makes it good again.
	SetLine(ctx context.Context, site string, l Line) error
}

var lines = can("lines between sites", func(ctx context.Context, t interface {
	Target
	Lines
}) error {
	for _, site := range Remote(t.Members()) {
		if err := t.SetLine(ctx, site, Line{}); err != nil {
			return err
		}
	}
	return nil
})

// badLine is a fault that makes the line of one remote site, or of all, so bad.
func badLine(name, what string, draw func(s *Scene) Line) Fault {
	return Fault{
		Name: name, What: what, Group: "line", Needs: []*Ability{lines}, Wants: manySites, Prompt: true,
		Least: time.Second, Most: 7 * time.Second,
		Act: func(ctx context.Context, s *Scene) error {
			sites := Remote(s.Target.Members())
			if i := s.Rand.IntN(len(sites) + 1); i < len(sites) {
				sites = sites[i : i+1]
			}
			for _, site := range sites {
				if err := s.setLine(ctx, site, draw(s)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (s *Scene) setLine(ctx context.Context, site string, l Line) error {
	s.Says("line of %s: %s", site, l)
	t := s.Target.(Lines)
	s.Undo(func(ctx context.Context) error { return t.SetLine(ctx, site, Line{}) })
	return t.SetLine(ctx, site, l)
}

var lineFaults = []Fault{
	badLine("delay", "a site gets far away", func(s *Scene) Line {
		return Line{Delay: s.between(20*time.Millisecond, 400*time.Millisecond)}
	}),
	badLine("jitter", "packets take now longer, now shorter", func(s *Scene) Line {
		return Line{Delay: s.between(5*time.Millisecond, 50*time.Millisecond), Jitter: s.between(50*time.Millisecond, 500*time.Millisecond)}
	}),
	badLine("loss", "packets are lost", func(s *Scene) Line { return Line{Loss: 10 + s.Rand.IntN(300)} }),
	badLine("duplication", "packets arrive twice", func(s *Scene) Line { return Line{Duplicate: 100 + s.Rand.IntN(900)} }),
	badLine("reordering", "packets overtake each other", func(s *Scene) Line {
		return Line{Delay: 5 * time.Millisecond, Reorder: 50 + s.Rand.IntN(450)}
	}),
	badLine("corruption", "bits of packets are flipped", func(s *Scene) Line { return Line{Corrupt: 10 + s.Rand.IntN(200)} }),
	badLine("rate", "a line carries some kilobytes a second", func(s *Scene) Line { return Line{Rate: 8<<10 + s.Rand.IntN(64<<10)} }),
	badLine("bad-line", "all of that, a little", func(s *Scene) Line {
		return Line{
			Delay: s.between(0, 100*time.Millisecond), Jitter: s.between(0, 50*time.Millisecond),
			Loss: s.Rand.IntN(50), Duplicate: s.Rand.IntN(50), Reorder: s.Rand.IntN(50), Corrupt: s.Rand.IntN(20),
			Rate: 64<<10 + s.Rand.IntN(1<<20),
		}
	}),
}
