package workload

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Bank is accounts between which clients move money by transactions, on condition
// that each account is as it was read. The promise: whoever reads all accounts at
// once, in whatever way and at whatever node, sees the state of one revision. So the
// total is always the same, and no account is overdrawn.
//
// An account without a key has what it was opened with.
type Bank struct{}

const (
	accounts = 8
	opening  = 100 // of each account

	bankKeys = "bank/"
)

// NewBank makes the workload.
func NewBank() *Bank { return &Bank{} }

// Name implements Workload.
func (*Bank) Name() string { return "bank" }

// Setup implements Workload.
func (*Bank) Setup(context.Context, *Env) error { return nil }

// Account is what an account has, and the revision at which it came to have that: 0
// for the opening.
type Account struct {
	Balance int    `json:"balance"`
	At      uint64 `json:"at,omitempty"`
}

// Transfer is In of a transfer.
type Transfer struct {
	// From are the accounts as they were read, To as they are to be, by their numbers.
	From map[int]Account `json:"from"`
	To   map[int]int     `json:"to"`
}

// Balances are Out of a read, and of a transfer that read all accounts in its midst.
type Balances struct {
	// Revision is that of the state, or that which the transfer made.
	Revision uint64    `json:"revision"`
	Accounts []Account `json:"accounts,omitempty"`
}

// balanceRead is In of a read: how all accounts are read at once.
type balanceRead struct {
	Way  string `json:"way"`
	Mode string `json:"mode,omitempty"`
	// Past is the revision of a past listing; 0 for all other ways.
	Past uint64 `json:"past,omitempty"`
}

const (
	byGets    = "gets"    // a transaction of a get for each
	byTree    = "tree"    // a transaction of one get-tree
	byListing = "listing" // GET ?recurse
	byPast    = "past"    // GET ?recurse as of a revision
)

var bankWays = []string{byGets, byTree, byListing, byPast}

// Clients implements Workload: every client reads all accounts, then moves money
// between some of them.
func (b *Bank) Clients(ctx context.Context, e *Env) {
	e.each(e.Clients, func(id int) {
		r := e.Rand(b.Name(), id)
		newest := uint64(0)
		for {
			n, release, ok := e.Pick(ctx, r, e.Nodes)
			if !ok {
				return
			}
			how := balanceRead{Way: bankWays[r.IntN(len(bankWays))], Mode: readModes[r.IntN(len(readModes))]}
			if how.Way == byPast {
				how.Past = newest - min(newest, r.Uint64N(16))
			}
			seen, _ := b.read(ctx, e, n, id, how)
			release()
			if seen != nil {
				newest = max(newest, seen.Revision)
				if n, release, ok = e.Pick(ctx, r, e.Nodes); !ok {
					return
				}
				b.transfer(ctx, e, n, id, r, seen.Accounts)
				release()
			} else {
				Rest(ctx, 5*time.Millisecond)
			}
			e.Pause(ctx, r)
		}
	})
}

func accountKey(i int) string { return fmt.Sprintf("%s%d", bankKeys, i) }

// gets are operations that read all accounts.
func gets() (ops []txnOp) {
	for i := range accounts {
		ops = append(ops, txnOp{Verb: "get-or-empty", Key: accountKey(i)})
	}
	return ops
}

// read reads all accounts. They are nil unless there was a sound answer.
func (b *Bank) read(ctx context.Context, e *Env, n *Node, client int, how balanceRead) (seen *Balances, o history.Outcome) {
	if how.Way != byPast {
		how.Past = 0
	} else if how.Past == 0 { // no revision is known yet
		how.Way = byListing
	}
	p := e.History.Call(history.Op{Workload: b.Name(), Client: client, Node: n.Name, Name: "read", In: how})
	var a Answer
	var err error
	entries := Answer.Entries
	switch how.Way {
	case byGets:
		a, err = n.txn(ctx, how.Mode, gets())
		entries = Answer.results
	case byTree:
		a, err = n.txn(ctx, how.Mode, []txnOp{{Verb: "get-tree", Key: bankKeys}})
		entries = Answer.results
	case byListing:
		a, err = n.Do(ctx, http.MethodGet, Key(bankKeys)+"?recurse&"+how.Mode, nil)
	case byPast:
		a, err = n.Do(ctx, http.MethodGet, Key(bankKeys)+fmt.Sprintf("?recurse&rev=%d&%s", how.Past, how.Mode), nil)
	}
	o = ended(p, a, err, func(a Answer) (any, error) {
		found, err := entries(a)
		if err != nil {
			return nil, err
		}
		out := Balances{Revision: how.Past}
		if out.Accounts, err = balances(found); err == nil && how.Past == 0 {
			out.Revision, err = a.Applied()
		}
		if err != nil {
			return nil, err
		}
		seen = &out
		return out, nil
	}, http.StatusNotFound) // a listing of nothing
	return seen, o
}

