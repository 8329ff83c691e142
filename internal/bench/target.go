package bench

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Target is a product that can be driven.
type Target string

// The targets.
const (
	Holdfast Target = "holdfast"
	Consul   Target = "consul"
	Etcd     Target = "etcd"
	Rqlite   Target = "rqlite"
)

// Targets lists them all.
func Targets() []string {
	return []string{string(Holdfast), string(Consul), string(Etcd), string(Rqlite)}
}

// DefaultAddress is where a server of the target listens on this machine, if nothing else was said.
func (t Target) DefaultAddress() string { return "127.0.0.1:" + products[t].port }

// Acknowledges reports whether an answer says that a write of one key was carried out. The status
// alone does not tell: rqlite answers 200 with an error in the body, Consul with false.
func (t Target) Acknowledges(status int, body []byte) bool {
	return products[t].dialect("").judge(&request{op: Put}, status, body).trouble == ""
}

// WatchBy is a way to be told of changes.
type WatchBy string

// The ways.
const (
	WatchStream WatchBy = "stream" // one answer without an end, with each change
	WatchQuery  WatchBy = "query"  // a query that is answered when there is a change, and asked again
)

// product is what has to be known of a target.
type product struct {
	port string // that it listens on, if nothing else is said
	// hello is a path that is answered with something that contains helloHas.
	hello, helloHas string
	metrics         string // the path that has process_cpu_seconds_total; empty: there is none
	largestTxn      int
	watches         []WatchBy // the first is used when none is asked for
	tokenField      string    // where a token goes
	dialect         func(fields string) dialect
	setup           bool // the dialect has a request that comes before all else
}

var products = map[Target]product{
	Holdfast: {
		port: "8500", hello: "/v1/replica/status", helloHas: `"Applied"`, metrics: "/metrics", largestTxn: 128,
		watches:    []WatchBy{WatchStream, WatchQuery},
		tokenField: "X-Consul-Token",
		dialect: func(fields string) dialect {
			return &consulDialect{fields: fields + "Accept: application/json\r\n", holdfast: true}
		},
	},
	Consul: {
		port: "8500", hello: "/v1/status/leader", helloHas: `"`, metrics: "/v1/agent/metrics?format=prometheus", largestTxn: 64,
		watches:    []WatchBy{WatchQuery},
		tokenField: "X-Consul-Token",
		dialect:    func(fields string) dialect { return &consulDialect{fields: fields} },
	},
	Etcd: {
		port: "2379", hello: "/version", helloHas: "etcdserver", metrics: "/metrics", largestTxn: 128,
		watches:    []WatchBy{WatchStream},
		tokenField: "Authorization",
		dialect:    func(fields string) dialect { return &etcdDialect{fields: fields} },
	},
	Rqlite: {
		port: "4001", hello: "/readyz", helloHas: "node ok", largestTxn: 128,
		tokenField: "Authorization",
		dialect: func(fields string) dialect {
			return &rqliteDialect{fields: fields + "Content-Type: application/json\r\n"}
		},
		setup: true,
	},
}

// fields are the fields that the heads of all requests to a server have.
func fields(host, name, token string) string {
	f := "Host: " + host + "\r\n"
	if token != "" {
		f += name + ": " + token + "\r\n"
	}
	return f
}

// dialect puts requests into the words of a product, and says what its answers mean. One
// connection uses it.
type dialect interface {
	// bytes are those of a request, valid until the next.
	bytes(r *request) []byte
	// judge says what an answer means.
	judge(r *request, status int, body []byte) verdict
	// setup is a request that makes room for keys, where that has to be done first.
	setup() []byte
	// watch is a request to be told of changes of a key; index is that of the last answer to a query.
	watch(by WatchBy, key []byte, index uint64) []byte
	// written lists the values that changes in a piece of an answer to watch wrote: a line of a
	// stream, or the whole answer to a query.
	written(by WatchBy, piece []byte) [][]byte
}

// verdict is what an answer means.
type verdict struct {
	trouble string // a kind of error; empty: the request was carried out
	unknown bool   // a write that may have happened all the same
}

const noSuchKey = "no such key"

// message is a request that is put together in buffers that are used again.
type message struct{ head, body []byte }

