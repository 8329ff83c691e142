package clustertests

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Here the client library of the dialect's own project works against a three-site
// cluster, as the tools that are built on it do.

// consulAt is that library's client of one node.
func consulAt(t testing.TB, n *node) *consul.Client {
	t.Helper()
	c, err := consul.NewClient(&consul.Config{Address: n.http})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leaderAndCopies are nodes of each kind: the leader, another voter, a learner.
func leaderAndCopies(c *cluster) map[string]*node {
	leader := c.waitLeader()
	return map[string]*node{"leader": leader, "follower": without(c.voters(), leader)[0], "learner": c.learners()[0]}
}

func TestTheConsulClientWorksAtEveryNode(t *testing.T) {
	c := startCluster(t, threeSites)
	for kind, n := range leaderAndCopies(c) {
		t.Run(kind, func(t *testing.T) {
			api := consulAt(t, n)
			for what, test := range map[string]func(*testing.T, *consul.Client, string){
				"keys": consulKeys, "locks": consulLocks, "transactions": consulTxn, "sessions": consulSessions,
				"blocking queries": consulBlocking, "operator": consulOperator,
			} {
				t.Run(what, func(t *testing.T) { test(t, api, kind+"/"+strings.ReplaceAll(what, " ", "-")+"/") })
			}
		})
	}
	t.Run("snapshot", func(t *testing.T) { consulSnapshot(t, c) })
}

// fresh are the options of a read that sees every write before, at any node.
var fresh = &consul.QueryOptions{RequireConsistent: true}

func must[T any](t *testing.T) func(v T, meta any, err error) T {
	return func(v T, _ any, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func consulKeys(t *testing.T, api *consul.Client, dir string) {
	kv := api.KV()
	put := func(k, v string) {
		t.Helper()
		if _, err := kv.Put(&consul.KVPair{Key: dir + k, Value: []byte(v), Flags: 3304740253564472344}, nil); err != nil {
			t.Fatal(err)
		}
	}
	get := func(k string) *consul.KVPair {
		t.Helper()
		p, meta, err := kv.Get(dir+k, fresh)
		if err != nil {
			t.Fatal(err)
		}
		if meta.LastIndex == 0 || !meta.KnownLeader {
			t.Errorf("%+v", meta)
		}
		return p
	}
	if p := get("none"); p != nil {
		t.Errorf("%+v", p)
	}
	put("a", "1")
	put("b/c", "2")
	put("b/d", "")
	p := get("a")
	if string(p.Value) != "1" || p.Flags != 3304740253564472344 || p.CreateIndex == 0 || p.CreateIndex != p.ModifyIndex {
		t.Errorf("%+v", p)
	}
	list := must[consul.KVPairs](t)(kv.List(dir, fresh))
	keys := must[[]string](t)(kv.Keys(dir, "/", fresh))
	if len(list) != 3 || list[2].Value != nil || !slices.Equal(keys, []string{dir + "a", dir + "b/"}) {
		t.Errorf("%v %q", list, keys)
	}
	cas := func(index uint64) bool {
		t.Helper()
		return must[bool](t)(kv.CAS(&consul.KVPair{Key: dir + "a", Value: []byte("cas"), ModifyIndex: index}, nil))
	}
	if cas(p.ModifyIndex-1) || cas(0) || !cas(p.ModifyIndex) {
		t.Error("check-and-set")
	}
	if must[bool](t)(kv.DeleteCAS(&consul.KVPair{Key: dir + "a", ModifyIndex: p.ModifyIndex}, nil)) {
		t.Error("deleted by an old index")
	}
	if !must[bool](t)(kv.DeleteCAS(&consul.KVPair{Key: dir + "a", ModifyIndex: get("a").ModifyIndex}, nil)) || get("a") != nil {
		t.Error("not deleted")
	}
	if _, err := kv.DeleteTree(dir+"b/", nil); err != nil {
		t.Fatal(err)
	}
	if list := must[consul.KVPairs](t)(kv.List(dir, fresh)); len(list) != 0 {
		t.Errorf("%v", list)
	}
}

func consulLocks(t *testing.T, api *consul.Client, dir string) {
	s, kv := api.Session(), api.KV()
	create := func(e *consul.SessionEntry) string { t.Helper(); return must[string](t)(s.CreateNoChecks(e, nil)) }
	one := create(&consul.SessionEntry{TTL: "10s", LockDelay: time.Millisecond})
	two := create(&consul.SessionEntry{TTL: "10s", Behavior: consul.SessionBehaviorDelete, LockDelay: 15 * time.Second})
	acquire := func(key, session string) bool {
		t.Helper()
		return must[bool](t)(kv.Acquire(&consul.KVPair{Key: dir + key, Value: []byte(session), Session: session}, nil))
	}
	if !acquire("a", one) || acquire("a", two) || !acquire("a", one) {
		t.Error("a lock is not exclusive, or not its holder's")
	}
	p := must[*consul.KVPair](t)(kv.Get(dir+"a", fresh))
	if p.Session != one || p.LockIndex != 1 {
		t.Errorf("%+v", p)
	}
	if must[bool](t)(kv.Release(&consul.KVPair{Key: dir + "a", Session: two}, nil)) || !must[bool](t)(kv.Release(&consul.KVPair{Key: dir + "a", Session: one}, nil)) {
		t.Error("release")
	}
	if !acquire("a", two) || !acquire("b", two) {
		t.Error("a released lock is not free")
	}
	if _, _, err := kv.Acquire(&consul.KVPair{Key: dir + "a", Session: "4ca8e74b-6350-7587-addf-a18084928f3c"}, nil); err == nil || !strings.Contains(err.Error(), `invalid session "4ca8e74b`) {
		t.Errorf("unknown session: %v", err)
	}
	if _, err := s.Destroy(two, nil); err != nil {
		t.Fatal(err)
	}
	if p := must[*consul.KVPair](t)(kv.Get(dir+"a", fresh)); p != nil {
		t.Errorf("%+v outlives its session", p)
	}
	if acquire("a", one) {
		t.Error("locked within the lock-delay")
	}
}

func consulTxn(t *testing.T, api *consul.Client, dir string) {
	kv := api.KV()
	ok, res, _, err := kv.Txn(consul.KVTxnOps{
		{Verb: consul.KVSet, Key: dir + "a", Value: []byte("1"), Flags: 1 << 63},
		{Verb: consul.KVGet, Key: dir + "a"},
		{Verb: consul.KVCheckNotExists, Key: dir + "b"},
		{Verb: consul.KVGetOrEmpty, Key: dir + "b"},
		{Verb: consul.KVGetTree, Key: dir},
	}, nil)
	if err != nil || !ok || len(res.Results) != 4 || string(res.Results[1].Value) != "1" || res.Results[0].Value != nil || res.Results[0].Flags != 1<<63 {
		t.Fatalf("%v %+v %v", ok, res, err)
	}
	index := res.Results[0].ModifyIndex
	ok, res, _, err = kv.Txn(consul.KVTxnOps{
		{Verb: consul.KVSet, Key: dir + "c", Value: []byte("no")},
		{Verb: consul.KVCAS, Key: dir + "a", Value: []byte("2"), Index: index - 1},
		{Verb: consul.KVCheckIndex, Key: dir + "none", Index: 1},
	}, nil)
	if err != nil || ok || len(res.Errors) != 2 || res.Errors[0].OpIndex != 1 || !strings.Contains(res.Errors[0].What, "index is stale") || res.Errors[1].OpIndex != 2 {
		t.Fatalf("%v %+v %v", ok, res, err)
	}
	if p := must[*consul.KVPair](t)(kv.Get(dir+"c", fresh)); p != nil {
		t.Error("a failed transaction has left something")
	}
	many := make(consul.KVTxnOps, 129)
	for i := range many {
		many[i] = &consul.KVTxnOp{Verb: consul.KVSet, Key: fmt.Sprint(dir, i), Value: []byte("v")}
	}
	if _, _, _, err := kv.Txn(many, nil); err == nil || !strings.Contains(err.Error(), "too many operations (129 > 128)") {
		t.Error(err)
	}
	if ok, _, _, err := kv.Txn(many[:128], nil); err != nil || !ok {
		t.Error(ok, err)
	}
	ok, res, _, err = kv.Txn(consul.KVTxnOps{{Verb: consul.KVDeleteTree, Key: dir}, {Verb: consul.KVGetTree, Key: dir}}, nil)
	if err != nil || !ok || len(res.Results) != 0 {
		t.Errorf("%v %+v %v", ok, res, err)
	}
}

func consulSessions(t *testing.T, api *consul.Client, dir string) {
	s := api.Session()
	id := must[string](t)(s.Create(&consul.SessionEntry{Name: dir, TTL: "15s", LockDelay: 5 * time.Second}, nil))
	e := must[*consul.SessionEntry](t)(s.Info(id, fresh))
	if e == nil || e.Name != dir || e.TTL != "15s" || e.LockDelay != 5*time.Second || e.Behavior != "release" || e.CreateIndex == 0 || e.Node == "" {
		t.Fatalf("%+v", e)
	}
	if r := must[*consul.SessionEntry](t)(s.Renew(id, nil)); r == nil || r.ID != id {
		t.Errorf("%+v", r)
	}
	in := func(list []*consul.SessionEntry) bool {
		return slices.ContainsFunc(list, func(e *consul.SessionEntry) bool { return e.ID == id })
	}
	if !in(must[[]*consul.SessionEntry](t)(s.List(fresh))) || !in(must[[]*consul.SessionEntry](t)(s.Node(e.Node, fresh))) {
		t.Error("a session is not listed")
	}
	for _, ttl := range []string{"1s", "25h"} {
		if _, _, err := s.Create(&consul.SessionEntry{TTL: ttl}, nil); err == nil || !strings.Contains(err.Error(), "Invalid Session TTL") {
			t.Errorf("%s: %v", ttl, err)
		}
	}
	if _, err := s.Destroy(id, nil); err != nil {
		t.Fatal(err)
	}
	if e := must[*consul.SessionEntry](t)(s.Info(id, fresh)); e != nil {
		t.Errorf("%+v", e)
	}
	if r, _, err := s.Renew(id, nil); r != nil || err != nil { // how the library tells of a 404
		t.Errorf("%+v %v", r, err)
	}
}

func consulBlocking(t *testing.T, api *consul.Client, dir string) {
	kv := api.KV()
	if _, err := kv.Put(&consul.KVPair{Key: dir + "k", Value: []byte("0")}, nil); err != nil {
		t.Fatal(err)
	}
	_, meta, err := kv.Get(dir+"k", fresh)
	if err != nil {
		t.Fatal(err)
	}
	index := meta.LastIndex
	for i := 1; i <= 3; i++ {
		type answer struct {
			pairs consul.KVPairs
			meta  *consul.QueryMeta
			err   error
		}
		answers := make(chan answer, 2)
		ask := func(o consul.QueryOptions) {
			o.WaitIndex, o.WaitTime = index, time.Minute
			pairs, meta, err := kv.List(dir, &o)
			answers <- answer{pairs, meta, err}
		}
		go ask(consul.QueryOptions{})
		go ask(consul.QueryOptions{RequireConsistent: true})
		if _, err := kv.Put(&consul.KVPair{Key: dir + "k", Value: []byte(strconv.Itoa(i))}, nil); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			select {
			case a := <-answers:
				if a.err != nil || a.meta.LastIndex <= index || string(a.pairs[0].Value) != strconv.Itoa(i) {
					t.Fatalf("%+v", a)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("a blocking query sleeps through a change")
			}
		}
		_, meta, err := kv.Get(dir+"k", fresh)
		if err != nil {
			t.Fatal(err)
		}
		index = meta.LastIndex
	}
	began := time.Now()
	_, meta, err = kv.Get(dir+"k", &consul.QueryOptions{WaitIndex: index, WaitTime: 300 * time.Millisecond})
	if took := time.Since(began); err != nil || meta.LastIndex != index || took < 300*time.Millisecond {
		t.Errorf("after %v: %+v %v", took, meta, err)
	}
}

func consulOperator(t *testing.T, api *consul.Client, _ string) {
	leader, err := api.Status().Leader()
	peers, perr := api.Status().Peers()
	if err != nil || perr != nil || leader == "" || len(peers) != 3 || !slices.Contains(peers, leader) {
		t.Errorf("%q %q %v %v", leader, peers, err, perr)
	}
	conf, err := api.Operator().RaftGetConfiguration(nil)
	if err != nil || len(conf.Servers) != 5 || conf.Index == 0 {
		t.Fatalf("%+v %v", conf, err)
	}
	self, err := api.Agent().Self()
	if err != nil || self["Config"]["NodeName"] == "" {
		t.Errorf("%v %v", self, err)
	}
	if dcs, err := api.Catalog().Datacenters(); err != nil || !slices.Equal(dcs, []string{"dc1"}) {
		t.Errorf("%q %v", dcs, err)
	}
	if m, err := api.Agent().Members(false); err != nil || len(m) != 5 {
		t.Errorf("%v %v", m, err)
	}
	if !eventually(20*time.Second, func() bool { h, err := api.Operator().AutopilotServerHealth(nil); return err == nil && h.Healthy }) {
		t.Error("the cluster is never healthy")
	}
	pilot, err := api.Operator().AutopilotGetConfiguration(nil)
	if err != nil {
		t.Fatal(err)
	}
	pilot.MaxTrailingLogs++
	if ok, err := api.Operator().AutopilotCASConfiguration(pilot, nil); err != nil || !ok {
		t.Errorf("%v %v", ok, err)
	}
	if ok, err := api.Operator().AutopilotCASConfiguration(pilot, nil); err != nil || ok {
		t.Errorf("by an old index: %v %v", ok, err)
	}
	if st, err := api.Operator().AutopilotState(nil); err != nil || len(st.Servers) != 5 || len(st.Voters) != 3 {
		t.Errorf("%+v %v", st, err)
	}
	if err := api.Operator().RaftRemovePeerByID("nobody", nil); err == nil || !strings.Contains(err.Error(), `"nobody" was not found in the Raft configuration`) {
		t.Error(err)
	}
	for _, s := range conf.Servers {
		if s.Voter && !s.Leader {
			if res, err := api.Operator().RaftLeaderTransfer(s.ID, nil); err != nil || !res.Success {
				t.Errorf("%+v %v", res, err)
			}
			break
		}
	}
}

func consulSnapshot(t *testing.T, c *cluster) {
	api := consulAt(t, c.learners()[0])
	put := func(k, v string) {
		t.Helper()
		if _, err := api.KV().Put(&consul.KVPair{Key: "archive/" + k, Value: []byte(v)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("kept", "1")
	body, meta, err := api.Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(body)
	body.Close()
	if err != nil || meta.LastIndex == 0 {
		t.Fatalf("%+v %v", meta, err)
	}
	put("kept", "2")
	put("new", "3")
	_, before, err := api.KV().List("archive/", fresh)
	if err != nil {
		t.Fatal(err)
	}
	woken := make(chan error, 1)
	go func() {
		_, _, err := api.KV().List("archive/", &consul.QueryOptions{WaitIndex: before.LastIndex, WaitTime: time.Minute})
		woken <- err
	}()
	if err := api.Snapshot().Restore(nil, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-woken:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a restore wakes nobody")
	}
	list := must[consul.KVPairs](t)(api.KV().List("archive/", fresh))
	if len(list) != 1 || string(list[0].Value) != "1" {
		t.Errorf("%v", list)
	}
	put("after", "4")
	c.waitLevel(30 * time.Second)
	archive[len(archive)/2] ^= 1
	if err := api.Snapshot().Restore(nil, bytes.NewReader(archive)); err == nil {
		t.Error("a damaged archive is restored")
	}
	if p := must[*consul.KVPair](t)(api.KV().Get("archive/after", fresh)); p == nil {
		t.Error("a damaged archive has changed something")
	}
}

// killing kills the leader again and again until the test of it is done.
func killing(c *cluster, times int, every time.Duration, while func(stop context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { while(ctx) })
	for range times {
		time.Sleep(every) // the load, not a condition: how often leaders die
		leader := c.waitLeader()
		c.kill(leader)
		c.waitLeader(without(c.voters(), leader)...)
		c.start(leader)
		c.waitReady(leader)
	}
	cancel()
	wg.Wait()
}

// Two clients of a lock never both hold it, though leaders die; and the lock's
// index goes up by one with each holder, so that it fences.
func TestConsulLocksStayExclusiveWhileLeadersDie(t *testing.T) {
	c := startCluster(t, threeSites)
	const key = "locks/one"
	var (
		inside    atomic.Int32
		held      atomic.Int64
		mu        sync.Mutex
		lastIndex uint64
	)
	contend := func(ctx context.Context, n *node) {
		api := consulAt(t, n)
		for ctx.Err() == nil {
			lock, err := api.LockOpts(&consul.LockOptions{
				Key: key, SessionTTL: "10s", MonitorRetries: 40, MonitorRetryTime: 250 * time.Millisecond, LockWaitTime: 5 * time.Second,
			})
			if err != nil {
				t.Error(err)
				return
			}
			lost, err := lock.Lock(ctx.Done())
			if err != nil || lost == nil {
				continue // no leader just then, or the end
			}
			if inside.Add(1) != 1 {
				t.Error("two clients hold the lock")
			}
			p, _, err := api.KV().Get(key, fresh)
			if err == nil && p != nil {
				mu.Lock()
				if p.LockIndex <= lastIndex {
					t.Errorf("the lock's index is %d after %d", p.LockIndex, lastIndex)
				}
				lastIndex = p.LockIndex
				mu.Unlock()
			}
			select {
			case <-lost:
				t.Error("a lock was lost though its session lives")
			case <-time.After(20 * time.Millisecond): // the work under the lock
			}
			inside.Add(-1)
			held.Add(1)
			for lock.Unlock() != nil && ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond) // no leader just then
			}
		}
	}
	killing(c, 4, 3*time.Second, func(ctx context.Context) {
		var wg sync.WaitGroup
		for _, n := range c.learners() {
			for range 3 {
				wg.Go(func() { contend(ctx, n) })
			}
		}
		wg.Wait()
	})
	t.Logf("the lock was held %d times", held.Load())
	if held.Load() < 10 {
		t.Errorf("the lock was held %d times only", held.Load())
	}
}

func TestConsulSemaphoresKeepTheirLimitWhileLeadersDie(t *testing.T) {
	c := startCluster(t, threeSites)
	const limit = 2
	var inside atomic.Int32
	var held atomic.Int64
	contend := func(ctx context.Context, n *node) {
		api := consulAt(t, n)
		for ctx.Err() == nil {
			s, err := api.SemaphoreOpts(&consul.SemaphoreOptions{
				Prefix: "semaphores/one", Limit: limit, SessionTTL: "10s", MonitorRetries: 40, MonitorRetryTime: 250 * time.Millisecond, SemaphoreWaitTime: 5 * time.Second,
			})
			if err != nil {
				t.Error(err)
				return
			}
			lost, err := s.Acquire(ctx.Done())
			if err != nil || lost == nil {
				continue
			}
			if n := inside.Add(1); n > limit {
				t.Errorf("%d clients hold a semaphore of %d", n, limit)
			}
			select {
			case <-lost:
				t.Error("a place was lost though its session lives")
			case <-time.After(20 * time.Millisecond): // the work under the semaphore
			}
			inside.Add(-1)
			held.Add(1)
			for s.Release() != nil && ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond) // no leader just then
			}
		}
	}
	killing(c, 3, 3*time.Second, func(ctx context.Context) {
		var wg sync.WaitGroup
		for _, n := range c.learners() {
			for range 2 {
				wg.Go(func() { contend(ctx, n) })
			}
		}
		wg.Wait()
	})
	t.Logf("the semaphore was held %d times", held.Load())
	if held.Load() < 10 {
		t.Errorf("the semaphore was held %d times only", held.Load())
	}
}

// Watchers of a key see values in order, and the last one, though leaders die.
func TestConsulWatchersSeeTheLastValueWhileLeadersDie(t *testing.T) {
	c := startCluster(t, threeSites)
	const key = "watched"
	var last atomic.Int64
	seen := make([]atomic.Int64, len(c.nodes))
	watching, stopWatching := context.WithCancel(context.Background())
	defer stopWatching()
	var watchers sync.WaitGroup
	for i, n := range c.nodes {
		watchers.Go(func() {
			api := consulAt(t, n)
			var index uint64
			for watching.Err() == nil {
				o := (&consul.QueryOptions{WaitIndex: index, WaitTime: 10 * time.Second, AllowStale: true}).WithContext(watching)
				p, meta, err := api.KV().Get(key, o)
				if err != nil {
					time.Sleep(20 * time.Millisecond) // the node is dead just then
					continue
				}
				index = meta.LastIndex
				if p == nil {
					continue
				}
				v, err := strconv.ParseInt(string(p.Value), 10, 64)
				if err != nil {
					t.Error(err)
					return
				}
				if was := seen[i].Swap(v); v < was {
					t.Errorf("%s shows %d after %d", n, v, was)
				}
			}
		})
	}
	killing(c, 3, 2*time.Second, func(ctx context.Context) {
		api := consulAt(t, c.learners()[0])
		for i := int64(1); ctx.Err() == nil; {
			if _, err := api.KV().Put(&consul.KVPair{Key: key, Value: strconv.AppendInt(nil, i, 10)}, nil); err == nil {
				last.Store(i)
				i++
			}
		}
	})
	c.wait(20*time.Second, "all watchers see the last value", func() bool {
		for i := range seen {
			if seen[i].Load() < last.Load() {
				return false
			}
		}
		return true
	})
	stopWatching()
	watchers.Wait()
	t.Logf("%d values", last.Load())
}
