package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// fakeNode is a node of one key-value table. Its address is what
// HOLDFAST_HTTP_ADDR says while the test runs.
type fakeNode struct {
	mu       sync.Mutex
	index    uint64
	entries  map[string]kvEntry
	queries  []string
	requests int
	bulk     func(request int, record int) string // what fails, "" nothing
}

func newFakeNode(t *testing.T) *fakeNode {
	t.Helper()
	n := &fakeNode{entries: map[string]kvEntry{}}
	s := httptest.NewServer(n)
	t.Cleanup(s.Close)
	t.Setenv("HOLDFAST_HTTP_ADDR", s.Listener.Addr().String())
	return n
}

func (n *fakeNode) set(key, value string, flags uint64) {
	n.index++
	e, ok := n.entries[key]
	if !ok {
		e.CreateIndex = n.index
	}
	e.Key, e.Value, e.Flags, e.ModifyIndex = key, []byte(value), flags, n.index
	n.entries[key] = e
}

func (n *fakeNode) under(prefix string) []kvEntry {
	es := []kvEntry{}
	for k, e := range n.entries {
		if strings.HasPrefix(k, prefix) {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(a, b kvEntry) int { return strings.Compare(a.Key, b.Key) })
	return es
}

func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.requests++
	n.queries = append(n.queries, r.URL.RawQuery)
	q := r.URL.Query()
	w.Header().Set("X-Holdfast-Node", "e1")
	w.Header().Set("X-Holdfast-Site", "east")
	w.Header().Set("X-Holdfast-Applied", fmt.Sprint(n.index))
	w.Header().Set("X-Holdfast-Staleness", "30")
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	if prefix, ok := strings.CutPrefix(r.URL.Path, "/v1/bulk/"); ok {
		w.Header().Set("X-Consul-Index", fmt.Sprint(n.index))
		if r.Method == "PUT" {
			n.importPairs(w, r, prefix)
			return
		}
		pairs := []client.Pair{}
		for _, e := range n.under(prefix) {
			pairs = append(pairs, client.Pair{Key: e.Key, Flags: e.Flags, Value: e.Value})
		}
		answer(pairs)
		return
	}
	key := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
	held := true
	if cas := q.Get("cas"); cas != "" {
		want, _ := strconv.ParseUint(cas, 10, 64)
		held = n.entries[key].ModifyIndex == want
	}
	switch {
	case r.Method == "PUT":
		b, _ := io.ReadAll(r.Body)
		if held {
			flags, _ := strconv.ParseUint(q.Get("flags"), 10, 64)
			n.set(key, string(b), flags)
		}
		w.Header().Set("X-Consul-Index", fmt.Sprint(n.index))
		answer(held)
	case r.Method == "DELETE":
		for _, e := range n.under(key) {
			if held && (e.Key == key || q.Has("recurse")) {
				delete(n.entries, e.Key)
				n.index++
			}
		}
		w.Header().Set("X-Consul-Index", fmt.Sprint(n.index))
		answer(held)
	default:
		w.Header().Set("X-Consul-Index", fmt.Sprint(max(n.index, 1)))
		es := n.under(key)
		if !q.Has("recurse") && !q.Has("keys") {
			es = slices.DeleteFunc(es, func(e kvEntry) bool { return e.Key != key })
		}
		if len(es) == 0 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if q.Has("keys") {
			var keys []string
			for _, e := range es {
				keys = append(keys, e.Key)
			}
			answer(keys)
			return
		}
		answer(es)
	}
}

func (n *fakeNode) importPairs(w http.ResponseWriter, r *http.Request, prefix string) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	lines, done := bufio.NewScanner(r.Body), 0
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var p client.Pair
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			panic(err)
		}
		if n.bulk != nil {
			switch fail := n.bulk(n.requests, done+1); fail {
			case "":
			case "hang up":
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			default:
				_, _ = fmt.Fprintf(w, `{"Done":%d,"Index":%d,"Errors":[%s]}`, done, n.index, fail)
				return
			}
		}
		n.set(prefix+p.Key, string(p.Value), p.Flags)
		done++
		_, _ = fmt.Fprintf(w, `{"Done":%d,"Index":%d}`+"\n", done, n.index)
	}
	_, _ = fmt.Fprintf(w, `{"Done":%d,"Index":%d,"Errors":[]}`+"\n", done, n.index)
}

