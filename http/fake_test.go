package http

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	nethttp "net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

// fakeNode is a node of one member with a map for a store. Functions that are
// set replace what it would do.
type fakeNode struct {
	mu       sync.Mutex
	setting  []byte // autopilot's, nil while it was never set
	records  map[string]command.Record
	deleted  map[string]uint64 // key -> revision of its last delete
	history  []command.Change  // what Propose changed, in order
	oldest   uint64            // the compaction point
	restored uint64            // an archive took the place of the state
	sessions []command.Session // in the order of their ids
	ended    uint64            // revision at which a session was created or ended last
	revision uint64
	kv       uint64
	stepped  chan struct{} // if anybody waits: closed when the revision goes up
	watching map[chan struct{}]command.Target
	// waits: reads wait for MinRevision. Others take it for granted.
	waits bool

	propose func(ctx context.Context, c command.Command) (command.Result, error)
	read    func(ctx context.Context, o command.ReadOptions) error
	export  func(fn func(command.Record) error) error
	archive func(begin func(revision uint64) io.Writer) error
	restore func(archive io.Reader) (uint64, error)
	renew   func(id string) (command.Session, error)

	info     command.ReadInfo
	status   command.NodeStatus
	sites    []command.Site
	replica  command.ReplicaStatus
	learners []command.Replica
	// membersAt is the revision of the last change of a member.
	membersAt uint64

	health, localHealth command.Health
	operated            []string // what an operator asked for
	refuse              error    // what becomes of it

	asked    command.ReadOptions // of the last read
	proposed []command.Command
}

func newFakeNode() *fakeNode {
	return &fakeNode{
		records:  map[string]command.Record{},
		deleted:  map[string]uint64{},
		watching: map[chan struct{}]command.Target{},
		info: command.ReadInfo{
			Node: "n1", Site: "home", StalenessKnown: true, KnownLeader: true,
		},
		status: command.NodeStatus{
			ID: "n1-00", Name: "n1", Site: "home", RaftAddr: "10.0.0.1:8300", HTTPAddr: "10.0.0.1:8500",
			State: "Leader", Leader: "n1", LeaderRaftAddr: "10.0.0.1:8300",
			VoterRaftAddrs: []string{"10.0.0.1:8300"}, Term: 3, AppliedIndex: 17, Ready: true, Started: time.Unix(1700000000, 0),
		},
		replica:   command.ReplicaStatus{Running: true, Mode: "leader", Status: "level"},
		membersAt: 4,
	}
}

func (n *fakeNode) Propose(ctx context.Context, c command.Command) (command.Result, error) {
	n.mu.Lock()
	n.proposed = append(n.proposed, c)
	propose := n.propose
	n.mu.Unlock()
	if propose != nil {
		return propose(ctx, c)
	}
	return n.apply(c), nil
}

func (n *fakeNode) apply(c command.Command) command.Result {
	n.mu.Lock()
	defer n.mu.Unlock()
	next, ok, changed := n.revision+1, true, false
	record := func(r command.Record, deleted bool) {
		c := command.Change{Record: r, Deleted: deleted, Wall: wallOf(next)}
		c.At = command.Position{Revision: next}
		for _, old := range n.history {
			if old.At.Revision == next {
				c.At.K++
			}
			if old.Record.Key == r.Key {
				c.Prev = old.At
			}
		}
		n.history = append(n.history, c)
		n.wake(func(t command.Target) bool { // it looks once mu is free
			return t.Kind == command.TargetKey && t.Key == r.Key || t.Kind == command.TargetPrefix && strings.HasPrefix(r.Key, t.Key)
		})
	}
	put := func(r command.Record) {
		old, exists := n.records[r.Key]
		r.CreateRevision, r.ModifyRevision = next, next
		if exists {
			r.CreateRevision = old.CreateRevision
		}
		n.records[r.Key], changed = r, true
		record(r, false)
	}
	remove := func(key string) {
		delete(n.records, key)
		record(command.Record{Key: key, ModifyRevision: next}, true)
		n.deleted[key], changed = next, true
	}
	switch c := c.(type) {
	case *command.Put:
		old := n.records[c.Key]
		switch c.Mode {
		case command.PutCAS:
			ok = old.ModifyRevision == c.Index
		case command.PutAcquire:
			return command.Result{Err: command.ErrInvalidSession}
		case command.PutRelease:
			ok = false
		}
		if ok {
			put(command.Record{Key: c.Key, Value: c.Value, Flags: c.Flags})
		}
	case *command.PutMany:
		for _, kv := range c.KVs {
			put(command.Record{Key: kv.Key, Value: kv.Value, Flags: kv.Flags})
		}
	case *command.Delete:
		if old, exists := n.records[c.Key]; exists {
			if ok = !c.CAS || old.ModifyRevision == c.Index; ok {
				remove(c.Key)
			}
		}
	case *command.DeleteTree:
		for _, key := range slices.Sorted(maps.Keys(n.records)) {
			if strings.HasPrefix(key, c.Prefix) {
				remove(key)
			}
		}
	}
	if changed {
		n.revision, n.kv = next, next
		if n.stepped != nil {
			close(n.stepped)
			n.stepped = nil
		}
	}
	return command.Result{OK: ok, Revision: n.revision}
}

