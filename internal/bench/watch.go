package bench

import (
	"bufio"
	"context"
	"net/http/httputil"
	"sync/atomic"
	"time"
)

// acks says when writes were acknowledged, by their marks. Each connection writes its own part.
type acks struct{ of []ackedWrites }

// ackedWrites are the newest writes of one connection.
type ackedWrites struct {
	current atomic.Int64 // 1 + the number of the request under way
	newest  []ackedWrite // a ring, by the request's number
}

type ackedWrite struct {
	count atomic.Int64 // 1 + the number of the request; 0 while at is being changed
	at    atomic.Int64 // nanoseconds since the run began
}

// About ackSlots acknowledgements are kept at all: with the fastest of servers for some seconds.
const (
	ackSlots  = 1 << 19
	leastRing = 1 << 8
	mostRing  = 1 << 15
)

func newAcks(connections int) *acks {
	a := &acks{of: make([]ackedWrites, connections)}
	for i := range a.of {
		a.of[i].newest = make([]ackedWrite, min(max(ackSlots/connections, leastRing), mostRing))
	}
	return a
}

func (a *acks) begin(m mark) { a.of[m.conn].current.Store(int64(m.count) + 1) }

func (a *acks) acknowledged(m mark, at time.Duration) {
	w := &a.of[m.conn]
	slot := &w.newest[int(m.count)%len(w.newest)]
	slot.count.Store(0)
	slot.at.Store(int64(at))
	slot.count.Store(int64(m.count) + 1)
}

// delay is how long after its acknowledgement a write was seen; 0 if it is not acknowledged
// yet. It is not known of a write that never was, or long ago.
func (a *acks) delay(m mark, seen time.Duration) (d time.Duration, known bool) {
	if int(m.conn) >= len(a.of) {
		return 0, false
	}
	w := &a.of[m.conn]
	count := int64(m.count) + 1
	underWay := w.current.Load() == count
	slot := &w.newest[int(m.count)%len(w.newest)]
	if slot.count.Load() == count {
		at := slot.at.Load()
		if slot.count.Load() == count {
			return max(0, seen-time.Duration(at)), true
		}
	}
	return 0, underWay
}

// watcher is told of the changes of one key, over a connection of its own.
type watcher struct {
	run *run
	key []byte
	p   *peer
}

// watchTimeout is above all that a query may wait.
const watchTimeout = 90 * time.Second

// watch goes on until ctx ends. ready is called once, when the watcher is told of all that is
// written from then on, or with why it will not be.
func (w *watcher) watch(ctx context.Context, ready func(error)) {
	for ctx.Err() == nil {
		err := w.once(ctx, func() { ready(nil) })
		w.p.close()
		if ctx.Err() != nil {
			return
		}
		ready(err) // of use the first time only
		w.run.noteWatch(verdict{trouble: troubleOf(err)}, 0)
		pause(ctx, retryPause)
	}
}

// once watches over one connection. It ends with an error.
func (w *watcher) once(ctx context.Context, ready func()) error {
	by := w.run.cfg.WatchBy
	if err := w.p.connect(ctx, time.Now().Add(w.run.cfg.Timeout)); err != nil {
		return err
	}
	c := w.p.conn
	if by == WatchStream {
		if err := c.ask(w.p.dialect.watch(by, w.key, 0), time.Now().Add(w.run.cfg.Timeout)); err != nil {
			return err
		}
		if err := c.watchRefused(); err != nil {
			return err
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			return err
		}
		lines := bufio.NewReader(httputil.NewChunkedReader(c.in))
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return err
			}
			ready() // there is something before the first change: it says that the watch stands
			w.seen(by, line)
		}
	}
	var index uint64
	for first := true; ; first = false {
		if _, err := c.Do(w.p.dialect.watch(by, w.key, index), time.Now().Add(watchTimeout)); err != nil {
			return err
		}
		if err := c.watchRefused(); err != nil {
			return err
		}
		if !first {
			w.seen(by, c.body)
		}
		index = c.Index
		ready()
	}
}

// watchRefused says why an answer does not tell of changes.
func (c *Conn) watchRefused() error {
	if c.head.status == 200 {
		return nil
	}
	if c.head.length >= 0 {
		if err := c.readBody(); err != nil {
			return err
		}
	}
	return &refusal{trouble(c.head.status, c.body)}
}

func (w *watcher) seen(by WatchBy, piece []byte) {
	now := w.run.now()
	for _, value := range w.p.dialect.written(by, piece) {
		m, err := markOf(value, w.run.load.seed)
		if err != nil {
			continue
		}
		if d, known := w.run.acks.delay(m, now); known {
			w.run.noteWatch(verdict{}, d)
		}
	}
}