// request adds body to a request line and its fields.
func (m *message) request(method, path, fields string) []byte {
	b := append(m.head[:0], method...)
	b = append(b, ' ')
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\n"...)
	b = append(b, fields...)
	if method != "GET" {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(m.body)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	if method != "GET" {
		b = append(b, m.body...)
	}
	m.head = b
	return b
}

func appendBase64(b, value []byte) []byte { return base64.StdEncoding.AppendEncode(b, value) }

// valuesIn lists the base64 values that stand behind a name in JSON.
func valuesIn(piece []byte, name string) (found [][]byte) {
	mark := []byte(`"` + name + `":`)
	for {
		i := bytes.Index(piece, mark)
		if i < 0 {
			return found
		}
		piece = bytes.TrimLeft(piece[i+len(mark):], " ")
		text, isText := bytes.CutPrefix(piece, []byte(`"`))
		end := bytes.IndexByte(text, '"')
		if !isText || end < 0 {
			continue
		}
		if value, err := base64.StdEncoding.AppendDecode(nil, text[:end]); err == nil {
			found = append(found, value)
		}
	}
}

// trouble names an answer that tells of a failure by its status and its text.
func trouble(status int, body []byte) string {
	text := string(body)
	var wire struct {
		Error, Message string
		Results        []struct{ Error string } // rqlite's, of each statement
	}
	if json.Unmarshal(body, &wire) == nil {
		text = cmp.Or(wire.Error, wire.Message, text)
		for _, r := range wire.Results {
			text = cmp.Or(r.Error, text)
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 60 {
		text = text[:60] + "..."
	}
	return strings.TrimSpace(fmt.Sprint(status, " ", text))
}

// saysOneOf reports whether a text says one of these.
func saysOneOf(text string, what ...string) bool {
	return slices.ContainsFunc(what, func(w string) bool { return strings.Contains(text, w) })
}

// consulDialect is that of Consul, and of Holdfast.
type consulDialect struct {
	message
	fields   string
	holdfast bool
	path     []byte
}

var consulModes = [ops]string{Get: "", Stale: "?stale", Consistent: "?consistent"}

func (d *consulDialect) bytes(r *request) []byte {
	switch r.op {
	case Put:
		d.body = append(d.body[:0], r.values[0]...)
		return d.request("PUT", d.kv(r.keys[0], ""), d.fields)
	case Txn:
		b := append(d.body[:0], '[')
		for i, key := range r.keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(b, `{"KV":{"Verb":"set","Key":"`...), key...)
			b = appendBase64(append(b, `","Value":"`...), r.values[i])
			b = append(b, `"}}`...)
		}
		d.body = append(b, ']')
		return d.request("PUT", "/v1/txn", d.fields)
	default:
		return d.request("GET", d.kv(r.keys[0], consulModes[r.op]), d.fields)
	}
}

func (d *consulDialect) kv(key []byte, query string) string {
	d.path = append(append(append(d.path[:0], "/v1/kv/"...), key...), query...)
	return string(d.path)
}

func (d *consulDialect) judge(r *request, status int, body []byte) verdict {
	switch {
	case status == 200 && (r.op != Put || bytes.HasPrefix(body, []byte("true"))):
		return verdict{}
	case status == 404 && !r.op.writes():
		return verdict{trouble: noSuchKey}
	}
	v := verdict{trouble: trouble(status, body)}
	switch {
	case !r.op.writes() || status < 500:
	case d.holdfast: // all other codes promise that nothing was written
		v.unknown = saysOneOf(v.trouble, "outcome_unknown", "request_cancelled", "internal", "peer_failed") || !bytes.HasPrefix(body, []byte("{"))
	default:
		v.unknown = !saysOneOf(v.trouble, "No cluster leader")
	}
	return v
}

func (*consulDialect) setup() []byte { return nil }

func (d *consulDialect) watch(by WatchBy, key []byte, index uint64) []byte {
	if by == WatchStream {
		return d.request("GET", "/v1/changes/"+string(key)+"?stream", d.fields)
	}
	return d.request("GET", d.kv(key, fmt.Sprintf("?index=%d&wait=60s", index)), d.fields)
}

func (d *consulDialect) written(by WatchBy, piece []byte) [][]byte {
	if by == WatchStream && !bytes.HasPrefix(piece, []byte("data:")) {
		return nil
	}
	values := valuesIn(piece, "Value")
	return values[:min(1, len(values))] // what was there before may follow
}

// etcdDialect is that of etcd's JSON gateway.
type etcdDialect struct {
	message
	fields string
}

func (d *etcdDialect) bytes(r *request) []byte {
	switch r.op {
	case Put:
		d.body = d.pair(append(d.body[:0], '{'), r, 0)
		return d.request("POST", "/v3/kv/put", d.fields)
	case Txn:
		b := append(d.body[:0], `{"success":[`...)
		for i := range r.keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(d.pair(append(b, `{"request_put":{`...), r, i), '}')
		}
		d.body = append(b, `]}`...)
		return d.request("POST", "/v3/kv/txn", d.fields)
	default:
		b := appendBase64(append(d.body[:0], `{"key":"`...), r.keys[0])
		if r.op == Stale {
			b = append(b, `","serializable":true}`...)
		} else {
			b = append(b, `"}`...)
		}
		d.body = b
		return d.request("POST", "/v3/kv/range", d.fields)
	}
}

