package clustertests

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// TestTheDialectIsExactAtEveryNode sends requests as clients of other languages write
// them, and holds the answers to the letter where such clients look at the letter.
func TestTheDialectIsExactAtEveryNode(t *testing.T) {
	c := startCluster(t, threeSites)
	nodes := leaderAndCopies(c)
	for kind, n := range nodes {
		t.Run(kind, func(t *testing.T) { dialect(t, n, kind+"/") })
	}
	t.Run("one moment", func(t *testing.T) { oneMoment(t, c.nodes) })
}

// exchange sends a request, demands an answer, and returns its index. A text that
// ends in three dots is how the answer begins.
func exchange(t *testing.T, n *node, method, path, body string, status int, text string) (index uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), workload.Patience)
	defer cancel()
	got, answer, header, err := call(ctx, n, method, path, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	start, open := strings.CutSuffix(text, "...")
	if got != status || string(answer) != text && !(open && strings.HasPrefix(string(answer), start)) {
		t.Errorf("%s %s %s:\n%d %s, want\n%d %s", method, path, body, got, answer, status, text)
	}
	if index, err = strconv.ParseUint(header.Get("X-Consul-Index"), 10, 64); err != nil && header.Get("X-Consul-Index") != "" {
		t.Errorf("%s %s: X-Consul-Index %q", method, path, header.Get("X-Consul-Index"))
	}
	return index
}

func dialect(t *testing.T, n *node, dir string) {
	say := func(method, path, body string, status int, text string) uint64 {
		t.Helper()
		return exchange(t, n, method, path, body, status, text)
	}
	const most = "18446744073709551615"
	kv := "/v1/kv/" + dir
	session := func(body string) (id string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), workload.Patience)
		defer cancel()
		var made struct{ ID string }
		_, answer, _, err := call(ctx, n, http.MethodPut, "/v1/session/create", []byte(body))
		if err != nil || json.Unmarshal(answer, &made) != nil || made.ID == "" {
			t.Fatalf("%s: %s %v", body, answer, err)
		}
		return made.ID
	}
	// entry is the answer for a key that one write made and another may have changed.
	entry := func(lock uint64, key, flags, value string, made, changed uint64, session string) string {
		if session != "" {
			session = `,"Session":"` + session + `"`
		}
		return fmt.Sprintf(`[{"LockIndex":%d,"Key":"%s%s","Flags":%s,"Value":%s,"CreateIndex":%d,"ModifyIndex":%d%s}]`,
			lock, dir, key, flags, value, made, changed, session)
	}

	// Numbers are exact, an empty value is null, a write of what is there is none.
	made := say("PUT", kv+"k?flags="+most, "", 200, "true")
	say("GET", kv+"k?consistent", "", 200, entry(0, "k", most, "null", made, made, ""))
	say("PUT", kv+"k?flags="+most, "", 200, "true")
	say("GET", kv+"k?consistent", "", 200, entry(0, "k", most, "null", made, made, ""))
	changed := say("PUT", kv+"k", "hello", 200, "true")
	say("GET", kv+"k?consistent", "", 200, entry(0, "k", "0", `"aGVsbG8="`, made, changed, ""))
	say("PUT", kv+"k?cas="+strconv.FormatUint(made, 10), "x", 200, "false")
	say("PUT", "/v1/txn", `[{"kv":{"verb":"cas","key":"`+dir+`k","value":"eA==","flags":`+most+`,"index":`+strconv.FormatUint(made, 10)+`},"node":null}]`,
		409, `{"Results":null,"Errors":[{"OpIndex":0,"What":"failed to set key \"`+dir+`k\", index is stale"}]}`)

	// Locks are told in the words that lock clients compare, whoever decides.
	say("PUT", kv+"l?acquire=nobody", "x", 500, `invalid session "nobody"`)
	say("PUT", "/v1/session/renew/nobody", "", 404, "Session id 'nobody' not found")
	say("PUT", "/v1/session/create", `{"TTL":"9s"}`, 500, "Invalid Session TTL...")
	say("PUT", "/v1/session/destroy/nobody", "", 200, "true")
	if say("GET", "/v1/session/info/nobody?consistent", "", 200, "[]") == 0 {
		t.Error("no index with the answer that a session is not there")
	}
	one, two := session(`{"ttl":"10s","lockdelay":"5000ms","unknown":1}`), session(``)
	made = say("PUT", kv+"l?acquire="+one, "", 200, "true")
	say("PUT", kv+"l?acquire="+two, "x", 200, "false")
	say("PUT", kv+"l?release="+two, "x", 200, "false")
	changed = say("PUT", kv+"l?flags=7", "x", 200, "true")
	say("GET", kv+"l?consistent", "", 200, entry(1, "l", "7", `"eA=="`, made, changed, one))
	changed = say("PUT", "/v1/session/destroy/"+one, "", 200, "true")
	say("GET", kv+"l?consistent", "", 200, entry(1, "l", "7", `"eA=="`, made, changed, ""))
	say("PUT", kv+"l?acquire="+two, "x", 200, "false") // for the lock-delay
	say("PUT", "/v1/session/destroy/"+two, "", 200, "true")

	// The index of a prefix goes up with every delete under it, also of all above it.
	say("PUT", kv+"p/a/1", "x", 200, "true")
	say("PUT", kv+"p/b/1", "x", 200, "true")
	var last uint64
	for _, row := range []struct {
		cut    string
		status int
		left   string
	}{
		{"p/a/1", 200, `["` + dir + `p/a/2"]`},
		{"p/a/?recurse", 404, ""},
		{"p/?recurse", 404, ""},
	} {
		say("PUT", kv+"p/a/2", row.cut, 200, "true")
		gone := say("DELETE", kv+row.cut, "", 200, "true")
		index := say("GET", kv+"p/a/?keys&consistent", "", row.status, row.left)
		if index <= last || index < gone {
			t.Errorf("after the delete of %s at %d the index of p/a/ is %d, and was %d", row.cut, gone, index, last)
		}
		last = index
	}
}

// oneMoment has every node write one key many times at once, so that writes share log
// entries: each has an index of its own, and of all that may create a key one does.
func oneMoment(t *testing.T, nodes []*node) {
	const each = 40
	var (
		mu      sync.Mutex
		indexes = map[uint64]bool{}
		created int
		work    sync.WaitGroup
	)
	for _, n := range nodes {
		for i := range each {
			work.Go(func() {
				w := put(n, "moment/all", n.name+strconv.Itoa(i), "")
				first := put(n, "moment/first", n.name+strconv.Itoa(i), "cas=0")
				mu.Lock()
				defer mu.Unlock()
				if !w.ok || w.err != nil || first.outcome != history.Decided || first.err != nil {
					t.Errorf("%+v %+v", w, first)
				}
				indexes[w.revision] = true
				if first.ok {
					created++
				}
			})
		}
	}
	work.Wait()
	if len(indexes) != each*len(nodes) || created != 1 {
		t.Errorf("%d writes have %d indexes; %d created the key", each*len(nodes), len(indexes), created)
	}
}
