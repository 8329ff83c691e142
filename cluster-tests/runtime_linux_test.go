package clustertests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	start: func(t, volumes testing.TB, s setup) rig {
		l := newLab(t, s.nodes)
		for _, site := range l.sites[1:] {
			l.join(l.sites[0], site, s.trips[site], 0)
		}
		if !s.disks || unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) != nil {
			return &hosts{s.processes(t, inLab(l)), l}
		}
		d, onThem := onDisks(volumes, s.nodes)
		return &diskHosts{hosts: &hosts{s.processes(t, inLab(l), onThem), l}, disks: d, forgets: func(string) {}}
	},
}

// diskHosts are hosts that have disks.
type diskHosts struct {
	*hosts
	*disks
	forgets func(node string)
}

// Sicken implements fault.Disks.
func (h *diskHosts) Sicken(ctx context.Context, name string, ill fault.Illness) error {
	h.ill(time.Now().Add(time.Hour), name)
	return h.disks.Sicken(ctx, name, ill)
}

// Cure implements fault.Disks.
func (h *diskHosts) Cure(ctx context.Context, names ...string) error {
	h.ill(time.Now().Add(time.Second), names...) // who met the illness is about to end
	return h.disks.Cure(ctx, names...)
}

func (h *diskHosts) ill(until time.Time, names ...string) {
	for _, n := range h.named(names...) {
		n.mu.Lock()
		n.illUntil = until
		n.mu.Unlock()
	}
}

// LosePower implements fault.Power.
func (h *diskHosts) LosePower(ctx context.Context, seed uint64, names ...string) error {
	err := h.disks.LosePower(ctx, seed, names...)
	for _, name := range names {
		h.forgets(name)
	}
	return err
}

func (h *diskHosts) watch(forgets func(node string)) { h.forgets = forgets }

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
