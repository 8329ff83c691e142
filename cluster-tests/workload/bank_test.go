package workload

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Words for histories of Bank.

// bankState is all accounts as transfers have left them so far.
type bankState struct {
	revision uint64
	all      []Account
}

func newBank() *bankState {
	s := &bankState{revision: 10}
	for range accounts {
		s.all = append(s.all, Account{Balance: opening})
	}
	return s
}

func (s *bankState) seen() Balances { return Balances{s.revision, slices.Clone(s.all)} }

// plan is a transfer on condition of what is there now.
func (s *bankState) plan(from, to, amount int) Transfer {
	a, b := s.all[from], s.all[to]
	return Transfer{map[int]Account{from: a, to: b}, map[int]int{from: a.Balance - amount, to: b.Balance + amount}}
}

// carryOut carries out a transfer, whatever its conditions.
func (s *bankState) carryOut(t Transfer) Balances {
	s.revision++
	for i, balance := range t.To {
		s.all[i] = Account{balance, s.revision}
	}
	return Balances{Revision: s.revision}
}

func (m *made) transfer(call, ret time.Duration, s *bankState, from, to, amount int) {
	t := s.plan(from, to, amount)
	m.op(call, ret, "transfer", t, s.carryOut(t))
}

func (m *made) balances(call, ret time.Duration, mode string, seen Balances) {
	m.op(call, ret, "read", balanceRead{Way: byGets, Mode: mode}, seen)
}

func TestBankJudgeFindsEachAnomaly(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(m *made, s *bankState)
		kinds []string
	}{
		{"nothing", func(*made, *bankState) {}, nil},
		{"one after the other", func(m *made, s *bankState) {
			m.balances(0, 1, consistent, s.seen())
			m.transfer(2, 3, s, 0, 1, 30)
			m.transfer(4, 5, s, 1, 2, 130)
			m.balances(6, 7, consistent, s.seen())
		}, nil},
		{"an old state", func(m *made, s *bankState) {
			old := s.seen()
			m.transfer(2, 3, s, 0, 1, 30)
			m.balances(4, 5, stale, old)
			m.balances(4, 5, byDefault, old)
			m.op(4, 5, "read", balanceRead{Way: byPast, Mode: consistent, Past: old.Revision}, old)
		}, nil},
		{"one of unknown outcome has happened", func(m *made, s *bankState) {
			p := s.plan(0, 1, 30)
			m.unknown(0, "transfer", p)
			s.carryOut(p)
			m.balances(4, 5, consistent, s.seen())
		}, nil},
		{"half a transfer", func(m *made, s *bankState) {
			m.transfer(0, 9, s, 0, 1, 30)
			seen := s.seen()
			seen.Accounts[1] = Account{Balance: opening}
			seen.Revision--
			seen.Accounts[0].At--
			m.balances(0, 9, stale, seen)
		}, []string{"wrong total"}},
		{"accounts of two states", func(m *made, s *bankState) {
			m.transfer(0, 9, s, 0, 1, 30)
			seen := s.seen()
			seen.Accounts[1] = Account{Balance: opening}
			m.balances(0, 9, stale, seen)
		}, []string{"wrong total", "missed transfer"}},
		{"overdrawn", func(m *made, s *bankState) {
			m.transfer(0, 1, s, 0, 1, opening+1)
			m.balances(2, 3, stale, s.seen())
		}, []string{"overdrawn"}},
		{"two move on from one revision", func(m *made, s *bankState) {
			p := s.plan(0, 2, 10)
			m.transfer(0, 9, s, 0, 1, 30)
			m.op(0, 9, "transfer", p, s.carryOut(p))
		}, []string{"lost update"}},
		{"the future", func(m *made, s *bankState) {
			m.transfer(0, 9, s, 0, 1, 30)
			seen := s.seen()
			seen.Revision--
			m.balances(0, 9, stale, seen)
		}, []string{"state of another revision"}},
		{"two balances of one revision", func(m *made, s *bankState) {
			p := s.plan(0, 1, 30)
			m.unknown(0, "transfer", p)
			s.carryOut(p)
			m.balances(1, 2, stale, s.seen())
			s.all[0].Balance, s.all[1].Balance = s.all[0].Balance-1, s.all[1].Balance+1
			s.revision++
			m.balances(3, 4, stale, s.seen())
		}, []string{"two balances of one revision"}},
		{"two states of one revision", func(m *made, s *bankState) {
			m.balances(0, 9, stale, s.seen())
			p := s.plan(0, 1, 30)
			m.unknown(0, "transfer", p)
			s.carryOut(p)
			s.all[0].At, s.all[1].At, s.revision = 10, 10, 10
			m.balances(0, 9, stale, s.seen())
		}, []string{"two states of one revision"}},
		{"a consistent read of an old state", func(m *made, s *bankState) {
			old := s.seen()
			m.transfer(0, 1, s, 0, 1, 30)
			m.balances(2, 3, consistent, old)
		}, []string{"read of the past"}},
		{"a transfer at a revision that was seen before", func(m *made, s *bankState) {
			old := *s
			m.transfer(0, 1, s, 0, 1, 30)
			m.balances(2, 3, stale, s.seen())
			old.all, old.revision = newBank().all, 8
			m.transfer(4, 5, &old, 2, 3, 30)
		}, []string{"read of the past", "missed transfer"}},
		{"an answer that breaks the API", func(m *made, _ *bankState) { m.op(0, 1, "read", balanceRead{Way: byTree}, Broken{"nonsense"}) }, []string{"broken answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			c.make(&m, newBank())
			condemns(t, NewBank(), m, c.kinds...)
		})
	}
}

func TestBankJudgeIsQuick(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var m made
	s := newBank()
	for i := range time.Duration(20000) {
		from := r.IntN(accounts)
		if i%2 == 0 || s.all[from].Balance == 0 {
			m.balances(10*i, 10*i+5, readModes[r.IntN(3)], s.seen())
		} else {
			m.transfer(10*i, 10*i+5, s, from, (from+1)%accounts, 1+r.IntN(s.all[from].Balance))
		}
	}
	began := time.Now()
	condemns(t, NewBank(), m)
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}
