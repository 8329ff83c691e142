package http

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	nethttp "net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func TestEntryHasTheFormClientsDecode(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	n.records["app/<&\"\\é>"] = command.Record{
		Key: "app/<&\"\\é>", Value: []byte{0, 1, 0xff}, Flags: 3304740253564472344, LockIndex: math.MaxUint64,
		Session: "3a1b", CreateRevision: 7, ModifyRevision: 9,
	}
	n.records["empty"] = command.Record{Key: "empty", CreateRevision: 3, ModifyRevision: 3}

	w := ask(t, s, "GET", "/v1/kv/"+url.PathEscape("app/<&\"\\é>"), nil)
	want(t, w, 200, `[{"LockIndex":18446744073709551615,"Key":"app/\u003c\u0026\"\\é\u003e","Flags":3304740253564472344,"Value":"AAH/","CreateIndex":7,"ModifyIndex":9,"Session":"3a1b"}]`)
	wantHeaders(t, w, "Content-Type", "application/json")
	if e := entries(t, w)[0]; e.Key != "app/<&\"\\é>" {
		t.Errorf("key came back as %q", e.Key)
	}
	want(t, ask(t, s, "GET", "/v1/kv/empty", nil), 200, `[{"LockIndex":0,"Key":"empty","Flags":0,"Value":null,"CreateIndex":3,"ModifyIndex":3}]`)
	want(t, ask(t, s, "GET", "/v1/kv/empty?pretty", nil), 200, `[
    {
        "LockIndex": 0,
        "Key": "empty",
        "Flags": 0,
        "Value": null,
        "CreateIndex": 3,
        "ModifyIndex": 3
    }
]
`)
}

func TestStringsEqualTheStandardEncoders(t *testing.T) {
	var all strings.Builder
	for r := rune(0); r < 0x3000; r++ {
		all.WriteRune(r)
	}
	for _, s := range []string{"", "a", all.String(), "\xff", "a\xc3", "\xe2\x80", "\u2028x\u2029", "é\xffé", "😀"} {
		var got, std string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		b, _ := json.Marshal(s)
		if err := json.Unmarshal(b, &std); err != nil || got != std {
			t.Errorf("%q became %q, the standard encoder makes it %q", s, got, std)
		}
	}
}

func TestReadHeadersComeWithEveryAnswer(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "GET", "/v1/kv/none", nil), 404, "")
	wantHeaders(t, ask(t, s, "GET", "/v1/kv/none", nil), "X-Consul-Index", "1") // 0 is raised

	ask(t, s, "PUT", "/v1/kv/a", "1")
	ask(t, s, "PUT", "/v1/kv/b", "1")
	n.info.LastContact = 12*time.Millisecond + 900*time.Microsecond
	n.info.Staleness = 40*time.Millisecond + time.Microsecond
	for _, target := range []string{"/v1/kv/none", "/v1/kv/none?raw", "/v1/kv/none?recurse", "/v1/kv/none?keys"} {
		w := ask(t, s, "GET", target, nil)
		want(t, w, 404, "")
		wantHeaders(t, w, "X-Consul-Index", "2", "X-Consul-KnownLeader", "true", "X-Consul-LastContact", "12",
			"X-Holdfast-Node", "n1", "X-Holdfast-Site", "home", "X-Holdfast-Applied", "2", "X-Holdfast-Staleness", "41")
	}
	w := ask(t, s, "GET", "/v1/kv/a", nil)
	wantHeaders(t, w, "X-Consul-Index", "1", "X-Holdfast-Applied", "2")

	n.info.StalenessKnown, n.info.KnownLeader = false, false
	n.info.FreshAsOf = time.Date(2026, 5, 1, 12, 0, 0, 0, time.FixedZone("", 3600))
	w = ask(t, s, "GET", "/v1/kv/a?stale", nil)
	wantHeaders(t, w, "X-Consul-KnownLeader", "false", "X-Holdfast-Staleness", "unknown", "X-Holdfast-Fresh-As-Of", "2026-05-01T11:00:00Z")
	n.info.FreshAsOf = time.Time{}
	wantHeaders(t, ask(t, s, "GET", "/v1/kv/a", nil), "X-Holdfast-Staleness", "unknown", "X-Holdfast-Fresh-As-Of", "")
}

func TestIndexFollowsTheQuery(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, key := range []string{"a/1", "a/2", "b/1"} { // revisions 1 to 3
		ask(t, s, "PUT", "/v1/kv/"+key, "x")
	}
	for _, row := range []struct{ target, index string }{
		{"/v1/kv/a/1", "1"},
		{"/v1/kv/a/?recurse", "2"},
		{"/v1/kv/a/?keys", "2"},
		{"/v1/kv/a/?keys&separator=/", "2"},
		{"/v1/kv/none", "3"},
		{"/v1/kv/none?recurse", "3"},
		{"/v1/kv/?recurse", "3"},
		{"/v1/kv/?keys", "3"},
	} {
		wantHeaders(t, ask(t, s, "GET", row.target, nil), "X-Consul-Index", row.index)
	}
	ask(t, s, "DELETE", "/v1/kv/a/1", nil)
	wantHeaders(t, ask(t, s, "GET", "/v1/kv/a/?recurse", nil), "X-Consul-Index", "4")
	ask(t, s, "DELETE", "/v1/kv/a/?recurse", nil)
	wantHeaders(t, ask(t, s, "GET", "/v1/kv/a/?recurse", nil), "X-Consul-Index", "5")
}

