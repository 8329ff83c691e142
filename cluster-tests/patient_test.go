package clustertests

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/internal/bench"
)

// patients are clients of which no request may fail, whoever leads: at each node
// one that writes, one that reads by default, one that reads consistently, one
// that waits for what the first writes and one that waits for what nobody writes.
// Each has one request under way, on a connection of its own.
type patients struct {
	t    testing.TB
	over atomic.Bool
	wg   sync.WaitGroup
	all  []*patient
}

// errand is what a patient asks for.
type errand uint8

const (
	writes errand = iota
	readsByDefault
	readsConsistently
	waitsForWrites
	waitsInVain
)

func (e errand) String() string {
	return [...]string{"writes", "default reads", "consistent reads", "queries for what changes", "queries for what does not"}[e]
}

// vainWait is how long a query for what nobody writes waits.
const vainWait = 2 * time.Second

type patient struct {
	node   *node
	errand errand
	// away says that the node is about to stop: who finds its connection closed
	// then has not been failed.
	away atomic.Bool

	mu       sync.Mutex
	answered []span   // guarded by mu
	failed   []string // guarded by mu
}

// span is the time of one request.
type span struct{ began, ended time.Time }

func (s span) took() time.Duration { return s.ended.Sub(s.began) }

// patients starts them at those nodes.
func (c *cluster) patients(nodes ...*node) *patients {
	c.t.Helper()
	p := &patients{t: c.t}
	for _, n := range nodes {
		if w := put(n, "patient/"+n.name, "first", ""); !w.ok {
			c.t.Fatalf("%+v", w)
		}
		for e := writes; e <= waitsInVain; e++ {
			one := &patient{node: n, errand: e}
			p.all = append(p.all, one)
			p.wg.Go(func() { one.work(&p.over) })
		}
	}
	return p
}

func (p *patient) work(over *atomic.Bool) {
	for !over.Load() {
		if p.away.Load() {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		conn, err := bench.Dial(p.node.http, dialTimeout)
		if err != nil {
			p.lost(fmt.Sprintf("no connection: %v", err), false)
			continue
		}
		for i := 0; !over.Load(); i++ {
			leaving, began := p.away.Load(), time.Now()
			status, err := conn.Do(p.request(i, conn.Index), began.Add(workload.Patience))
			if err != nil {
				p.lost(err.Error(), !leaving)
				break
			}
			if status != 200 && status != 404 {
				p.lost(fmt.Sprintf("status %d", status), true)
				continue
			}
			p.mu.Lock()
			p.answered = append(p.answered, span{began, time.Now()})
			p.mu.Unlock()
			if p.errand != waitsForWrites {
				time.Sleep(time.Millisecond)
			}
		}
		conn.Close()
	}
}

// lost notes a failure, unless the node is about to stop and the request had not
// begun before.
func (p *patient) lost(what string, mine bool) {
	if !mine && p.away.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = append(p.failed, what)
}

func (p *patient) request(i int, index uint64) []byte {
	key := "patient/" + p.node.name
	switch p.errand {
	case writes:
		return putRequest(key, fmt.Appendf(nil, "%d at %v", i, time.Now()))
	case readsByDefault:
		return getRequest(key, "")
	case readsConsistently:
		return getRequest(key, "consistent")
	case waitsForWrites:
		return getRequest(key, fmt.Sprintf("index=%d&wait=1s", index))
	}
	return getRequest("patient/nobody", fmt.Sprintf("index=%d&wait=%v", index, vainWait))
}

// at are the patients at a node.
func (p *patients) at(n *node) []*patient {
	return slices.DeleteFunc(slices.Clone(p.all), func(o *patient) bool { return o.node != n })
}

// leave has the patients at a node expect its end; comeBack ends that.
func (p *patients) leave(n *node)    { p.setAway(n, true) }
func (p *patients) comeBack(n *node) { p.setAway(n, false) }

func (p *patients) setAway(n *node, away bool) {
	for _, o := range p.at(n) {
		o.away.Store(away)
	}
}

// awaitAnswers waits until each patient that is not away has that many more answers.
func (p *patients) awaitAnswers(c *cluster, more int) {
	c.t.Helper()
	count := func(o *patient) int { o.mu.Lock(); defer o.mu.Unlock(); return len(o.answered) }
	target := map[*patient]int{}
	for _, o := range p.all {
		if !o.away.Load() && o.errand != waitsInVain {
			target[o] = count(o) + more
		}
	}
	for o, enough := range target {
		c.wait(30*time.Second, fmt.Sprintf("%s at %s are answered", o.errand, o.node), func() bool { return count(o) >= enough })
	}
}

// stop ends them and reports what failed.
func (p *patients) stop() {
	p.t.Helper()
	p.over.Store(true)
	p.wg.Wait()
	for _, o := range p.all {
		if len(o.failed) > 0 {
			p.t.Errorf("%d %s at %s failed, the first: %s", len(o.failed), o.errand, o.node, o.failed[0])
		}
	}
}

// longest is the longest request of an errand that was under way at some moment of
// from..to; 0 for none.
func (p *patient) longest(from, to time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var most time.Duration
	for i := len(p.answered) - 1; i >= 0 && !p.answered[i].ended.Before(from); i-- {
		if s := p.answered[i]; s.began.Before(to) {
			most = max(most, s.took())
		}
	}
	return most
}

// gap is the longest time between two answers that follow each other, of which the
// first came before to and the second after from.
func (p *patient) gap(from, to time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var most time.Duration
	for i := len(p.answered) - 1; i > 0 && !p.answered[i].ended.Before(from); i-- {
		if p.answered[i-1].ended.Before(to) {
			most = max(most, p.answered[i].ended.Sub(p.answered[i-1].ended))
		}
	}
	return most
}
