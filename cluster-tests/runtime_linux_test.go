package clustertests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
)

// netnsRuntime runs each node on a host of its own: see lab.
var netnsRuntime = platform{
	name: "netns",
	lacks: func() string {
		if os.Geteuid() != 0 {
			return "networks of namespaces need root"
		}
		for _, program := range []string{"ip", "nft"} {
			if _, err := exec.LookPath(program); err != nil {
				return "networks of namespaces need the program " + program
			}
		}
		return ""
	},
	start: func(t testing.TB, s setup) rig {
		l := newLab(t, s.nodes)
		for _, site := range l.sites[1:] {
			l.join(l.sites[0], site, s.trips[site], 0)
		}
		return &hosts{s.processes(t, inLab(l)), l}
	},
}

// hosts is a cluster whose nodes are hosts of a lab: cuts are made by firewalls, and
// sites are joined by lines.
type hosts struct {
	*cluster
	lab *lab
}

var _ fault.Lines = (*hosts)(nil)

// Block implements fault.Target.
func (h *hosts) Block(_ context.Context, pairs []fault.Pair) error { return h.lab.block(pairs) }

// SetLine implements fault.Lines.
func (h *hosts) SetLine(_ context.Context, site string, q fault.Line) error {
	i := slices.IndexFunc(h.lab.lines, func(w *line) bool { return w.site == site })
	if i < 0 {
		return fmt.Errorf("no line leads to %s", site)
	}
	h.lab.lines[i].set(q)
	return nil
}