func TestParametersCountByPresence(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	ask(t, s, "PUT", "/v1/kv/a/1", "x")
	ask(t, s, "PUT", "/v1/kv/a/2", "y")
	for _, q := range []string{"recurse", "recurse=", "recurse=false", "foo=bar&recurse", "&&recurse=0&x", "wait=1s&recurse", "rec%75rse"} {
		if es := entries(t, ask(t, s, "GET", "/v1/kv/a/?"+q, nil)); len(es) != 2 || es[0].Key != "a/1" || string(es[1].Value) != "y" {
			t.Errorf("?%s: %+v", q, es)
		}
	}
	for _, q := range []string{"keys", "keys=false", "keys&recurse", "recurse&keys", "keys&raw"} {
		want(t, ask(t, s, "GET", "/v1/kv/a/?"+q, nil), 200, `["a/1","a/2"]`)
	}
	want(t, ask(t, s, "GET", "/v1/kv/a/1?raw=false", nil), 200, "x")
	want(t, ask(t, s, "PUT", "/v1/kv/a/1?cas=0", "z"), 200, "false")
	// What means nothing to a route is not even looked at.
	want(t, ask(t, s, "PUT", "/v1/kv/a/1?index=x&wait=y&recurse&stale&consistent&max_stale=%zz&%zz=1", "z"), 200, "true")
	for _, q := range []string{"stale", "stale=", "stale=false"} {
		ask(t, s, "GET", "/v1/kv/a/1?"+q, nil)
		if n.asked.Mode != command.ReadStale {
			t.Errorf("?%s asked for mode %d", q, n.asked.Mode)
		}
	}
}

func TestModesReachTheNode(t *testing.T) {
	for _, row := range []struct {
		query  string
		header string
		want   command.ReadOptions
	}{
		{"", "", command.ReadOptions{}},
		{"?leader&cached", "", command.ReadOptions{}},
		{"?consistent", "", command.ReadOptions{Mode: command.ReadConsistent}},
		{"?stale", "", command.ReadOptions{Mode: command.ReadStale}},
		{"?max_stale=2.5s", "", command.ReadOptions{Mode: command.ReadStale, MaxStale: 2500 * time.Millisecond}},
		{"?min_index=7", "", command.ReadOptions{MinRevision: 7}},
		{"?min_index=7&wait=2.83893084526062s", "", command.ReadOptions{MinRevision: 7, Wait: 2838930845}},
		{"?min_index=7&wait=100h", "", command.ReadOptions{MinRevision: 7, Wait: 10 * time.Minute}},
		{"?min_index=7&wait=-1s", "", command.ReadOptions{MinRevision: 7}},
		{"?stale", "9", command.ReadOptions{Mode: command.ReadStale, MinRevision: 9}},
		{"?min_index=8", "9", command.ReadOptions{MinRevision: 8}},
		{"?index=0&wait=10s", "", command.ReadOptions{Wait: 10 * time.Second}},
	} {
		n := newFakeNode()
		w := ask(t, newTestServer(t, n), "GET", "/v1/kv/a"+row.query, nil, "X-Holdfast-Min-Index", row.header)
		if w.Code != 404 || n.asked != row.want {
			t.Errorf("%s %s: %d, asked for %+v, want %+v", row.query, row.header, w.Code, n.asked, row.want)
		}
	}
}

// walk reads a listing page by page, and returns each page.
func walk(t *testing.T, s *Server, target string, last func(page string) string) (pages []string) {
	t.Helper()
	after := ""
	for {
		w := ask(t, s, "GET", target+"&after="+url.QueryEscape(after), nil)
		if w.Code == 404 {
			return append(pages, "404")
		}
		pages = append(pages, w.Body.String())
		if w.Header().Get("X-Holdfast-More") == "" {
			return pages
		}
		after = last(w.Body.String())
	}
}

