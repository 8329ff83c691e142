package agent

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
)

// presence is what the transport asks about the node. Its parts appear one by one
// while the node starts.
type presence struct {
	identity    store.Identity
	incarnation string
	self        command.Member
	disk        atomic.Pointer[disk]
	node        atomic.Pointer[node.Node]

	learning sync.Mutex
	learned  []command.Fork // guarded by learning: what was heard before there was a node to tell
}

type disk struct {
	dir   *store.Dir
	state *store.State
	logs  *store.Logs
}

// hello introduces the node as it is now. Before its disk is open it only asks,
// which it says by 0 starts.
func (a *presence) hello() command.Hello {
	h := command.Hello{
		ClusterID: a.identity.ClusterID, Epoch: a.identity.Epoch,
		ID: a.self.ID, Name: a.self.Name, Site: a.self.Site, RaftAddr: a.self.RaftAddr, Incarnation: a.incarnation,
	}
	d := a.disk.Load()
	if d == nil {
		return h
	}
	id := d.dir.Identity()
	h.ClusterID, h.Epoch, h.Starts = id.ClusterID, id.Epoch, id.Starts
	h.Applied, _ = d.state.Applied()
	h.LastIndex = h.Applied
	if _, last, err := d.logs.Bounds(); err == nil {
		h.LastIndex = max(last, h.Applied)
	}
	return h
}

// forks are all epochs that this node knows of.
func (a *presence) forks() []command.Fork {
	d := a.disk.Load()
	if d == nil {
		return a.identity.Forks
	}
	return command.AllForks(d.state.Forks(), d.dir.Identity().Forks)
}

// newer passes on what a peer knows of later epochs.
func (a *presence) newer(forks []command.Fork) {
	a.learning.Lock()
	defer a.learning.Unlock()
	if n := a.node.Load(); n != nil {
		n.Newer(forks)
	} else if len(forks) > len(a.learned) {
		a.learned = forks
	}
}

// created makes n the node that is asked, and tells it what it missed.
func (a *presence) created(n *node.Node) {
	a.learning.Lock()
	defer a.learning.Unlock()
	a.node.Store(n)
	n.Newer(a.learned)
}

func (a *presence) resolve(id string) (addr string, ok bool) {
	if d := a.disk.Load(); d != nil {
		for _, m := range d.state.Members() {
			if m.ID == id {
				return m.RaftAddr, true
			}
		}
	}
	return "", false
}

func (a *presence) check(peer command.Hello) error {
	if n := a.node.Load(); n != nil {
		return n.Check(peer)
	}
	return nil
}

func (a *presence) refused(reason error) {
	if n := a.node.Load(); n != nil {
		n.Refused(reason)
	}
}

func (a *presence) mayLead() bool {
	n := a.node.Load()
	return n != nil && n.MayLead()
}

func (a *presence) paused() bool {
	n := a.node.Load()
	return n != nil && n.Paused()
}

func (a *presence) condition() command.Condition {
	if n := a.node.Load(); n != nil {
		return n.Condition()
	}
	return command.Condition{}
}

func (a *presence) muted() bool {
	n := a.node.Load()
	return n != nil && n.Muted()
}

func (a *presence) entryTerm(index uint64) (term uint64, ok bool) {
	if d := a.disk.Load(); d != nil {
		return d.logs.EntryTerm(index)
	}
	return 0, false
}

func (a *presence) inTerm(term uint64, fn func()) bool {
	d := a.disk.Load()
	return d != nil && d.logs.InTerm(term, fn)
}

func (a *presence) beforeInstall(ctx context.Context, to string) error {
	n := a.node.Load()
	if n == nil {
		return command.ErrStopping
	}
	return n.OfferCopy(ctx, to)
}
