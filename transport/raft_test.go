package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestEveryFieldTravels: a message arrives as it was sent, whichever fields the
// library gives it. A field this package does not know of fails here.
func TestEveryFieldTravels(t *testing.T) {
	for _, m := range []any{
		&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{},
		&raft.RequestVoteRequest{}, &raft.RequestVoteResponse{},
		&raft.RequestPreVoteRequest{}, &raft.RequestPreVoteResponse{},
		&raft.InstallSnapshotRequest{}, &raft.InstallSnapshotResponse{},
		&raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{},
	} {
		n := 0
		fill(t, reflect.ValueOf(m).Elem(), &n)
		b := appendMessage(nil, m)
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface()
		if err := decodeMessage(b, got); err != nil {
			t.Errorf("%T: %v", m, err)
			continue
		}
		if !reflect.DeepEqual(m, got) {
			t.Errorf("%T: sent %+v, got %+v", m, m, got)
		}
		for cut := range b {
			if err := decodeMessage(b[:cut], reflect.New(reflect.TypeOf(m).Elem()).Interface()); err == nil {
				t.Errorf("%T: %d of %d bytes were taken for a whole", m, cut, len(b))
			}
		}
		zero := reflect.New(reflect.TypeOf(m).Elem()).Interface()
		if err := decodeMessage(appendMessage(nil, zero), got); err != nil || !reflect.DeepEqual(got, zero) {
			t.Errorf("%T: zero value became %+v, %v", m, got, err)
		}
	}
}

// fill gives every field a value of its own.
func fill(t *testing.T, v reflect.Value, n *int) {
	*n++
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(int64(*n), 123456789)))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		v.SetBytes(fmt.Appendf(nil, "bytes %d", *n))
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range 3 {
			fill(t, v.Index(i), n)
		}
	case v.CanInt():
		v.SetInt(int64(*n))
	case v.CanUint():
		v.SetUint(uint64(*n))
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	default:
		t.Fatalf("field of kind %v", v.Kind())
	}
}

func header(name string) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(name), Addr: []byte(name)}
}

func heartbeat(name string, term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{RPCHeader: header(name), Term: term}
}

func replication(name string, term, index uint64, data ...[]byte) *raft.AppendEntriesRequest {
	r := &raft.AppendEntriesRequest{RPCHeader: header(name), Term: term, PrevLogEntry: index - 1, PrevLogTerm: term, LeaderCommitIndex: index - 1}
	for i, d := range data {
		r.Entries = append(r.Entries, &raft.Log{Index: index + uint64(i), Term: term, Data: d})
	}
	return r
}

// acknowledge answers what a test's consumer takes, and shows it.
func acknowledge(rpc raft.RPC) {
	switch req := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		resp := &raft.AppendEntriesResponse{RPCHeader: header("n2"), Term: req.Term, Success: true}
		if n := len(req.Entries); n > 0 {
			resp.LastLog = req.Entries[n-1].Index
		}
		rpc.Respond(resp, nil)
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{RPCHeader: header("n2"), Term: req.Term, Granted: true}, nil)
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: header("n2"), Term: req.Term, Granted: true}, nil)
	case *raft.TimeoutNowRequest:
		rpc.Respond(&raft.TimeoutNowResponse{RPCHeader: header("n2")}, nil)
	default:
		rpc.Respond(nil, fmt.Errorf("unexpected %T", req))
	}
}

// consume answers everything that reaches a transport's consumer until it
// closes.
func consume(t *Transport, fn func(raft.RPC)) {
	go func() {
		for {
			select {
			case rpc := <-t.Consumer():
				fn(rpc)
			case <-t.ctx.Done():
				return
			}
		}
	}()
}