func TestPagesOfAListingAreTheListing(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	var all []string
	put := func(key string) {
		ask(t, s, "PUT", "/v1/kv/"+key, "x")
		all = append(all, key)
	}
	put("a/b")
	for i := range 3 * skipAfter {
		put(fmt.Sprintf("a/c/%03d", i))
	}
	put("a/c-")
	put("a/d/1")
	put("b")
	revision := n.revision
	lastKey := func(page string) string {
		var keys []string
		if err := json.Unmarshal([]byte(page), &keys); err != nil {
			t.Fatal(err)
		}
		return keys[len(keys)-1]
	}
	lastEntry := func(page string) string {
		var es []entry
		if err := json.Unmarshal([]byte(page), &es); err != nil {
			t.Fatal(err)
		}
		return es[len(es)-1].Key
	}
	for _, target := range []string{"/v1/kv/?keys", "/v1/kv/a/?keys", "/v1/kv/a/?keys&separator=/", "/v1/kv/?keys&separator=/", "/v1/kv/a/?recurse", "/v1/kv/?recurse", fmt.Sprint("/v1/kv/?keys&rev=", revision)} {
		last := lastKey
		if strings.Contains(target, "recurse") {
			last = lastEntry
		}
		whole := ask(t, s, "GET", target, nil)
		wantHeaders(t, whole, "X-Holdfast-More", "")
		for _, limit := range []int{1, 2, 5, 1000} {
			joined := strings.ReplaceAll(strings.Join(walk(t, s, fmt.Sprint(target, "&limit=", limit), last), ""), "][", ",")
			if joined != whole.Body.String() {
				t.Errorf("%s in pages of %d: %s, not %s", target, limit, joined, whole.Body)
			}
		}
	}
	// The index of a page is that of the listing, and a page that is full with the
	// last of it says that there is no more.
	w := ask(t, s, "GET", "/v1/kv/a/?keys&separator=/&limit=3", nil)
	want(t, w, 200, `["a/b","a/c-","a/c/"]`)
	wantHeaders(t, w, "X-Holdfast-More", "true", "X-Consul-Index", fmt.Sprint(revision-1))
	w = ask(t, s, "GET", "/v1/kv/a/?keys&separator=/&limit=1&after=a/c/", nil)
	want(t, w, 200, `["a/d/"]`)
	wantHeaders(t, w, "X-Holdfast-More", "")
	want(t, ask(t, s, "GET", "/v1/kv/a/?recurse&after=a/d/1", nil), 404, "")
	want(t, ask(t, s, "GET", "/v1/kv/a/?keys&limit=0", nil), 400, "Invalid limit: it must be 1 or more")
	if got := ask(t, s, "GET", "/v1/kv/b?limit=x&after=z", nil); got.Code != 200 {
		t.Errorf("one key: %d %s", got.Code, got.Body)
	}
}

func TestAClientThatHasAKeyAlreadyIsToldSo(t *testing.T) {
	s := newTestServer(t, newFakeNode())
	ask(t, s, "PUT", "/v1/kv/other", "x")
	ask(t, s, "PUT", "/v1/kv/a", "x") // revision 2
	for _, row := range []struct {
		has    string
		status int
	}{
		{"", 200}, {`"1"`, 200}, {"2", 200}, {`"22"`, 200},
		{`"2"`, 304}, {`W/"2"`, 304}, {`"1", "2"`, 304}, {`*`, 304},
	} {
		for _, query := range []string{"", "?raw"} {
			w := ask(t, s, "GET", "/v1/kv/a"+query, nil, "If-None-Match", row.has)
			if w.Code != row.status || (w.Body.Len() == 0) != (row.status == 304) {
				t.Errorf("with %s: %d %q", row.has, w.Code, w.Body)
			}
			wantHeaders(t, w, "ETag", `"2"`, "X-Consul-Index", "2")
		}
	}
	w := ask(t, s, "GET", "/v1/kv/none", nil, "If-None-Match", "*")
	want(t, w, 404, "")
	wantHeaders(t, w, "ETag", "")
	wantHeaders(t, ask(t, s, "GET", "/v1/kv/a?recurse", nil, "If-None-Match", "*"), "ETag", "")
}

func TestKeysOfListings(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "GET", "/v1/kv/?keys", nil), 200, "[]")
	want(t, ask(t, s, "GET", "/v1/kv?keys", nil), 200, "[]")
	want(t, ask(t, s, "GET", "/v1/kv/?recurse", nil), 404, "")
	want(t, ask(t, s, "GET", "/v1/kv/x?keys", nil), 404, "")
	for _, key := range []string{"foo", "foo/", "foo/bar", "foo/baz/1", "foo/baz/2", "fop", "z//y"} {
		ask(t, s, "PUT", "/v1/kv/"+key, "")
	}
	for i := range 50 { // a folder worth jumping over
		ask(t, s, "PUT", fmt.Sprintf("/v1/kv/foo/many/%d", i), "")
	}
	ask(t, s, "PUT", "/v1/kv/foo/manz", "")
	for _, row := range []struct{ target, want string }{
		{"fo?keys&separator=/", `["foo","foo/","fop"]`},
		{"foo/?keys&separator=/", `["foo/","foo/bar","foo/baz/","foo/many/","foo/manz"]`},
		{"foo/?keys&seperator=%2F", `["foo/","foo/bar","foo/baz/","foo/many/","foo/manz"]`},
		{"?keys&separator=/", `["foo","foo/","fop","z/"]`},
		{"fo?keys&separator=o/", `["foo","foo/","fop"]`},
		{"z?keys&separator=", `["z//y"]`},
		{"z?keys&separator=//", `["z//"]`},
		{"fop?keys&separator=/", `["fop"]`},
	} {
		want(t, ask(t, s, "GET", "/v1/kv/"+row.target, nil), 200, row.want)
	}
	if es := entries(t, ask(t, s, "GET", "/v1/kv/foo/b?recurse", nil)); len(es) != 3 {
		t.Errorf("a raw byte prefix found %+v", es)
	}
}