func (n *fakeNode) Read(ctx context.Context, o command.ReadOptions, fn func(command.View) error) (command.ReadInfo, error) {
	var late error
	if n.waits {
		late = n.await(ctx, o)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = o
	info := n.info
	info.Revision, info.Oldest = n.revision, n.oldest
	if late != nil {
		return info, late
	}
	if read := n.read; read != nil {
		n.mu.Unlock() // it may take its time
		err := read(ctx, o)
		n.mu.Lock()
		if err != nil {
			return info, err
		}
	}
	// fn has to start afresh each time.
	if err := fn(fakeView{n: n}); err != nil {
		return info, err
	}
	return info, fn(fakeView{n: n})
}

// await waits like a node does.
func (n *fakeNode) await(ctx context.Context, o command.ReadOptions) error {
	wait := o.Wait
	fill(&wait, 5*time.Second)
	timeout := time.After(wait)
	for {
		n.mu.Lock()
		revision := n.revision
		if n.stepped == nil {
			n.stepped = make(chan struct{})
		}
		stepped := n.stepped
		n.mu.Unlock()
		if revision >= o.MinRevision {
			return nil
		}
		select {
		case <-stepped:
		case <-timeout:
			return command.ErrRevisionNotReached.With("revision %d, this node has %d", o.MinRevision, revision)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *fakeNode) Watch(t command.Target) (<-chan struct{}, func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := make(chan struct{})
	n.watching[changed] = t
	return changed, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.watching, changed)
	}
}

// wake wakes the watches of some targets. Needs mu.
func (n *fakeNode) wake(concerned func(command.Target) bool) {
	for changed, t := range n.watching {
		if concerned(t) {
			close(changed)
			delete(n.watching, changed)
		}
	}
}

func (n *fakeNode) Archive(_ context.Context, begin func(revision uint64) io.Writer) error {
	return n.archive(begin)
}

func (n *fakeNode) Restore(_ context.Context, archive io.Reader) (uint64, error) {
	return n.restore(archive)
}

func (n *fakeNode) Export(_ context.Context, prefix string, revision uint64, fn func(command.Record) error) error {
	if n.export != nil {
		return n.export(fn)
	}
	v := fakeView{n: n}
	if err := v.kept(revision); err != nil {
		return err
	}
	var err error
	_ = v.Scan(prefix, "", func(r command.Record) bool {
		err = fn(r)
		return err == nil
	})
	return err
}

func (n *fakeNode) Status() command.NodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.status
	st.Revision = n.revision
	return st
}

func (n *fakeNode) Sites(context.Context) ([]command.Site, uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sites, n.membersAt, nil
}

func (n *fakeNode) ReplicaStatus() command.ReplicaStatus { return n.replica }

func (n *fakeNode) Replicas(context.Context) ([]command.Replica, error) { return n.learners, n.refuse }

func (n *fakeNode) Pause(context.Context) error {
	if n.refuse == nil {
		n.replica.Running, n.replica.Status = false, "paused"
	}
	return n.refuse
}