func TestKeysArePutReadAndDeleted(t *testing.T) {
	newFakeNode(t)
	file := filepath.Join(t.TempDir(), "v")
	if err := os.WriteFile(file, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(t, "", "kv", "put", "a/x", "one").success(t, "set a/x at index 1\n")
	cli(t, "from\x00stdin", "kv", "put", "a/y", "-", "--flags", "42").success(t, "set a/y at index 2\n")
	cli(t, "", "kv", "put", "b", "@"+file).success(t, "set b at index 3\n")
	cli(t, "", "kv", "put", "c", "@"+file+".absent").refusal(t, "no such file")

	cli(t, "", "kv", "get", "a/x").success(t, "one\n")
	cli(t, "", "kv", "get", "a/y", "--raw").success(t, "from\x00stdin")
	cli(t, "", "kv", "get", "b", "--raw").success(t, "from a file\n")
	cli(t, "", "kv", "get", "none").refusal(t, `key "none" does not exist`)
	cli(t, "", "kv", "get", "a/", "--recurse").success(t, "a/x:one\na/y:from\x00stdin\n")
	cli(t, "", "kv", "get", "a/", "--keys").success(t, "a/x\na/y\n")
	cli(t, "", "kv", "list").success(t, "a/x\na/y\nb\n")
	cli(t, "", "kv", "list", "none").success(t, "")
	cli(t, "", "kv", "list", "a/", "--count").success(t, "2\n")
	cli(t, "", "kv", "list", "none", "--count", "--json").success(t, "0\n")
	cli(t, "", "kv", "list", "--count", "--long").refusal(t, "--count")
	cli(t, "", "kv", "list", "none", "--json").success(t, "[]\n")
	cli(t, "", "kv", "list", "a/", "--long").success(t, ""+
		"KEY  FLAGS  SIZE  CREATED  MODIFIED  SESSION\n"+
		"a/x  0      3 B   1        1         -\n"+
		"a/y  42     10 B  2        2         -\n")

	var e kvEntry
	if r := cli(t, "", "kv", "get", "a/y", "--json"); json.Unmarshal([]byte(r.out), &e) != nil ||
		string(e.Value) != "from\x00stdin" || e.Flags != 42 || e.ModifyIndex != 2 {
		t.Errorf("%+v", r)
	}

	cli(t, "", "kv", "put", "a/x", "two", "--cas", "1").success(t, "set a/x at index 4\n")
	cli(t, "", "kv", "put", "a/x", "three", "--cas", "1").refusal(t, "a/x was left as it is at index 4", "--cas")
	cli(t, "", "kv", "put", "new", "v", "--cas", "0").success(t, "set new at index 5\n")
	cli(t, "", "kv", "delete", "a/x", "--cas", "1").refusal(t, "a/x was left")
	cli(t, "", "kv", "delete", "a/x", "--json").success(t, "{\n  \"OK\": true,\n  \"Index\": 6\n}\n")
	cli(t, "", "kv", "delete", "", "--recurse").success(t, "deleted all keys under \"\" at index 9\n")
	cli(t, "", "kv", "list").success(t, "")
}

func TestReadFlagsReachTheNode(t *testing.T) {
	n := newFakeNode(t)
	n.set("k", "v", 0)
	for args, want := range map[string]string{
		"kv get k --stale":                 "stale=",
		"kv get k --consistent":            "consistent=",
		"kv get k --max-stale 5s":          "max_stale=5s&stale=",
		"kv get k --min-index 7 --wait 2s": "min_index=7&wait=2s",
		"kv list k --stale --separator /":  "keys=&separator=%2F&stale=",
		"kv list k --long --stale":         "recurse=&stale=",
		"kv export k --consistent":         "consistent=",
		"kv get k":                         "",
	} {
		n.queries = nil
		if r := cli(t, "", strings.Fields(args)...); r.status != 0 || len(n.queries) != 1 || n.queries[0] != want {
			t.Errorf("%s: %+v asked %q, want %q", args, r, n.queries, want)
		}
	}
	// Flags that say where to ask can stand before the command, too.
	address := os.Getenv("HOLDFAST_HTTP_ADDR")
	t.Setenv("HOLDFAST_HTTP_ADDR", "127.0.0.1:1")
	cli(t, "", "--http-addr", address, "kv", "get", "k").success(t, "v\n")
	cli(t, "", "--http-addr", "127.0.0.1:2", "kv", "get", "k", "--http-addr", address).success(t, "v\n")
	cli(t, "", "--json", "version", "--json=false").success(t, cli(t, "", "version").out)
	cli(t, "", "--token", "x", "dev", "heal", "east").refusal(t, "holdfast dev heal has no flag --token")
	t.Setenv("HOLDFAST_HTTP_ADDR", address)
	if r := cli(t, "", "kv", "get", "k", "-v"); r.out != "v\n" || !strings.Contains(r.err, "answered by e1 at east") || !strings.Contains(r.err, "at most 30ms old") {
		t.Errorf("%+v", r)
	}
}

const twoRecords = `[{"key":"a","flags":1,"value":"eA=="},{"Key":"b","value":null,"CreateIndex":3}]`

func TestImportReadsWhatExportWritesInBothForms(t *testing.T) {
	dir := t.TempDir()
	for name, input := range map[string]string{
		"array":             twoRecords,
		"array on lines":    " \n[\n{\"key\":\"a\",\"flags\":1,\"value\":\"eA==\"},\n{\"key\":\"b\",\"flags\":0,\"value\":\"\"}\n]\n",
		"lines":             "{\"key\":\"a\",\"flags\":1,\"value\":\"eA==\"}\n{\"key\":\"b\"}\n",
		"lines with a mark": "\xef\xbb\xbf{\"key\":\"a\",\"flags\":1,\"value\":\"eA==\"}{\"key\":\"b\"}",
	} {
		t.Run(name, func(t *testing.T) {
			n := newFakeNode(t)
			if r := cli(t, input, "kv", "import", "--prefix", "p/"); r.status != 0 || !strings.HasPrefix(r.out, "imported 2 records (3 B) in ") {
				t.Fatalf("%+v", r)
			}
			if e := n.entries["p/a"]; string(e.Value) != "x" || e.Flags != 1 || len(n.entries) != 2 {
				t.Errorf("%+v", n.entries)
			}
			for _, format := range []string{"json", "ndjson"} {
				file := filepath.Join(dir, format)
				if r := cli(t, "", "kv", "export", "p/", "-o", file, "--format", format); r.status != 0 ||
					!strings.HasPrefix(r.out, "exported 2 records (7 B) at index 2 to "+file) {
					t.Fatalf("%+v", r)
				}
				before := n.index
				var report importReport
				if r := cli(t, "", "kv", "import", file, "--json"); json.Unmarshal([]byte(r.out), &report) != nil || report.Records != 2 || report.Index != before+2 {
					t.Fatalf("%+v", r)
				}
				n.index = 2
			}
		})
	}
}

func TestExportToStandardOutput(t *testing.T) {
	n := newFakeNode(t)
	cli(t, "", "kv", "export").success(t, "[]\n")
	cli(t, "", "kv", "export", "--format", "ndjson").success(t, "")
	n.set("a", "x", 1)
	n.set("b", "", 0)
	cli(t, "", "kv", "export").success(t, "[\n\t"+`{"key":"a","flags":1,"value":"eA=="}`+",\n\t"+`{"key":"b","flags":0,"value":""}`+"\n]\n")
	cli(t, "", "kv", "export", "b", "--format", "ndjson").success(t, `{"key":"b","flags":0,"value":""}`+"\n")
	cli(t, "", "kv", "export", "--format", "xml").refusal(t, "--format")
}

func TestAFailedExportLeavesTheFileAsItWas(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, twoRecords[:50])
	}))
	defer s.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := cli(t, "", "kv", "export", "-o", file, "--http-addr", s.URL); r.status != 1 || !strings.Contains(r.err, "cut off") {
		t.Errorf("%+v", r)
	}
	entries, err := os.ReadDir(dir)
	if b, _ := os.ReadFile(file); string(b) != "before" || err != nil || len(entries) != 1 {
		t.Errorf("%q, %v", b, entries)
	}
	cli(t, "", "kv", "export", "-o", filepath.Join(dir, "none", "f")).refusal(t, "no such file or directory")
}

