package clustertests

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/command"
)

// composed is the cluster of docker-compose.yml.
type composed struct {
	t       testing.TB
	compose []string // `docker compose` or `docker-compose`, with file and project
	env     []string
	prefix  string // of containers and networks
	nodes   []*node
	blocked []fault.Pair
	dir     string // takes the logs of a test that failed
}

// docker runs a command and returns what it printed.
func (d *composed) run(command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), d.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (d *composed) must(command ...string) string {
	d.t.Helper()
	out, err := d.run(command...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func (d *composed) container(n *node) string { return d.prefix + "-" + n.name }

// wait fails the test, with the containers' state, when cond does not hold in time.
func (d *composed) wait(within time.Duration, what string, cond func() bool) {
	d.t.Helper()
	if !eventually(within, cond) {
		d.t.Fatalf("not within %v: %s", within, what)
	}
}

// level waits until all nodes stand at one revision with one lineage.
func (d *composed) level(within time.Duration) command.ReplicaStatus {
	d.t.Helper()
	var all []command.ReplicaStatus
	d.wait(within, "all five nodes are level", func() bool {
		all = nil
		for _, n := range d.nodes {
			s, ok := n.status()
			if !ok {
				return false
			}
			all = append(all, s)
		}
		return !slices.ContainsFunc(all, func(s command.ReplicaStatus) bool {
			return s.Applied == 0 || s.Applied != all[0].Applied || s.Lineage != all[0].Lineage
		})
	})
	return all[0]
}

// newComposed prepares the cluster with the image HOLDFAST_IMAGE. It is taken down when
// the test ends.
func newComposed(t testing.TB) *composed {
	t.Helper()
	image := os.Getenv("HOLDFAST_IMAGE")
	if image == "" {
		t.Fatal("HOLDFAST_IMAGE names no image; make compose-test builds one")
	}
	file, err := filepath.Abs("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(*keepFlag, "hf-")
	if err != nil {
		t.Fatal(err)
	}
	d := &composed{t: t, prefix: "holdfast-ct", dir: dir}
	d.env = []string{"HOLDFAST_IMAGE=" + image, "HOLDFAST_PREFIX=" + d.prefix}
	for _, s := range threeSites {
		n := &node{spec: s, http: freePort(t), log: filepath.Join(dir, s.name+".log")}
		_, port, _ := strings.Cut(n.http, ":")
		d.env = append(d.env, "HOLDFAST_PORT_"+strings.ToUpper(n.name)+"="+port)
		d.nodes = append(d.nodes, n)
	}
	d.compose = []string{"docker", "compose"}
	if _, err := d.run("docker", "compose", "version"); err != nil {
		d.compose = []string{"docker-compose"}
	}
	d.compose = append(d.compose, "-f", file, "-p", d.prefix)
	d.run(d.down()...) // what an interrupted run left
	t.Cleanup(d.close)
	return d
}

func (d *composed) down() []string {
	return append(slices.Clone(d.compose), "down", "-v", "--timeout", "15")
}

// up starts all containers and waits until they are healthy.
func (d *composed) up() {
	d.t.Helper()
	d.must(append(slices.Clone(d.compose), "up", "-d", "--no-build")...)
	for _, n := range d.nodes {
		d.wait(90*time.Second, n.name+" is healthy", func() bool {
			health, err := d.run("docker", "inspect", "-f", "{{.State.Health.Status}}", d.container(n))
			return err == nil && health == "healthy"
		})
	}
}

// close takes everything down and looks for panics in the logs, which stay if the test
// has failed.
func (d *composed) close() {
	for _, n := range d.nodes {
		logs, err := d.run("docker", "logs", d.container(n))
		if err == nil {
			err = os.WriteFile(n.log, []byte(logs), 0o644)
		}
		if err != nil {
			d.t.Errorf("logs of %s: %v", n, err)
		} else if line := findPanic(n.log); line != "" {
			d.t.Errorf("%s logged %q", n, line)
		}
	}
	if d.t.Failed() {
		for _, n := range d.nodes {
			state, _ := d.run("docker", "inspect", "-f", "{{json .State}}", d.container(n))
			d.t.Logf("%s: %s\n%s", n, state, lastLines(n.log, 20))
		}
		d.t.Logf("logs are kept in %s", d.dir)
	} else {
		os.RemoveAll(d.dir)
	}
	if _, err := d.run(d.down()...); err != nil {
		d.t.Errorf("down: %v", err)
	}
}

// TestCompose brings docker-compose.yml up with the image HOLDFAST_IMAGE,
// takes the east off the WAN, and joins it again.
func TestCompose(t *testing.T) {
	if !*composeFlag {
		t.Skip("run by make compose-test")
	}
	d := newComposed(t)
	d.up()
	t.Log("all five containers are healthy")

	n1, e1, w1 := d.nodes[0], d.nodes[3], d.nodes[4]
	write := func(through *node, key, value string) uint64 {
		t.Helper()
		w := put(through, key, value, "")
		if !w.ok || w.err != nil {
			t.Fatalf("write through %s: %+v", through, w)
		}
		return w.revision
	}
	demand := func(n *node, key, query, value string) {
		t.Helper()
		a, err := read(n, key, query)
		if err != nil || len(a.entries) != 1 || string(a.entries[0].Value) != value {
			t.Errorf("read of %s?%s at %s: %+v, %v; want %q", key, query, n, a, err, value)
		}
	}
	for i, n := range d.nodes { // writes through any node, reads at every site
		revision := write(n, "from/"+n.name, fmt.Sprint(i))
		for _, o := range d.nodes {
			demand(o, "from/"+n.name, fmt.Sprintf("min_index=%d", revision), fmt.Sprint(i))
		}
	}

	d.must("docker", "network", "disconnect", d.prefix+"-wan", d.container(e1))
	d.wait(30*time.Second, "e1 says that it is cut off", func() bool { s, ok := e1.status(); return ok && s.Status == "cut-off" })
	t.Log("the east is off the WAN")
	for i := range 50 {
		write(n1, fmt.Sprintf("during/%02d", i), "home")
	}
	write(w1, "during/west", "west")
	demand(e1, "from/e1", "", "3")
	demand(w1, "during/49", "consistent", "home")
	if a, err := read(e1, "during/00", ""); err != nil || a.status != http.StatusNotFound || !a.stalenessKnown || a.staleness <= 0 {
		t.Errorf("e1, cut off, says of a key written since: %+v, %v; want 404 with its staleness", a, err)
	}
	if w := put(e1, "during/east", "east", ""); w.status != http.StatusInternalServerError || !strings.Contains(w.text, "No cluster leader") {
		t.Errorf("a write at e1 while it is cut off: %+v; want 500 No cluster leader", w)
	}
	if health := d.must("docker", "inspect", "-f", "{{.State.Health.Status}}", d.container(e1)); health != "healthy" {
		t.Errorf("e1 serves, cut off, and is called %s", health)
	}

	d.must("docker", "network", "connect", d.prefix+"-wan", d.container(e1))
	s := d.level(60 * time.Second)
	demand(e1, "during/west", "", "west")
	t.Logf("the east is back: all at revision %d, lineage %s", s.Applied, s.Lineage)
}

// The image is compiled by the release of Go that go.mod asks for, and the
// prebuilt image needs no other: its stage stands before the compiler's.
func TestDockerfileFollowsGoMod(t *testing.T) {
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	gomod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	wanted := regexp.MustCompile(`(?m)^go (\d+\.\d+)\S*$`).FindSubmatch(gomod)
	given := regexp.MustCompile(`(?m)^ARG GO_VERSION=(\S+)$`).FindSubmatch(dockerfile)
	if wanted == nil || given == nil || string(wanted[1]) != string(given[1]) {
		t.Errorf("go.mod asks for %q, Dockerfile compiles with %q", wanted, given)
	}
	text := string(dockerfile)
	if prebuilt, compiler := strings.Index(text, "AS prebuilt"), strings.Index(text, "FROM golang"); prebuilt < 0 || compiler < prebuilt {
		t.Error("stage prebuilt must stand before the compiler's")
	}
}
