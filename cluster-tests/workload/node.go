package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Node is a member as clients see it.
type Node struct {
	Name, Site string
	// Voter says that it votes when the run begins.
	Voter bool
	// URL is the root of its API, without a slash at the end.
	URL string
	// Client reaches it. Its dial errors are *net.OpError with Op "dial": then
	// certainly nothing was sent.
	Client *http.Client
}

func (n *Node) String() string { return n.Name }

// Patience is how long a client waits for an answer: longer than the 7 s for
// which a node looks for a leader.
const Patience = 10 * time.Second

// Answer is a node's answer to one request.
type Answer struct {
	Status int
	Body   []byte
	Header http.Header
}

// Do makes one request and reads the answer whole, within the client's patience.
// The error says that there is no answer, or that it was cut off.
func (n *Node) Do(ctx context.Context, method, path string, body []byte, headers ...string) (Answer, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Patience)
	defer cancel()
	return n.Ask(ctx, method, path, body, headers...)
}

// Ask is Do within ctx alone.
func (n *Node) Ask(ctx context.Context, method, path string, body []byte, headers ...string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, n.URL+path, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := n.Client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, answer, resp.Header}, err
}

// Key is the path of a key of the KV store, each part escaped.
func Key(key string) string {
	return "/v1/kv/" + strings.ReplaceAll(url.PathEscape(key), "%2F", "/")
}

// Outcome tells what an answer, or none, says of a write: a 5xx and a broken
// connection leave it open, a connection that was never made does not. (A request
// with an Idempotency-Key is sent again by net/http itself when its connection
// breaks, so there a connection that was not made leaves it open as well: the
// workload that sends such requests has to say so.)
func Outcome(a Answer, err error) (o history.Outcome, why string) {
	var dial *net.OpError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return history.Refused, err.Error()
	case err != nil:
		return history.Unknown, err.Error()
	case a.Status >= 500:
		return history.Unknown, fmt.Sprintf("%d %.200s", a.Status, a.Body)
	case a.Status != http.StatusOK:
		return history.Refused, fmt.Sprintf("%d %.200s", a.Status, a.Body)
	}
	return history.Decided, ""
}

// ended records what came of a request; decided makes Op.Out of an answer, one with
// status 200 or with one of those that settle this kind of request, too.
func ended(p *history.Pending, a Answer, err error, decided func(Answer) (any, error), settle ...int) history.Outcome {
	o, why := Outcome(a, err)
	if err == nil && slices.Contains(settle, a.Status) {
		o = history.Decided
	}
	switch o {
	case history.Refused:
		p.Refused(why)
	case history.Unknown:
		p.Unknown(why)
	case history.Decided:
		out, err := decided(a)
		if err != nil {
			out = Broken{err.Error()}
		}
		p.Decided(out)
	}
	return o
}

// lastRead repeats a read of Finish until it is decided.
func lastRead(ctx context.Context, n *Node, read func() history.Outcome) error {
	for range 50 {
		if read() == history.Decided {
			return nil
		}
		if Rest(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("%s does not answer a last read", n)
}

// Broken is Op.Out of an answer that breaks the API: always an anomaly.
type Broken struct{ What string }

// broken looks for answers that break the API.
func broken(ops []history.Op) (found []Anomaly) {
	for _, o := range ops {
		if b, ok := o.Out.(Broken); ok {
			found = append(found, anomaly("broken answer", b.What, o))
		}
	}
	return found
}

// True says whether the body is that of a write that happened.
func (a Answer) True() bool { return strings.TrimSpace(string(a.Body)) == "true" }

// Index is the revision a write was made or decided at, or a read's index.
func (a Answer) Index() (uint64, error) { return a.number("X-Consul-Index") }

// Applied is the revision of the state that answered.
func (a Answer) Applied() (uint64, error) { return a.number("X-Holdfast-Applied") }

// Staleness is how old the answer may be; not known when it says so.
func (a Answer) Staleness() (d time.Duration, known bool, err error) {
	if a.Header.Get("X-Holdfast-Staleness") == "unknown" {
		return 0, false, nil
	}
	ms, err := a.number("X-Holdfast-Staleness")
	return time.Duration(ms) * time.Millisecond, err == nil, err
}

func (a Answer) number(header string) (uint64, error) {
	n, err := strconv.ParseUint(a.Header.Get(header), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("status %d with header %s %q", a.Status, header, a.Header.Get(header))
	}
	return n, nil
}

// Entry is a key as the API shows it.
type Entry struct {
	Key         string
	Value       []byte
	Flags       uint64
	Session     string
	LockIndex   uint64
	CreateIndex uint64
	ModifyIndex uint64
}

func (e Entry) equal(o Entry) bool {
	return e.Key == o.Key && bytes.Equal(e.Value, o.Value) && e.Flags == o.Flags && e.Session == o.Session &&
		e.LockIndex == o.LockIndex && e.CreateIndex == o.CreateIndex && e.ModifyIndex == o.ModifyIndex
}

// Entries are those of a read: none for 404. The error says that the answer is
// neither, or cannot be understood.
func (a Answer) Entries() ([]Entry, error) {
	if a.Status == http.StatusNotFound {
		return nil, nil
	}
	if a.Status != http.StatusOK {
		return nil, fmt.Errorf("status %d: %.200s", a.Status, a.Body)
	}
	var entries []Entry
	if err := json.Unmarshal(a.Body, &entries); err != nil {
		return nil, fmt.Errorf("body %.100q: %w", a.Body, err)
	}
	return entries, nil
}

// persistent repeats a request on one node after the other until it is answered
// with 200 or 404: for Setup and Finish, when the cluster is whole.
func (e *Env) persistent(ctx context.Context, method, path string, body []byte) (Answer, error) {
	for i := 0; ; i++ {
		a, err := e.Nodes[i%len(e.Nodes)].Do(ctx, method, path, body)
		if err == nil && (a.Status == http.StatusOK || a.Status == http.StatusNotFound) {
			return a, nil
		}
		if i >= 50 || ctx.Err() != nil {
			return a, fmt.Errorf("%s %s: status %d %.200q, %v", method, path, a.Status, a.Body, err)
		}
		Rest(ctx, 100*time.Millisecond)
	}
}
