package clustertests

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// web is shared by all clients; connections are kept.
var web = &http.Client{Transport: &http.Transport{
	MaxIdleConnsPerHost: 512,
	DisableCompression:  true,
	DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
}}

// api is the node as clients see it.
func (n *node) api() *workload.Node {
	return &workload.Node{Name: n.name, Site: n.site, Voter: !n.learner(), URL: "http://" + n.http, Client: web}
}

// get fetches a path of a node whole.
func get(ctx context.Context, n *node, path string) (status int, body []byte, err error) {
	status, body, _, err = call(ctx, n, http.MethodGet, path, nil)
	return status, body, err
}

// call makes one request and reads the answer whole.
func call(ctx context.Context, n *node, method, path string, body []byte) (int, []byte, http.Header, error) {
	a, err := n.api().Ask(ctx, method, path, body)
	return a.Status, a.Body, a.Header, err
}

// written is the answer of a PUT or DELETE, as a client judges it.
type written struct {
	outcome  history.Outcome
	ok       bool   // the body was true
	revision uint64 // made by it, or at which it was decided
	status   int
	text     string // why it was not decided
	err      error  // the answer breaks the API
}

// put writes a key; query is "", "cas=N" or the like.
func put(n *node, key, value, query string) written {
	return write(n, http.MethodPut, workload.Key(key)+"?"+query, []byte(value))
}

// remove deletes a key.
func remove(n *node, key, query string) written {
	return write(n, http.MethodDelete, workload.Key(key)+"?"+query, nil)
}

func write(n *node, method, path string, body []byte) written {
	a, err := n.api().Do(context.Background(), method, path, body)
	w := written{status: a.Status}
	if w.outcome, w.text = workload.Outcome(a, err); w.outcome == history.Decided {
		w.ok = a.True()
		w.revision, w.err = a.Index()
	}
	return w
}

// answer is what a read came to.
type answer struct {
	status  int
	entries []workload.Entry
	// The headers that say what the answer is worth.
	applied        uint64
	staleness      time.Duration
	stalenessKnown bool
	freshAsOf      string
	text           string // body when the status is neither 200 nor 404
}

// read asks for a key, or for what stands under it with "recurse" in query.
// The error tells that there was no answer, or none that can be understood.
func read(n *node, key, query string) (answer, error) {
	got, err := n.api().Do(context.Background(), http.MethodGet, workload.Key(key)+"?"+query, nil)
	a := answer{status: got.Status, freshAsOf: got.Header.Get("X-Holdfast-Fresh-As-Of")}
	if err != nil || got.Status != http.StatusOK && got.Status != http.StatusNotFound {
		a.text = string(got.Body)
		return a, err
	}
	if a.applied, err = got.Applied(); err != nil {
		return a, err
	}
	if a.staleness, a.stalenessKnown, err = got.Staleness(); err != nil {
		return a, err
	}
	a.entries, err = got.Entries()
	return a, err
}

// keysUnder lists the keys with a prefix as the node has them.
func keysUnder(n *node, prefix, query string) ([]string, error) {
	a, err := n.api().Do(context.Background(), http.MethodGet, workload.Key(prefix)+"?keys&"+query, nil)
	switch {
	case err != nil || a.Status == http.StatusNotFound:
		return nil, err
	case a.Status != http.StatusOK:
		return nil, fmt.Errorf("list %s at %s: status %d: %s", prefix, n, a.Status, a.Body)
	}
	var keys []string
	err = json.Unmarshal(a.Body, &keys)
	return keys, err
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
	path := strings.Replace(workload.Key(prefix), "/v1/kv/", "/v1/bulk/", 1) + "?" + query
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