func (n *fakeNode) Resume(context.Context) error {
	if n.refuse == nil {
		n.replica.Running, n.replica.Status = true, "level"
	}
	return n.refuse
}

// fakeView is the fake's present state and its history. Methods that these
// tests do not need are missing and would panic.
type fakeView struct {
	command.View
	n *fakeNode
}

func (v fakeView) SessionsRevision() uint64 { return v.n.ended }

func (v fakeView) Session(id string) (command.Session, error) {
	for _, s := range v.n.sessions {
		if s.ID == id {
			return s, nil
		}
	}
	return command.Session{}, command.ErrSessionNotFound
}

func (v fakeView) Sessions(fn func(command.Session) bool) error {
	for _, s := range v.n.sessions {
		if !fn(s) {
			break
		}
	}
	return nil
}

func (v fakeView) Revision() uint64   { return v.n.revision }
func (v fakeView) KVRevision() uint64 { return v.n.kv }

func (v fakeView) Get(key string) (command.Record, error) {
	r, ok := v.n.records[key]
	if !ok {
		return r, command.ErrKeyNotFound
	}
	return r, nil
}

func (v fakeView) Scan(prefix, after string, fn func(command.Record) bool) error {
	var keys []string
	for key := range v.n.records {
		if strings.HasPrefix(key, prefix) && key > after {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !fn(v.n.records[key]) {
			break
		}
	}
	return nil
}

func (v fakeView) ScanKeys(prefix, after string, fn func(string, uint64) bool) error {
	return v.Scan(prefix, after, func(r command.Record) bool { return fn(r.Key, r.ModifyRevision) })
}

func (v fakeView) PrefixRevision(prefix string) (uint64, error) {
	var last uint64
	for key, r := range v.n.records {
		if strings.HasPrefix(key, prefix) {
			last = max(last, r.ModifyRevision)
		}
	}
	for key, rev := range v.n.deleted {
		if strings.HasPrefix(key, prefix) {
			last = max(last, rev)
		}
	}
	if last == 0 {
		last = v.n.kv
	}
	return last, nil
}

// wallOf is the wall clock of a revision.
func wallOf(revision uint64) time.Time { return time.Unix(1700000000+int64(revision), 5e8) }

func (v fakeView) OldestRevision() uint64 { return v.n.oldest }

func (v fakeView) kept(revision uint64) error {
	switch {
	case revision > v.n.revision:
		return command.ErrRevisionNotReached.With("revision %d, this node has %d", revision, v.n.revision)
	case revision < v.n.oldest:
		return command.ErrCompacted.With("revision %d, the oldest kept is %d", revision, v.n.oldest)
	}
	return nil
}

// at is the last change of each key up to a revision.
func (v fakeView) at(revision uint64) (map[string]command.Change, error) {
	last := map[string]command.Change{}
	for _, c := range v.n.history {
		if c.At.Revision <= revision {
			last[c.Record.Key] = c
		}
	}
	return last, v.kept(revision)
}

func (v fakeView) GetAt(key string, revision uint64) (command.Record, error) {
	last, err := v.at(revision)
	if c, ok := last[key]; err == nil && ok && !c.Deleted {
		return c.Record, nil
	} else if err == nil {
		err = command.ErrKeyNotFound
	}
	return command.Record{}, err
}

func (v fakeView) ScanAt(prefix, after string, revision uint64, fn func(command.Record) bool) error {
	last, err := v.at(revision)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(last)) {
		c := last[key]
		if strings.HasPrefix(key, prefix) && key > after && !c.Deleted && !fn(c.Record) {
			break
		}
	}
	return nil
}

func (v fakeView) KVRevisionAt(revision uint64) (uint64, error) {
	return v.PrefixRevisionAt("", revision)
}

func (v fakeView) PrefixRevisionAt(prefix string, revision uint64) (uint64, error) {
	last, err := v.at(revision)
	var all, under uint64
	for key, c := range last {
		all = max(all, c.At.Revision)
		if strings.HasPrefix(key, prefix) {
			under = max(under, c.At.Revision)
		}
	}
	if under == 0 {
		under = all
	}
	return under, err
}

