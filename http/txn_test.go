package http

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/holdfast-db/holdfast/command"
)

// txnReply is what clients decode.
type txnReply struct {
	Results []struct{ KV entry }
	Errors  []struct {
		OpIndex int
		What    string
	}
}

func decodeTxnReply(t testing.TB, body []byte) (r txnReply) {
	t.Helper()
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return r
}

// decides makes the fake answer every write with a result.
func decides(res command.Result) func(context.Context, command.Command) (command.Result, error) {
	return func(context.Context, command.Command) (command.Result, error) { return res, nil }
}

func TestATransactionIsProposedAsTheClientSentIt(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	n.propose = decides(command.Result{OK: true, Revision: 12, Txn: &command.TxnResult{Records: []command.Record{
		{Key: "a", Flags: math.MaxUint64, CreateRevision: 12, ModifyRevision: 12},
		{Key: "l", LockIndex: 3, Session: "s1", CreateRevision: 4, ModifyRevision: 12},
		{Key: "a", Value: []byte("1"), CreateRevision: 12, ModifyRevision: 12},
	}}})
	w := ask(t, s, "PUT", "/v1/txn?stale&consistent&index=x", ` [
		{"KV":{"Verb":"set","Key":"a","Value":"MQ==","Flags":18446744073709551615},"Node":null,"Service":null,"Check":null},
		{"kv":{"verb":"lock","key":"l","value":null,"session":"s1","namespace":"default","PARTITION":""}},
		{}, null, {"KV":null},
		{"KV":{"Verb":"get","Key":"/a"}},
		{"KV":{"Verb":"cas","Key":"c","Index":9007199254740993,"Value":""}},
		{"KV":{"Verb":"delete-tree","Key":""}}
	] `)
	want(t, w, 200, `{"Results":[`+
		`{"KV":{"LockIndex":0,"Key":"a","Flags":18446744073709551615,"Value":null,"CreateIndex":12,"ModifyIndex":12}},`+
		`{"KV":{"LockIndex":3,"Key":"l","Flags":0,"Value":null,"CreateIndex":4,"ModifyIndex":12,"Session":"s1"}},`+
		`{"KV":{"LockIndex":0,"Key":"a","Flags":0,"Value":"MQ==","CreateIndex":12,"ModifyIndex":12}}],"Errors":null}`)
	wantHeaders(t, w, "X-Consul-Index", "12", "Content-Type", "application/json")
	exp := []command.TxnOp{
		{Verb: command.VerbSet, Key: "a", Value: []byte("1"), Flags: math.MaxUint64},
		{Verb: command.VerbLock, Key: "l", Session: "s1"},
		{Verb: command.VerbGet, Key: "/a"},
		{Verb: command.VerbCAS, Key: "c", Index: 9007199254740993, Value: []byte{}},
		{Verb: command.VerbDeleteTree},
	}
	if got := n.proposed[0].(*command.Txn).Ops; !reflect.DeepEqual(got, exp) {
		t.Errorf("proposed %+v\nwant %+v", got, exp)
	}
}

func TestAFailedTransactionNamesEachOperationByItsPlaceInTheRequest(t *testing.T) {
	n := newFakeNode()
	n.propose = decides(command.Result{Revision: 7, Txn: &command.TxnResult{Errors: []command.TxnError{
		{Op: 0, What: `failed to set key "a", index is stale`}, {Op: 2, What: "second"},
	}}})
	w := ask(t, newTestServer(t, n), "PUT", "/v1/txn", `[{},{"KV":{"Verb":"cas","Key":"a","Index":1}},{},{"KV":{"Verb":"set","Key":"b"}},{"KV":{"Verb":"get","Key":"c"}}]`)
	want(t, w, 409, `{"Results":null,"Errors":[{"OpIndex":1,"What":"failed to set key \"a\", index is stale"},{"OpIndex":4,"What":"second"}]}`)
	wantHeaders(t, w, "X-Consul-Index", "7", "Content-Type", "application/json")
}

