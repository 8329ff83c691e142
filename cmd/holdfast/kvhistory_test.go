package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// answering serves every request with one reply, and tells what was asked for.
func answering(t *testing.T, status int, headers map[string]string, body string) (asked *string) {
	t.Helper()
	asked = new(string)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = r.URL.RequestURI()
		for name, value := range headers {
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	t.Setenv("HOLDFAST_HTTP_ADDR", s.Listener.Addr().String())
	return asked
}

func TestThePastIsReadWithRev(t *testing.T) {
	headers := map[string]string{"X-Consul-Index": "4"}
	asked := answering(t, 200, headers, `[{"Key":"a","Value":"aGk="}]`)
	for want, args := range map[string][]string{
		"/v1/kv/a?rev=7":                    {"kv", "get", "a", "--rev", "7"},
		"/v1/kv/a?recurse=&rev=7&wait=1m0s": {"kv", "get", "a", "--recurse", "--rev", "7", "--wait", "1m"},
		"/v1/kv/a?recurse=&rev=7":           {"kv", "list", "a", "--long", "--rev", "7"},
		"/v1/bulk/a?rev=7":                  {"kv", "export", "a", "--rev", "7"},
	} {
		if r := cli(t, "", args...); r.status != 0 || *asked != want {
			t.Errorf("%v asked for %s: %+v", args, *asked, r)
		}
	}
	cli(t, "", "kv", "get", "a", "--rev", "0").refusal(t, "--rev 0 is not a revision")

	answering(t, 404, headers, "")
	cli(t, "", "kv", "get", "a", "--rev", "7").refusal(t, `key "a" did not exist at revision 7`, `holdfast kv history KEY shows when it did`)
	answering(t, 410, nil, `{"error":"compacted","message":"revision has been compacted: revision 7, the oldest kept is 9","hint":"read at a newer revision"}`)
	cli(t, "", "kv", "list", "--rev", "7").refusal(t, "the oldest kept is 9; read at a newer revision")
}

func TestHistoryIsATableForPeopleAndJSONForPrograms(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	long := strings.Repeat("é", 50)
	encode := func(v string) string { b, _ := json.Marshal([]byte(v)); return string(b) }
	asked := answering(t, 200, map[string]string{"X-Consul-Index": "9"}, fmt.Sprintf(`[
		{"Index":9,"Op":"delete","KV":{"Key":"a","Value":null,"ModifyIndex":9},"Time":%q},
		{"Index":7,"Op":"put","KV":{"Key":"a","Flags":42,"Value":%s,"CreateIndex":4,"ModifyIndex":7}},
		{"Index":6,"Op":"put","KV":{"Key":"a","Value":%s,"CreateIndex":4,"ModifyIndex":6}},
		{"Index":5,"Op":"put","KV":{"Key":"a","Value":"//8=","CreateIndex":4,"ModifyIndex":5}},
		{"Index":4,"Op":"put","KV":{"Key":"a","Value":null,"CreateIndex":4,"ModifyIndex":4}}]`,
		at.Format(time.RFC3339Nano), encode("two\nlines"), encode(long)))
	cli(t, "", "kv", "history", "a").success(t, ""+
		"INDEX  TIME                 CHANGE  FLAGS  SIZE   VALUE\n"+
		"9      2026-01-02 03:04:05  delete  -      -      -\n"+
		"7      -                    put     42     9 B    two?lines\n"+
		"6      -                    put     0      100 B  "+strings.Repeat("é", 39)+"…\n"+
		"5      -                    put     0      2 B    (binary)\n"+
		"4      -                    put     0      0 B    -\n")
	if *asked != "/v1/history/a?limit=100" {
		t.Errorf("asked for %s", *asked)
	}
	var list []kvChange
	r := cli(t, "", "kv", "history", "a", "--json", "--from", "2", "--to", "9", "--limit", "5", "--stale")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 5 || !list[0].Time.Equal(at) || string(list[2].KV.Value) != long || strings.Count(r.out, "Time") != 1 {
		t.Errorf("%v: %+v", err, r)
	}
	if *asked != "/v1/history/a?from=2&limit=5&stale=&to=9" {
		t.Errorf("asked for %s", *asked)
	}
	cli(t, "", "kv", "history", "a", "--limit", "0").refusal(t, "--limit 0")

	answering(t, 404, map[string]string{"X-Consul-Index": "9"}, "")
	cli(t, "", "kv", "history", "a").refusal(t, `key "a" does not exist, and no change of it is kept`)
}
