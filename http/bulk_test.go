package http

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	nethttp "net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// progress decodes the lines of an upload's reply.
type progress struct {
	Done, Index uint64
	Errors      []struct {
		Error, Message, Hint string
		Status               int
	}
}

func lines(t testing.TB, body string) []progress {
	t.Helper()
	var ps []progress
	d := json.NewDecoder(strings.NewReader(body))
	for d.More() {
		var p progress
		if err := d.Decode(&p); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		ps = append(ps, p)
	}
	if len(ps) == 0 {
		t.Fatal("no lines")
	}
	return ps
}

func TestBulkTakesWhatConsulExports(t *testing.T) {
	const array = `[
	{
		"key": "a",
		"flags": 3304740253564472344,
		"value": "aGVsbG8="
	},
	{
		"key": "dir/",
		"flags": 0,
		"value": ""
	}
]
`
	for name, body := range map[string]string{
		"consul kv export": array,
		"ndjson":           "{\"key\":\"a\",\"flags\":3304740253564472344,\"value\":\"aGVsbG8=\"}\n\n{\"key\":\"dir/\",\"value\":null}\n",
		"ndjson, no end":   "{\"key\":\"a\",\"flags\":3304740253564472344,\"value\":\"aGVsbG8=\"}\r\n{\"key\":\"dir/\"}",
		"any case":         `[{"KEY":"a","Flags":3304740253564472344,"Value":"aGVsbG8=","CreateIndex":7,"Session":"x"},{"Key":"dir/","namespace":"default"}]`,
		"escapes":          `{"key":"\u0061","x":"}\"{[\\","flags":3304740253564472344,"value":"aGVsbG8\u003d","y":{"z":[{}]}}{"key":"dir\/"}`,
	} {
		for how, r := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader,
			"with its end": iotest.DataErrReader,
		} {
			n := newFakeNode()
			w := ask(t, newTestServer(t, n), "PUT", "/v1/bulk/in/", r(strings.NewReader(body)))
			ps := lines(t, w.Body.String())
			last := ps[len(ps)-1]
			if w.Code != 200 || last.Done != 2 || last.Errors == nil || len(last.Errors) != 0 || last.Index != n.revision {
				t.Fatalf("%s %s: %d %s", name, how, w.Code, w.Body)
			}
			wantHeaders(t, w, "Content-Type", "application/x-ndjson")
			if r := n.records["in/a"]; string(r.Value) != "hello" || r.Flags != 3304740253564472344 {
				t.Errorf("%s %s: %+v", name, how, r)
			}
			if r, ok := n.records["in/dir/"]; !ok || len(r.Value) != 0 {
				t.Errorf("%s %s: %+v", name, how, r)
			}
		}
	}
}

func TestBulkOfNothing(t *testing.T) {
	for _, body := range []string{"", "\n\n", "[]", " [ ] \n"} {
		n := newFakeNode()
		w := ask(t, newTestServer(t, n), "PUT", "/v1/bulk", body)
		want(t, w, 200, `{"Done":0,"Index":0,"Errors":[]}`+"\n")
		if len(n.proposed) != 0 {
			t.Errorf("%q proposed %v", body, n.proposed)
		}
	}
}