func TestWhatAnOperationCannotBeIsToldBeforeAnythingRuns(t *testing.T) {
	n := newFakeNode()
	w := ask(t, newTestServer(t, n), "PUT", "/v1/txn", `[
		{"KV":{"Verb":"set","Key":"a"}},
		{"KV":{"Verb":"SET","Key":"a"}},
		{"Node":{"Verb":"set","Node":{"Node":"x"}}},
		{"Service":{}}, {"Check":[]},
		{"KV":{"Verb":"set","Key":""}},
		{"KV":{"Verb":"get-tree"}},
		{"KV":{"Key":"a"}}
	]`)
	want(t, w, 409, `{"Results":null,"Errors":[`+
		`{"OpIndex":1,"What":"unknown KV operation: SET"},`+
		`{"OpIndex":2,"What":"unknown operation type"},{"OpIndex":3,"What":"unknown operation type"},{"OpIndex":4,"What":"unknown operation type"},`+
		`{"OpIndex":5,"What":"Must provide key"},{"OpIndex":6,"What":"Must provide key"},`+
		`{"OpIndex":7,"What":"unknown KV operation: "}]}`)
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
}

func TestATransactionThatOnlyReadsNeverTouchesTheLog(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, key := range []string{"t/1", "t/2", "x"} { // revisions 1 to 3
		ask(t, s, "PUT", "/v1/kv/"+key, key)
	}
	n.records["x"] = command.Record{Key: "x", Value: []byte("x"), Session: "s1", LockIndex: 1, CreateRevision: 3, ModifyRevision: 3}
	n.proposed = nil

	w := ask(t, s, "PUT", "/v1/txn?consistent", `[
		{"KV":{"Verb":"get-tree","Key":"t/"}},
		{"KV":{"Verb":"get","Key":"x"}},
		{"KV":{"Verb":"get-or-empty","Key":"none","Flags":5}},
		{"KV":{"Verb":"check-index","Key":"x","Index":3}},
		{"KV":{"Verb":"check-session","Key":"x","Session":"s1"}},
		{"KV":{"Verb":"check-not-exists","Key":"none"}}
	]`)
	if w.Code != 200 {
		t.Fatalf("%d %q", w.Code, w.Body)
	}
	var got []string
	for _, r := range decodeTxnReply(t, w.Body.Bytes()).Results {
		got = append(got, fmt.Sprintf("%s=%s flags %d at %d", r.KV.Key, r.KV.Value, r.KV.Flags, r.KV.ModifyIndex))
	}
	if exp := []string{
		"t/1=t/1 flags 0 at 1", "t/2=t/2 flags 0 at 2", "x=x flags 0 at 3", "none= flags 5 at 0", "x= flags 0 at 3", "x= flags 0 at 3",
	}; !reflect.DeepEqual(got, exp) {
		t.Errorf("got %q\nwant %q", got, exp)
	}
	wantHeaders(t, w, "X-Consul-KnownLeader", "true", "X-Consul-LastContact", "0", "X-Holdfast-Applied", "3", "X-Consul-Index", "")
	if n.asked.Mode != command.ReadConsistent {
		t.Errorf("asked for mode %d", n.asked.Mode)
	}

	w = ask(t, s, "PUT", "/v1/txn?stale", `[{"KV":{"Verb":"get","Key":"none"}},{},{"KV":{"Verb":"get","Key":"x"}},{"KV":{"Verb":"check-index","Key":"x","Index":4}}]`)
	want(t, w, 409, `{"Results":null,"Errors":[{"OpIndex":0,"What":"key \"none\" doesn't exist"},`+
		`{"OpIndex":3,"What":"failed index check for key \"x\", current modify index 3 != 4"}]}`)
	if n.asked.Mode != command.ReadStale {
		t.Errorf("asked for mode %d", n.asked.Mode)
	}

	for _, body := range []string{"[]", "null", "[{},null]"} {
		want(t, ask(t, s, "PUT", "/v1/txn", body), 200, `{"Results":[],"Errors":null}`)
	}
	want(t, ask(t, s, "PUT", "/v1/txn?stale&consistent", "[]"), 400, "Cannot specify ?stale with ?consistent, conflicting semantics.")
	n.read = func(context.Context, command.ReadOptions) error { return command.ErrNoLeader }
	want(t, ask(t, s, "PUT", "/v1/txn", "[]"), 500, "No cluster leader")
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
}