func TestImportGoesOnAfterAFailureInTheMiddle(t *testing.T) {
	for _, failure := range []string{"hang up", `{"error":"no_leader","message":"No cluster leader"}`} {
		t.Run(failure, func(t *testing.T) {
			n := newFakeNode(t)
			n.bulk = func(request, record int) string {
				if request == 2 && record == 3 {
					return failure
				}
				return ""
			}
			var input strings.Builder
			for i := range 100 {
				_, _ = fmt.Fprintf(&input, `{"key":"k%02d","value":"eA=="}`+"\n", i)
			}
			var report importReport
			r := cli(t, input.String(), "kv", "import", "--batch", "400", "--json")
			if json.Unmarshal([]byte(r.out), &report) != nil || report.Records != 100 || report.Retries != 1 {
				t.Errorf("%+v", r)
			}
			if len(n.entries) != 100 || n.index != 100 || n.requests < 8 {
				t.Errorf("%d entries at index %d after %d requests", len(n.entries), n.index, n.requests)
			}
		})
	}
}

func TestImportSaysWhereItStopped(t *testing.T) {
	n := newFakeNode(t)
	n.bulk = func(_, record int) string {
		if record == 2 {
			return `{"error":"too_large","message":"Value for key \"b\" is too large","hint":"split it"}`
		}
		return ""
	}
	cli(t, twoRecords, "kv", "import").refusal(t, "stopped at record 2 (b)", "is too large", "what is before it, 1 record, is imported", "split it")

	for name, c := range map[string]struct{ input, want string }{
		"cut off":   {twoRecords[:60], "in the middle"},
		"no end":    {twoRecords[:len(twoRecords)-1], "in the middle"},
		"trailer":   {twoRecords + "x", "byte"},
		"no JSON":   {`{"key":"a"}{nonsense`, "byte 12"},
		"no key":    {`{"key":"a"}{"value":"eA=="}`, "record 2: byte 11 of the input: the record has no key"},
		"no base64": {`{"key":"a","value":"?"}`, "not base64"},
		"no number": {`{"key":"a","flags":-1}`, "flags"},
		"no record": {`["a"]`, "a string stands where a record should be"},
		"not UTF-8": {"{\"key\":\"a\xff\"}", "UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			n.bulk = nil
			cli(t, c.input, "kv", "import").refusal(t, "the import stopped", c.want, "import the file again")
		})
	}
	cli(t, "", "kv", "import", t.TempDir()).refusal(t, "is a directory")
	cli(t, "", "kv", "import", "/nowhere/f").refusal(t, "no such file")
	cli(t, "", "kv", "import", "--timeout", "0s").refusal(t, "--timeout 0s")
	if r := cli(t, " \n", "kv", "import"); r.status != 0 || !strings.HasPrefix(r.out, "imported 0 records") {
		t.Errorf("%+v", r)
	}
}