func TestBulkRefusesWhatItCannotKeep(t *testing.T) {
	for _, row := range []struct {
		body   string
		status int
		text   string
		code   string
	}{
		{`{"key":""}`, 400, `Record 1: Missing key name`, codeBadRequest},
		{`{"value":"eA=="}`, 400, `Record 1: Missing key name`, codeBadRequest},
		{`{"key":"a/../b"}`, 400, `Record 1 ("a/../b"): Invalid key`, codeBadRequest},
		{`{"key":"a\u0000"}`, 400, `Record 1 ("a\x00"): Invalid key: control`, codeBadRequest},
		{`{"key":"` + strings.Repeat("k", 2049) + `"}`, 400, `Record 1 ("kkkk`, codeBadRequest},
		{`{"key":"a","value":"not base64"}`, 400, `Record 1: it is not a record: illegal base64`, codeBadRequest},
		{`{"key":"a","value":"aGVsbG8"}`, 400, `Record 1: it is not a record: illegal base64`, codeBadRequest},
		{`{"key":"a","flags":-1}`, 400, `Record 1: it is not a record`, codeBadRequest},
		{`{"key":"a","flags":1.5}`, 400, `Record 1: it is not a record`, codeBadRequest},
		{`{"key":"a","ns":1,}`, 400, `Record 1: it is not a record`, codeBadRequest},
		{`{"key":"a","Namespace":"team"}`, 400, `Record 1 ("a"): Invalid namespace`, codeBadRequest},
		{`{"key":"a","partition":"p"}`, 400, `Record 1 ("a"): Invalid partition`, codeBadRequest},
		{`{"key":"a","value":"MTIzNDU2Nzg5MDE="}`, 413, `Record 1 ("a"): Value for key "a" is too large (11 > 10 bytes)`, codeTooLarge},
		{`{"key":"a","value":"` + strings.Repeat("x", 300_000), 413, `Record 1: it is too large`, codeTooLarge},
		{`{"key":"a"`, 400, `Record 1: the input ended inside it`, codeBadRequest},
		{`[{"key":"a"}`, 0, `the input ended inside its array`, codeBadRequest},
		{`[{"key":"a"},]`, 0, `Record 2: expected a JSON object, found ']'`, codeBadRequest},
		{`[{"key":"a"}{"key":"b"}]`, 0, `Record 2: expected a JSON object, found '{'`, codeBadRequest},
		{`[,{"key":"a"}]`, 400, `Record 1: expected a JSON object, found ','`, codeBadRequest},
		{`[{"key":"a"}] x`, 0, `Record 2: the input goes on after its array`, codeBadRequest},
		{`["a"]`, 400, `Record 1: expected a JSON object, found '"'`, codeBadRequest},
		{`key,value`, 400, `Record 1: expected a JSON object, found 'k'`, codeBadRequest},
		{`{"key":"a"},{"key":"b"}`, 0, `Record 2: expected a JSON object, found ','`, codeBadRequest},
		{"{\"key\":\"a\"}\n{\"key\":\"b/.\"}\n{\"key\":\"c\"}", 0, `Record 2 ("b/."): Invalid key`, codeBadRequest},
	} {
		n := newFakeNode()
		s := newTestServer(t, n, func(c *Config) { c.MaxValue = 10 })
		w := ask(t, s, "PUT", "/v1/bulk/", row.body)
		if row.status > 0 { // nothing was acknowledged: an ordinary error
			if w.Code != row.status || !strings.HasPrefix(w.Body.String(), row.text) || n.revision != 0 {
				t.Errorf("%.50s: %d %.200q at %d, want %d %q", row.body, w.Code, w.Body, n.revision, row.status, row.text)
			}
			continue
		}
		ps := lines(t, w.Body.String())
		last := ps[len(ps)-1]
		if w.Code != 200 || last.Done != 1 || len(last.Errors) != 1 || !strings.Contains(last.Errors[0].Message, row.text) ||
			last.Errors[0].Error != row.code || last.Errors[0].Status != 400 || len(n.records) != 1 {
			t.Errorf("%s: %d %s", row.body, w.Code, w.Body)
		}
	}
}

// records makes n records of an upload.
func records(n int, value string) string {
	var b strings.Builder
	for i := range n {
		_, _ = fmt.Fprintf(&b, `{"key":"k%d","value":"%s"}`+"\n", i, value)
	}
	return b.String()
}

