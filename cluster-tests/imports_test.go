package clustertests

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/holdfast-db/holdfast/"

// rule is one line of the import map.
type rule struct {
	pkg string   // folder below the module's root
	may []string // packages of ours it may import
	why string
}

// importMap is the layout of the module: calls travel outward in, imports
// point to the centre. Test files may import more (a test of node builds real
// parts), but never this package.
var importMap = []rule{
	{"command", nil,
		"the shared words: whatever it imported, every package would depend on"},
	{"store", []string{"command"},
		"it owns the disk and knows neither Raft's use of it nor the network"},
	{"fsm", []string{"command", "store"},
		"an entry becomes a store change and nothing else: no clock, no setting, no peer can reach it"},
	{"transport", []string{"command"},
		"it moves bytes between nodes; what a copy holds is the business of those who call it"},
	{"node", []string{"command"},
		"it receives its parts through interfaces, so that tests can give it others"},
	{"readreplica", []string{"command", "node"},
		"it wraps a node; the store is reached through the node's gate only"},
	{"ui", nil,
		"a page and its files: the API is all it uses"},
	{"docs", nil,
		"embeds the API's description as bytes"},
	{"http", []string{"command", "ui"},
		"it declares the node it needs, so that the API can be tested without a cluster"},
	{"client", []string{"command"},
		"programs that embed it must not pull in the server"},
	{"internal/problem", nil,
		"errors for people: whoever starts something has some"},
	{"internal/bench", []string{"internal/problem"},
		"it puts load on servers of any make, and must not know more of ours than of theirs"},
	{"internal/agent", []string{"command", "store", "fsm", "transport", "node", "readreplica", "http", "docs", "internal/problem"},
		"it builds the parts of a node and puts them together, the same for the program and for tests"},
	{"cmd/holdfast", []string{"command", "store", "fsm", "transport", "node", "http", "client", "internal/problem", "internal/bench", "internal/agent"},
		"flags and the command line; what they say is done by others"},
	{"cluster-tests", []string{"command", "store", "fsm", "transport", "node", "readreplica", "http", "client", "ui", "docs", "internal/bench", "internal/agent"},
		"it may look at everything"},
	{"internal/planted", nil,
		"a question that every package may ask: see everybodyMay"},
	{"internal/allocs", nil,
		"it runs benchmarks of the test it is in: only tests may have it"},
	{"internal/faultfs", nil,
		"a disk that fails on request: only tests may have one"},
	{"internal/fakeclock", nil,
		"a clock that jumps on request: only tests may have one"},
	{"cluster-tests/history", nil,
		"it records what clients see, and knows none of what they ask"},
	{"cluster-tests/workload", []string{"cluster-tests/history"},
		"clients of the HTTP API, which must not know more of a node than clients do"},
	{"cluster-tests/fault", []string{"internal/faultfs"},
		"what goes wrong is said without a runtime: real processes and virtual time share it, and the disks that fail"},
	{"cluster-tests/sim", []string{"command", "store", "node", "internal/agent", "internal/faultfs", "cluster-tests/history", "cluster-tests/workload", "cluster-tests/fault"},
		"it stands a whole cluster on another network and another time, and knows it from outside"},
	{"cluster-tests/debian-ndjson", nil,
		"a filter of its own: it makes input, whatever reads it"},
}

// everybodyMay import these.
var everybodyMay = []string{"internal/planted"}

// nobodyImports are packages that no file may import, tests included.
var nobodyImports = []string{"cluster-tests", "cluster-tests/sim", "cmd/holdfast"}

// home is a module of others that belongs to few of our packages.
type home struct {
	module string
	in     []string
	why    string
}

var homes = []home{
	{"github.com/gin-gonic/gin", []string{"http"},
		"the web framework stays replaceable behind http"},
	{"go.etcd.io/bbolt", []string{"store"},
		"all that is on disk is store's"},
	{"github.com/tidwall/btree", []string{"store"},
		"the buffer over the file is store's"},
	{"github.com/hanwen/go-fuse", []string{"internal/faultfs"},
		"no file system in the binary"},
	{"github.com/hashicorp/raft-wal", []string{"store"},
		"which log store is used is store's"},
	{"github.com/hashicorp/raft-boltdb", []string{"store"},
		"which log store is used is store's"},
	{"github.com/spf13/cobra", []string{"cmd/holdfast"},
		"flags are read in one place and handed on as values"},
	{"github.com/spf13/viper", []string{"cmd/holdfast"},
		"settings are read in one place and handed on as values"},
	{"github.com/HdrHistogram/hdrhistogram-go", []string{"internal/bench"},
		"what measures a cluster is no part of a node"},
	{"github.com/anishathalye/porcupine", []string{"cluster-tests", "cluster-tests/workload"},
		"no checker in the binary"},
}