func TestImportGivesUpAfterTheTimeout(t *testing.T) {
	n := newFakeNode(t)
	n.bulk = func(int, int) string { return `{"error":"no_leader","message":"No cluster leader","hint":"wait"}` }
	cli(t, twoRecords, "kv", "import", "--timeout", "200ms").refusal(t, "No cluster leader", "nothing is imported; wait, and import the file again")
	if n.requests < 2 {
		t.Errorf("%d tries", n.requests)
	}
}

func TestProgressShowsHowFarItIs(t *testing.T) {
	for want, v := range map[string]struct {
		t       transfer
		elapsed time.Duration
	}{
		"1 record  5 B": {transfer{records: 1, bytes: 5}, 0},
		"[############............]  50%  12,345 records  3.0 MiB  1.5 MiB/s  about 2s left": {transfer{records: 12345, bytes: 3 << 20, done: 5, total: 10}, 2 * time.Second},
		"[########################] 100%  0 records  0 B  0 B/s":                             {transfer{done: 11, total: 10}, time.Second},
		"2 records  0 B  waiting: No cluster leader":                                         {transfer{records: 2, waiting: "No cluster leader"}, 0},
	} {
		if got := v.t.line(v.elapsed); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	var b strings.Builder
	newProgress(&b).show(transfer{})
	if b.Len() > 0 {
		t.Errorf("shown where nobody looks: %q", b.String())
	}
}

func TestReplicasAreATableAndALearnerTakesOrders(t *testing.T) {
	var orders []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /v1/replicas":
			_, _ = io.WriteString(w, `[{"ID":"e1-0","Name":"e1","Site":"east","Status":"paused","LastSeenTimestamp":"","LastRequest":"probe","RemoteAddress":"::1","RemotePort":9,
				"TransferredEntries":1200,"TransferredBytes":2048,"SnapshotsSent":1,"DeltasSent":2,"Lag":{"Entries":3,"Bytes":99,"Seconds":-1,"ETA":2},"Log":{"Distance":7,"Used":0.85,"ExpiresIn":60,"Warning":true}},
				{"Name":"w1","Site":"west","Status":"unreachable","Lag":{"Seconds":1.5,"ETA":-1},"Log":{"Distance":-7}}]`)
		default:
			orders = append(orders, r.Method+" "+r.URL.Path)
			_, _ = io.WriteString(w, `{"Running":false,"Mode":"learner","Status":"paused","Applied":7,"Staleness":-1,"SecondsSinceLastSuccess":-1}`)
		}
	}))
	defer s.Close()
	t.Setenv("HOLDFAST_HTTP_ADDR", s.URL)
	cli(t, "", "replicas").success(t, ""+
		"NODE  SITE  STATUS       LAG                             AGE      LAST SEEN  LAST REQUEST  ADDRESS  ENTRIES  SENT     FULL  DELTAS  LOG USED\n"+
		"e1    east  paused       3 entries, 99 B, level in 2.0s  unknown  never      probe         [::1]:9  1,200    2.0 KiB  1     2       85%, needs a copy in 1m0s\n"+
		"w1    west  unreachable  none                            1.5s     never      -             -        0        0 B      0     0       beyond it: needs a copy\n")
	for _, order := range []string{"pause", "resume"} {
		cli(t, "", "replica", order).success(t, "the copy at "+s.URL+" is paused, at revision 7\n")
	}
	if !slices.Equal(orders, []string{"PUT /v1/replica/pause", "PUT /v1/replica/resume"}) {
		t.Errorf("%q", orders)
	}
	var status command.ReplicaStatus
	if r := cli(t, "", "replica", "status", "--json"); json.Unmarshal([]byte(r.out), &status) != nil || status.Status != "paused" {
		t.Errorf("%+v", r)
	}
	if r := cli(t, "", "replica", "status"); !strings.HasPrefix(r.out, "Running        false\nPart           learner\nStatus         paused\n") {
		t.Errorf("%+v", r)
	}
	cli(t, "", "replica", "pause", "--http-addr", "a:1,b:2").refusal(t, "2 nodes", "--http-addr")
}

