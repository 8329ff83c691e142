package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// copyPatience is how long a node that is asked for a copy waits until it has
// applied what the asker has. After that it sends what there is: it may be
// unable to get further before the asker has its copy.
const copyPatience = time.Second

// Copy streams to a peer what its request asks for.
func (n *Node) Copy(ctx context.Context, from command.Hello, req []byte, w io.Writer) error {
	if n.Diverged() != 0 {
		return command.ErrDiverged
	}
	short, cancel := context.WithTimeout(ctx, copyPatience)
	err := n.parts.State.WaitApplied(short, from.Applied)
	cancel()
	if err != nil && ctx.Err() != nil {
		return err
	}
	n.traffic.of(from.ID, func(m *memberTraffic) { m.request = "copy" })
	return n.parts.State.WriteCopy(ctx, req, copyTeller{w, &n.traffic, from.ID})
}

// OfferCopy makes the member to take from this node what it lacks and returns
// when it is complete and verified there. The transport runs it before a
// snapshot goes out: what Raft then sends is only a descriptor, so that its
// main loop on the receiver is held for the moment of the swap and no longer.
// Several members may be offered copies at once.
//
// Until it returns no log is dropped: what follows the copy must still be there,
// or the receiver would need another copy, without end.
func (n *Node) OfferCopy(ctx context.Context, to string) error {
	defer n.holdLog()()
	_, err := n.parts.Transport.Call(ctx, to, methodFetch, nil)
	return err
}

// holdLog keeps the whole log until the returned function is called.
func (n *Node) holdLog() (release func()) {
	n.logHolds.Add(1)
	n.setLogBudget()
	return func() { n.logHolds.Add(-1) } // housekeeping sets the budget back
}

// fetchCopy takes a copy from a member, by Raft's order. Requests that come while
// one is under way share the next, since a repeated offer follows a broken one.
//
// What it takes is in place, or staged for the restore that Raft orders next.
func (n *Node) fetchCopy(ctx context.Context, from string) error {
	n.fetchFrom.Store(from)
	_, err := n.fetches.do(ctx, func() (struct{}, error) {
		n.copying.Lock()
		defer n.copying.Unlock()
		ctx, err := n.syncing()
		if err != nil {
			return struct{}{}, err
		}
		_, err = n.takeCopy(ctx, false, func(ctx context.Context, req []byte) (io.ReadCloser, error) {
			return n.parts.Transport.FetchCopy(ctx, n.fetchFrom.Load().(string), req)
		})
		if err != nil && n.Paused() {
			err = command.ErrPaused // it goes on where it was once the copy is resumed
		}
		return struct{}{}, err
	})
	return err
}

// How a copy that breaks off is taken up again.
const (
	// copyTries bounds the tries in a row that come no further. Then it is for
	// whoever wanted the copy to want it again.
	copyTries    = 8
	copyPause    = 50 * time.Millisecond // before the second try, doubled for each further one
	copyMaxPause = 2 * time.Second
)

// opener opens the stream that answers a copy request.
type opener func(ctx context.Context, req []byte) (io.ReadCloser, error)

// takeCopy takes a copy in: of what this state lacks, or with full of
// everything. A stream that breaks is asked for again at once, and the request
// then says where it was, so that only the rest travels. When that does not
// help, because what comes does not fit, or is damaged at the same place twice,
// everything is asked for. It gives up after copyTries that came no further, and at once when
// the member does not begin.
//
// On return a delta or a range is in place, and a full copy is staged. Needs
// copying.
func (n *Node) takeCopy(ctx context.Context, full bool, open opener) (command.CatchUp, error) {
	began := n.cfg.Clock.Steady()
	var taken uint64
	var before []byte // request of the try before
	tries, damaged, begun := 0, 0, false
	for {
		req := n.parts.State.CopyRequest(full)
		if !bytes.Equal(req, before) {
			tries, damaged, before = 0, 0, req
		}
		c, got, err := n.tryCopy(ctx, req, open)
		taken, begun = taken+got, begun || got > 0
		if err == nil {
			c.Bytes, c.Seconds = taken, (n.cfg.Clock.Steady() - began).Seconds()
			n.CaughtUp(c)
			n.log.Info("took a copy", "kind", c.Kind, "changes", c.Records, "bytes", c.Bytes, "seconds", c.Seconds)
			return c, nil
		}
		tries++
		if errors.Is(err, command.ErrDamaged) {
			damaged++
		}
		full = full || damaged == 2 || begun && errors.Is(err, command.ErrDiverged)
		if ctx.Err() != nil || !begun || tries == copyTries || command.Permanent(err) {
			return command.CatchUp{}, err
		}
		n.log.Info("a copy broke off and is taken up again", "error", err, "bytes", got)
		select {
		case <-time.After(min(copyPause<<(tries-1), copyMaxPause)):
		case <-ctx.Done():
			return command.CatchUp{}, ctx.Err()
		}
	}
}