func TestPathIsTheKey(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, row := range []struct{ path, key string }{
		{"/v1/kv/a%2Fb", "a/b"},
		{"/v1/kv/a/b/", "a/b/"},
		{"/v1/kv/a//b", "a//b"},
		{"/v1/kv//lead", "lead"},
		{"/v1/kv/%2Flead", "lead"},
		{"/v1/kv/a+b", "a+b"},
		{"/v1/kv/a%20b%20", "a b "},
		{"/v1/kv/a;b=c", "a;b=c"},
		{"/v1/kv/...", "..."},
		{"/v1/kv/.a/b.", ".a/b."},
		{"/v1/kv/%C3%A9", "é"},
		{"/v1/kv/%25", "%"},
		{"/v1/kv/" + strings.Repeat("k", command.MaxKey), strings.Repeat("k", command.MaxKey)},
	} {
		n.proposed = nil
		want(t, ask(t, s, "PUT", row.path, "v"), 200, "true")
		if put := n.proposed[0].(*command.Put); put.Key != row.key {
			t.Errorf("%s became key %q", row.path, put.Key)
		}
		want(t, ask(t, s, "GET", row.path+"?raw", nil), 200, "v")
		want(t, ask(t, s, "DELETE", row.path, nil), 200, "true")
	}
}

