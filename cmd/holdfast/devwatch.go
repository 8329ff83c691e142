package main

import (
	"fmt"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// sight is one look at a node.
type sight struct {
	// err is why it did not answer; nil when it did.
	err    error
	status command.ReplicaStatus
}

// patience is how many looks in a row a node may leave unanswered before that
// is news.
const patience = 4

// contactPatience is how many looks a node that was just started may take to
// find a leader before that is news.
const contactPatience = 8

// watcher turns looks at the nodes into news: what a person would want to be
// told. It is not safe for concurrent use.
type watcher struct {
	leader   string    // node that leads as far as we have seen, "" when none
	former   string    // node that led last
	leftAt   time.Time // when leader became ""
	nodes    map[string]*watched
	siteOf   map[string]string
	announce func(format string, args ...any)
}

// watched is what the last looks at a node have shown.
type watched struct {
	sight
	unanswered int
	silent     bool // its silence has been announced
	hadContact bool // its process has had contact to a leader
	looks      int  // in a row that showed it cut off
	cutOff     bool // that has been announced, and it has not been level since
}

func newWatcher(layout []devNode, announce func(string, ...any)) *watcher {
	w := &watcher{nodes: map[string]*watched{}, siteOf: map[string]string{}, announce: announce}
	for _, n := range layout {
		w.nodes[n.Name] = &watched{}
		w.siteOf[n.Name] = n.Site
	}
	return w
}

// see takes one look at a running node into account.
func (w *watcher) see(node string, s sight, now time.Time) {
	n := w.nodes[node]
	before := n.sight
	if s.err != nil {
		n.unanswered++
		if n.unanswered == patience && before.status.Running {
			n.silent = true
			w.announce("%s does not answer: %v", node, s.err)
			w.lost(node, now)
		}
		return
	}
	if n.silent {
		w.announce("%s answers again", node)
	}
	n.sight, n.unanswered, n.silent = s, 0, false
	n.status.Running = true

	leads, led := s.status.Mode == "leader", before.status.Mode == "leader"
	switch {
	case leads && !led && w.leader != node:
		w.won(node, now)
	case led && !leads:
		w.lost(node, now)
	}

	is := s.status.Status
	if is == "failed" && before.status.Status != "failed" {
		w.announce("%s has failed and no longer votes or leads; its log says why", node)
	}
	if is == "fenced" && before.status.Status != "fenced" {
		w.announce("%s is fenced: another site has become home, and it no longer votes or leads", node)
	}
	if s.status.Mode == "learner" {
		w.seeCopy(node, n, is, before.status.LastCatchUp)
	}
}

// seeCopy takes the condition of a learner's copy into account.
func (w *watcher) seeCopy(node string, n *watched, is string, lastBefore command.CatchUp) {
	site := w.siteOf[node]
	switch is {
	case "cut-off":
		n.looks++
		switch {
		case n.cutOff:
		case n.hadContact:
			w.announce("%s (%s) is cut off, and goes on serving its copy", node, site)
			n.cutOff = true
		case n.looks >= contactPatience:
			w.announce("%s (%s) starts without contact to a leader, and serves the copy it has", node, site)
			n.cutOff = true
		}
	case "catching-up":
		if n.cutOff && n.looks > 0 {
			w.announce("%s (%s) has contact again, and catches up", node, site)
		}
		n.hadContact, n.looks = true, 0
	case "level":
		if n.cutOff {
			w.announce("%s (%s) is level again%s", node, site, caughtUp(n.status.LastCatchUp, lastBefore))
		}
		n.hadContact, n.cutOff, n.looks = true, false, 0
	}
}

// caughtUp says how a copy got level, if it is news.
func caughtUp(now, before command.CatchUp) string {
	if now.Kind == "" || now == before {
		return ""
	}
	return fmt.Sprintf(", by %s: %s, %s", now.Kind, plural(now.Records, "record"), size(now.Bytes))
}

// ended forgets a node whose process has ended.
func (w *watcher) ended(node string, now time.Time) {
	w.nodes[node] = &watched{}
	w.lost(node, now)
}

func (w *watcher) won(node string, now time.Time) {
	switch {
	case w.former == "":
		w.announce("%s leads", node)
	case w.leader != "":
		w.announce("%s leads, taking over from %s", node, w.leader)
	default:
		w.announce("%s leads, %s after %s was lost", node, span(now.Sub(w.leftAt)), w.former)
	}
	w.leader, w.former = node, node
}

func (w *watcher) lost(node string, now time.Time) {
	if w.leader == node {
		w.leader, w.leftAt = "", now
	}
}

// settled reports whether every node has been seen with contact to a leader.
func (w *watcher) settled() bool {
	for _, n := range w.nodes {
		if s := n.status.Status; !n.status.Running || s == "starting" || s == "cut-off" {
			return false
		}
	}
	return w.leader != ""
}

// state is a node's part and condition in a word or two.
func (w *watcher) state(node string) string {
	switch n := w.nodes[node]; {
	case n.silent:
		return "does not answer"
	case !n.status.Running:
		return "starting"
	case n.status.Mode == "leader":
		return "leader"
	default:
		return n.status.Status
	}
}
