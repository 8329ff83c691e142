package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// script is a connection that says a text, whatever it is asked.
type script struct {
	net.Conn
	text  string // said again and again; may be empty
	rest  string // said before
	piece int    // how many bytes can be read at a time; 0: any number
}

func (s *script) Write(b []byte) (int, error) { return len(b), nil }

func (s *script) Read(b []byte) (int, error) {
	if s.rest == "" {
		s.rest = s.text
	}
	if s.rest == "" {
		return 0, io.EOF
	}
	if s.piece > 0 {
		b = b[:min(len(b), s.piece)]
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *script) SetDeadline(time.Time) error { return nil }

// fake is a server of some target that holds its keys in memory and demands of each request that
// it is as the target's documentation says.
type fake struct {
	t   *testing.T
	url string

	mu sync.Mutex // guards all below
	// before is called with each request for keys; what answers by itself returns true.
	before func(w http.ResponseWriter, r *http.Request) bool
	// watched is called when a client of Holdfast's stream has come; nil if nobody cares. It is set before there are clients.
	watched func()
	changed *sync.Cond
	values  map[string][]byte
	news    []string // keys, in the order of their changes
	asked   map[string]int
	table   bool // rqlite's has been made
}

func newFake(t *testing.T, target Target, before func(http.ResponseWriter, *http.Request) bool) *fake {
	f := &fake{t: t, values: map[string][]byte{}, asked: map[string]int{}, before: before}
	f.changed = sync.NewCond(&f.mu)
	mux := http.NewServeMux()
	switch target {
	case Holdfast, Consul:
		f.serveConsul(mux, target)
	case Etcd:
		f.serveEtcd(mux)
	case Rqlite:
		f.serveRqlite(mux)
	}
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total %f\n", time.Since(began).Seconds()/2)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	t.Cleanup(func() { f.changed.Broadcast() })
	f.url = s.URL
	return f
}

// began is when the fakes began to use half a processor.
var began = time.Now()

// kv wraps a handler of requests for keys.
func (f *fake) kv(name string, handle func(w http.ResponseWriter, r *http.Request, body []byte)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			f.t.Errorf("%s: body: %v", r.URL, err)
		}
		f.mu.Lock()
		before := f.before
		f.mu.Unlock()
		if before != nil && before(w, r) {
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked[name]++
		handle(w, r, body)
	}
}