func TestBadRequestsSayWhy(t *testing.T) {
	long := strings.Repeat("k", command.MaxKey+1)
	for _, row := range []struct{ method, target, text string }{
		{"GET", "/v1/kv/", "Missing key name"},
		{"GET", "/v1/kv", "Missing key name"},
		{"GET", "/v1/kv/?raw", "Missing key name"},
		{"PUT", "/v1/kv/", "Missing key name"},
		{"DELETE", "/v1/kv/", "Missing key name"},
		{"GET", "/v1/kv/a/../b", `Invalid key: the segment ".." is not allowed`},
		{"PUT", "/v1/kv/a/.", `Invalid key: the segment "." is not allowed`},
		{"DELETE", "/v1/kv/./a?recurse", `Invalid key: the segment "." is not allowed`},
		{"PUT", "/v1/kv/a%2F%2E%2E", `Invalid key: the segment ".." is not allowed`},
		{"PUT", "/v1/kv/%ff", "Invalid key: it is not valid UTF-8"},
		{"PUT", "/v1/kv/a%00", "Invalid key: control characters"},
		{"PUT", "/v1/kv/a%7f", "Invalid key: control characters"},
		{"GET", "/v1/kv/a%C2%85", "Invalid key: control characters"},
		{"PUT", "/v1/kv/" + long, "Key is too long (2049 > 2048 bytes)"},
		{"GET", "/v1/kv/" + long + "?recurse", "Key is too long"},
		{"GET", "/v1/kv/a?stale&consistent", "Cannot specify ?stale with ?consistent, conflicting semantics."},
		{"GET", "/v1/kv/a?max_stale=1s&consistent", "Cannot specify ?stale with ?consistent, conflicting semantics."},
		{"GET", "/v1/kv/a?index=x", "Invalid index"},
		{"GET", "/v1/kv/a?index=-1", "Invalid index"},
		{"GET", "/v1/kv/a?wait=10", "Invalid wait time"},
		{"GET", "/v1/kv/a?index=1&wait=x", "Invalid wait time"},
		{"GET", "/v1/sites?index=x", "Invalid index"},
		{"GET", "/v1/sites?wait=x", "Invalid wait time"},
		{"GET", "/v1/kv/a?max_stale=5", "Invalid max_stale"},
		{"GET", "/v1/kv/a?max_stale=", "Invalid max_stale"},
		{"GET", "/v1/kv/a?max_stale=-5s", "Invalid max_stale"},
		{"GET", "/v1/kv/a?stale&max_stale=0s", "Invalid max_stale"},
		{"GET", "/v1/kv/a?min_index=x", "Invalid min_index"},
		{"GET", "/v1/kv/a?min_index=%zz", "Invalid min_index"},
		{"PUT", "/v1/kv/a?cas", "Invalid cas"},
		{"PUT", "/v1/kv/a?cas=", "Invalid cas"},
		{"PUT", "/v1/kv/a?cas=-1", "Invalid cas"},
		{"PUT", "/v1/kv/a?cas=18446744073709551616", "Invalid cas"},
		{"PUT", "/v1/kv/a?cas=%zz", "Invalid cas"},
		{"PUT", "/v1/kv/a?flags=x", "Invalid flags"},
		{"PUT", "/v1/kv/a?flags=", "Invalid flags"},
		{"PUT", "/v1/kv/a?cas=1&acquire=s", "Conflicting flags: "},
		{"PUT", "/v1/kv/a?acquire=s&release=s", "Conflicting flags: "},
		{"PUT", "/v1/kv/a?release=s&cas=0", "Conflicting flags: "},
		{"PUT", "/v1/kv/a?acquire=", "missing session"},
		{"PUT", "/v1/kv/a?release", "missing session"},
		{"DELETE", "/v1/kv/a?cas=x", "Invalid cas"},
		{"DELETE", "/v1/kv/a?cas=1&recurse", "Conflicting flags: "},
		{"GET", "/v1/bulk/a/..", "Invalid key"},
		{"PUT", "/v1/bulk/a/..", "Invalid key"},
		{"GET", "/v1/bulk/a?rev=x", "Invalid rev"},
		{"GET", "/v1/bulk/a?rev=0", "Invalid rev"},
		{"GET", "/v1/kv/a?rev=0", "Invalid rev: it must be 1 or more"},
		{"GET", "/v1/kv/a?rev", "Invalid rev"},
		{"GET", "/v1/kv/a?rev=-1", "Invalid rev"},
		{"GET", "/v1/kv/a?rev=1&stale&consistent", "Cannot specify"},
		{"GET", "/v1/history/", "Missing key name"},
		{"GET", "/v1/history", "Missing key name"},
		{"GET", "/v1/history/a?from=x", "Invalid from"},
		{"GET", "/v1/history/a?limit=0", "Invalid limit"},
		{"GET", "/v1/history/a/..", "Invalid key"},
		{"GET", "/v1/changes/a", "Invalid from"},
		{"GET", "/v1/changes/a?from=0", "Invalid from"},
		{"GET", "/v1/changes/a?from=1&to=x", "Invalid to"},
		{"GET", "/v1/changes/a?from=1&limit=-1", "Invalid limit"},
		{"GET", "/v1/changes/a?from=1&wait=x", "Invalid wait time"},
		{"GET", "/v1/kv/a?ns=team", `Invalid ns: "team"`},
		{"PUT", "/v1/kv/a?partition=p", `Invalid partition: "p"`},
		{"GET", "/v1/status/leader?ns=x", `Invalid ns: "x"`},
	} {
		n := newFakeNode()
		n.propose = func(context.Context, command.Command) (command.Result, error) {
			t.Errorf("%s %s was proposed", row.method, row.target)
			return command.Result{}, nil
		}
		w := ask(t, newTestServer(t, n), row.method, row.target, "v")
		if w.Code != 400 || !strings.HasPrefix(w.Body.String(), row.text) {
			t.Errorf("%s %.60s: %d %q, want 400 %q", row.method, row.target, w.Code, w.Body, row.text)
		}
		wantHeaders(t, w, "Content-Type", "text/plain; charset=utf-8")
		text := w.Body.String()
		w = ask(t, newTestServer(t, n), row.method, row.target, "v", "Accept", "application/json")
		var body struct{ Error, Message, Hint string }
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != 400 || body.Error != codeBadRequest || body.Message != text || body.Hint == "" {
			t.Errorf("%s %.60s as JSON: %d %s %v", row.method, row.target, w.Code, w.Body, err)
		}
	}
}

func TestScopeIsOneDatacenterAndOneNamespace(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n, func(c *Config) { c.Datacenter = "berlin" })
	n.records["a"] = command.Record{Key: "a", Value: []byte("v")}
	for _, ok := range []string{"", "dc=berlin", "datacenter=berlin&dc=paris", "dc=", "ns=default&partition=default", "ns=&partition=", "token=x"} {
		want(t, ask(t, s, "GET", "/v1/kv/a?raw&"+ok, nil), 200, "v")
	}
	for _, target := range []string{"/v1/kv/a?dc=paris", "/v1/kv/a?datacenter=paris&dc=berlin", "/v1/status/leader?dc=dc1", "/v1/status/peers?dc=dc1", "/v1/agent/self?dc=x"} {
		want(t, ask(t, s, "GET", target, nil), 500, "No path to datacenter")
	}
	want(t, ask(t, s, "GET", "/v1/kv/a?raw", nil, "X-Consul-Namespace", "default", "X-Consul-Token", "t", "Authorization", "Basic eDp5"), 200, "v")
	for _, name := range []string{"X-Consul-Namespace", "X-Consul-Partition"} {
		w := ask(t, s, "PUT", "/v1/kv/a", "w", name, "team")
		if w.Code != 400 || !strings.Contains(w.Body.String(), name) {
			t.Errorf("%s: %d %q", name, w.Code, w.Body)
		}
	}
}

