package workload

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Journal is a journal for each of some clients, who append one key after the other
// and go on to the next only when one is acknowledged. The promises: what was
// acknowledged is never lost, at any node; a copy holds a prefix of what was written,
// without a gap, and it never gets shorter; consistent reads have all of it, and stale
// ones all but what is younger than they say.
type Journal struct {
	length []atomic.Int64 // acknowledged entries of each journal
}

// NewJournal makes the workload.
func NewJournal() *Journal { return &Journal{} }

// JournalEntry is Op.In of "append": the number, from 1, of an entry of a journal.
type JournalEntry struct{ Journal, Number int }

// JournalRead is Op.In of "read": a journal behind an entry, as a node has it or
// consistently.
type JournalRead struct {
	Journal, After int
	Consistent     bool
}

// JournalSeen is Op.Out of a read.
type JournalSeen struct {
	// First and Last are the entries it found behind After, 0 for none. Gap is the
	// first that is missing between them, 0 for none.
	First, Last, Gap int
	Staleness        time.Duration
	StalenessKnown   bool
}

// Name implements Workload.
func (*Journal) Name() string { return "journal" }

// Setup implements Workload.
func (j *Journal) Setup(_ context.Context, e *Env) error {
	j.length = make([]atomic.Int64, max(1, e.Clients/3))
	return nil
}

func journalKey(journal, number int) string { return fmt.Sprintf("journal/%02d/%08d", journal, number) }

// Clients implements Workload: one that writes each journal through the voters, and
// at each node one that reads.
func (j *Journal) Clients(ctx context.Context, e *Env) {
	voters := e.Voters()
	e.each(len(j.length)+len(e.Nodes), func(id int) {
		if id < len(j.length) {
			j.write(ctx, e, id, voters)
		} else {
			j.follow(ctx, e, id, e.Nodes[id-len(j.length)])
		}
	})
}

// write appends to a journal, each entry until it is acknowledged.
func (j *Journal) write(ctx context.Context, e *Env, id int, nodes []*Node) {
	r := e.Rand(j.Name(), id)
	for number := 1; ; {
		n, release, ok := e.Pick(ctx, r, nodes)
		if !ok {
			return
		}
		p := e.History.Call(history.Op{Workload: j.Name(), Client: id, Node: n.Name, Name: "append", In: JournalEntry{id, number}})
		a, err := n.Do(ctx, http.MethodPut, Key(journalKey(id, number)), fmt.Append(nil, number))
		release()
		if ended(p, a, err, func(a Answer) (any, error) {
			if !a.True() {
				return nil, fmt.Errorf("a plain put answered %.100q", a.Body)
			}
			return a.Index()
		}) == history.Decided {
			j.length[id].Store(int64(number))
			number++
		}
		Rest(ctx, 2*time.Millisecond)
		e.Pause(ctx, r)
	}
}

// tail is how many of the last entries a reader looks at.
const tail = 100

// follow reads the ends of journals at one node.
func (j *Journal) follow(ctx context.Context, e *Env, id int, n *Node) {
	r := e.Rand(j.Name(), id)
	for ctx.Err() == nil {
		in := JournalRead{Journal: r.IntN(len(j.length)), Consistent: r.IntN(8) == 0}
		in.After = max(0, int(j.length[in.Journal].Load())-tail)
		if !j.read(ctx, e, id, n, in) {
			Rest(ctx, 20*time.Millisecond)
		}
		Rest(ctx, 20*time.Millisecond)
		e.Pause(ctx, r)
	}
}

func (j *Journal) read(ctx context.Context, e *Env, client int, n *Node, in JournalRead) bool {
	p := e.History.Call(history.Op{Workload: j.Name(), Client: client, Node: n.Name, Name: "read", In: in})
	mode := "stale"
	if in.Consistent {
		mode = "consistent"
	}
	prefix := fmt.Sprintf("journal/%02d/", in.Journal)
	a, err := n.Do(ctx, http.MethodGet, Key(prefix)+"?keys&"+mode+"&after="+url.QueryEscape(journalKey(in.Journal, in.After)), nil)
	switch {
	case err != nil:
		p.Refused(err.Error())
		return false
	case a.Status != http.StatusOK && a.Status != http.StatusNotFound:
		p.Refused(fmt.Sprintf("%d %.200s", a.Status, a.Body))
		return false
	}
	seen, err := journalSeen(a, prefix)
	if err != nil {
		p.Decided(Broken{err.Error()})
		return false
	}
	p.Decided(seen)
	return true
}

