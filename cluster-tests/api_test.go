package clustertests

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// patience is how long a client waits for an answer: longer than the 7 s for
// which a node looks for a leader.
const patience = 10 * time.Second

// web is shared by all clients; connections are kept.
var web = &http.Client{Transport: &http.Transport{
	MaxIdleConnsPerHost: 512,
	DisableCompression:  true,
	DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
}}

// get fetches a path of a node whole.
func get(ctx context.Context, n *node, path string) (status int, body []byte, err error) {
	status, body, _, err = call(ctx, n, http.MethodGet, path, nil)
	return status, body, err
}

// call makes one request and reads the answer whole.
func call(ctx context.Context, n *node, method, path string, body []byte) (int, []byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.http+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, resp.Header, err
}

// kvPath is the path of a key, each part escaped.
func kvPath(key string) string {
	return "/v1/kv/" + strings.ReplaceAll(url.PathEscape(key), "%2F", "/")
}

// outcome is what a client knows of its request.
type outcome uint8

const (
	decided outcome = iota // the node gave its answer
	refused                // certainly nothing happened
	unknown                // it may have happened, or may yet
)

func (o outcome) String() string { return [...]string{"decided", "refused", "unknown"}[o] }

// judge tells what an answer, or none, says of a write: a 5xx and a broken
// connection leave it open, a connection that was never made does not.
func judgeWrite(status int, err error) outcome {
	var dial *net.OpError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return refused
	case err != nil || status >= 500:
		return unknown
	case status != http.StatusOK:
		return refused
	}
	return decided
}

// written is the answer of a PUT or DELETE, as a client judges it.
type written struct {
	outcome  outcome
	ok       bool   // the body was true
	revision uint64 // made by it, or at which it was decided
	status   int
	text     string // body of a refusal
	err      error
}

// put writes a key; query is "", "cas=N" or the like.
func put(n *node, key, value, query string) written {
	return write(n, http.MethodPut, kvPath(key)+"?"+query, []byte(value))
}

// remove deletes a key.
func remove(n *node, key, query string) written {
	return write(n, http.MethodDelete, kvPath(key)+"?"+query, nil)
}

func write(n *node, method, path string, body []byte) written {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	status, answer, header, err := call(ctx, n, method, path, body)
	w := written{outcome: judgeWrite(status, err), status: status, err: err}
	if w.outcome != decided {
		w.text = string(answer)
		return w
	}
	w.ok = strings.TrimSpace(string(answer)) == "true"
	if w.revision, err = strconv.ParseUint(header.Get("X-Consul-Index"), 10, 64); err != nil || w.revision == 0 {
		// Without the revision the write cannot be judged; that is an error of
		// the node, not a fault of the scene.
		w.err = fmt.Errorf("write answered %d without a revision: X-Consul-Index is %q", status, header.Get("X-Consul-Index"))
	}
	return w
}

// entry is a key as the API shows it.
type entry struct {
	Key         string
	Value       []byte
	Flags       uint64
	ModifyIndex uint64
	CreateIndex uint64
}

// answer is what a read came to.
type answer struct {
	status  int
	entries []entry
	// The headers that say what the answer is worth.
	node           string
	applied        uint64
	staleness      time.Duration
	stalenessKnown bool
	freshAsOf      string
	text           string // body when the status is neither 200 nor 404
}

// read asks for a key, or for what stands under it with "recurse" in query.
// The error tells that there was no answer, or none that can be understood.
func read(n *node, key, query string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	status, body, header, err := call(ctx, n, http.MethodGet, kvPath(key)+"?"+query, nil)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: status, node: header.Get("X-Holdfast-Node")}
	if status != http.StatusOK && status != http.StatusNotFound {
		a.text = string(body)
		return a, nil
	}
	if a.applied, err = strconv.ParseUint(header.Get("X-Holdfast-Applied"), 10, 64); err != nil {
		return a, badAnswer("X-Holdfast-Applied", header)
	}
	switch s := header.Get("X-Holdfast-Staleness"); s {
	case "unknown":
		a.freshAsOf = header.Get("X-Holdfast-Fresh-As-Of")
	default:
		ms, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return a, badAnswer("X-Holdfast-Staleness", header)
		}
		a.staleness, a.stalenessKnown = time.Duration(ms)*time.Millisecond, true
	}
	if status == http.StatusOK {
		if err := json.Unmarshal(body, &a.entries); err != nil {
			return a, &answerError{fmt.Sprintf("body %.100q: %v", body, err)}
		}
	}
	return a, nil
}

// answerError is an answer that breaks the API: a failure of the node, not of
// the network.
type answerError struct{ what string }

func (e *answerError) Error() string { return "answer breaks the API: " + e.what }

func badAnswer(name string, h http.Header) error {
	return &answerError{fmt.Sprintf("header %s is %q", name, h.Get(name))}
}

// keysUnder lists the keys with a prefix as the node has them.
func keysUnder(n *node, prefix, query string) ([]string, http.Header, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	status, body, header, err := call(ctx, n, http.MethodGet, kvPath(prefix)+"?keys&"+query, nil)
	if err != nil {
		return nil, nil, err
	}
	switch status {
	case http.StatusNotFound:
		return nil, header, nil
	case http.StatusOK:
		var keys []string
		err := json.Unmarshal(body, &keys)
		return keys, header, err
	}
	return nil, header, fmt.Errorf("list %s at %s: status %d: %s", prefix, n, status, body)
}

// bulkEntry is an element of `consul kv export`.
type bulkEntry struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value string `json:"value"` // base64
}

// export streams everything under a prefix from a node's bulk endpoint.
func export(n *node, prefix, query string, each func(key string, value []byte) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	path := strings.Replace(kvPath(prefix), "/v1/kv/", "/v1/bulk/", 1) + "?" + query
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+path, nil)
	if err != nil {
		return err
	}
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("export %s from %s: status %d: %s", prefix, n, resp.StatusCode, text)
	}
	in := json.NewDecoder(resp.Body)
	if _, err := in.Token(); err != nil { // the array's opening bracket
		return fmt.Errorf("export from %s: %w", n, err)
	}
	for in.More() {
		var e bulkEntry
		if err := in.Decode(&e); err != nil {
			return fmt.Errorf("export from %s: %w", n, err)
		}
		value, err := base64.StdEncoding.DecodeString(e.Value)
		if err != nil {
			return fmt.Errorf("export from %s: value of %s: %w", n, e.Key, err)
		}
		if err := each(e.Key, value); err != nil {
			return err
		}
	}
	if _, err := in.Token(); err != nil { // cut short?
		return fmt.Errorf("export from %s: %w", n, err)
	}
	return nil
}