// TestNoPathAnswersForAnotherDatacenterOrNamespace goes through the route table, so
// that no path can be added that takes another cluster's data for its own.
func TestNoPathAnswersForAnotherDatacenterOrNamespace(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	checked := 0
	for _, rt := range routes() {
		if !strings.HasPrefix(rt.path, "/v1/") || rt.path == "/v1/openapi.json" {
			continue
		}
		checked++
		target := pathParameter.ReplaceAllString(rt.path, "x")
		want(t, ask(t, s, rt.method, target+"?dc=other", nil), 500, "No path to datacenter")
		want(t, ask(t, s, rt.method, target+"?datacenter=other&dc=dc1", nil), 500, "No path to datacenter")
		want(t, ask(t, s, rt.method, target+"?ns=team", nil), 400, `Invalid ns: "team" does not exist here`)
		want(t, ask(t, s, rt.method, target+"?partition=team", nil), 400, `Invalid partition: "team" does not exist here`)
		want(t, ask(t, s, rt.method, target, nil, "X-Consul-Namespace", "team"), 400, `Invalid X-Consul-Namespace: "team" does not exist here`)
		want(t, ask(t, s, rt.method, target, nil, "X-Consul-Partition", "team"), 400, `Invalid X-Consul-Partition: "team" does not exist here`)
	}
	if checked == 0 || len(n.proposed) > 0 || len(n.operated) > 0 {
		t.Errorf("%d paths, proposed %v, carried out %q", checked, n.proposed, n.operated)
	}
}

func TestPutSaysWhatWasAskedAndWhatBecameOfIt(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	w := ask(t, s, "PUT", "/v1/kv/a?flags=3304740253564472344", "hello", "Content-Type", "application/x-www-form-urlencoded")
	want(t, w, 200, "true")
	wantHeaders(t, w, "X-Consul-Index", "1", "Content-Type", "application/json")
	if e := entries(t, ask(t, s, "GET", "/v1/kv/a", nil))[0]; string(e.Value) != "hello" || e.Flags != 3304740253564472344 || e.Session != nil {
		t.Errorf("stored %+v", e)
	}
	w = ask(t, s, "PUT", "/v1/kv/a?cas=9", "x")
	want(t, w, 200, "false")
	wantHeaders(t, w, "X-Consul-Index", "1")
	want(t, ask(t, s, "PUT", "/v1/kv/a?cas=1", "x"), 200, "true")
	want(t, ask(t, s, "PUT", "/v1/kv/new?cas=0", nil), 200, "true")
	want(t, ask(t, s, "PUT", "/v1/kv/a?release=s1", "x"), 200, "false")
	want(t, ask(t, s, "PUT", "/v1/kv/a?acquire=s1", "x"), 500, `invalid session "s1"`)
	want(t, ask(t, s, "PUT", "/v1/kv/a?pretty", "x"), 200, "true\n")
	var got []command.Put
	for _, c := range n.proposed {
		p := *c.(*command.Put)
		p.Value = nil
		got = append(got, p)
	}
	exp := []command.Put{
		{Key: "a", Flags: 3304740253564472344},
		{Key: "a", Mode: command.PutCAS, Index: 9},
		{Key: "a", Mode: command.PutCAS, Index: 1},
		{Key: "new", Mode: command.PutCAS},
		{Key: "a", Mode: command.PutRelease, Session: "s1"},
		{Key: "a", Mode: command.PutAcquire, Session: "s1"},
		{Key: "a"},
	}
	if !slices.EqualFunc(got, exp, func(a, b command.Put) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		t.Errorf("proposed %+v\nwant %+v", got, exp)
	}
}

func TestDeleteSaysWhatBecameOfIt(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	ask(t, s, "PUT", "/v1/kv/a", "1")
	for _, row := range []struct{ target, body, index string }{
		{"/v1/kv/a?cas=0", "false", "1"},
		{"/v1/kv/a?cas=9", "false", "1"},
		{"/v1/kv/none?cas=9", "true", "1"},
		{"/v1/kv/none", "true", "1"},
		{"/v1/kv/a?cas=1", "true", "2"},
		{"/v1/kv/?recurse", "true", "2"},
	} {
		w := ask(t, s, "DELETE", row.target, nil)
		want(t, w, 200, row.body)
		wantHeaders(t, w, "X-Consul-Index", row.index)
	}
	if c, ok := n.proposed[len(n.proposed)-1].(*command.DeleteTree); !ok || c.Prefix != "" {
		t.Errorf("recursive delete of everything proposed %+v", c)
	}
}

func TestRawIsExactAndHarmless(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	value := make([]byte, 100_000)
	for i := range value {
		value[i] = byte(i)
	}
	n.records["a"] = command.Record{Key: "a", Value: value, ModifyRevision: 1}
	w := ask(t, s, "GET", "/v1/kv/a?raw&pretty", nil)
	want(t, w, 200, string(value))
	wantHeaders(t, w, "Content-Type", "text/plain; charset=utf-8", "X-Content-Type-Options", "nosniff",
		"Content-Security-Policy", "sandbox", "X-Consul-Index", "1", "Content-Length", "100000")
	if es := entries(t, ask(t, s, "GET", "/v1/kv/a?raw&recurse", nil)); len(es) != 1 {
		t.Errorf("raw was not ignored in a listing")
	}
}