// checkFile says how one source file breaks the map; nil when it does not.
// src is as go/parser takes it: nil to read the file itself.
func checkFile(pkg, file string, src any) []string {
	i := slices.IndexFunc(importMap, func(r rule) bool { return r.pkg == pkg })
	if i < 0 {
		return []string{fmt.Sprintf("%s: package %q has no line in the import map; say in importMap what it may import and why", file, pkg)}
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ImportsOnly)
	if err != nil {
		return []string{err.Error()}
	}
	test := strings.HasSuffix(file, "_test.go")
	var broken []string
	for _, spec := range parsed.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return []string{file + ": " + err.Error()}
		}
		if path == strings.TrimSuffix(module, "/") {
			broken = append(broken, fmt.Sprintf("%s imports the module's root, which holds no package", file))
			continue
		}
		ours, isOurs := strings.CutPrefix(path, module)
		switch {
		case isOurs && slices.Contains(nobodyImports, ours):
			broken = append(broken, fmt.Sprintf("%s imports %s, which nobody may", file, ours))
		case isOurs && !test && !slices.Contains(importMap[i].may, ours) && !slices.Contains(everybodyMay, ours):
			broken = append(broken, fmt.Sprintf("%s imports %s: %s may import %q only (%s)", file, ours, pkg, importMap[i].may, importMap[i].why))
		case !isOurs && !test:
			for _, h := range homes {
				if (path == h.module || strings.HasPrefix(path, h.module+"/")) && !slices.Contains(h.in, pkg) {
					broken = append(broken, fmt.Sprintf("%s imports %s, which belongs to %q (%s)", file, path, h.in, h.why))
				}
			}
		}
	}
	return broken
}

// sources finds all Go files of the module: folder below the root -> files.
func sources(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			hidden := strings.HasPrefix(name, ".") && name != ".."
			if hidden || name == "testdata" || name == "bin" || name == "holdfast-dev" {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, ".go") {
			rel, err := filepath.Rel("..", filepath.Dir(path))
			if err != nil {
				return err
			}
			found[filepath.ToSlash(rel)] = append(found[filepath.ToSlash(rel)], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestImportsFollowTheMap(t *testing.T) {
	found := sources(t)
	for pkg, files := range found {
		for _, file := range files {
			for _, b := range checkFile(pkg, file, nil) {
				t.Error(b)
			}
		}
	}
	for _, r := range importMap {
		if len(found[r.pkg]) == 0 {
			t.Errorf("the import map has a line for %q, which holds no Go file", r.pkg)
		}
	}
}

func TestImportMapIsSound(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range importMap {
		if seen[r.pkg] {
			t.Errorf("%s stands in the map twice", r.pkg)
		}
		if r.why == "" {
			t.Errorf("%s: no reason is given", r.pkg)
		}
		// Each line imports only what stands above it: so there is no cycle.
		for _, m := range r.may {
			above := slices.IndexFunc(importMap, func(o rule) bool { return o.pkg == m })
			self := slices.IndexFunc(importMap, func(o rule) bool { return o.pkg == r.pkg })
			if above < 0 || above >= self {
				t.Errorf("%s may import %s, which does not stand above it", r.pkg, m)
			}
		}
		seen[r.pkg] = true
	}
}

func TestImportCheckFailsOnAPlantedImport(t *testing.T) {
	const command, store = `"` + module + `command"`, `"` + module + `store"`
	for _, c := range []struct {
		name, pkg, file, imports string
		want                     string // part of the complaint; empty: none
	}{
		{"what the map allows", "fsm", "fsm.go", command + ";" + store, ""},
		{"the standard library", "command", "x.go", `"time"`, ""},
		{"against the map", "http", "server.go", store, "http may import"},
		{"an alias does not hide it", "http", "server.go", "s " + store, "http may import"},
		{"nor does a blank import", "transport", "x.go", "_ " + store, "transport may import"},
		{"the centre imports nothing", "command", "x.go", store, "command may import"},
		{"a test may build real parts", "node", "node_test.go", store, ""},
		{"but not whole clusters", "node", "node_test.go", `"` + module + `cluster-tests"`, "which nobody may"},
		{"nobody imports the program", "client", "x.go", `"` + module + `cmd/holdfast"`, "which nobody may"},
		{"a package without a line", "util", "x.go", `"time"`, "no line in the import map"},
		{"a folder below a known one", "store/inner", "x.go", `"time"`, "no line in the import map"},
		{"a package that does not exist yet", "node", "x.go", `"` + module + `util"`, "node may import"},
		{"bbolt outside store", "node", "x.go", `"go.etcd.io/bbolt"`, "belongs to"},
		{"a package of gin outside http", "cmd/holdfast", "x.go", `"github.com/gin-gonic/gin/binding"`, "belongs to"},
		{"raft-boltdb with its major version", "fsm", "x.go", `"github.com/hashicorp/raft-boltdb/v2"`, "belongs to"},
		{"raft itself where it is run", "node", "x.go", `"github.com/hashicorp/raft"`, ""},
		{"a file that does not parse", "node", "x.go", `"unterminated`, "x.go"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(checkFile(c.pkg, c.file, "package p\nimport ("+c.imports+")\n"), "\n")
			if c.want == "" && got != "" {
				t.Errorf("complains without cause: %s", got)
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q, want a complaint with %q", got, c.want)
			}
		})
	}
}
