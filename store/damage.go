package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

// damageError is damage with its place: the keys of a table from one on and up to
// another, which is not among them; nil is the end of the table. It is
// command.ErrDamaged.
type damageError struct {
	table    string
	from, to []byte
	problem  string
}

func (e *damageError) Error() string { return e.Unwrap().Error() }

// Unwrap makes it command.ErrDamaged.
func (e *damageError) Unwrap() error { return command.ErrDamaged.With("%s", e.problem) }

// tableFile is damage that no range of a table stands for: pages that lead
// nowhere.
const tableFile = "file"

// damagedAt gives err, if it is damage, a place: what stands under one key of a
// table.
func damagedAt(table, key []byte, err error) error {
	if !errors.Is(err, command.ErrDamaged) || errors.As(err, new(*damageError)) {
		return err
	}
	from := bytes.Clone(key)
	return &damageError{string(table), from, append(from[:len(from):len(from)], 0), problemOf(err)}
}

// damagedChange is damagedAt for the change at p, or its absence.
func damagedChange(p position, err error) error {
	key := p.bytes()
	return damagedAt(bucketHistory, key[:], err)
}

// damagedFile is damagedAt for damage whose place is not known.
func damagedFile(err error) error {
	if !errors.Is(err, command.ErrDamaged) || errors.As(err, new(*damageError)) {
		return err
	}
	return &damageError{table: tableFile, problem: problemOf(err)}
}

// problemOf is what an ErrDamaged says beside that.
func problemOf(err error) string {
	var e *command.Error
	if errors.As(err, &e) && e.Detail != "" {
		return e.Detail
	}
	return err.Error()
}

// damageList is what was found bad in one state file and is not mended yet.
type damageList struct {
	mu sync.Mutex
	// Ascending by table and from; those of one table neither overlap nor touch.
	found  []damagedRange
	notify chan<- struct{}
	log    hclog.Logger
}

type damagedRange struct {
	damageError
	found time.Time
}

// damageBound is how many ranges are kept apart. Beyond it neighbours become one,
// with all that is between them.
const damageBound = 256

// attach makes further finds known: notify is signalled by each, and at once when
// there has been one already.
func (d *damageList) attach(notify chan<- struct{}, log hclog.Logger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notify, d.log = notify, log
	for i := range d.found {
		d.tell(&d.found[i])
	}
}

func (d *damageList) tell(r *damagedRange) {
	if d.notify == nil {
		return
	}
	p := r.public()
	d.log.Error("found damage in the state file", "table", p.Table, "from", p.From, "to", p.To, "problem", p.Problem)
	select {
	case d.notify <- struct{}{}:
	default:
	}
}

// note puts err on the list if it is damage with a place, and returns it. What is
// on the list already is not told of again.
func (d *damageList) note(err error) error {
	e := new(damageError)
	if err == nil || !errors.As(err, &e) {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := damagedRange{*e, time.Now()}
	first := 0
	for first < len(d.found) && d.found[first].before(&r) {
		first++
	}
	last := first
	for last < len(d.found) && !r.before(&d.found[last]) {
		o := &d.found[last]
		if last == first && o.covers(&r) {
			return err
		}
		r.widen(o)
		last++
	}
	d.found = slices.Replace(d.found, first, last, r)
	if len(d.found) > damageBound {
		d.merge(first)
	}
	d.tell(&r)
	return err
}

// merge makes one range of the one at i and a neighbour in its table.
func (d *damageList) merge(i int) {
	if i == 0 || d.found[i-1].table != d.found[i].table {
		i++
	}
	if i < len(d.found) && d.found[i-1].table == d.found[i].table {
		d.found[i-1].widen(&d.found[i])
		d.found = slices.Delete(d.found, i, i+1)
	}
}

// before reports whether r lies before o, with something between them.
func (r *damagedRange) before(o *damagedRange) bool {
	if c := strings.Compare(r.table, o.table); c != 0 {
		return c < 0
	}
	return r.to != nil && bytes.Compare(r.to, o.from) < 0
}

func (r *damagedRange) covers(o *damagedRange) bool {
	return r.table == o.table && bytes.Compare(r.from, o.from) <= 0 &&
		(r.to == nil || o.to != nil && bytes.Compare(o.to, r.to) <= 0)
}

func (r *damagedRange) widen(o *damagedRange) {
	if bytes.Compare(o.from, r.from) < 0 {
		r.from = o.from
	}
	if o.to == nil || r.to != nil && bytes.Compare(r.to, o.to) < 0 {
		r.to = o.to
	}
	if o.found.Before(r.found) {
		r.found, r.problem = o.found, o.problem
	}
}

// mend takes a range off the list: it has been written anew.
func (d *damageList) mend(r *damageError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mended := damagedRange{damageError: *r}
	d.found = slices.DeleteFunc(d.found, func(r damagedRange) bool { return mended.covers(&r) })
}

// retire empties the list: another file has taken the place of this one.
func (d *damageList) retire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.found, d.notify = nil, nil
}

func (d *damageList) ranges() []damagedRange {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.found)
}

// public is r for people.
func (r *damagedRange) public() command.Damage {
	p := command.Damage{Table: r.table, Problem: r.problem, Found: r.found}
	if r.table == tableFile {
		return p
	}
	text := func(b []byte) string { return fmt.Sprintf("%q", b) }
	if r.table == string(bucketHistory) {
		text = func(b []byte) string {
			at, _ := positionOf(b)
			return fmt.Sprintf("%d.%d", at.rev, at.k)
		}
	}
	p.From, p.To = "the first", "the last"
	if len(r.from) > 0 {
		p.From = text(r.from)
	}
	switch {
	case r.to == nil:
	case bytes.Equal(r.to, append(slices.Clone(r.from), 0)):
		p.To = p.From
	default:
		p.To = text(bytes.TrimSuffix(r.to, []byte{0}))
	}
	return p
}

// Damaged lists what was found bad in the state file and is not mended yet. None
// of it is served: reads that meet it fail with command.ErrDamaged.
func (s *State) Damaged() []command.Damage {
	found := s.gen.Load().file.damage.ranges()
	list := make([]command.Damage, len(found))
	for i := range found {
		list[i] = found[i].public()
	}
	return list
}

// DamageFound is signalled when damage is found that was not known before.
func (s *State) DamageFound() <-chan struct{} { return s.damageFound }