// firstRead is a body that is declared and does not come. It keeps how much room
// there was for it.
type firstRead int

func (r *firstRead) Read(b []byte) (int, error) {
	*r = firstRead(len(b))
	return 0, io.ErrUnexpectedEOF
}

func TestADeclaredLengthTakesNoMemoryBeforeItsBytesCome(t *testing.T) {
	s := newTestServer(t, newFakeNode())
	for _, path := range []string{"/v1/kv/a", "/v1/txn"} {
		var room firstRead
		req := httptest.NewRequest("PUT", path, &room)
		req.ContentLength = command.DefaultMaxValue
		w := httptest.NewRecorder()
		s.ServeHTTP(w, req)
		want(t, w, 400, "Request body ended early: unexpected EOF")
		if room == 0 || room > firstBuffer {
			t.Errorf("%s: room for %d bytes was made at once", path, room)
		}
	}
}

func TestValueLimit(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	exact := strings.Repeat("v", command.DefaultMaxValue)
	want(t, ask(t, s, "PUT", "/v1/kv/a", exact), 200, "true")
	want(t, ask(t, s, "PUT", "/v1/kv/a", unsized(exact)), 200, "true")
	if got := n.records["a"].Value; string(got) != exact {
		t.Errorf("a value of unknown length came in with %d bytes", len(got))
	}
	for name, body := range map[string]any{"declared": exact + "v", "counted": unsized(exact + "v")} {
		w := ask(t, s, "PUT", "/v1/kv/a", body)
		if w.Code != 413 || !strings.Contains(w.Body.String(), "is too large") {
			t.Errorf("%s: %d %q", name, w.Code, w.Body)
		}
	}
	small := newTestServer(t, n, func(c *Config) { c.MaxValue = 10 })
	want(t, ask(t, small, "PUT", "/v1/kv/a", "12345678901"), 413, `Value for key "a" is too large (11 > 10 bytes)`)
	want(t, ask(t, small, "PUT", "/v1/kv/a", unsized("1234567890")), 200, "true")
	for _, empty := range []any{nil, "", unsized("")} {
		want(t, ask(t, small, "PUT", "/v1/kv/a", empty), 200, "true")
		want(t, ask(t, small, "GET", "/v1/kv/a?raw", nil), 200, "")
	}
}

// unsized hides how long a body is, so that it travels in chunks.
type unsizedReader struct{ *strings.Reader }

func (unsizedReader) Len() {}

func unsized(s string) unsizedReader { return unsizedReader{strings.NewReader(s)} }

func TestListingsLongerThanABuffer(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for i := range 3000 {
		key := "k" + strconv.Itoa(i)
		n.records[key] = command.Record{Key: key, Value: []byte(strings.Repeat("v", 500)), ModifyRevision: 1}
	}
	w := ask(t, s, "GET", "/v1/kv/?recurse", nil)
	if es := entries(t, w); len(es) != 3000 {
		t.Errorf("%d entries", len(es))
	}
	wantHeaders(t, w, "Content-Length", strconv.Itoa(w.Body.Len()))
	if es := entries(t, ask(t, s, "GET", "/v1/kv/?recurse&pretty", nil)); len(es) != 3000 {
		t.Errorf("%d entries when indented", len(es))
	}
	small := newTestServer(t, n, func(c *Config) { c.MaxReply = 1 << 20 })
	if w := ask(t, small, "GET", "/v1/kv/?recurse", nil); w.Code != 400 || !strings.Contains(w.Body.String(), "larger than 1048576 bytes") {
		t.Errorf("%d %.100q", w.Code, w.Body)
	}
	want(t, ask(t, small, "GET", "/v1/kv/k1?raw", nil), 200, strings.Repeat("v", 500))
}

func TestEntriesOfAllSizesAreWhole(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for size := range 300 {
		value := []byte(strings.Repeat("\xfa", size))
		n.records["a"] = command.Record{Key: "a", Value: value}
		exp := `"` + base64.StdEncoding.EncodeToString(value) + `"`
		if size == 0 {
			exp = "null"
		}
		if body := ask(t, s, "GET", "/v1/kv/a", nil).Body.String(); !strings.Contains(body, `"Value":`+exp+",") {
			t.Fatalf("size %d: %s", size, body)
		}
	}
}