// TestRaftRequestsArrive with their answers and their errors.
func TestRaftRequestsArrive(t *testing.T) {
	b := newBook()
	cfg := testConfig(t, b, hello("n2"))
	var mayLead atomic.Bool
	cfg.MayLead = mayLead.Load
	n1, n2 := start(t, b, testConfig(t, b, hello("n1")), nil), start(t, b, cfg, nil)
	consume(n2, acknowledge)

	var ae raft.AppendEntriesResponse
	if err := n1.AppendEntries("n2", "n2", replication("n1", 3, 7, []byte("a"), []byte("b")), &ae); err != nil || !ae.Success || ae.LastLog != 8 {
		t.Errorf("AppendEntries: %+v, %v", ae, err)
	}
	var vote raft.RequestVoteResponse
	if err := n1.RequestVote("n2", "n2", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 4}, &vote); err != nil || !vote.Granted || vote.Term != 4 {
		t.Errorf("RequestVote: %+v, %v", vote, err)
	}
	var pre raft.RequestPreVoteResponse
	if err := n1.RequestPreVote("n2", "n2", &raft.RequestPreVoteRequest{RPCHeader: header("n1"), Term: 5}, &pre); err != nil || !pre.Granted || pre.Term != 5 {
		t.Errorf("RequestPreVote: %+v, %v", pre, err)
	}
	var install raft.InstallSnapshotResponse
	err := n1.InstallSnapshot("n2", "n2", &raft.InstallSnapshotRequest{RPCHeader: header("n1"), Size: 4}, &install, bytes.NewReader([]byte("data")))
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("unexpected *raft.InstallSnapshotRequest")) {
		t.Errorf("error of the other side: %v", err)
	}
	// Refused while it may not lead, passed on when it may:
	if err := n1.TimeoutNow("n2", "n2", &raft.TimeoutNowRequest{RPCHeader: header("n1")}, &raft.TimeoutNowResponse{}); err == nil {
		t.Error("a learner was told to lead")
	}
	mayLead.Store(true)
	if err := n1.TimeoutNow("n2", "n2", &raft.TimeoutNowRequest{RPCHeader: header("n1")}, &raft.TimeoutNowResponse{}); err != nil {
		t.Errorf("TimeoutNow: %v", err)
	}
	if n1.LocalAddr() != "n1" || n1.DecodePeer(n1.EncodePeer("n2", "n2")) != "n2" {
		t.Error("addresses are not ids")
	}
}

// TestTimeoutNowNeverReachesALearnersRaft.
// TestReplicationSkipsWhatAPeerHasByOtherWays: a peer whose log is gone, since a
// copy took it further, is not gone back with, but only its Raft can say so.
func TestReplicationSkipsWhatAPeerHasByOtherWays(t *testing.T) {
	const last = 100
	for name, c := range map[string]struct {
		ours, theirs uint64 // terms of the last entry
		term         uint64 // that the peer answers with
		skips        bool
	}{
		"the same entry":            {ours: 3, theirs: 3, term: 4, skips: true},
		"another entry":             {ours: 3, theirs: 2, term: 4},
		"not in this node's log":    {ours: 0, theirs: 3, term: 4},
		"this node leads no longer": {ours: 3, theirs: 3, term: 5},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook()
			cfg := testConfig(t, b, hello("n1"))
			cfg.EntryTerm = func(index uint64) (uint64, bool) { return c.ours, index == last && c.ours != 0 }
			n1 := start(t, b, cfg, handlerFuncs{})
			n2 := start(t, b, testConfig(t, b, hello("n2")), handlerFuncs{})
			consume(n2, func(rpc raft.RPC) {
				a := rpc.Command.(*raft.AppendEntriesRequest)
				matches := a.PrevLogEntry == last && a.PrevLogTerm == c.theirs && a.Term >= c.term
				rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: header("n2"), Term: c.term, LastLog: last, Success: matches, NoRetryBackoff: !matches}, nil)
			})
			args, resp := replication("n1", 4, 11, []byte("x"), []byte("y")), &raft.AppendEntriesResponse{}
			if err := n1.AppendEntries("n2", "n2", args, resp); err != nil {
				t.Fatal(err)
			}
			reached := args.Entries[len(args.Entries)-1].Index
			if resp.Success != c.skips || c.skips && reached != last || !c.skips && reached != 12 || resp.LastLog != last {
				t.Errorf("entries end at %d, answer %+v; want it to skip: %v", reached, resp, c.skips)
			}
		})
	}
}

