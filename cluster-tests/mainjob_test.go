package clustertests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// packageRecord is one record of the Debian package index.
type packageRecord struct {
	key   string // debian/<package>/<version>
	value []byte // the record's text
}

// debianPackages is the package index of this machine, and the file of lines
// that `kv import` reads, made by the tool that the README names. The test is
// skipped when there is no index.
func debianPackages(t *testing.T) (records []packageRecord, file string) {
	t.Helper()
	apt, err := exec.LookPath("apt-cache")
	if err != nil {
		t.Skip("SKIPPED: this machine has no apt-cache, so there is no package index to import")
	}
	tool := filepath.Join(t.TempDir(), "debian-ndjson")
	if out, err := exec.Command("go", "build", "-o", tool, "./debian-ndjson").CombinedOutput(); err != nil {
		t.Fatalf("build debian-ndjson: %v\n%s", err, out)
	}
	dump, err := exec.Command(apt, "dumpavail").Output()
	if err != nil {
		t.Fatalf("apt-cache dumpavail: %v", err)
	}
	convert := exec.Command(tool)
	convert.Stdin = bytes.NewReader(dump)
	lines, err := convert.Output()
	if err != nil {
		t.Fatalf("debian-ndjson: %v", err)
	}
	at := map[string]int{} // of records with equal key the last one counts
	for line := range bytes.Lines(lines) {
		var r struct {
			Key   string
			Value []byte
		}
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		if i, dup := at[r.Key]; dup {
			records[i].value = r.Value
			continue
		}
		at[r.Key] = len(records)
		records = append(records, packageRecord{r.Key, r.Value})
	}
	if len(records) == 0 {
		t.Skip("SKIPPED: apt-cache dumpavail printed no records; `apt-get update` fetches them")
	}
	file = filepath.Join(t.TempDir(), "packages.ndjson")
	if err := os.WriteFile(file, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	return records, file
}

// The Debian package index goes through a learner's HTTP port into the
// cluster, while the leader is killed and the east is cut off; afterwards every
// record is at every site.
func TestPackageIndexThroughALearnerUnderFaults(t *testing.T) {
	records, file := debianPackages(t)
	for _, c := range []struct{ logStore, through string }{
		{"wal", "w1"},    // the importer's site stays joined; east has to catch up
		{"boltdb", "e1"}, // the importer's own site is cut off in mid-import
	} {
		t.Run(c.logStore+" through "+c.through, func(t *testing.T) {
			if testing.Short() && c.logStore != "wal" {
				t.Skip("one log store is enough with -short")
			}
			importUnderFaults(t, records, file, c.logStore, c.through)
		})
	}
}

func importUnderFaults(t *testing.T, records []packageRecord, file, logStore, through string) {
	c := startCluster(t, threeSites, withLogStore(logStore))

	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, "kv", "import", file)
	cmd.Env = append(os.Environ(), "HOLDFAST_HTTP_ADDR="+c.node(through).http)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	over := func() bool { return len(ended) > 0 }

	// Faults happen at parts of the way: when a record is there that stands so
	// far down the file. Home knows.
	await := func(part float64) {
		t.Helper()
		key := records[int(part*float64(len(records)-1))].key
		c.wait(2*time.Minute, fmt.Sprintf("%.0f %% is imported", 100*part), func() bool {
			return over() || slices.ContainsFunc(c.voters(), func(n *node) bool {
				if !n.running() {
					return false
				}
				a, err := read(n, key, "stale")
				return err == nil && a.status == http.StatusOK
			})
		})
	}
	await(0.15)
	if over() {
		t.Errorf("the import ended before a fault could happen")
	}
	leader := c.waitLeader()
	c.kill(leader)
	t.Logf("%v: killed the leader, %s", time.Since(began).Round(time.Millisecond), leader)
	await(0.35)
	if over() {
		t.Errorf("the import ended before the cut")
	}
	c.cutOff("east")
	t.Logf("%v: cut the east off", time.Since(began).Round(time.Millisecond))
	e1 := c.node("e1")
	c.wait(30*time.Second, "e1 says that it is cut off", func() bool { s, ok := e1.status(); return ok && s.Status == "cut-off" })
	if through != "e1" {
		await(0.6)
	}
	c.start(leader)
	c.waitReady(leader)
	c.heal()
	t.Logf("%v: healed", time.Since(began).Round(time.Millisecond))

	if err := <-ended; err != nil {
		t.Fatalf("kv import: %v\n%s", err, output.String())
	}
	took := time.Since(began)
	t.Logf("%d records imported in %v: %s", len(records), took.Round(time.Millisecond), strings.TrimSpace(output.String()))

	level := c.waitLevel(2 * time.Minute)
	t.Logf("%v: all nodes at revision %d, lineage %s", time.Since(began).Round(time.Millisecond), level.Applied, level.Lineage)
	for _, n := range c.nodes {
		compareRecords(t, n, records)
		out, errs, err := c.run(time.Minute, n, "kv", "list", "debian/")
		if lines := strings.Count(out, "\n"); err != nil || lines != len(records) {
			t.Errorf("kv list at %s: %d lines (%v, %s), want %d", n, lines, err, errs, len(records))
		}
	}
}

// compareRecords demands that a node has exactly the records, read as a whole
// and, some of them, one by one.
func compareRecords(t *testing.T, n *node, records []packageRecord) {
	t.Helper()
	want := make(map[string][]byte, len(records))
	for _, r := range records {
		want[r.key] = r.value
	}
	last, wrong := "", 0
	err := export(n, "debian/", "stale", func(key string, value []byte) error {
		if key <= last {
			return fmt.Errorf("export from %s: %q comes after %q", n, key, last)
		}
		last = key
		if v, ok := want[key]; !ok || !bytes.Equal(v, value) {
			wrong++
		}
		delete(want, key)
		return nil
	})
	if err != nil || wrong > 0 || len(want) > 0 {
		t.Errorf("%s: %d records differ, %d are missing (%v)", n, wrong, len(want), err)
	}
	for i := 0; i < len(records); i += max(1, len(records)/200) {
		r := records[i]
		a, err := read(n, r.key, "stale")
		if err != nil || len(a.entries) != 1 || a.entries[0].Key != r.key || !bytes.Equal(a.entries[0].Value, r.value) {
			t.Errorf("%s: %s reads back differently (%v)", n, r.key, err)
		}
	}
}