func TestErrorsHaveTheirStatusAndText(t *testing.T) {
	for _, row := range []struct {
		err    error
		status int
		text   string
	}{
		{command.ErrNoLeader, 500, "No cluster leader"},
		{fmt.Errorf("propose: %w", command.ErrNoLeader.With("three tries")), 500, "No cluster leader"},
		{command.ErrNotLeader, 500, "node is not the leader"},
		{command.ErrOutcomeUnknown, 500, "leadership lost while committing; the write may or may not have happened"},
		{command.ErrStopping, 500, "node is stopping"},
		{command.ErrTooStale.With("staleness 12s"), 503, "no state within max_stale can be reached: staleness 12s"},
		{command.ErrRevisionNotReached, 504, "revision was not reached in time"},
		{command.ErrCompacted, 410, "revision has been compacted"},
		{command.ErrDamaged, 500, "stored record is damaged"},
		{command.ErrNotReady, 503, "node has no complete copy yet"},
		{command.ErrDiverged, 503, "node's contents differ from the leader's"},
		{command.ErrDataFull, 507, "data has reached its size limit (--max-data-size)"},
		{command.ErrDiskFull.With("n1 has 12 MiB left"), 507, "disk is full: n1 has 12 MiB left"},
		{command.ErrInvalidCommand, 500, "invalid command"},
		{context.Canceled, 500, "Request was cancelled"},
		{context.DeadlineExceeded, 500, "Request was cancelled"},
		{errors.New("secret path /var/lib"), 500, "Internal error"},
	} {
		n := newFakeNode()
		n.revision = 42
		s := newTestServer(t, n)
		n.read = func(context.Context, command.ReadOptions) error { return row.err }
		n.propose = func(context.Context, command.Command) (command.Result, error) { return command.Result{}, row.err }
		w := ask(t, s, "GET", "/v1/kv/a", nil)
		want(t, w, row.status, row.text)
		wantHeaders(t, w, "X-Holdfast-Applied", "42", "X-Holdfast-Node", "n1", "X-Consul-Index", "",
			"Content-Type", "text/plain; charset=utf-8", "X-Content-Type-Options", "nosniff")
		want(t, ask(t, s, "GET", "/v1/bulk/", nil), row.status, row.text)
		want(t, ask(t, s, "PUT", "/v1/kv/a", "v"), row.status, row.text)
		want(t, ask(t, s, "DELETE", "/v1/kv/a", nil), row.status, row.text)
		want(t, ask(t, s, "PUT", "/v1/bulk/", `{"key":"a"}`), row.status, row.text)

		w = ask(t, s, "PUT", "/v1/kv/a", "v", "Accept", "text/html, application/json;q=0.9")
		wantHeaders(t, w, "Content-Type", "application/json")
		var body struct{ Error, Message, Hint string }
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Message != row.text || body.Error == "" || w.Code != row.status {
			t.Errorf("%v: %d %s (%v)", row.err, w.Code, w.Body, err)
		}
		var named *command.Error
		if errors.As(row.err, &named) && (body.Error != named.Code || body.Hint != named.Hint) {
			t.Errorf("%v came as %+v", row.err, body)
		}
	}
}

func TestMissingKeyStaysEmptyForThoseWhoAcceptJSON(t *testing.T) {
	want(t, ask(t, newTestServer(t, newFakeNode()), "GET", "/v1/kv/a", nil, "Accept", "application/json"), 404, "")
}

func TestMethods(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	n.records["a"] = command.Record{Key: "a", Value: []byte("v")}
	w := ask(t, s, "POST", "/v1/kv/a", "x")
	want(t, w, 405, "method POST not allowed")
	wantHeaders(t, w, "Allow", "OPTIONS,DELETE,GET,PUT")
	w = ask(t, s, "PUT", "/v1/status/leader", nil)
	want(t, w, 405, "method PUT not allowed")
	wantHeaders(t, w, "Allow", "OPTIONS,GET")
	w = ask(t, s, "OPTIONS", "/v1/kv/a/b", nil)
	want(t, w, 200, "")
	wantHeaders(t, w, "Allow", "OPTIONS,DELETE,GET,PUT")
	for _, path := range []string{"/v1/none", "/v1", "/v1/kvx", "/v1/status/leader/", "/v1/agent/service/register", "/favicon.ico", "/"} {
		if w := ask(t, s, "GET", path, nil); w.Code != 404 || w.Header().Get("Location") != "" {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	want(t, ask(t, s, "GET", "/v1/kvx", nil), 404, "Invalid path: /v1/kvx")
	want(t, ask(t, s, "GET", "/kv/a", nil), 404, "Invalid path: /kv/a (paths of the API begin with /v1/)")
	_, base := listen(t, s)
	res, err := nethttp.Head(base + "/v1/kv/a?raw")
	if err != nil || res.StatusCode != 200 || res.ContentLength != 1 || res.Header.Get("X-Consul-Index") != "1" {
		t.Errorf("HEAD: %+v %v", res, err)
	}
}

func TestPanicOfAHandlerIsAnAnswer(t *testing.T) {
	n := newFakeNode()
	n.propose = func(context.Context, command.Command) (command.Result, error) { panic("boom") }
	s := newTestServer(t, n)
	want(t, ask(t, s, "PUT", "/v1/kv/a", "v"), 500, "Internal error")
	n.propose = nil
	want(t, ask(t, s, "PUT", "/v1/kv/a", "v"), 200, "true")
}