// TestAPeerThatCannotAppendIsLeftAloneForAMoment: Raft takes what the peer already has
// for progress, and would send it all the rest at once, again and again.
func TestAPeerThatCannotAppendIsLeftAloneForAMoment(t *testing.T) {
	const last = 11
	b := newBook()
	cfg := testConfig(t, b, hello("n1"))
	cfg.EntryTerm = func(index uint64) (uint64, bool) { return 4, index == last }
	n1 := start(t, b, cfg, handlerFuncs{})
	n2 := start(t, b, testConfig(t, b, hello("n2")), handlerFuncs{})
	consume(n2, func(rpc raft.RPC) {
		a := rpc.Command.(*raft.AppendEntriesRequest)
		rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: header("n2"), Term: 4, LastLog: last, Success: len(a.Entries) == 0}, nil)
	})
	args, resp := replication("n1", 4, last, []byte("x"), []byte("y")), &raft.AppendEntriesResponse{}
	began := time.Now()
	if err := n1.AppendEntries("n2", "n2", args, resp); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < appendPause {
		t.Errorf("it was asked again after %v", took)
	}
	if reached := args.Entries[len(args.Entries)-1].Index; !resp.Success || reached != last {
		t.Errorf("entries end at %d, answer %+v: what it has is not gone back behind", reached, resp)
	}
}

func TestTimeoutNowNeverReachesALearnersRaft(t *testing.T) {
	n1, n2, _ := pair(t, nil) // MayLead is nil
	var reached atomic.Bool
	consume(n2, func(rpc raft.RPC) { reached.Store(true); acknowledge(rpc) })
	err := n1.TimeoutNow("n2", "n2", &raft.TimeoutNowRequest{RPCHeader: header("n1")}, &raft.TimeoutNowResponse{})
	if err == nil || reached.Load() {
		t.Fatalf("err %v, reached %v", err, reached.Load())
	}
}

// TestHeartbeatsPassBulk: while Raft's main loop is stuck with replication,
// heartbeats are answered by the handler, on a connection of their own.
func TestHeartbeatsPassBulk(t *testing.T) {
	n1, n2, _ := pair(t, nil) // nobody consumes at n2
	var beats atomic.Int64
	n2.SetHeartbeatHandler(func(rpc raft.RPC) { beats.Add(1); acknowledge(rpc) })
	bulk := later(func() error {
		return n1.AppendEntries("n2", "n2", replication("n1", 1, 1, make([]byte, 1<<20)), &raft.AppendEntriesResponse{})
	})
	p, err := n1.AppendEntriesPipeline("n2", "n2")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.AppendEntries(replication("n1", 1, 1, make([]byte, 1<<20)), &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		var resp raft.AppendEntriesResponse
		if err := n1.AppendEntries("n2", "n2", heartbeat("n1", 1), &resp); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
	}
	if beats.Load() != 20 {
		t.Errorf("%d heartbeats at the handler", beats.Load())
	}
	consume(n2, acknowledge)
	if err := soon(t, "bulk answered", bulk); err != nil {
		t.Error(err)
	}
	soon(t, "pipelined bulk answered", p.Consumer())
	// Without a handler they take the ordinary way.
	n2.SetHeartbeatHandler(nil)
	if err := n1.AppendEntries("n2", "n2", heartbeat("n1", 1), &raft.AppendEntriesResponse{}); err != nil {
		t.Error(err)
	}
}