func journalSeen(a Answer, prefix string) (s JournalSeen, err error) {
	if s.Staleness, s.StalenessKnown, err = a.Staleness(); err != nil || a.Status == http.StatusNotFound {
		return s, err
	}
	var keys []string
	if err := json.Unmarshal(a.Body, &keys); err != nil {
		return s, err
	}
	for _, key := range keys {
		var number int
		if _, err := fmt.Sscanf(strings.TrimPrefix(key, prefix), "%d", &number); err != nil || number <= s.Last {
			return s, fmt.Errorf("key %q after entry %d of %s", key, s.Last, prefix)
		}
		switch {
		case s.First == 0:
			s.First = number
		case number != s.Last+1 && s.Gap == 0:
			s.Gap = s.Last + 1
		}
		s.Last = number
	}
	return s, nil
}

// Finish implements Workload: all of each journal, at each node.
func (j *Journal) Finish(ctx context.Context, e *Env) error {
	for id := range j.length {
		for i, n := range e.Nodes {
			for _, consistent := range []bool{false, true} {
				if !j.read(ctx, e, len(j.length)+i, n, JournalRead{Journal: id, Consistent: consistent}) {
					return fmt.Errorf("%s does not say what it has of journal %d", n, id)
				}
			}
		}
	}
	return nil
}

// Check implements Workload.
func (*Journal) Check(ops []history.Op) []Anomaly {
	found := broken(ops)
	report := func(kind, text string, ops ...history.Op) { found = append(found, anomaly(kind, text, ops...)) }
	called := map[JournalEntry]history.Op{} // the first attempt
	acknowledged := map[int][]history.Op{}  // by journal, in order
	longest := map[[2]string][]history.Op{} // reads of a journal at a node, by their return
	reads := slices.DeleteFunc(slices.Clone(ops), func(o history.Op) bool { _, ok := o.Out.(JournalSeen); return !ok })
	for _, o := range ops {
		entry, ok := o.In.(JournalEntry)
		if !ok {
			continue
		}
		if _, again := called[entry]; !again {
			called[entry] = o
		}
		if _, ok := o.Out.(uint64); ok {
			acknowledged[entry.Journal] = append(acknowledged[entry.Journal], o)
		}
	}
	place := func(o history.Op) [2]string { return [2]string{fmt.Sprint(o.In.(JournalRead).Journal), o.Teller()} }
	for _, o := range reads {
		longest[place(o)] = append(longest[place(o)], o)
	}
	for where, at := range longest {
		slices.SortStableFunc(at, func(a, b history.Op) int { return cmp.Compare(a.Return, b.Return) })
		records := at[:0] // reads that were longer than all before
		for _, o := range at {
			if len(records) == 0 || o.Out.(JournalSeen).Last > records[len(records)-1].Out.(JournalSeen).Last {
				records = append(records, o)
			}
		}
		longest[where] = records
	}
	for _, o := range reads {
		in, seen := o.In.(JournalRead), o.Out.(JournalSeen)
		// last is the end of the journal as this read has it, or may have it.
		last := max(seen.Last, in.After)
		switch {
		case seen.Gap > 0:
			report("no prefix", fmt.Sprintf("entry %d is missing before %d", seen.Gap, seen.Last), o)
		case seen.First > in.After+1:
			report("no prefix", fmt.Sprintf("entry %d is missing before %d", in.After+1, seen.First), o)
		}
		if wrote, ok := called[JournalEntry{in.Journal, seen.Last}]; seen.Last > 0 && (!ok || o.Before(wrote)) {
			report("out of nothing", fmt.Sprintf("entry %d had not been written", seen.Last), o)
		}
		if before, ok := lastBefore(longest[place(o)], o.Call); ok && before.Out.(JournalSeen).Last > last {
			report("went back", fmt.Sprintf("from %d entries to %d", before.Out.(JournalSeen).Last, last), before, o)
		}
		age, judged := seen.Staleness, seen.StalenessKnown
		kind := "older than it says"
		if in.Consistent {
			age, judged, kind = 0, true, "lost"
		}
		if ack, ok := lastBefore(acknowledged[in.Journal], o.Call-age); judged && ok && ack.In.(JournalEntry).Number > last {
			report(kind, fmt.Sprintf("entry %d was acknowledged, %d is the last one there", ack.In.(JournalEntry).Number, last), ack, o)
		}
	}
	return found
}

// lastBefore is the last of ops, which are in the order of their returns, that had
// returned before a moment.
func lastBefore(ops []history.Op, moment time.Duration) (history.Op, bool) {
	i, _ := slices.BinarySearchFunc(ops, moment, func(o history.Op, m time.Duration) int { return cmp.Compare(o.Return, m) })
	if i == 0 {
		return history.Op{}, false
	}
	return ops[i-1], true
}
