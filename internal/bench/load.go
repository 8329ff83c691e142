package bench

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/internal/problem"
)

// retryPause is how long a connection rests when it could not be made.
const retryPause = 100 * time.Millisecond

// peer is a connection to one server that is made again when it was lost.
type peer struct {
	at      address
	dialect dialect
	conn    *Conn       // nil while there is none
	unbind  func() bool // see connect
}

// peer is the i-th connection.
func (r *run) peer(i int) *peer {
	at := r.servers[i%len(r.servers)]
	return &peer{at: at, dialect: r.product.dialect(fields(at.host, r.product.tokenField, r.cfg.Token))}
}

// connect makes the connection, if there is none. It is closed when ctx ends.
func (p *peer) connect(ctx context.Context, deadline time.Time) error {
	if p.conn != nil {
		return nil
	}
	c, err := dial(p.at, deadline)
	if err != nil {
		return err
	}
	p.conn = c
	p.unbind = context.AfterFunc(ctx, func() { _ = c.Close() })
	return nil
}

func (p *peer) close() {
	if p.conn != nil {
		p.unbind()
		_ = p.conn.Close()
		p.conn = nil
	}
}

// do carries out a request.
func (p *peer) do(ctx context.Context, r *request, timeout time.Duration) verdict {
	return p.send(ctx, p.dialect.bytes(r), r, timeout)
}

// send is do with the bytes of the request.
func (p *peer) send(ctx context.Context, bytes []byte, r *request, timeout time.Duration) verdict {
	deadline := time.Now().Add(timeout)
	if err := p.connect(ctx, deadline); err != nil {
		return verdict{trouble: troubleOf(err)}
	}
	status, err := p.conn.Do(bytes, deadline)
	if err != nil {
		p.close()
		return verdict{trouble: troubleOf(err), unknown: r.op.writes()}
	}
	v := p.dialect.judge(r, status, p.conn.body)
	if p.conn.head.closes {
		p.close()
	}
	return v
}

// connection makes the requests of the i-th connection until the run is over.
func (r *run) connection(ctx context.Context, i int) {
	p, s := r.peer(i), r.load.stream(i)
	defer p.close()
	turn := r.closedTurn
	if r.turns != nil {
		turn = r.openTurn
	}
	for {
		due, ok := turn()
		if !ok || ctx.Err() != nil {
			return
		}
		q := s.next()
		marked := r.acks != nil && q.op.writes()
		if marked {
			r.acks.begin(q.mark)
		}
		v := p.do(ctx, q, r.cfg.Timeout)
		now := r.now()
		if ctx.Err() != nil {
			return // it was cut short by us
		}
		if marked && v.trouble == "" {
			r.acks.acknowledged(q.mark, now)
		}
		counted := r.measures(due)
		r.seen.note(q.op.String(), now-due, v, counted, r.inTime(now, counted))
		if p.conn == nil && v.trouble != "" {
			pause(ctx, retryPause)
		}
	}
}

// measures reports whether what was due at a moment is measured.
func (r *run) measures(due time.Duration) bool {
	return int64(due) >= r.begin.Load() && int64(due) < r.end.Load()
}

// inTime reports whether what was carried out at a moment counts for what the servers did per second.
func (r *run) inTime(now time.Duration, counted bool) bool {
	if r.cfg.Count > 0 {
		return counted
	}
	return r.measures(now)
}

// closedTurn says when the next request of a connection is due in a closed loop: now. ok is false
// when there is none.
func (r *run) closedTurn() (due time.Duration, ok bool) {
	due = r.now()
	switch {
	case int64(due) < r.begin.Load():
		return due, true
	case r.cfg.Count > 0:
		return due, r.left.Add(-1) >= 0
	default:
		return due, int64(due) < r.end.Load()
	}
}

// openTurn waits until a request is due that no other connection makes.
func (r *run) openTurn() (due time.Duration, ok bool) {
	due, ok = <-r.turns
	return due, ok
}

// pace hands out the moments at which requests of an open loop are due: to whichever connection
// is idle, not before the moment has come, and late if all are busy.
func (r *run) pace(ctx context.Context) {
	defer close(r.turns)
	p := newPacer()
	defer p.end()
	warm := r.begin.Load() != math.MaxInt64
	for n := 0; ; n++ {
		if begin := r.begin.Load(); !warm && begin != math.MaxInt64 {
			warm, n = true, max(n, r.dueBefore(begin)) // what the warm-up could not send is not made up for
		}
		due := r.moment(n)
		for now := r.now(); now < due; now = r.now() {
			p.wait(min(due-now, longestWait))
			select {
			case <-r.over:
				return
			case <-ctx.Done():
				return
			default:
			}
		}
		if int64(due) >= r.end.Load() {
			return
		}
		if r.cfg.Count > 0 && int64(due) >= r.begin.Load() && r.left.Add(-1) < 0 {
			return
		}
		select {
		case r.turns <- due:
		case <-ctx.Done():
			return
		case <-r.over:
			r.unsent = int64(r.dueBefore(r.end.Load()) - max(n, r.dueBefore(r.begin.Load())))
			return
		}
	}
}

// longestWait is how soon pace looks whether the run is over.
const longestWait = 50 * time.Millisecond

// moment is when the n-th request of an open loop is due.
func (r *run) moment(n int) time.Duration {
	return r.base + time.Duration(float64(n)/r.cfg.Rate*float64(time.Second))
}

// dueBefore is how many requests of an open loop are due before a moment.
func (r *run) dueBefore(end int64) int {
	return int(math.Ceil(float64(end-int64(r.base)) * r.cfg.Rate / float64(time.Second)))
}

// arriving is how many watchers at most are on their way at once: what is to be measured are those that wait.
const arriving = 200

// startWatchers returns when all are told of all that is written from then on.
func (r *run) startWatchers(ctx context.Context, all *sync.WaitGroup) error {
	if r.cfg.Watchers == 0 {
		return nil
	}
	r.acks = newAcks(r.cfg.Connections)
	ready := make(chan error, arriving)
	for i := range r.cfg.Watchers + arriving {
		if i >= arriving { // one that came before has to be ready
			select {
			case err := <-ready:
				if err != nil {
					return problem.Refuse("see why the server refuses it", "changes cannot be watched: %w", err)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if i < r.cfg.Watchers {
			w := &watcher{run: r, p: r.peer(i), key: r.load.appendKey(nil, r.load.keyOfRank(uint64(i)%r.load.keys))}
			all.Go(func() {
				var once sync.Once
				w.watch(ctx, func(err error) { once.Do(func() { ready <- err }) })
			})
		}
	}
	return nil
}

// noteWatch keeps when a watcher was told of a write, or what it met with instead.
func (r *run) noteWatch(v verdict, delay time.Duration) {
	counted := r.measures(r.now())
	r.seen.note(watchRow, delay, v, counted, counted)
}

// pause rests until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