// TestAHeartbeatOfAnotherTermGoesToRaftsLoop, which alone changes terms.
func TestAHeartbeatOfAnotherTermGoesToRaftsLoop(t *testing.T) {
	b := newBook()
	n1 := start(t, b, testConfig(t, b, hello("n1")), nil)
	cfg := testConfig(t, b, hello("n2"))
	cfg.InTerm = func(term uint64, fn func()) bool {
		if term == 7 {
			fn()
		}
		return term == 7
	}
	n2 := start(t, b, cfg, nil)
	var beside, loop atomic.Int64
	n2.SetHeartbeatHandler(func(rpc raft.RPC) { beside.Add(1); acknowledge(rpc) })
	consume(n2, func(rpc raft.RPC) { loop.Add(1); acknowledge(rpc) })
	for _, term := range []uint64{6, 7, 7, 8} {
		if err := n1.AppendEntries("n2", "n2", heartbeat("n1", term), new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
	}
	if beside.Load() != 2 || loop.Load() != 2 {
		t.Errorf("%d heartbeats beside Raft's loop, %d in it", beside.Load(), loop.Load())
	}
}

// TestPipelineKeepsOrder and delivers every answer.
func TestPipelineKeepsOrder(t *testing.T) {
	n1, n2, _ := pair(t, nil)
	consume(n2, acknowledge)
	p, err := n1.AppendEntriesPipeline("n2", "n2")
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	got := later(func() error {
		for i := range uint64(n) {
			f := <-p.Consumer()
			if f.Error() != nil || f.Request().Entries[0].Index != i+1 || f.Response().LastLog != i+1 || f.Start().IsZero() {
				return fmt.Errorf("answer %d: %+v for %+v, %v", i, f.Response(), f.Request(), f.Error())
			}
		}
		return nil
	})
	for i := range uint64(n) {
		if _, err := p.AppendEntries(replication("n1", 1, i+1, []byte("x")), &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := soon(t, "all answers", got); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if _, err := p.AppendEntries(replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{}); err == nil {
		t.Error("a closed pipeline took a request")
	}
}

// TestBrokenPipelineIsNoContact: the library takes whatever a pipeline delivers
// for a sign of life, so a failure must show at the next request only.
func TestBrokenPipelineIsNoContact(t *testing.T) {
	n1, n2, _ := pair(t, nil)
	p, err := n1.AppendEntriesPipeline("n2", "n2")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f, err := p.AppendEntries(replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{})
	if err != nil {
		t.Fatal(err)
	}
	n2.Close()
	if err := soon(t, "failure", later(f.Error)); err == nil {
		t.Fatal("answered by nobody")
	}
	eventually(t, "the next request fails", func() bool {
		_, err := p.AppendEntries(replication("n1", 1, 1), &raft.AppendEntriesResponse{})
		return err != nil
	})
	select {
	case f := <-p.Consumer():
		t.Fatalf("delivered: %+v", f.Response())
	default:
	}
}

// TestRequestsAreCutToSize: entries beyond what one request should carry stay
// for the next, in both ways of replication; a single large one goes alone.
func TestRequestsAreCutToSize(t *testing.T) {
	n1, n2, _ := pair(t, nil)
	consume(n2, acknowledge)
	p, err := n1.AppendEntriesPipeline("n2", "n2")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	mib := make([]byte, 1<<20)
	for name, tc := range map[string]struct {
		entries [][]byte
		sent    int
	}{
		"small": {[][]byte{mib[:10], mib[:10]}, 2},
		"many":  {[][]byte{mib, mib, mib, mib, mib, mib}, 4},
		"huge":  {[][]byte{make([]byte, 2*maxAppendBytes), mib[:1]}, 1},
	} {
		req, resp := replication("n1", 1, 1, tc.entries...), raft.AppendEntriesResponse{}
		if err := n1.AppendEntries("n2", "n2", req, &resp); err != nil || len(req.Entries) != tc.sent || resp.LastLog != uint64(tc.sent) {
			t.Errorf("%s: %d entries sent, %+v, %v", name, len(req.Entries), resp, err)
		}
		req = replication("n1", 1, 1, tc.entries...)
		if _, err := p.AppendEntries(req, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
		if f := soon(t, "answer", p.Consumer()); len(f.Request().Entries) != tc.sent || f.Response().LastLog != uint64(tc.sent) {
			t.Errorf("%s: %d entries sent in the pipeline, %+v", name, len(f.Request().Entries), f.Response())
		}
	}
}

// TestRestartedPeerCostsNoRequest: connections that died in the pool are
// replaced within the request that finds them.
func TestRestartedPeerCostsNoRequest(t *testing.T) {
	n1, n2, b := pair(t, nil)
	consume(n2, acknowledge)
	ask := func() error {
		return n1.RequestVote("n2", "n2", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 4}, &raft.RequestVoteResponse{})
	}
	var asks []<-chan error
	for range 5 {
		asks = append(asks, later(ask))
	}
	for _, a := range asks {
		if err := soon(t, "answer", a); err != nil {
			t.Fatal(err)
		}
	}
	p := n1.peer("n2")
	p.mu.Lock()
	pooled := len(p.idle)
	p.mu.Unlock()
	if pooled == 0 || pooled > maxIdleRaft {
		t.Errorf("%d connections pooled", pooled)
	}
	n2.Close()
	again := start(t, b, testConfig(t, b, hello("n2")), nil)
	consume(again, acknowledge)
	if err := ask(); err != nil {
		t.Fatal(err)
	}
}

// TestAbsentPeerIsHeldFor: while leading, replication to a peer that is away
// waits; each row ends the wait in another way.
func TestAbsentPeerIsHeldFor(t *testing.T) {
	for name, tc := range map[string]struct {
		end      func(t *testing.T, n1 *Transport, b *book)
		answered bool
	}{
		"until it listens": {func(t *testing.T, n1 *Transport, b *book) {
			consume(start(t, b, testConfig(t, b, hello("n2")), nil), acknowledge)
		}, true},
		"until it introduces itself": {func(t *testing.T, n1 *Transport, b *book) {
			other := newBook() // so that n1 learns the address from the introduction only
			n2 := start(t, other, testConfig(t, other, hello("n2")), nil)
			consume(n2, acknowledge)
			if _, err := n2.CallAddr(within(t, patience), n1.Addr(), 1, nil); err != nil {
				t.Fatal(err)
			}
		}, true},
		"until this node leads no more": {func(_ *testing.T, n1 *Transport, _ *book) { n1.SetLeading(false) }, false},
		"until it is disconnected":      {func(_ *testing.T, n1 *Transport, _ *book) { n1.Disconnect("n2") }, false},
		"until this node closes":        {func(_ *testing.T, n1 *Transport, _ *book) { n1.Close() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook()
			n1 := start(t, b, testConfig(t, b, hello("n1")), nil)
			tries := turnstile(t, b, "n2")
			n1.SetLeading(true)
			held := later(func() error {
				return n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{})
			})
			// Heartbeats and votes fail as ever, and meanwhile the call stays.
			for range 5 {
				if err := n1.AppendEntries("n2", "n2", heartbeat("n1", 1), &raft.AppendEntriesResponse{}); err == nil {
					t.Fatal("heartbeat answered by nobody")
				}
				if err := n1.RequestVote("n2", "n2", &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}); err == nil {
					t.Fatal("vote answered by nobody")
				}
			}
			stays(t, held, tries, 15)
			tc.end(t, n1, b)
			if err := soon(t, "end of the wait", held); (err == nil) != tc.answered {
				t.Fatalf("got %v", err)
			}
		})
	}
	t.Run("not when not leading", func(t *testing.T) {
		b := newBook()
		n1 := start(t, b, testConfig(t, b, hello("n1")), nil)
		b.set("n2", freeAddr(t))
		n1.SetLeading(true)
		n1.SetLeading(false)
		if err := n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{}); err == nil {
			t.Fatal("answered by nobody")
		}
	})
	t.Run("not when the peer's Raft refuses", func(t *testing.T) {
		n1, n2, _ := pair(t, nil)
		consume(n2, func(rpc raft.RPC) { rpc.Respond(nil, errors.New("no")) })
		n1.SetLeading(true)
		if err := n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{}); err == nil || err.Error() != "no" {
			t.Fatalf("got %v", err)
		}
	})
}