// balances are those of all accounts.
func balances(entries []Entry) ([]Account, error) {
	all := make([]Account, accounts)
	for i := range all {
		all[i].Balance = opening
	}
	for _, entry := range entries {
		var i int
		if _, err := fmt.Sscanf(entry.Key, bankKeys+"%d", &i); err != nil || i < 0 || i >= accounts {
			return nil, fmt.Errorf("key %q is no account", entry.Key)
		}
		if entry.ModifyIndex == 0 { // there is none
			continue
		}
		balance, err := strconv.Atoi(string(entry.Value))
		if err != nil {
			return nil, fmt.Errorf("account %d has %q", i, entry.Value)
		}
		all[i] = Account{balance, entry.ModifyIndex}
	}
	return all, nil
}

// transfer moves money from one account to one or two others, which are as they were
// seen unless the transaction fails. One in four reads all accounts at its end.
func (b *Bank) transfer(ctx context.Context, e *Env, n *Node, client int, r *rand.Rand, seen []Account) {
	in := Transfer{From: map[int]Account{}, To: map[int]int{}}
	some := r.Perm(accounts)[:2+r.IntN(2)]
	for _, i := range some {
		in.From[i], in.To[i] = seen[i], seen[i].Balance
	}
	for _, to := range some[1:] {
		if left := in.To[some[0]]; left > 0 {
			amount := 1 + r.IntN(left)
			in.To[some[0]] -= amount
			in.To[to] += amount
		}
	}
	if in.To[some[0]] == seen[some[0]].Balance {
		return // it had nothing
	}
	var checks, sets []txnOp
	for _, i := range some {
		set := txnOp{Verb: "set", Key: accountKey(i), Value: []byte(strconv.Itoa(in.To[i]))}
		switch at := seen[i].At; {
		case r.IntN(2) == 0:
			set.Verb, set.Index = "cas", at
		case at == 0:
			checks = append(checks, txnOp{Verb: "check-not-exists", Key: set.Key})
		default:
			checks = append(checks, txnOp{Verb: "check-index", Key: set.Key, Index: at})
		}
		sets = append(sets, set)
	}
	ops := append(checks, sets...)
	look := r.IntN(4) == 0
	if look {
		ops = append(ops, gets()...)
	}
	p := e.History.Call(history.Op{Workload: b.Name(), Client: client, Node: n.Name, Name: "transfer", In: in})
	a, err := n.txn(ctx, byDefault, ops)
	ended(p, a, err, func(a Answer) (any, error) {
		var out Balances
		entries, err := a.results()
		if err == nil {
			out.Revision, err = a.Index()
		}
		if err == nil && look {
			if len(entries) < accounts {
				return nil, fmt.Errorf("%d results: %.200q", len(entries), a.Body)
			}
			out.Accounts, err = balances(entries[len(entries)-accounts:])
		}
		return out, err
	})
}

