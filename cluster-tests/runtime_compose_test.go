package clustertests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// composeRuntime runs the cluster of docker-compose.yml, always the same three sites.
// Docker kills, stops and freezes the containers; cuts are made by firewalls inside their
// network namespaces, which takes root on the host.
var composeRuntime = platform{
	name:  "compose",
	most:  6,
	fixed: &setup{nodes: threeSites, logStore: "wal"},
	lacks: func() string {
		switch {
		case os.Getenv("HOLDFAST_IMAGE") == "":
			return "HOLDFAST_IMAGE names no image; make jepsen builds one"
		case os.Geteuid() != 0:
			return "firewalls inside containers need root"
		case exec.Command("docker", "version").Run() != nil:
			return "Docker does not answer"
		}
		for _, program := range []string{"nsenter", "nft"} {
			if _, err := exec.LookPath(program); err != nil {
				return "it needs the program " + program
			}
		}
		return ""
	},
	start: func(t, _ testing.TB, _ setup) rig {
		d := newComposed(t)
		d.up()
		return d
	},
}

// Members implements fault.Target.
func (d *composed) Members() []fault.Member { return membersOf(d.nodes) }

// Leader implements fault.Target.
func (d *composed) Leader(ctx context.Context) (string, bool) { return leaderOf(ctx, d.nodes) }

// Running implements fault.Target.
func (d *composed) Running(name string) bool {
	out, err := d.run("docker", "inspect", "-f", "{{.State.Running}}", d.prefix+"-"+name)
	return err == nil && out == "true"
}

// Ready implements fault.Target.
func (d *composed) Ready(_ context.Context, name string) bool {
	ok, _ := d.node(name).ready()
	return ok
}

func (d *composed) node(name string) *node {
	return d.nodes[slices.IndexFunc(d.nodes, func(n *node) bool { return n.name == name })]
}

// Block implements fault.Target. A container that starts has a new namespace: see Start.
func (d *composed) Block(_ context.Context, pairs []fault.Pair) error {
	d.blocked = pairs
	return d.fence(d.names()...)
}

// fence sets the firewalls of containers that run. A node has one address on each of
// its networks, and uses whichever Docker resolves.
func (d *composed) fence(names ...string) error {
	addresses := map[string][]string{}
	for _, n := range d.nodes {
		out, err := d.run("docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", d.container(n))
		if err != nil {
			return err
		}
		addresses[n.name] = strings.Fields(out)
	}
	return d.each(names, func(name string) error {
		pid, err := d.run("docker", "inspect", "-f", "{{.State.Pid}}", d.prefix+"-"+name)
		if err != nil || pid == "0" {
			return err
		}
		rules := "add table inet lab\nadd chain inet lab cut { type filter hook input priority 1; }\nflush chain inet lab cut\n"
		for _, p := range d.blocked {
			for _, addr := range addresses[p.From] {
				if p.To == name {
					rules += fmt.Sprintf("add rule inet lab cut ip saddr %s drop\n", addr)
				}
			}
		}
		cmd := exec.Command("nsenter", "-t", pid, "-n", "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("firewall of %s: %w: %s", name, err, out)
		}
		return nil
	})
}

func (d *composed) names() []string {
	names := make([]string, len(d.nodes))
	for i, n := range d.nodes {
		names[i] = n.name
	}
	return names
}

// each does something for all names at once.
func (d *composed) each(names []string, do func(name string) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		wg.Go(func() { errs[i] = do(name) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Kill implements fault.Target.
func (d *composed) Kill(_ context.Context, names ...string) error {
	return d.each(names, func(name string) error {
		if !d.Running(name) {
			return nil
		}
		_, err := d.run("docker", "kill", d.prefix+"-"+name)
		return err
	})
}

// Stop implements fault.Target.
func (d *composed) Stop(_ context.Context, name string) error {
	_, err := d.run("docker", "stop", d.prefix+"-"+name)
	return err
}

// Start implements fault.Target. The firewall is set as soon as the container has a
// namespace, some milliseconds after its process began.
func (d *composed) Start(_ context.Context, names ...string) error {
	err := d.each(names, func(name string) error {
		_, err := d.run("docker", "start", d.prefix+"-"+name)
		return err
	})
	if err != nil || len(d.blocked) == 0 {
		return err
	}
	return d.fence(d.names()...) // addresses may have changed
}

// Pause implements fault.Target.
func (d *composed) Pause(_ context.Context, names ...string) error {
	return d.frozen("pause", "running", names)
}

// Resume implements fault.Target.
func (d *composed) Resume(_ context.Context, names ...string) error {
	return d.frozen("unpause", "paused", names)
}

func (d *composed) frozen(order, from string, names []string) error {
	return d.each(names, func(name string) error {
		if out, err := d.run("docker", "inspect", "-f", "{{.State.Status}}", d.prefix+"-"+name); err != nil || out != from {
			return err
		}
		_, err := d.run("docker", order, d.prefix+"-"+name)
		return err
	})
}

func (d *composed) clients() []*workload.Node { return clientsOf(d.nodes) }

func (d *composed) recover(within time.Duration) {
	d.t.Helper()
	for _, n := range d.nodes {
		d.wait(within, n.name+" is ready again", func() bool { ok, _ := n.ready(); return ok })
	}
	d.level(within)
}

func (d *composed) watch(func(string)) {} // it loses no power

func (d *composed) directory() string { return d.dir }