// turnstile listens in a node's place, hangs up on whoever comes, and counts.
func turnstile(t *testing.T, b *book, id string) *atomic.Int64 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b.set(id, l.Addr().String())
	tries := new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tries.Add(1)
			c.Close()
		}
	}()
	return tries
}

// stays checks that a held call is not over after so many tries.
func stays(t *testing.T, held <-chan error, tries *atomic.Int64, n int64) {
	t.Helper()
	eventually(t, "enough tries", func() bool { return tries.Load() >= n })
	select {
	case err := <-held:
		t.Fatalf("not held: %v", err)
	default:
	}
}

// TestPausedPeerIsHeldFor: a peer that takes connections and says nothing, like
// a stopped process, is waited for too.
func TestPausedPeerIsHeldFor(t *testing.T) {
	b := newBook()
	cfg := testConfig(t, b, hello("n1"))
	cfg.DialTimeout = 50 * time.Millisecond
	n1 := start(t, b, cfg, nil)
	n2, err := Listen(testConfig(t, b, hello("n2")))
	if err != nil {
		t.Fatal(err)
	}
	defer n2.Close()
	var dials atomic.Int64
	b.set("n2", newRelay(t, n2.Addr(), func(_ bool, b []byte) int { dials.Add(1); return len(b) }).addr())
	n1.SetLeading(true)
	held := later(func() error {
		return n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{})
	})
	stays(t, held, &dials, 3)
	n2.Serve(handlerFuncs{})
	consume(n2, acknowledge)
	if err := soon(t, "answer", held); err != nil {
		t.Fatal(err)
	}
}