func (f *fake) setBefore(before func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// set changes a key. The caller holds mu.
func (f *fake) set(key string, value []byte) {
	if !strings.HasPrefix(key, "bench/") || len(key) != len("bench/")+10 || len(value) != 16 {
		f.t.Errorf("key %q, value %q", key, value)
	}
	f.values[key] = slices.Clone(value)
	f.news = append(f.news, key)
	f.changed.Broadcast()
}

func (f *fake) decode(body []byte, v any) {
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil || d.More() {
		f.t.Errorf("body %q: %v", body, err)
	}
}

func (f *fake) serveConsul(mux *http.ServeMux, target Target) {
	mux.HandleFunc("GET /v1/status/leader", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `"127.0.0.1:8300"`) })
	if target == Holdfast {
		mux.HandleFunc("GET /v1/replica/status", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"Applied":1}`) })
		mux.HandleFunc("GET /v1/changes/{key...}", f.streamChanges)
	}
	mux.HandleFunc("PUT /v1/kv/{key...}", f.kv("put", func(w http.ResponseWriter, r *http.Request, body []byte) {
		f.set(r.PathValue("key"), body)
		_, _ = io.WriteString(w, "true")
	}))
	mux.HandleFunc("GET /v1/kv/{key...}", f.kv("get", func(w http.ResponseWriter, r *http.Request, _ []byte) {
		q := r.URL.Query()
		for mode := range q {
			f.asked[mode]++
			if !slices.Contains([]string{"stale", "consistent", "index", "wait"}, mode) {
				f.t.Errorf("parameter %q", mode)
			}
		}
		key := r.PathValue("key")
		if index, err := strconv.Atoi(q.Get("index")); err == nil && index > 0 {
			defer f.wakeAtEndOf(r)()
			for r.Context().Err() == nil && (len(f.news) <= index || !slices.Contains(f.news[index:], key)) {
				f.changed.Wait()
			}
		}
		w.Header().Set("X-Consul-Index", strconv.Itoa(len(f.news)))
		value, ok := f.values[key]
		if !ok {
			w.WriteHeader(404)
			return
		}
		_ = json.NewEncoder(w).Encode([]map[string]any{{"LockIndex": 0, "Key": key, "Value": value}})
	}))
	mux.HandleFunc("PUT /v1/txn", f.kv("txn", func(w http.ResponseWriter, _ *http.Request, body []byte) {
		var sent []struct {
			KV struct {
				Verb, Key string
				Value     []byte
			}
		}
		f.decode(body, &sent)
		for _, o := range sent {
			if o.KV.Verb != "set" {
				f.t.Errorf("verb %q", o.KV.Verb)
			}
			f.set(o.KV.Key, o.KV.Value)
		}
		f.asked["keys of txn"] += len(sent)
		_, _ = io.WriteString(w, `{"Results":[],"Errors":null}`)
	}))
}

// streamChanges is Holdfast's stream of the changes of a key.
func (f *fake) streamChanges(w http.ResponseWriter, r *http.Request) {
	if !r.URL.Query().Has("stream") {
		f.t.Errorf("%s", r.URL)
	}
	if f.watched != nil {
		f.watched()
	}
	f.follow(w, r, r.PathValue("key"), ":\n\n", func(value []byte) {
		_, _ = fmt.Fprintf(w, "id: 1.0\nevent: put\ndata: {\"Index\":1,\"Op\":\"put\",\"KV\":{\"Key\":\"k\",\"Value\":%q},\"Prev\":{\"Value\":%q}}\n\n", text64(value), text64(value))
	})
}

// follow tells of a key's changes until the client goes.
func (f *fake) follow(w http.ResponseWriter, r *http.Request, key, hello string, tell func(value []byte)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.wakeAtEndOf(r)()
	f.asked["watch"]++
	next := len(f.news)
	_, _ = io.WriteString(w, hello)
	_ = http.NewResponseController(w).Flush()
	for r.Context().Err() == nil {
		for ; next < len(f.news); next++ {
			if f.news[next] == key {
				tell(f.values[key])
				_ = http.NewResponseController(w).Flush()
			}
		}
		f.changed.Wait()
	}
}

// wakeAtEndOf wakes whoever waits when a client goes.
func (f *fake) wakeAtEndOf(r *http.Request) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-r.Context().Done():
			f.mu.Lock()
			f.changed.Broadcast()
			f.mu.Unlock()
		case <-done:
		}
	}()
	return func() { close(done) }
}

func text64(value []byte) string { return string(appendBase64(nil, value)) }

func (f *fake) serveEtcd(mux *http.ServeMux) {
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"etcdserver":"3.6.7"}`) })
	type pair struct{ Key, Value []byte }
	mux.HandleFunc("POST /v3/kv/put", f.kv("put", func(w http.ResponseWriter, _ *http.Request, body []byte) {
		var p pair
		f.decode(body, &p)
		f.set(string(p.Key), p.Value)
		_, _ = io.WriteString(w, `{"header":{"revision":"2"}}`)
	}))
	mux.HandleFunc("POST /v3/kv/range", f.kv("get", func(w http.ResponseWriter, _ *http.Request, body []byte) {
		var g struct {
			Key          []byte
			Serializable bool
		}
		f.decode(body, &g)
		if g.Serializable {
			f.asked["stale"]++
		}
		value, ok := f.values[string(g.Key)]
		if !ok {
			_, _ = io.WriteString(w, `{"header":{"revision":"2"}}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"header":{"revision":"2"}, "kvs":[{"key":%q, "value":%q}], "count":"1"}`, text64(g.Key), text64(value))
	}))
	mux.HandleFunc("POST /v3/kv/txn", f.kv("txn", func(w http.ResponseWriter, _ *http.Request, body []byte) {
		var sent struct {
			Success []struct {
				RequestPut pair `json:"request_put"`
			}
		}
		f.decode(body, &sent)
		for _, o := range sent.Success {
			f.set(string(o.RequestPut.Key), o.RequestPut.Value)
		}
		f.asked["keys of txn"] += len(sent.Success)
		_, _ = io.WriteString(w, `{"header":{}, "succeeded":true, "responses":[]}`)
	}))
	mux.HandleFunc("POST /v3/watch", func(w http.ResponseWriter, r *http.Request) {
		var sent struct {
			CreateRequest struct{ Key []byte } `json:"create_request"`
		}
		body, _ := io.ReadAll(r.Body)
		f.decode(body, &sent)
		f.follow(w, r, string(sent.CreateRequest.Key), `{"result":{"header":{},"created":true}}`+"\n", func(value []byte) {
			_, _ = fmt.Fprintf(w, `{"result":{"header":{}, "events":[{"kv":{"key":"aw==", "value":%q}}]}}`+"\n", text64(value))
		})
	})
}

func (f *fake) serveRqlite(mux *http.ServeMux) {
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[+]node ok\n[+]leader ok") })
	mux.HandleFunc("POST /db/execute", f.kv("execute", func(w http.ResponseWriter, r *http.Request, body []byte) {
		if strings.Contains(string(body), "CREATE TABLE IF NOT EXISTS bench ") {
			f.table = true
			_, _ = io.WriteString(w, `{"results":[{}]}`)
			return
		}
		var sent [][]string
		f.decode(body, &sent)
		if !f.table || len(sent) > 1 != r.URL.Query().Has("transaction") || r.Header.Get("Content-Type") != "application/json" {
			f.t.Errorf("table %v, %d statements, %s, Content-Type %q", f.table, len(sent), r.URL, r.Header.Get("Content-Type"))
		}
		if r.URL.Query().Has("transaction") {
			f.asked["txn"]++
			f.asked["keys of txn"] += len(sent)
		} else {
			f.asked["put"]++
		}
		for _, o := range sent {
			if len(o) != 3 || !strings.HasPrefix(o[0], "INSERT OR REPLACE INTO bench(key, value) VALUES(?, ?)") {
				f.t.Errorf("statement %q", o)
				continue
			}
			f.set(o[1], []byte(o[2]))
		}
		_, _ = io.WriteString(w, `{"results":[{"last_insert_id":1,"rows_affected":1}]}`)
	}))
	mux.HandleFunc("POST /db/query", f.kv("get", func(w http.ResponseWriter, r *http.Request, body []byte) {
		var sent [][]string
		f.decode(body, &sent)
		switch r.URL.Query().Get("level") {
		case "none":
			f.asked["stale"]++
		case "linearizable":
			f.asked["consistent"]++
		case "weak":
		default:
			f.t.Errorf("%s", r.URL)
		}
		if len(sent) != 1 || len(sent[0]) != 2 {
			f.t.Errorf("query %q", body)
			return
		}
		value, ok := f.values[sent[0][1]]
		if !ok {
			_, _ = io.WriteString(w, `{"results":[{"columns":["value"],"types":["text"]}]}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"results":[{"columns":["value"],"types":["text"],"values":[[%q]]}]}`, value)
	}))
}