// TestTransactionsReadNoMoreThanAListing: a few short operations can ask for
// everything, many times over.
func TestTransactionsReadNoMoreThanAListing(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n, func(c *Config) { c.MaxReply = 1 << 20 })
	for i := range 8 {
		key := fmt.Sprint("t/", i)
		n.records[key] = command.Record{Key: key, Value: make([]byte, 90_000), ModifyRevision: 1}
	}
	tree := `{"KV":{"Verb":"get-tree","Key":"t"}}`
	if w := ask(t, s, "PUT", "/v1/txn", "["+tree+"]"); w.Code != 200 || len(decodeTxnReply(t, w.Body.Bytes()).Results) != 8 {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
	w := ask(t, s, "PUT", "/v1/txn", "["+tree+","+tree+"]")
	if w.Code != 400 || !strings.HasPrefix(w.Body.String(), "Reply is larger than 1048576 bytes") {
		t.Errorf("%d %.100q", w.Code, w.Body)
	}
}

func TestTransactionsHaveLimits(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	many := func(count int) string {
		return "[" + strings.TrimSuffix(strings.Repeat(`{"KV":{"Verb":"check-not-exists","Key":"a"}},`, count), ",") + "]"
	}
	want(t, ask(t, s, "PUT", "/v1/txn", many(128)), 200, `{"Results":[],"Errors":null}`)
	want(t, ask(t, s, "PUT", "/v1/txn", many(129)), 413, "Transaction contains too many operations (129 > 128)")
	want(t, ask(t, s, "PUT", "/v1/txn", "["+strings.Repeat("{},", 128)+"{}]"), 413, "Transaction contains too many operations (129 > 128)")

	exact := "[]" + strings.Repeat(" ", 524288-2)
	want(t, ask(t, s, "PUT", "/v1/txn", exact), 200, `{"Results":[],"Errors":null}`)
	want(t, ask(t, s, "PUT", "/v1/txn", unsized(exact)), 200, `{"Results":[],"Errors":null}`)
	want(t, ask(t, s, "PUT", "/v1/txn", exact+" "), 413, "Transaction is too large (524289 > 524288 bytes)")
	want(t, ask(t, s, "PUT", "/v1/txn", unsized(exact+" ")), 413, "Transaction is too large (more than 524288 bytes)")

	small := newTestServer(t, n, func(c *Config) { c.MaxValue = 10 })
	set := func(size int) string {
		return `[{"KV":{"Verb":"set","Key":"k","Value":"` + base64.StdEncoding.EncodeToString(make([]byte, size)) + `"}}]`
	}
	want(t, ask(t, small, "PUT", "/v1/txn", set(11)), 413, `Value for key "k" is too large (11 > 10 bytes)`)
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
	n.propose = decides(command.Result{OK: true, Revision: 1, Txn: &command.TxnResult{}})
	want(t, ask(t, small, "PUT", "/v1/txn", set(10)), 200, `{"Results":[],"Errors":null}`)
}