// TestInjectedCommitsCoalesce: Raft gets the furthest, as a message its leader
// could have sent.
func TestInjectedCommitsCoalesce(t *testing.T) {
	b := newBook()
	n1 := start(t, b, testConfig(t, b, hello("n1")), nil)
	n1.InjectCommit("n2", 3, 10, 2)
	first := soon(t, "first", n1.Consumer())
	for i := uint64(11); i <= 100; i++ {
		n1.InjectCommit("n2", 3, i, 3)
	}
	n1.InjectCommit("n2", 3, 50, 3)   // older
	n1.InjectCommit("n3", 2, 1000, 2) // of an older term
	want := &raft.AppendEntriesRequest{RPCHeader: header("n2"), Term: 3, PrevLogEntry: 10, PrevLogTerm: 2, LeaderCommitIndex: 10}
	if !reflect.DeepEqual(first.Command, want) {
		t.Errorf("got %+v", first.Command)
	}
	select {
	case rpc := <-n1.Consumer():
		t.Fatalf("a second one before the first was answered: %+v", rpc.Command)
	default:
	}
	first.Respond(&raft.AppendEntriesResponse{}, nil)
	second := soon(t, "second", n1.Consumer())
	if req := second.Command.(*raft.AppendEntriesRequest); req.LeaderCommitIndex != 100 || req.PrevLogEntry != 100 || req.PrevLogTerm != 3 || req.Term != 3 {
		t.Errorf("got %+v", req)
	}
	second.Respond(&raft.AppendEntriesResponse{}, nil)
	eventually(t, "the goroutine of the injector ends", func() bool {
		n1.inject.mu.Lock()
		defer n1.inject.mu.Unlock()
		return !n1.inject.running
	})
	n1.InjectCommit("n2", 3, 101, 3)
	soon(t, "third", n1.Consumer()) // never answered: Close must not mind
}

// TestSnapshotWaitsForTheCopy: the request goes out after BeforeInstall, whose
// failure it shares, and whose wait ends with leadership.
func TestSnapshotWaitsForTheCopy(t *testing.T) {
	b := newBook()
	cfg := testConfig(t, b, hello("n1"))
	var before func(ctx context.Context, to string) error
	cfg.BeforeInstall = func(ctx context.Context, to string) error { return before(ctx, to) }
	n1, n2 := start(t, b, cfg, nil), start(t, b, testConfig(t, b, hello("n2")), nil)
	var prepared atomic.Bool
	got := make(chan string, 10)
	consume(n2, func(rpc raft.RPC) {
		req := rpc.Command.(*raft.InstallSnapshotRequest)
		data, err := io.ReadAll(rpc.Reader)
		got <- fmt.Sprintf("%d %s %v %v", req.LastLogIndex, data, err, prepared.Load())
		rpc.Respond(&raft.InstallSnapshotResponse{Term: req.Term, Success: true}, nil)
	})
	install := func() error {
		var resp raft.InstallSnapshotResponse
		err := n1.InstallSnapshot("n2", "n2", &raft.InstallSnapshotRequest{RPCHeader: header("n1"), Term: 7, LastLogIndex: 5, Size: 4}, &resp, bytes.NewReader([]byte("data")))
		if err == nil && (!resp.Success || resp.Term != 7) {
			err = fmt.Errorf("answer %+v", resp)
		}
		return err
	}
	before = func(_ context.Context, to string) error { prepared.Store(to == "n2"); return nil }
	if err := install(); err != nil {
		t.Fatal(err)
	}
	if s := soon(t, "snapshot", got); s != "5 data <nil> true" {
		t.Errorf("got %q", s)
	}
	failure := errors.New("disk full")
	before = func(context.Context, string) error { return failure }
	if err := install(); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	n1.SetLeading(true)
	for _, tc := range []struct {
		name string
		end  func()
	}{
		{"leadership ends", func() { n1.SetLeading(false) }},
		{"peer is removed", func() { n1.Disconnect("n2") }},
		{"this node closes", func() { n1.Close() }},
	} {
		waiting := make(chan struct{})
		before = func(ctx context.Context, _ string) error { close(waiting); <-ctx.Done(); return ctx.Err() }
		err := later(install)
		soon(t, "wait", waiting)
		tc.end()
		if err := soon(t, tc.name, err); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if len(got) > 0 {
		t.Error("a snapshot went out without its copy")
	}
}

// TestCloseStreamsEndsRaftOnly: requests in flight fail, calls go on, and the
// next request works.
func TestCloseStreamsEndsRaftOnly(t *testing.T) {
	n1, n2, _ := pair(t, nil)
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err != nil {
		t.Fatal(err)
	}
	inFlight := later(func() error {
		return n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{})
	})
	soon(t, "request at the other side", n2.Consumer()) // never answered
	n1.mu.Lock()
	before := len(n1.conns)
	n1.mu.Unlock()
	n1.CloseStreams()
	if err := soon(t, "failure", inFlight); err == nil {
		t.Fatal("answered by nobody")
	}
	n1.mu.Lock()
	after := len(n1.conns)
	n1.mu.Unlock()
	if before != 2 || after != 1 {
		t.Errorf("%d connections before, %d after", before, after)
	}
	consume(n2, acknowledge)
	if err := n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	n2.CloseStreams() // the accepting side too
	if err := n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkAppendEntries compares replication of small entries with the
// library's own transport, alone and pipelined.
func BenchmarkAppendEntries(b *testing.B) {
	bk := newBook()
	n1, n2 := start(b, bk, testConfig(b, bk, hello("n1")), nil), start(b, bk, testConfig(b, bk, hello("n2")), nil)
	consume(n2, acknowledge)

	lib := func() *raft.NetworkTransport {
		cfg := &raft.NetworkTransportConfig{MaxPool: 3, Timeout: time.Second, Logger: hclog.NewNullLogger()}
		l, err := raft.NewTCPTransportWithConfig("127.0.0.1:0", nil, cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { l.CloseStreams(); l.Close() })
		return l
	}
	l1, l2 := lib(), lib()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case rpc := <-l2.Consumer():
				acknowledge(rpc)
			case <-done:
				return
			}
		}
	}()

	for _, entries := range []int{0, 1, 16} {
		data := make([][]byte, entries)
		for i := range data {
			data[i] = make([]byte, 512)
		}
		for _, tr := range []struct {
			name string
			raft.Transport
			to raft.ServerAddress
		}{{"ours", n1, "n2"}, {"library", l1, l2.LocalAddr()}} {
			b.Run(fmt.Sprintf("entries=%d/one/%s", entries, tr.name), func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					if err := tr.AppendEntries("n2", tr.to, replication("n1", 1, uint64(i+1), data...), &raft.AppendEntriesResponse{}); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(fmt.Sprintf("entries=%d/pipeline/%s", entries, tr.name), func(b *testing.B) {
				p, err := tr.AppendEntriesPipeline("n2", tr.to)
				if err != nil {
					b.Fatal(err)
				}
				defer p.Close()
				b.ReportAllocs()
				all := make(chan struct{})
				go func() {
					defer close(all)
					for range b.N {
						<-p.Consumer()
					}
				}()
				for i := range b.N {
					if _, err := p.AppendEntries(replication("n1", 1, uint64(i+1), data...), &raft.AppendEntriesResponse{}); err != nil {
						b.Fatal(err)
					}
				}
				<-all
			})
		}
	}
}