// pair appends the i-th key of a request and its value, and the end of the object they are in.
func (d *etcdDialect) pair(b []byte, r *request, i int) []byte {
	b = appendBase64(append(b, `"key":"`...), r.keys[i])
	b = appendBase64(append(b, `","value":"`...), r.values[i])
	return append(b, `"}`...)
}

func (d *etcdDialect) judge(r *request, status int, body []byte) verdict {
	switch {
	case status != 200:
		v := verdict{trouble: trouble(status, body)}
		v.unknown = r.op.writes() && status >= 500 && !saysOneOf(v.trouble, "no leader")
		return v
	case !r.op.writes() && !bytes.Contains(body, []byte(`"kvs"`)):
		return verdict{trouble: noSuchKey}
	case r.op == Txn && !bytes.Contains(body, []byte(`"succeeded":true`)):
		return verdict{trouble: "transaction refused"}
	}
	return verdict{}
}

func (*etcdDialect) setup() []byte { return nil }

func (d *etcdDialect) watch(_ WatchBy, key []byte, _ uint64) []byte {
	d.body = append(appendBase64(append(d.body[:0], `{"create_request":{"key":"`...), key), `"}}`...)
	return d.request("POST", "/v3/watch", d.fields)
}

func (d *etcdDialect) written(_ WatchBy, piece []byte) [][]byte { return valuesIn(piece, "value") }

// rqliteDialect is that of rqlite, where keys and values are rows of a table.
type rqliteDialect struct {
	message
	fields string
}

var rqliteLevels = [ops]string{Get: "weak", Stale: "none", Consistent: "linearizable"}

func (d *rqliteDialect) bytes(r *request) []byte {
	b := append(d.body[:0], '[')
	if !r.op.writes() {
		b = append(append(b, `["SELECT value FROM bench WHERE key = ?","`...), r.keys[0]...)
		d.body = append(b, `"]]`...)
		return d.request("POST", "/db/query?level="+rqliteLevels[r.op], d.fields)
	}
	for i, key := range r.keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, `["INSERT OR REPLACE INTO bench(key, value) VALUES(?, ?)","`...), key...)
		b = append(append(b, `","`...), r.values[i]...)
		b = append(b, `"]`...)
	}
	d.body = append(b, ']')
	if r.op == Txn {
		return d.request("POST", "/db/execute?transaction", d.fields)
	}
	return d.request("POST", "/db/execute", d.fields)
}

func (d *rqliteDialect) judge(r *request, status int, body []byte) verdict {
	switch {
	case status != 200 || bytes.Contains(body, []byte(`"error":`)):
		v := verdict{trouble: trouble(status, body)}
		v.unknown = r.op.writes() && status >= 500 && !saysOneOf(v.trouble, "leader not found")
		return v
	case !r.op.writes() && !bytes.Contains(body, []byte(`"values"`)):
		return verdict{trouble: noSuchKey}
	}
	return verdict{}
}

func (d *rqliteDialect) setup() []byte {
	d.body = append(d.body[:0], `["CREATE TABLE IF NOT EXISTS bench (key TEXT NOT NULL PRIMARY KEY, value TEXT)"]`...)
	return d.request("POST", "/db/execute", d.fields)
}

func (*rqliteDialect) watch(WatchBy, []byte, uint64) []byte { return nil }

func (*rqliteDialect) written(WatchBy, []byte) [][]byte { return nil }
