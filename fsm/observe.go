package fsm

import (
	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// observer tells of entries once they are applied. It belongs to the goroutine
// that applies.
type observer struct {
	observe func(index, term uint64, e *command.Entry, results []command.Result)
	seen    []seen // of the batch under way
}

// seen is an entry that fn is to be told of.
type seen struct {
	index, term uint64
	entry       *command.Entry
	results     []command.Result
}

// Observe has fn called for each log entry of commands, in order, once what it
// changed is visible, with the term the entry stands in and one result for each
// of its commands. e and results are nil for an entry that the state held before
// it was handed over: a copy was put in place, and what its commands came to is
// not known here.
//
// fn is called by the goroutine that applies, so it must be quick, and must not
// keep e. Observe is called before the first entry is applied.
func (f *FSM) Observe(fn func(index, term uint64, e *command.Entry, results []command.Result)) {
	f.observe = fn
}

// saw notes an entry of the batch; nothing is told before the batch is visible.
func (o *observer) saw(l *raft.Log, e *command.Entry, results []command.Result) {
	if o.observe != nil && l.Type == raft.LogCommand {
		o.seen = append(o.seen, seen{l.Index, l.Term, e, results})
	}
}

// tell passes on what was seen.
func (o *observer) tell() {
	for _, s := range o.seen {
		o.observe(s.index, s.term, s.entry, s.results)
	}
	o.forget()
}

// forget drops what was seen: all of it was told, or the batch is not to be.
func (o *observer) forget() {
	clear(o.seen)
	o.seen = o.seen[:0]
}

// void gives the results of an entry that was proposed for another term.
func void(results []command.Result) {
	for i := range results {
		results[i].Err = command.ErrNotLeader
	}
}
