package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestWatchPrintsALinePerChange(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	stream := ":\nid: 4\n\n" +
		"id: 5@a%2Fb\nevent: put\ndata: {\"Index\":4,\"Op\":\"put\",\"KV\":{\"Key\":\"a/b\",\"Value\":\"b25l\"}}\n\n" +
		"id: 5\nevent: sync\ndata: {\"Index\":5}\n\n" +
		fmt.Sprintf("id: 6.0\nevent: lock\ndata: {\"Index\":6,\"Op\":\"lock\",\"KV\":{\"Key\":\"a/b\",\"Value\":\"dHdvCg==\",\"Session\":\"s\"},\"Prev\":{\"Key\":\"a/b\",\"Value\":\"b25l\"},\"Time\":%q}\n\n", at.Format(time.RFC3339Nano)) +
		"id: 7.2\nevent: delete\ndata: {\"Index\":7,\"Op\":\"delete\",\"KV\":{\"Key\":\"a/b\"}}\n\n" +
		"id:\nevent: compacted\ndata: {\"Oldest\":9}\n\n"
	asked := answering(t, http.StatusOK, nil, stream)
	r := cli(t, "", "kv", "watch", "a/", "--init")
	if want := "4  -  put     a/b = one\n5  -  sync\n6  2026-01-02 03:04:05  lock    a/b = two?\n7  -  delete  a/b\n"; r.out != want || *asked != "/v1/changes/a/?init=" {
		t.Errorf("asked for %s:\n%s", *asked, r.out)
	}
	// What is no longer kept is a failure, with the way out.
	if r.status != 1 || !strings.Contains(r.err, "revision has been compacted: what follows revision 7.2, the oldest kept is 9; ") {
		t.Errorf("%d %s", r.status, r.err)
	}

	r = cli(t, "", "kv", "watch", "--json", "--from", "3", "--stale")
	if *asked != "/v1/changes/?from=3&stale=" {
		t.Errorf("asked for %s", *asked)
	}
	var ids []string
	for line := range strings.Lines(r.out) {
		var e kvEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ids = append(ids, e.ID)
		if e.Op == "lock" && (string(e.KV.Value) != "two\n" || e.Prev == nil || string(e.Prev.Value) != "one" || !e.Time.Equal(at)) {
			t.Errorf("%s", line)
		}
	}
	if got := strings.Join(ids, " "); got != "5@a%2Fb 5 6.0 7.2" {
		t.Errorf("the ids are %s", got)
	}
	cli(t, "", "kv", "watch", "--init", "--from", "3").refusal(t, "--init begins with what there is now")
}
