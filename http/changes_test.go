package http

import (
	"context"
	"encoding/json"
	nethttp "net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// nodeWithAPast has a/1 created at 1, changed at 3 and 6 and deleted at 7, a/2
// created at 2 and 8 and deleted in between, and b since 5.
func nodeWithAPast(t *testing.T) (*fakeNode, *Server) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, step := range []struct{ method, target, body string }{
		{"PUT", "a/1?flags=7", "one"},
		{"PUT", "a/2", "two"},
		{"PUT", "a/1", "uno"},
		{"DELETE", "a/2", ""},
		{"PUT", "b", "three"},
		{"PUT", "a/1", "eins"},
		{"DELETE", "a/?recurse", ""},
		{"PUT", "a/2", "zwei"},
	} {
		want(t, ask(t, s, step.method, "/v1/kv/"+step.target, step.body), 200, "true")
	}
	return n, s
}

func TestPastReadsGiveTheStateAsItWas(t *testing.T) {
	n, s := nodeWithAPast(t)
	const empty = "" // a 404
	for _, row := range []struct{ target, body, index string }{
		{"a/1?raw&rev=1", "one", "1"},
		{"a/1?raw&rev=2", "one", "1"},
		{"a/1?raw&rev=3", "uno", "3"},
		{"a/1?raw&rev=6", "eins", "6"},
		{"a/1?raw&rev=7", empty, "7"},
		{"a/1?rev=1", `[{"LockIndex":0,"Key":"a/1","Flags":7,"Value":"b25l","CreateIndex":1,"ModifyIndex":1}]`, "1"},
		{"b?rev=4", empty, "4"},
		{"none?rev=6", empty, "6"}, // not 8, the table's index now
		{"a/?keys&rev=2", `["a/1","a/2"]`, "2"},
		{"a/?keys&rev=5", `["a/1"]`, "4"},
		{"?keys&separator=/&rev=5", `["a/","b"]`, "5"},
		{"?keys&rev=6", `["a/1","b"]`, "6"},
		{"a/?keys&rev=7", empty, "7"},
		{"b?recurse&rev=4", empty, "4"},
		{"?recurse&rev=1", `[{"LockIndex":0,"Key":"a/1","Flags":7,"Value":"b25l","CreateIndex":1,"ModifyIndex":1}]`, "1"},
		{"a/?recurse&rev=8", `[{"LockIndex":0,"Key":"a/2","Flags":0,"Value":"endlaQ==","CreateIndex":8,"ModifyIndex":8}]`, "8"},
	} {
		w := ask(t, s, "GET", "/v1/kv/"+row.target, nil)
		if exp := map[bool]int{true: 404, false: 200}[row.body == empty]; w.Code != exp || w.Body.String() != row.body {
			t.Errorf("%s: %d %s, want %s", row.target, w.Code, w.Body, row.body)
		}
		wantHeaders(t, w, "X-Consul-Index", row.index, "X-Holdfast-Applied", "8", "X-Holdfast-Node", "n1")
	}
	// An exchange that served a past read serves the present next.
	if n.oldest = 8; ask(t, s, "GET", "/v1/kv/a/2?raw", nil).Body.String() != "zwei" {
		t.Error("the present is read in the past")
	}
}

func TestPastReadsAskNobodyWhateverTheirMode(t *testing.T) {
	n, s := nodeWithAPast(t)
	for _, q := range []string{"", "&stale", "&consistent", "&max_stale=1ms", "&min_index=3"} {
		want(t, ask(t, s, "GET", "/v1/kv/b?raw&wait=9s&rev=5"+q, nil), 200, "three")
		if n.asked != (command.ReadOptions{Mode: command.ReadStale, MinRevision: 5, Wait: 9 * time.Second}) {
			t.Errorf("%s asked for %+v", q, n.asked)
		}
	}
	ask(t, s, "GET", "/v1/kv/b?raw&rev=5&min_index=7", nil)
	if n.asked.MinRevision != 7 {
		t.Errorf("min_index beyond rev asked for %+v", n.asked)
	}
}

func TestFutureRevisionsAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := nodeWithAPast(t)
		n.waits = true
		for query, patience := range map[string]time.Duration{"rev=9": 5 * time.Second, "rev=9&wait=30s": 30 * time.Second} {
			began := time.Now()
			w := ask(t, s, "GET", "/v1/kv/a/2?raw&"+query, nil)
			if w.Code != 504 || time.Since(began) != patience {
				t.Errorf("%s: %d after %v", query, w.Code, time.Since(began))
			}
			wantHeaders(t, w, "X-Holdfast-Applied", "8", "X-Consul-Index", "")
		}
		later(func() { n.apply(&command.Put{Key: "a/2", Value: []byte("due")}) })
		want(t, ask(t, s, "GET", "/v1/kv/a/2?raw&rev=9", nil), 200, "due")
	})
}

// later runs fn after a while, when everything else waits.
func later(fn func()) { time.AfterFunc(time.Second, fn) }

func TestCompactedRevisionsAreGoneAndTheOldestIsNamed(t *testing.T) {
	n, s := nodeWithAPast(t)
	n.oldest = 4
	for _, target := range []string{
		"/v1/kv/a/1?rev=3", "/v1/kv/a/1?raw&rev=3", "/v1/kv/none?rev=3", "/v1/kv/a/?recurse&rev=3", "/v1/kv/?keys&rev=3", "/v1/bulk/?rev=3",
		"/v1/changes/?from=3", "/v1/changes/?from=1&to=2",
	} {
		w := ask(t, s, "GET", target, nil)
		want(t, w, 410, "revision has been compacted: revision "+map[bool]string{true: "1", false: "3"}[strings.HasSuffix(target, "to=2")]+", the oldest kept is 4")
		wantHeaders(t, w, "X-Holdfast-Oldest", "4", "X-Consul-Index", "", "X-Holdfast-Applied", "8")
	}
	for _, target := range []string{"/v1/kv/a/1?rev=4", "/v1/bulk/?rev=4", "/v1/changes/?from=4"} {
		if w := ask(t, s, "GET", target, nil); w.Code != 200 {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
	n.read = func(context.Context, command.ReadOptions) error { return command.ErrCompacted }
	wantHeaders(t, ask(t, s, "GET", "/v1/kv/a", nil), "X-Holdfast-Oldest", "4")
	n.read = func(context.Context, command.ReadOptions) error { return command.ErrBehind }
	wantHeaders(t, ask(t, s, "GET", "/v1/kv/a", nil), "X-Holdfast-Oldest", "")
}

// change is one change as clients decode it.
type change struct {
	Index uint64
	Op    string
	KV    entry
	Prev  *entry
	Time  time.Time
}

func changesOf(t testing.TB, w *httptest.ResponseRecorder) []change {
	t.Helper()
	var cs []change
	if err := json.Unmarshal(w.Body.Bytes(), &cs); err != nil || w.Code != 200 || cs == nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	return cs
}

// short writes changes as index, operation, key, value and the value before.
func short(cs []change) string {
	var b strings.Builder
	for _, c := range cs {
		b.WriteString(strconv.FormatUint(c.Index, 10) + " " + c.Op + " " + c.KV.Key)
		if c.Op != "delete" {
			b.WriteString("=" + string(c.KV.Value))
		}
		if c.Prev != nil {
			b.WriteString(" (" + string(c.Prev.Value) + ")")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestHistoryIsTheKeysChangesNewestFirst(t *testing.T) {
	n, s := nodeWithAPast(t)
	w := ask(t, s, "GET", "/v1/history/a/1", nil)
	want(t, w, 200, `[{"Index":7,"Op":"delete","KV":{"LockIndex":0,"Key":"a/1","Flags":0,"Value":null,"CreateIndex":0,"ModifyIndex":7},"Time":"2023-11-14T22:13:27.5Z"},`+
		`{"Index":6,"Op":"put","KV":{"LockIndex":0,"Key":"a/1","Flags":0,"Value":"ZWlucw==","CreateIndex":1,"ModifyIndex":6},"Time":"2023-11-14T22:13:26.5Z"},`+
		`{"Index":3,"Op":"put","KV":{"LockIndex":0,"Key":"a/1","Flags":0,"Value":"dW5v","CreateIndex":1,"ModifyIndex":3},"Time":"2023-11-14T22:13:23.5Z"},`+
		`{"Index":1,"Op":"put","KV":{"LockIndex":0,"Key":"a/1","Flags":7,"Value":"b25l","CreateIndex":1,"ModifyIndex":1},"Time":"2023-11-14T22:13:21.5Z"}]`)
	wantHeaders(t, w, "X-Consul-Index", "7", "X-Holdfast-Applied", "8", "X-Holdfast-Next", "", "Content-Type", "application/json")

	for _, row := range []struct{ query, want, next string }{
		{"from=3", "7 delete a/1\n6 put a/1=eins\n3 put a/1=uno\n", ""},
		{"from=7", "7 delete a/1\n", ""},
		{"from=8", "", ""}, // it existed, so the list is empty rather than missing
		{"limit=2", "7 delete a/1\n6 put a/1=eins\n", "3"},
		{"limit=2&to=3", "3 put a/1=uno\n1 put a/1=one\n", ""},
		{"to=5", "3 put a/1=uno\n1 put a/1=one\n", ""},
		{"limit=4", "7 delete a/1\n6 put a/1=eins\n3 put a/1=uno\n1 put a/1=one\n", ""},
		{"limit=18446744073709551615&from=6", "7 delete a/1\n6 put a/1=eins\n", ""},
	} {
		w := ask(t, s, "GET", "/v1/history/a/1?"+row.query, nil)
		if got := short(changesOf(t, w)); got != row.want {
			t.Errorf("%s:\n%swant\n%s", row.query, got, row.want)
		}
		wantHeaders(t, w, "X-Consul-Index", "7", "X-Holdfast-Next", row.next)
	}

	w = ask(t, s, "GET", "/v1/history/none", nil)
	want(t, w, 404, "")
	wantHeaders(t, w, "X-Consul-Index", "8", "X-Holdfast-Node", "n1")
	n.history[len(n.history)-1].Wall = time.Time{}
	if body := ask(t, s, "GET", "/v1/history/a/2?limit=1", nil).Body.String(); strings.Contains(body, "Time") {
		t.Errorf("an unknown time is told: %s", body)
	}
	n.oldest = 5
	w = ask(t, s, "GET", "/v1/history/a/1", nil)
	if got := short(changesOf(t, w)); got != "7 delete a/1\n6 put a/1=eins\n3 put a/1=uno\n" {
		t.Errorf("what is kept: %s", got)
	}
	wantHeaders(t, w, "X-Holdfast-Oldest", "5")
}

func TestHistoryHasTheReadModes(t *testing.T) {
	n, s := nodeWithAPast(t)
	for _, path := range []string{"/v1/history/a/1?", "/v1/changes/a/?from=1&"} {
		for query, exp := range map[string]command.ReadOptions{
			"":                       {},
			"consistent&min_index=7": {Mode: command.ReadConsistent, MinRevision: 7},
			"max_stale=2s&wait=1s":   {Mode: command.ReadStale, MaxStale: 2 * time.Second, Wait: time.Second},
		} {
			if changesOf(t, ask(t, s, "GET", path+query, nil)); n.asked != exp {
				t.Errorf("%s%s asked for %+v", path, query, n.asked)
			}
		}
	}
}

func TestChangesComeInOrderWithWhatWasBefore(t *testing.T) {
	_, s := nodeWithAPast(t)
	const all = "1 put a/1=one\n2 put a/2=two\n3 put a/1=uno (one)\n4 delete a/2 (two)\n5 put b=three\n6 put a/1=eins (uno)\n7 delete a/1 (eins)\n8 put a/2=zwei\n"
	lines := strings.SplitAfter(all, "\n")
	for _, row := range []struct{ target, want, next, index string }{
		{"?from=1", all, "9", "8"},
		{"/?from=1", all, "9", "8"},
		{"/a/?from=1", strings.ReplaceAll(all, lines[4], ""), "9", "8"},
		{"/b?from=1", lines[4], "9", "8"},
		{"/?from=7", lines[6] + lines[7], "9", "8"},
		{"/?from=2&to=3", lines[1] + lines[2], "4", "3"},
		{"/?from=7&to=100", lines[6] + lines[7], "9", "8"},
		{"/?from=1&limit=3", lines[0] + lines[1] + lines[2], "4", "3"},
		{"/a/?from=4&limit=1", lines[3], "6", "5"}, // 5 is elsewhere
		{"/?from=4&limit=1&to=4", lines[3], "5", "4"},
		{"/none?from=1", "", "9", "8"},
		{"/?from=9", "", "9", "8"},
		{"/?from=20", "", "20", "8"},
		{"/?from=4&to=3", "", "4", "3"},
	} {
		w := ask(t, s, "GET", "/v1/changes"+row.target, nil)
		if got := short(changesOf(t, w)); got != row.want {
			t.Errorf("%s:\n%swant\n%s", row.target, got, row.want)
		}
		wantHeaders(t, w, "X-Holdfast-Next", row.next, "X-Consul-Index", row.index, "X-Holdfast-Applied", "8")
	}
	w := ask(t, s, "GET", "/v1/changes/a/?from=3&to=3", nil)
	want(t, w, 200, `[{"Index":3,"Op":"put","KV":{"LockIndex":0,"Key":"a/1","Flags":0,"Value":"dW5v","CreateIndex":1,"ModifyIndex":3},`+
		`"Prev":{"LockIndex":0,"Key":"a/1","Flags":7,"Value":"b25l","CreateIndex":1,"ModifyIndex":1},"Time":"2023-11-14T22:13:23.5Z"}]`)
}

func TestChangesTellLocksFromPuts(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for i, r := range []command.Record{
		{LockIndex: 1, Session: "s"}, // acquired before it existed
		{LockIndex: 1, Session: "s", Value: []byte("v")},
		{LockIndex: 1},
		{LockIndex: 2, Session: "t"},
		{LockIndex: 3, Session: "u"}, // passed on in one step
	} {
		revision := uint64(i + 1)
		r.Key, r.CreateRevision, r.ModifyRevision = "k", 1, revision
		c := command.Change{At: command.Position{Revision: revision}, Record: r}
		if i > 0 {
			c.Prev.Revision = revision - 1
		}
		n.history, n.revision = append(n.history, c), revision
	}
	var ops []string
	for _, c := range changesOf(t, ask(t, s, "GET", "/v1/changes/?from=1", nil)) {
		ops = append(ops, c.Op)
	}
	if got := strings.Join(ops, " "); got != "lock put unlock lock lock" {
		t.Error(got)
	}
}

// TestWhatPrecedesIsToldAlikeByAllNodes compares nodes that have dropped what
// lies behind the compaction point with one that has not yet.
func TestWhatPrecedesIsToldAlikeByAllNodes(t *testing.T) {
	n, s := nodeWithAPast(t)
	for _, row := range []struct {
		oldest uint64
		want   string
	}{
		// a/1 was set at 3, which stays as its state at 5.
		{5, "5 put b=three\n6 put a/1=eins (uno)\n7 delete a/1 (eins)\n8 put a/2=zwei\n"},
		// What it was before 6 is not asked for any more.
		{6, "6 put a/1=eins\n7 delete a/1 (eins)\n8 put a/2=zwei\n"},
		{7, "7 delete a/1\n8 put a/2=zwei\n"},
	} {
		n.oldest = row.oldest
		target := "/v1/changes/?from=" + strconv.FormatUint(row.oldest, 10)
		whole := n.history
		before := changesOf(t, ask(t, s, "GET", target, nil))
		n.history = slices.DeleteFunc(slices.Clone(whole), func(c command.Change) bool {
			superseded := slices.ContainsFunc(whole, func(later command.Change) bool {
				return later.Record.Key == c.Record.Key && later.At.Revision > c.At.Revision && later.At.Revision <= row.oldest
			})
			return c.At.Revision < row.oldest && (superseded || c.Deleted)
		})
		after := changesOf(t, ask(t, s, "GET", target, nil))
		n.history = whole
		if short(before) != row.want || short(after) != row.want {
			t.Errorf("oldest %d: %s\nonce dropped: %s\nwant: %s", row.oldest, short(before), short(after), row.want)
		}
	}
}

func TestRepliesOfChangesEndBetweenIndexes(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	many := func(value string) {
		c := &command.PutMany{}
		for i := range 5 {
			c.KVs = append(c.KVs, command.KV{Key: "k" + strconv.Itoa(i), Value: []byte(value)})
		}
		n.apply(c)
	}
	many("1")
	many("2")
	w := ask(t, s, "GET", "/v1/changes/?from=1&limit=2", nil)
	if cs := changesOf(t, w); len(cs) != 5 || cs[4].Index != 1 {
		t.Errorf("a limit inside an index gave %s", short(cs))
	}
	wantHeaders(t, w, "X-Holdfast-Next", "2")
	w = ask(t, s, "GET", "/v1/changes/?from=1&limit=6", nil)
	if cs := changesOf(t, w); len(cs) != 10 {
		t.Errorf("a limit inside the second index gave %d changes", len(cs))
	}

	big := strings.Repeat("v", 300<<10) // an index is about 2 MB, and 4 MB from the second on
	many(big)
	many(big)
	many(big)
	w = ask(t, s, "GET", "/v1/changes/?from=3", nil)
	if cs := changesOf(t, w); len(cs) != 10 || cs[9].Index != 4 {
		t.Errorf("4 MiB hold %d changes", len(cs))
	}
	wantHeaders(t, w, "X-Holdfast-Next", "5")

	// An index that no reply can hold is refused rather than split.
	small := newTestServer(t, n, func(c *Config) { c.MaxReply = 1 << 20 })
	if w := ask(t, small, "GET", "/v1/changes/?from=3", nil); w.Code != 400 || !strings.Contains(w.Body.String(), "larger than 1048576 bytes") {
		t.Errorf("%d %.100q", w.Code, w.Body)
	}
	want(t, ask(t, small, "GET", "/v1/changes/k0?from=3&to=3", nil, "Accept", "x"), 200, ask(t, s, "GET", "/v1/changes/k0?from=3&to=3", nil).Body.String())

	for range 20 {
		n.apply(&command.Put{Key: "h", Value: []byte(big)})
	}
	w = ask(t, s, "GET", "/v1/history/h", nil)
	cs := changesOf(t, w)
	if len(cs) < 2 || len(cs) > 11 {
		t.Errorf("%d changes of 400 kB in one reply", len(cs))
	}
	wantHeaders(t, w, "X-Holdfast-Next", strconv.FormatUint(cs[len(cs)-1].Index-1, 10))
}

// TestSearchForRareChangesIsBounded looks through many revisions for a prefix
// nobody writes to, on a node whose views are slow.
func TestSearchForRareChangesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode()
		s := newTestServer(t, slowNode{n})
		for range 1000 {
			n.apply(&command.Put{Key: "k"})
		}
		from, replies := 1, 0
		for ; from <= 1000; replies++ {
			began := time.Now()
			w := ask(t, s, "GET", "/v1/changes/rare?from="+strconv.Itoa(from), nil)
			if took := time.Since(began); len(changesOf(t, w)) > 0 || took > 2*viewLimit { // the fake evaluates twice
				t.Fatalf("%d after %v", w.Code, took)
			}
			next, err := strconv.Atoi(w.Header().Get("X-Holdfast-Next"))
			if err != nil || next <= from {
				t.Fatalf("from %d on to %d", from, next)
			}
			from = next
		}
		if replies < 2 {
			t.Error("one reply looked through everything")
		}
		// Who has time to wait gets one answer.
		n.waits = true
		w := ask(t, s, "GET", "/v1/changes/rare?from=1&wait=1m", nil)
		wantHeaders(t, w, "X-Holdfast-Next", "1001")
	})
}

// slowNode takes a second for each step of a search.
type slowNode struct{ *fakeNode }

func (n slowNode) Read(ctx context.Context, o command.ReadOptions, fn func(command.View) error) (command.ReadInfo, error) {
	return n.fakeNode.Read(ctx, o, func(v command.View) error { return fn(slowView{v}) })
}

type slowView struct{ command.View }

func (v slowView) ChangesAfter(prefix string, after command.Position, to uint64, fn func(command.Change) bool) error {
	time.Sleep(time.Second) // virtual
	return v.View.ChangesAfter(prefix, after, to, fn)
}

func TestChangesWaitForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := nodeWithAPast(t)
		n.waits = true
		timed := func(query string) (*httptest.ResponseRecorder, time.Duration) {
			began := time.Now()
			w := ask(t, s, "GET", "/v1/changes/"+query, nil)
			return w, time.Since(began)
		}
		// What is there already is not waited for, nor what lies behind the end.
		for _, query := range []string{"a/?from=1&wait=1m", "none?from=1&to=8&wait=1m", "?from=9"} {
			if _, took := timed(query); took != 0 {
				t.Errorf("%s took %v", query, took)
			}
		}
		// Changes elsewhere do not end the wait, but move Next.
		later(func() { n.apply(&command.Put{Key: "elsewhere"}) })
		w, took := timed("a/?from=9&wait=10s")
		if cs := changesOf(t, w); len(cs) != 0 || took != 10*time.Second {
			t.Errorf("%s after %v", short(cs), took)
		}
		wantHeaders(t, w, "X-Holdfast-Next", "10", "X-Holdfast-Applied", "9")
		// The first change ends it.
		later(func() { n.apply(&command.Put{Key: "a/3", Value: []byte("v")}) })
		w, took = timed("a/?from=9&wait=10s&consistent")
		if cs := changesOf(t, w); short(cs) != "10 put a/3=v\n" || took != time.Second || n.asked.Mode != command.ReadConsistent {
			t.Errorf("%s after %v in mode %d", short(cs), took, n.asked.Mode)
		}
		wantHeaders(t, w, "X-Holdfast-Next", "11")
		// So does the end of what is wanted.
		later(func() { n.apply(&command.Put{Key: "elsewhere", Value: []byte("x")}) })
		if w, took = timed("a/?from=11&to=11&wait=10s"); took != time.Second || w.Header().Get("X-Holdfast-Next") != "12" {
			t.Errorf("%s after %v", w.Header().Get("X-Holdfast-Next"), took)
		}
		// min_index is waited for first, within the same time.
		if w, took = timed("a/?from=12&min_index=99&wait=3s"); w.Code != 504 || took != 3*time.Second {
			t.Errorf("min_index: %d after %v", w.Code, took)
		}
		later(s.stop)
		if w, took = timed("a/?from=12&wait=5m"); w.Code != 200 || took != time.Second {
			t.Errorf("a server that stops: %d after %v", w.Code, took)
		}
	})
}

func TestWaitForChangesEndsWithTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := nodeWithAPast(t)
		n.waits = true
		ctx, cancel := context.WithCancel(t.Context())
		later(cancel)
		began := time.Now()
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/changes/?from=9&wait=5m", nil).WithContext(ctx))
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestFullDataIsToldApart(t *testing.T) {
	n := newFakeNode()
	n.propose = func(context.Context, command.Command) (command.Result, error) {
		return command.Result{}, command.ErrDataFull.With("8 GiB of 8 GiB")
	}
	w := ask(t, newTestServer(t, n), "PUT", "/v1/kv/a", "v", "Accept", "application/json")
	if w.Code != nethttp.StatusInsufficientStorage || !strings.Contains(w.Body.String(), `"error":"data_full","message":"data has reached its size limit (--max-data-size): 8 GiB of 8 GiB","hint":"delete keys`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