func TestSitesAndStatusAreTablesForPeopleAndJSONForPrograms(t *testing.T) {
	var notReady bool
	replica := `{"Running":true,"Mode":"learner","Status":"cut-off","FailedRequests":3,"SecondsSinceLastSuccess":8,"Applied":7,"AppliedIndex":70,"Lineage":"abc","Staleness":8200,"LastCatchUp":{"Kind":"log","Records":2,"Bytes":0,"Seconds":0.1},"Diverged":0,"Damaged":[]}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/sites":
			_, _ = io.WriteString(w, `[{"Name":"home","Home":true,"Servers":[{"ID":"n1-0","Name":"n1","Role":"voter","State":"leader","Disk":"slow","Address":"h:8300","HTTP":"h:8500","Applied":9,"Lineage":"00112233445566778899aabbccddeeff","LastContact":"0s","Version":"1.0.0"}]},
				{"Name":"east","Servers":[{"ID":"e1-0","Name":"e1","Role":"learner","State":"catching-up","Address":"e:8300","HTTP":"e:8500","Applied":7,"LastContact":"3ms","Version":"1.0.0","Lag":{"Entries":1200,"Bytes":2048,"Seconds":1.5,"ETA":2}}]}]`)
		case "/v1/replica/status":
			_, _ = io.WriteString(w, replica)
		case "/v1/agent/self":
			_, _ = io.WriteString(w, `{"Config":{"NodeName":"e1","NodeID":"e1-0","Datacenter":"dc1"},"Stats":{"holdfast":{"leader":"n1"}},"Meta":{"holdfast-site":"east","holdfast-version":"1.0.0"}}`)
		case "/v1/status/leader":
			_, _ = io.WriteString(w, `"h:8300"`)
		case "/readyz":
			if notReady {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = io.WriteString(w, `{"error":"not_ready","message":"node has no complete copy yet","hint":"wait"}`)
			}
		}
	}))
	defer s.Close()
	t.Setenv("HOLDFAST_HTTP_ADDR", "127.0.0.1:1,"+s.URL)
	cli(t, "", "sites").success(t, ""+
		"SITE         NODE  ROLE     STATE        DISK     REVISION  LINEAGE       LAG                                          LAST CONTACT  HTTP    NODE PORT  VERSION\n"+
		"home (home)  n1    voter    leader       slow     9         001122334455  none                                         0s            h:8500  h:8300     1.0.0\n"+
		"east         e1    learner  catching-up  unknown  7         -             1,200 entries, 2.0 KiB, 1.5s, level in 2.0s  3ms           e:8500  e:8300     1.0.0\n")
	cli(t, "", "status").success(t, ""+
		"Node           e1 at east ("+s.URL+")\n"+
		"Part           learner\n"+
		"Status         cut-off\n"+
		"Ready          yes\n"+
		"Leader         n1 (h:8300)\n"+
		"Datacenter     dc1\n"+
		"Revision       7 (Raft index 70)\n"+
		"Lineage        abc\n"+
		"Staleness      at most 8.2s\n"+
		"Last probe     8s ago, 3 failed since\n"+
		"Last catch-up  by log: 2 log entries, 100ms\n"+
		"Version        1.0.0\n")
	var report nodeReport
	if r := cli(t, "", "status", "--json"); json.Unmarshal([]byte(r.out), &report) != nil || report.Replica.AppliedIndex != 70 || !report.Ready || report.LeaderName != "n1" {
		t.Errorf("%+v", r)
	}
	cli(t, "", "status", "--ready").success(t, "")
	notReady = true
	cli(t, "", "status", "--ready").refusal(t, "node has no complete copy yet; wait")
	if r := cli(t, "", "status"); !strings.Contains(r.out, "no: node has no complete copy yet") {
		t.Errorf("%+v", r)
	}
	found := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	bad, err := json.Marshal(command.ReplicaStatus{Status: "diverged", Diverged: 12, Damaged: []command.Damage{{Table: "keys", From: "a", To: "b", Problem: "checksum", Found: found}}})
	if err != nil {
		t.Fatal(err)
	}
	replica = string(bad)
	if r := cli(t, "", "status"); !strings.HasSuffix(r.out, "Diverged       from revision 12 on\nDamaged        keys from a to b, found at 2026-01-02 03:04:05: checksum\n") {
		t.Errorf("%+v", r)
	}
}

// A variable that was left behind must not turn one delete into many.
func TestWhatOneRequestDoesIsNotTakenFromTheEnvironment(t *testing.T) {
	var asked string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RequestURI()
		_, _ = w.Write([]byte("true"))
	}))
	defer s.Close()
	t.Setenv("HOLDFAST_HTTP_ADDR", s.Listener.Addr().String())
	t.Setenv("HOLDFAST_RECURSE", "true")
	t.Setenv("HOLDFAST_CAS", "7")
	var out, errs bytes.Buffer
	if status := execute(t.Context(), []string{"kv", "delete", "w/"}, strings.NewReader(""), &out, &errs, nil); status != 0 {
		t.Fatalf("status %d: %s", status, errs.String())
	}
	if asked != "/v1/kv/w/" {
		t.Errorf("asked %s", asked)
	}
}