func TestBulkChunksAreBounded(t *testing.T) {
	for name, row := range map[string]struct {
		count int
		value string
	}{
		"many small": {5500, "eA=="},
		"few large":  {40, strings.Repeat("A", 200_000)},
	} {
		n := newFakeNode()
		w := ask(t, newTestServer(t, n), "PUT", "/v1/bulk/", records(row.count, row.value))
		ps := lines(t, w.Body.String())
		if last := ps[len(ps)-1]; int(last.Done) != row.count || len(last.Errors) != 0 || len(n.records) != row.count {
			t.Errorf("%s: %+v, %d records", name, last, len(n.records))
		}
		for _, c := range n.proposed {
			size, kvs := 0, c.(*command.PutMany).KVs
			for _, kv := range kvs {
				size += len(kv.Key) + len(kv.Value)
			}
			if len(kvs) > chunkPairs || size >= chunkBytes+len(row.value) {
				t.Errorf("%s: a chunk of %d pairs and %d bytes", name, len(kvs), size)
			}
		}
	}
}

// held is a node whose writes are decided one by one by the test.
type held struct {
	*fakeNode
	mu    sync.Mutex
	began chan heldWrite
	most  int
	now   int
}

type heldWrite struct {
	first string // key
	kvs   []command.KV
	done  chan error
}