func TestBadTransactionsProposeNothing(t *testing.T) {
	op := func(fields string) string { return `[{"KV":{"Verb":"set","Key":"a",` + fields + `}}]` }
	for body, text := range map[string]string{
		"":                                 "Failed to parse body: ",
		"{}":                               "Failed to parse body: ",
		"[":                                "Failed to parse body: ",
		"[{]":                              "Failed to parse body: ",
		"[1]":                              "Failed to parse body: ",
		"[] []":                            "Failed to parse body: ",
		"[]x":                              "Failed to parse body: ",
		`[{"Foo":1}]`:                      "Failed to parse body: ",
		`[{"KV":[]}]`:                      "Failed to parse body: ",
		op(`"Extra":1`):                    "Failed to parse body: ",
		op(`"Flags":-1`):                   "Failed to parse body: ",
		op(`"Flags":1.5`):                  "Failed to parse body: ",
		op(`"Flags":1e3`):                  "Failed to parse body: ",
		op(`"Flags":"1"`):                  "Failed to parse body: ",
		op(`"Flags":18446744073709551616`): "Failed to parse body: ",
		op(`"Index":-0.5`):                 "Failed to parse body: ",
		op(`"Value":5`):                    "Failed to parse body: ",
		op(`"Value":[1,2]`):                "Failed to parse body: ",
		op(`"Value":"MQ"`):                 "Failed to parse body: value of operation 0: ",
		op(`"Value":"_-=="`):               "Failed to parse body: value of operation 0: ",
		op(`"Session":true`):               "Failed to parse body: ",
		op(`"Session":"` + "\xff" + `"`):   "Failed to parse body: it is not valid UTF-8",
		op(`"Namespace":"other"`):          `Invalid Namespace: "other" does not exist here`,
		op(`"Partition":"other"`):          `Invalid Partition: "other" does not exist here`,
		op(`"Key":"a/../b"`):               `Invalid key: the segment ".." is not allowed`,
		op(`"Key":"\u0000a"`):              "Invalid key: control characters are not allowed",
		op(`"Key":"` + strings.Repeat("k", 2049) + `"`): "Key is too long (2049 > 2048 bytes)",
	} {
		n := newFakeNode()
		w := ask(t, newTestServer(t, n), "PUT", "/v1/txn", body)
		if w.Code != 400 || !strings.HasPrefix(w.Body.String(), text) || len(n.proposed) > 0 {
			t.Errorf("%.80q: %d %q, proposed %v", body, w.Code, w.Body, n.proposed)
		}
	}
}

func TestEveryByteInAKeyOfATransactionIsKeptOrRefused(t *testing.T) {
	for c := range 256 {
		raw := string([]byte{byte(c)})
		escaped := fmt.Sprintf(`\u%04x`, c)
		for _, row := range []struct{ written, meant string }{{raw, raw}, {escaped, string(rune(c))}} {
			n := newFakeNode()
			n.propose = decides(command.Result{OK: true, Revision: 1, Txn: &command.TxnResult{}})
			w := ask(t, newTestServer(t, n), "PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"k`+row.written+`k"}}]`)
			switch {
			case w.Code == 400 && len(n.proposed) == 0:
				if (c >= ' ' && c < 0x7f || c >= 0xa0) && row.written == escaped {
					t.Errorf("%s was refused: %s", row.written, w.Body)
				}
			case w.Code == 200 && len(n.proposed) == 1:
				if got := n.proposed[0].(*command.Txn).Ops[0].Key; got != "k"+row.meant+"k" {
					t.Errorf("%q became %q", row.written, got)
				}
			default:
				t.Errorf("%q: %d %q, proposed %v", row.written, w.Code, w.Body, n.proposed)
			}
		}
	}
}

func FuzzTransactionBody(f *testing.F) {
	for _, seed := range []string{
		`[]`, `null`, `[{}]`, `[{"KV":{"Verb":"set","Key":"a","Value":"MQ==","Flags":1}}]`, `[{"Node":{}}]`,
		`[{"kv":{"verb":"delete-tree","key":""}}]`, `[{"KV":{"Verb":"get","Key":"` + "\xff" + `"}}]`, `[{"KV":{"Verb":"lock","Key":"a","Session":"s"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n := newFakeNode()
		n.propose = decides(command.Result{OK: true, Revision: 1, Txn: &command.TxnResult{}})
		w := ask(t, newTestServer(t, n), "PUT", "/v1/txn", string(body))
		switch w.Code {
		case 200, 409:
			decodeTxnReply(t, w.Body.Bytes())
		case 400, 413:
			if len(n.proposed) > 0 {
				t.Errorf("refused, and proposed %+v", n.proposed)
			}
		default:
			t.Errorf("%d %q", w.Code, w.Body)
		}
		for _, c := range n.proposed {
			if err := command.Validate(c); err != nil {
				t.Error(err)
			}
			for _, op := range c.(*command.Txn).Ops {
				if !utf8.ValidString(op.Key) {
					t.Errorf("key %q", op.Key)
				}
			}
		}
	})
}