// tryCopy takes in one stream, and says how many bytes of it came.
func (n *Node) tryCopy(ctx context.Context, req []byte, open opener) (command.CatchUp, uint64, error) {
	r, err := open(ctx, req)
	if err != nil {
		return command.CatchUp{}, 0, fmt.Errorf("ask for a copy: %w", err)
	}
	defer r.Close()
	counted := &countingReader{r: r}
	c, err := n.parts.State.ReceiveCopy(ctx, counted)
	return c, counted.n, err
}

type countingReader struct {
	r io.Reader
	n uint64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += uint64(n)
	return n, err
}

// replaceState takes a full copy from a member and puts it in place while Raft
// runs. Raft cannot be asked for one.
func (n *Node) replaceState(ctx context.Context, from string) error {
	defer n.holdLog()()
	n.copying.Lock()
	defer n.copying.Unlock()
	if _, err := n.takeCopy(ctx, true, n.member(from)); err != nil {
		return err
	}
	return n.exchange()
}

// member opens copies of a member.
func (n *Node) member(id string) opener {
	return func(ctx context.Context, req []byte) (io.ReadCloser, error) {
		return n.parts.Transport.FetchCopy(ctx, id, req)
	}
}

// exchange puts the staged copy in place, also one that ends below what this
// node has applied: Raft hands no entry over twice, so what follows the copy is
// applied from the node's own log, which is held meanwhile. Nobody sees the state
// in between, and no snapshot speaks of it. Needs copying.
func (n *Node) exchange() error {
	n.still.Lock()
	defer n.still.Unlock()
	had, _ := n.parts.State.Applied()
	if err := n.parts.State.SwapCopy(true); err != nil {
		return err
	}
	if err := n.applyLog(had); err != nil {
		// The state lacks entries that Raft takes for applied. The next start
		// finds out and takes another copy.
		err = fmt.Errorf("the copy cannot be brought to entry %d, which this node had applied: %w", had, err)
		n.Fail(err, true)
		return err
	}
	return nil
}

// machine is the state machine as Raft drives it: it holds still while the state
// is exchanged, and waits for what is damaged to be mended.
type machine struct {
	FSM
	node *Node
}

func (m machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies entries. Raft hands each over once, so when a record that a
// decision needs is damaged they wait here until the node has had it mended.
func (m machine) ApplyBatch(l []*raft.Log) []any {
	for pause := mendPause; ; pause = min(2*pause, mendMaxPause) {
		m.node.still.RLock()
		responses := m.FSM.ApplyBatch(l)
		m.node.still.RUnlock()
		if err, bad := responses[0].(error); !bad || !errors.Is(err, command.ErrDamaged) || m.node.Failure() != nil {
			return responses
		}
		select {
		case <-time.After(pause):
		case <-m.node.stop:
			return responses
		}
	}
}

// How often entries that met damage are tried again.
const (
	mendPause    = 5 * time.Millisecond
	mendMaxPause = 200 * time.Millisecond
)

func (m machine) Restore(r io.ReadCloser) error {
	m.node.still.RLock()
	defer m.node.still.RUnlock()
	err := m.FSM.Restore(r)
	index, _ := m.node.parts.State.Applied()
	m.node.own.jumped(index)
	return err
}

// snapshots is the snapshot store as Raft uses it: a snapshot says what the state
// holds, and must not say it of a state that is being exchanged.
type snapshots struct {
	raft.SnapshotStore
	still *sync.RWMutex
}

func (s snapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(v, index, term, c, cIndex, t)
	if err != nil {
		return nil, err
	}
	return snapshotSink{sink, s.still}, nil
}

type snapshotSink struct {
	raft.SnapshotSink
	still *sync.RWMutex
}

func (s snapshotSink) Close() error {
	s.still.RLock()
	defer s.still.RUnlock()
	return s.SnapshotSink.Close()
}