func newHeld() *held {
	h := &held{fakeNode: newFakeNode(), began: make(chan heldWrite, 100)}
	h.propose = func(ctx context.Context, c command.Command) (command.Result, error) {
		h.mu.Lock()
		h.now++
		h.most = max(h.most, h.now)
		h.mu.Unlock()
		kvs := c.(*command.PutMany).KVs
		w := heldWrite{first: kvs[0].Key, kvs: kvs, done: make(chan error)}
		h.began <- w
		var err error
		select {
		case err = <-w.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		h.mu.Lock()
		h.now--
		h.mu.Unlock()
		if err != nil {
			return command.Result{}, err
		}
		return h.apply(c), nil
	}
	return h
}

func (h *held) next(t testing.TB) heldWrite {
	t.Helper()
	select {
	case w := <-h.began:
		return w
	case <-time.After(10 * time.Second):
		t.Fatal("no write came")
		panic("unreachable")
	}
}

// upload sends a body in the background.
func startUpload(t testing.TB, s *Server, body string) <-chan string {
	_, base := listen(t, s)
	reply := make(chan string, 1)
	go func() {
		req, _ := nethttp.NewRequest("PUT", base+"/v1/bulk/", strings.NewReader(body))
		res, err := nethttp.DefaultClient.Do(req)
		if err != nil {
			reply <- err.Error()
			return
		}
		text, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		reply <- string(text)
	}()
	return reply
}

func TestBulkAcknowledgesWithoutGaps(t *testing.T) {
	h := newHeld()
	reply := startUpload(t, newTestServer(t, h), records(10_000, ""))
	var held []heldWrite // in any order: each is proposed by a goroutine of its own
	for range chunksInFlight {
		held = append(held, h.next(t))
	}
	slices.SortFunc(held, func(a, b heldWrite) int {
		return cmp.Or(cmp.Compare(len(a.first), len(b.first)), cmp.Compare(a.first, b.first)) // k9 before k10
	})
	first, others := held[0], held[1:]
	// The second write fails while the third and fourth succeed.
	others[1].done <- nil
	others[2].done <- nil
	first.done <- nil
	others[0].done <- command.ErrOutcomeUnknown
	// What is proposed from here on must not matter.
	go func() {
		for w := range h.began {
			w.done <- nil
		}
	}()
	defer close(h.began)
	text := <-reply
	ps := lines(t, text)
	last := ps[len(ps)-1]
	if int(last.Done) != len(first.kvs) || len(last.Errors) != 1 || last.Errors[0].Error != "outcome_unknown" || last.Errors[0].Status != 500 {
		t.Errorf("%s; the first write had %d", text, len(first.kvs))
	}
	if h.most > chunksInFlight {
		t.Errorf("%d writes at once", h.most)
	}
}

func TestBulkWritesOneKeyInOrder(t *testing.T) {
	h := newHeld()
	body := `{"key":"hot","value":"MQ=="}` + "\n" + records(1500, "") + `{"key":"hot","value":"Mg=="}` + "\n" + `{"key":"hot","value":"Mw=="}` + "\n" + records(2500, "")
	reply := startUpload(t, newTestServer(t, h), body)
	decided := map[string]bool{}
	under := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for total := 0; total < 4000; {
		w := h.next(t)
		mu.Lock()
		for _, kv := range w.kvs {
			if under[kv.Key]++; under[kv.Key] > 1 {
				t.Errorf("%s is in two writes at once", kv.Key)
			}
			if kv.Key == "hot" && string(kv.Value) != "1" && !decided["1"] {
				t.Errorf("the later value was proposed first")
			}
		}
		total += len(w.kvs)
		mu.Unlock()
		wg.Add(1)
		go func() {
			defer wg.Done()
			mu.Lock()
			for _, kv := range w.kvs {
				under[kv.Key]--
				if kv.Key == "hot" {
					decided[string(kv.Value)] = true
				}
			}
			mu.Unlock()
			w.done <- nil
		}()
	}
	go func() {
		for w := range h.began {
			w.done <- nil
		}
	}()
	text := <-reply
	wg.Wait()
	close(h.began)
	ps := lines(t, text)
	if last := ps[len(ps)-1]; last.Done != 4003 || len(last.Errors) != 0 {
		t.Errorf("%s", text)
	}
	if v := h.records["hot"].Value; string(v) != "3" {
		t.Errorf("the last value did not win: %q", v)
	}
}

// TestBulkTellsWhileItTakes needs the answer to a record before it sends the
// next one.
func TestBulkTellsWhileItTakes(t *testing.T) {
	n := newFakeNode()
	_, base := listen(t, newTestServer(t, n))
	r, w := io.Pipe()
	req, _ := nethttp.NewRequest("PUT", base+"/v1/bulk/p/", r)
	go func() { _, _ = io.WriteString(w, `{"key":"a"}`) }()
	res, err := nethttp.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	in := bufio.NewReader(res.Body)
	if line, err := in.ReadString('\n'); line != `{"Done":1,"Index":1}`+"\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = io.WriteString(w, `{"key":"b"}`)
	_ = w.Close()
	rest, err := io.ReadAll(in)
	ps := lines(t, string(rest))
	if last := ps[len(ps)-1]; err != nil || last.Done != 2 || last.Errors == nil {
		t.Errorf("%q %v", rest, err)
	}
}

func TestBulkEndsWithTheServer(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	_, base := listen(t, s)
	r, w := io.Pipe()
	req, _ := nethttp.NewRequest("PUT", base+"/v1/bulk/", r)
	go func() { _, _ = io.WriteString(w, `{"key":"a"}`) }()
	res, err := nethttp.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	in := bufio.NewReader(res.Body)
	_, _ = in.ReadString('\n')
	s.stop()
	line, err := in.ReadString('\n')
	if ps := lines(t, line); err != nil || ps[0].Done != 1 || len(ps[0].Errors) != 1 || ps[0].Errors[0].Error != "stopping" {
		t.Errorf("%q %v", line, err)
	}
	_ = w.CloseWithError(io.ErrClosedPipe)
}

func TestBulkConnectionIsReusedOnlyWhenAllWasRead(t *testing.T) {
	n := newFakeNode()
	l, _ := listen(t, newTestServer(t, n))
	c := dial(t, l)
	in := bufio.NewReader(c)
	const get = "GET /v1/kv/a?raw HTTP/1.1\r\nHost: h\r\n\r\n"
	_, _ = io.WriteString(c, "PUT /v1/bulk/ HTTP/1.1\r\nHost: h\r\nContent-Length: 27\r\n\r\n{\"key\":\"a\",\"value\":\"eA==\"}\n"+get)
	for i := range 2 {
		res, err := nethttp.ReadResponse(in, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("reply %d: %+v %v", i, res, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
	}
	// The rest of a broken upload is not a request.
	_, _ = io.WriteString(c, "PUT /v1/bulk/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"+get)
	res, err := nethttp.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 400 {
		t.Fatalf("%+v %v", res, err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	if more, err := io.ReadAll(in); len(more) > 0 {
		t.Errorf("then came %q %v", more, err)
	}
}

func TestExportIsWhatImportTakes(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "GET", "/v1/bulk/", nil), 200, "[]\n")
	wantHeaders(t, ask(t, s, "GET", "/v1/bulk/", nil), "X-Consul-Index", "1")
	ask(t, s, "PUT", "/v1/kv/a/1?flags=18446744073709551615", "hello")
	ask(t, s, "PUT", "/v1/kv/a/2", "")
	ask(t, s, "PUT", "/v1/kv/b", "x")
	w := ask(t, s, "GET", "/v1/bulk/a/", nil)
	want(t, w, 200, "[{\"key\":\"a/1\",\"flags\":18446744073709551615,\"value\":\"aGVsbG8=\"},\n{\"key\":\"a/2\",\"flags\":0,\"value\":\"\"}]\n")
	wantHeaders(t, w, "Content-Type", "application/json", "X-Consul-Index", "3", "X-Holdfast-Node", "n1", "X-Holdfast-Staleness", "0")
	w = ask(t, s, "GET", "/v1/bulk/a/", nil, "Accept", "application/x-ndjson")
	want(t, w, 200, "{\"key\":\"a/1\",\"flags\":18446744073709551615,\"value\":\"aGVsbG8=\"}\n{\"key\":\"a/2\",\"flags\":0,\"value\":\"\"}\n")
	wantHeaders(t, w, "Content-Type", "application/x-ndjson")
	want(t, ask(t, s, "GET", "/v1/bulk/none", nil, "Accept", "application/x-ndjson"), 200, "")

	w = ask(t, s, "GET", "/v1/bulk/?rev=2&stale&wait=1s", nil)
	wantHeaders(t, w, "X-Consul-Index", "2")
	if n.asked != (command.ReadOptions{Mode: command.ReadStale, MinRevision: 2, Wait: time.Second}) {
		t.Errorf("asked for %+v", n.asked)
	}
	// All of it goes back in.
	copied := newFakeNode()
	ask(t, newTestServer(t, copied), "PUT", "/v1/bulk/", ask(t, s, "GET", "/v1/bulk/", nil).Body.String())
	if len(copied.records) != 3 || string(copied.records["a/1"].Value) != "hello" || copied.records["a/1"].Flags != 1<<64-1 {
		t.Errorf("%+v", copied.records)
	}
}

func TestExportThatFails(t *testing.T) {
	n := newFakeNode()
	n.revision = 9
	_, base := listen(t, newTestServer(t, n))
	n.export = func(func(command.Record) error) error { return command.ErrCompacted }
	res, err := nethttp.Get(base + "/v1/bulk/?rev=1")
	if err != nil || res.StatusCode != 410 || res.Header.Get("X-Consul-Index") != "" {
		t.Fatalf("before the first record: %+v %v", res, err)
	}
	_ = res.Body.Close()
	n.export = func(fn func(command.Record) error) error {
		for range 3 {
			if err := fn(command.Record{Key: "k", Value: make([]byte, streamPiece)}); err != nil {
				return err
			}
		}
		return errors.New("disk gone")
	}
	res, err = nethttp.Get(base + "/v1/bulk/")
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%+v %v", res, err)
	}
	if _, err := io.ReadAll(res.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an export that broke off looks complete: %v", err)
	}
	_ = res.Body.Close()
}

func FuzzRecords(f *testing.F) {
	for _, s := range []string{`[{"key":"a"}]`, `{"key":"a\"}"}`, `[{},{}`, "{\"a\":\"\\\\\"}{}", "[]", "[[", `{"a":{"b":"}"}}`} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, in string, piece int) {
		// However the input arrives, the same records come out of it.
		read := func(r io.Reader) (out []string) {
			rr := newRecordReader(r, 1<<20, func() {})
			for {
				o, err := rr.object()
				if err != nil {
					return append(out, err.Error())
				}
				out = append(out, string(o))
			}
		}
		whole, bytewise := read(strings.NewReader(in)), read(iotest.OneByteReader(strings.NewReader(in)))
		if fmt.Sprint(whole) != fmt.Sprint(bytewise) {
			t.Fatalf("%q and %q", whole, bytewise)
		}
	})
}
