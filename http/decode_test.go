package http

import (
	"strings"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

// TestBodiesAreRefusedInTheClientsWords: what is wrong is told by the names that the
// client sent, never by those of our types.
func TestBodiesAreRefusedInTheClientsWords(t *testing.T) {
	const txn, session, autopilot = "/v1/txn", "/v1/session/create", "/v1/operator/autopilot/configuration"
	op := func(field string) string { return `[{"KV":{"Verb":"set","Key":"a",` + field + `}}]` }
	for _, row := range []struct{ path, body, text string }{
		{txn, "", "Failed to parse body: it is empty"},
		{txn, "[", "Failed to parse body: it ends too early"},
		{txn, "{}", "Failed to parse body: object where an array is needed"},
		{txn, "[1]", "Failed to parse body: number where an object is needed"},
		{txn, "[]x", "Failed to parse body: it goes on after its end"},
		{txn, "[x]", "Failed to parse body: invalid character 'x' looking for beginning of value (byte 2)"},
		{txn, `[{"KV":[]}]`, "Failed to parse body: KV: array where an object is needed"},
		{txn, op(`"Flags":-1`), "Failed to parse body: KV.Flags: number -1 where a whole number from 0 to 2^64-1 is needed"},
		{txn, op(`"Value":5`), "Failed to parse body: KV.Value: number where a string is needed"},
		{txn, op(`"Valeu":""`), `Failed to parse body: unknown field "Valeu"`},
		{session, "{", "Request decode failed: it ends too early"},
		{session, "[]", "Request decode failed: array where an object is needed"},
		{session, `{"TTL":15}`, "Request decode failed: TTL: number where a string is needed"},
		{session, `{"LockDelay":"15"}`, `Request decode failed: LockDelay: "15" is not a duration like 15s`},
		{session, `{"NodeChecks":"a"}`, "Request decode failed: NodeChecks: string where an array is needed"},
		{autopilot, "", "Error parsing autopilot config: it is empty"},
		{autopilot, `{} {}`, "Error parsing autopilot config: it goes on after its end"},
		{autopilot, `{"CleanupDeadServers":1}`, "Error parsing autopilot config: CleanupDeadServers: number where true or false is needed"},
		{autopilot, `{"LastContactThreshold":"fast"}`, `Error parsing autopilot config: "fast" is not a duration like 200ms`},
		{autopilot, `{"LastContactThreshold":[]}`, "Error parsing autopilot config: LastContactThreshold: array where a number is needed"},
		{"/v1/bulk/", `{"key":5}`, "Record 1: it is not a record: Key: number where a string is needed"},
		{"/v1/bulk/", `{"key":"a","value":5}`, "Record 1: it is not a record: Value: number where a string is needed"},
		{"/v1/bulk/", `{"key":"a"x}`, "Record 1: it is not a record: invalid character 'x' after object key:value pair (byte 11)"},
	} {
		n := newFakeNode()
		want(t, ask(t, newTestServer(t, n), "PUT", row.path, row.body), 400, row.text)
		if len(n.proposed) > 0 {
			t.Errorf("%s: proposed %v", row.body, n.proposed)
		}
	}
}

// TestTextIsWrittenAsItWasSentOrNotAtAll: a decoder that mends what is not Unicode
// would write another key.
func TestTextIsWrittenAsItWasSentOrNotAtAll(t *testing.T) {
	for _, row := range []struct{ sent, meant string }{
		{"\xff", ""}, {"\xed\xa0\x80", ""},
		{`\ud83d`, ""}, {`\udE00`, ""}, {`\ud83d\ud83d`, ""}, {`\ude00\ud83d`, ""}, {`\ud83dx\ude00`, ""}, {`\ud83d\n`, ""}, {`\ud83d\\ude00`, ""},
		{`\ud83d\ude00`, "😀"}, {`\uD83D\uDE00x`, "😀x"}, {`\\ud83d`, `\ud83d`}, {`\\\\ude00`, `\\ude00`}, {`\ufffd`, "\ufffd"}, {"😀\ufffd", "😀\ufffd"},
	} {
		for path, body := range map[string]string{
			"/v1/txn":            `[{"KV":{"Verb":"set","Key":"TEXT"}}]`,
			"/v1/bulk/":          `{"key":"TEXT"}`,
			"/v1/session/create": `{"Name":"TEXT"}`,
		} {
			n := newFakeNode()
			if path == "/v1/txn" {
				n.propose = decides(command.Result{OK: true, Txn: &command.TxnResult{}})
			}
			w := ask(t, newTestServer(t, n), "PUT", path, strings.Replace(body, "TEXT", row.sent, 1))
			if row.meant == "" {
				if w.Code != 400 || len(n.proposed) > 0 {
					t.Errorf("%s: %q was answered %d %s, proposed %v", path, row.sent, w.Code, w.Body, n.proposed)
				}
				continue
			}
			if w.Code != 200 || len(n.proposed) != 1 {
				t.Errorf("%s: %q was answered %d %s", path, row.sent, w.Code, w.Body)
				continue
			}
			var got string
			switch c := n.proposed[0].(type) {
			case *command.Txn:
				got = c.Ops[0].Key
			case *command.PutMany:
				got = c.KVs[0].Key
			case *command.SessionCreate:
				got = c.Session.Name
			}
			if got != row.meant {
				t.Errorf("%s: %q became %q", path, row.sent, got)
			}
		}
	}
}
