package node_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// writeMuch changes so much that the log is not the way to get it.
func (c *cluster) writeMuch(version int) {
	value := fmt.Sprint(version) + strings.Repeat("0123456789abcdef", 16<<10)
	for i := range 12 {
		many := &command.PutMany{}
		for k := range 4 {
			many.KVs = append(many.KVs, command.KV{Key: fmt.Sprint("k", i, "/", k), Value: []byte(value)})
		}
		c.propose(many)
	}
}

// copies passes the copies that are asked for by address.
type copies struct {
	node.Transport
	open openAddr
}

type openAddr func(ctx context.Context, addr string, req []byte) (io.ReadCloser, error)

func (c copies) FetchCopyAddr(ctx context.Context, addr string, req []byte) (io.ReadCloser, error) {
	return c.open(ctx, addr, req)
}

// ownLog says where the member's log begins and ends.
func (m *member) ownLog() (first, last uint64) {
	m.t.Helper()
	first, last, err := m.logs.Bounds()
	if err != nil {
		m.t.Fatal(err)
	}
	return first, last
}

func TestAVoterThatMissedMuchLeapsAndVotes(t *testing.T) {
	c := newCluster(t, nil)
	c.write("before", "1")
	c.level()
	m, other := c.followers()[0], c.followers()[1]
	m.wrapTransport = func(tr node.Transport) node.Transport {
		return copies{tr, func(ctx context.Context, addr string, req []byte) (io.ReadCloser, error) {
			r, err := tr.FetchCopyAddr(ctx, addr, req)
			if err == nil {
				c.write("during", "1") // what the delta does not bring comes by the log
			}
			return r, err
		}}
	}
	var last uint64
	version := 0
	eventually(t, "it leaps", func() bool { // on a busy machine no answer may come in time
		version++
		_, last = m.ownLog()
		m.stop()
		c.writeMuch(version)
		m.start()
		got := m.n.Load().CatchUp()
		leapt := got.Kind == "delta" && got.Records >= 48
		c.level()
		return leapt
	})
	if first, _ := m.ownLog(); first != 0 && first <= last+1 {
		t.Errorf("its log begins at %d, and it ended at %d: what the delta brought came again", first, last)
	}
	// A majority needs it now, for a leader and for writes.
	leader := c.leader()
	other.stop()
	leader.mustPut("after", "1")
	if v, err := m.read("after", command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != "1" {
		t.Errorf("%q, %v", v, err)
	}
	other.start()
	leader.stop()
	if v, err := m.read("during", command.ReadOptions{Mode: command.ReadConsistent}); err != nil || v != "1" {
		t.Errorf("without the leader of before: %q, %v", v, err)
	}
	leader.start()
	c.level()
	// And once more after a restart: state and log fit.
	m.stop()
	m.start()
	c.level()
}

// Whatever becomes of the delta, the log brings the same.
func TestALeapThatFailsLeavesItToTheLog(t *testing.T) {
	c := newCluster(t, nil)
	c.level()
	m := c.followers()[0]
	version := 0
	for name, open := range map[string]func(tr node.Transport) openAddr{
		"nobody answers": func(node.Transport) openAddr {
			return func(ctx context.Context, _ string, _ []byte) (io.ReadCloser, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		},
		"the sender dies": func(tr node.Transport) openAddr {
			return func(ctx context.Context, addr string, req []byte) (io.ReadCloser, error) {
				r, err := tr.FetchCopyAddr(ctx, addr, req)
				if err != nil {
					return nil, err
				}
				return endsIn(r, iotest.ErrReader(io.ErrUnexpectedEOF)), nil
			}
		},
		"the sender hangs": func(tr node.Transport) openAddr {
			return func(ctx context.Context, addr string, req []byte) (io.ReadCloser, error) {
				r, err := tr.FetchCopyAddr(ctx, addr, req)
				if err != nil {
					return nil, err
				}
				return endsIn(r, untilDone{ctx}), nil
			}
		},
	} {
		version++
		t.Run(name, func(t *testing.T) {
			m.stop()
			c.writeMuch(version)
			m.wrapTransport = func(tr node.Transport) node.Transport { return copies{tr, open(tr)} }
			began := time.Now()
			m.start()
			if took := time.Since(began); took > patience/4 {
				t.Errorf("it started after %v", took)
			}
			if got := m.n.Load().CatchUp(); got.Kind == "delta" {
				t.Errorf("it caught up by %+v", got)
			}
			c.level()
		})
	}
}

// endsIn is r, which after its first MiB goes on as end.
func endsIn(r io.ReadCloser, end io.Reader) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, 1<<20), end), r}
}

// untilDone is a stream on which nothing comes.
type untilDone struct{ ctx context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, u.ctx.Err()
}