// Finish implements Workload: reads in every way at each node.
func (b *Bank) Finish(ctx context.Context, e *Env) error {
	newest := uint64(0)
	for i, n := range e.Nodes {
		for _, way := range bankWays {
			err := lastRead(ctx, n, func() history.Outcome {
				seen, o := b.read(ctx, e, n, e.Clients+i, balanceRead{Way: way, Mode: consistent, Past: newest})
				if seen != nil {
					newest = seen.Revision
				}
				return o
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Check implements Workload.
func (*Bank) Check(ops []history.Op) []Anomaly {
	j := bankJudge{moved: make([][]movement, accounts), known: map[balanceAt]movement{}, states: map[uint64]history.Op{}}
	j.found = broken(ops)
	var all []dated
	for _, o := range ops {
		out, ok := o.Out.(Balances)
		if !ok {
			continue
		}
		switch in := o.In.(type) {
		case Transfer:
			j.transfer(o, in, out)
			all = append(all, dated{o, out.Revision, true})
		case balanceRead:
			if in.Way != byPast {
				all = append(all, dated{o, out.Revision, in.Mode == consistent})
			}
		}
	}
	j.lostUpdates()
	for _, o := range ops {
		if out, ok := o.Out.(Balances); ok && out.Accounts != nil {
			j.balances(o, out)
		}
	}
	return append(j.found, readsOfThePast(all)...)
}

// bankJudge holds transfers and reads against each other.
type bankJudge struct {
	found []Anomaly
	// moved are the acknowledged changes of each account, by their revisions.
	moved [][]movement
	// known are balances as they were first seen.
	known map[balanceAt]movement
	// states are the first reads of each revision.
	states map[uint64]history.Op
}

// balanceAt is a balance of an account: that which it came to have at a revision.
type balanceAt struct {
	account  int
	revision uint64
}

// movement is what an account was made, or seen to be, at a revision.
type movement struct {
	revision uint64
	balance  int
	// condition is the revision at which it was to be until then.
	condition uint64
	op        history.Op
}

// transfer takes an acknowledged transfer.
func (j *bankJudge) transfer(o history.Op, in Transfer, out Balances) {
	for i := range accounts {
		if was, ok := in.From[i]; ok && in.To[i] != was.Balance {
			j.moved[i] = append(j.moved[i], movement{out.Revision, in.To[i], was.At, o})
		}
	}
}

// lostUpdates looks for transfers that did not see the one before them.
func (j *bankJudge) lostUpdates() {
	for i, moved := range j.moved {
		slices.SortFunc(moved, func(a, b movement) int { return cmp.Compare(a.revision, b.revision) })
		for k := 1; k < len(moved); k++ {
			if before, m := moved[k-1], moved[k]; m.condition < before.revision {
				j.found = append(j.found, anomaly("lost update", fmt.Sprintf("account %d was moved on at %d, and at %d on condition that it is still as at %d", i, before.revision, m.revision, m.condition), before.op, m.op))
			}
		}
	}
}

// balances judges what somebody saw of all accounts.
func (j *bankJudge) balances(o history.Op, seen Balances) {
	wrong := func(kind, text string, ops ...history.Op) {
		j.found = append(j.found, anomaly(kind, text, append(ops, o)...))
	}
	total := 0
	for i, a := range seen.Accounts {
		total += a.Balance
		if a.Balance < 0 {
			wrong("overdrawn", fmt.Sprintf("account %d has %d", i, a.Balance))
		}
		if a.At > seen.Revision {
			wrong("state of another revision", fmt.Sprintf("account %d came to be so at %d, the state is of %d", i, a.At, seen.Revision))
		}
		at := balanceAt{i, a.At}
		if before, ok := j.known[at]; !ok {
			j.known[at] = movement{a.At, a.Balance, 0, o}
		} else if before.balance != a.Balance {
			wrong("two balances of one revision", fmt.Sprintf("account %d at %d", i, a.At), before.op)
		}
		// The last acknowledged transfer up to the revision of the state.
		k, _ := slices.BinarySearchFunc(j.moved[i], seen.Revision+1, func(m movement, r uint64) int { return cmp.Compare(m.revision, r) })
		if k == 0 {
			continue
		}
		if m := j.moved[i][k-1]; m.revision > a.At || m.revision == a.At && m.balance != a.Balance {
			wrong("missed transfer", fmt.Sprintf("account %d was made %d at %d", i, m.balance, m.revision), m.op)
		}
	}
	if total != accounts*opening {
		wrong("wrong total", fmt.Sprintf("%d, not %d", total, accounts*opening))
	}
	if before, ok := j.states[seen.Revision]; !ok {
		j.states[seen.Revision] = o
	} else if !slices.Equal(before.Out.(Balances).Accounts, seen.Accounts) {
		wrong("two states of one revision", fmt.Sprint(seen.Revision), before)
	}
}