// Whoever must not be heard as a leader sends neither heartbeats nor entries, by
// either way, and what it has for its peers waits.
func TestAMutedLeaderIsNotHeard(t *testing.T) {
	b := newBook()
	var muted atomic.Bool
	cfg := testConfig(t, b, hello("n1"))
	cfg.Muted = muted.Load
	n1 := start(t, b, cfg, nil)
	var heard atomic.Int32
	consume(start(t, b, testConfig(t, b, hello("n2")), nil), func(rpc raft.RPC) {
		heard.Add(1)
		acknowledge(rpc)
	})
	n1.SetLeading(true)
	pipe, err := n1.AppendEntriesPipeline("n2", "n2")
	if err != nil {
		t.Fatal(err)
	}
	muted.Store(true)
	if err := n1.AppendEntries("n2", "n2", heartbeat("n1", 1), &raft.AppendEntriesResponse{}); !errors.Is(err, errMuted) {
		t.Errorf("heartbeat: %v", err)
	}
	if _, err := pipe.AppendEntries(replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{}); !errors.Is(err, errMuted) {
		t.Errorf("pipeline: %v", err)
	}
	held := later(func() error {
		return n1.AppendEntries("n2", "n2", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{})
	})
	select {
	case err := <-held:
		t.Errorf("replication ended: %v", err)
	case <-time.After(2 * longestHold):
	}
	if n := heard.Load(); n > 0 {
		t.Errorf("%d requests arrived", n)
	}
	muted.Store(false)
	if err := soon(t, "replication goes on", held); err != nil {
		t.Error(err)
	}
}