func (v fakeView) ChangesAfter(prefix string, after command.Position, to uint64, fn func(command.Change) bool) error {
	from := after.Revision
	if after == command.EndOf(from) {
		from++
	}
	if err := v.kept(from); err != nil {
		return err
	}
	if from == v.n.restored {
		return command.ErrCompacted.With("an archive was restored at revision %d", from)
	}
	for _, c := range v.n.history {
		if r := c.At.Revision; after.Before(c.At) && r <= to && strings.HasPrefix(c.Record.Key, prefix) && !fn(c) {
			break
		}
	}
	return nil
}

func (v fakeView) KeyHistory(key string, fn func(command.Change) bool) error {
	for _, c := range slices.Backward(v.n.history) {
		if c.Record.Key == key && (!fn(c) || c.At.Revision <= v.n.oldest) {
			break
		}
	}
	return nil
}

func (v fakeView) ChangeAt(at command.Position) (command.Change, error) {
	for _, c := range v.n.history {
		if c.At == at {
			return c, nil
		}
	}
	return command.Change{}, command.ErrCompacted
}

// newTestServer returns a server over n that logs to the test.
func newTestServer(t testing.TB, n Node, change ...func(*Config)) *Server {
	cfg := Config{Log: hclog.New(&hclog.LoggerOptions{Output: testWriter{t}, Level: hclog.Warn}), Linger: 1}
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg, n)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// ask sends one request. body is a string, a reader or nil; headers are pairs.
func ask(t testing.TB, h nethttp.Handler, method, target string, body any, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case string:
		r = strings.NewReader(b)
	case io.Reader:
		r = b
	}
	req := httptest.NewRequest(method, target, r)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// want checks a reply's status and body.
func want(t testing.TB, w *httptest.ResponseRecorder, status int, body string) {
	t.Helper()
	if w.Code != status || w.Body.String() != body {
		t.Fatalf("got %d %q, want %d %q", w.Code, w.Body, status, body)
	}
}

// wantHeaders checks headers, given as pairs; an empty value means absent.
func wantHeaders(t testing.TB, w *httptest.ResponseRecorder, pairs ...string) {
	t.Helper()
	for i := 0; i+1 < len(pairs); i += 2 {
		if got := w.Result().Header.Get(pairs[i]); got != pairs[i+1] {
			t.Errorf("%s: got %q, want %q", pairs[i], got, pairs[i+1])
		}
	}
}

// entry is a KV entry as clients decode it.
type entry struct {
	LockIndex, Flags, CreateIndex, ModifyIndex uint64
	Key                                        string
	Value                                      []byte
	Session                                    *string
}

func entries(t testing.TB, w *httptest.ResponseRecorder) []entry {
	t.Helper()
	var es []entry
	if err := json.Unmarshal(w.Body.Bytes(), &es); err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	return es
}

func (n *fakeNode) RenewSession(_ context.Context, id string) (command.Session, error) {
	if n.renew == nil {
		return command.Session{}, command.ErrSessionNotFound
	}
	return n.renew(id)
}

func (n *fakeNode) Health(context.Context) (command.Health, error) {
	return n.health, n.operate("health")
}
func (n *fakeNode) LocalHealth() (command.Health, error) { return n.localHealth, nil }

func (n *fakeNode) TransferLeader(_ context.Context, to string) error {
	return n.operate("transfer " + to)
}

func (n *fakeNode) RemovePeer(_ context.Context, id, address string) error {
	return n.operate("remove " + id + "|" + address)
}

func (n *fakeNode) PromoteSite(_ context.Context, site, confirm string, force bool) (command.PromotionPlan, error) {
	plan := command.PromotionPlan{Site: site, Epoch: 2, Confirm: site + "-at-7-epoch-2", Started: confirm != "", Members: []command.Standing{{}}}
	return plan, n.operate(fmt.Sprintf("promote %s|%s|%v", site, confirm, force))
}

func (n *fakeNode) operate(what string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.operated = append(n.operated, what)
	return n.refuse
}
