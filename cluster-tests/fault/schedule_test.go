package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// paper is a target that exists only on paper: it has every ability, keeps
// count of what is broken, and refuses what breaks the contract of Target.
type paper struct {
	t       testing.TB
	members []Member
	down    map[string]bool
	frozen  map[string]bool
	sick    map[string]bool // their disks
	gone    map[string]bool // removed, and not admitted yet
	blocked []Pair
	bad     map[string]Line
	wrong   map[string]bool // the wall clock
	calls   int
	fail    func(call string) error // what a call comes to; nil for success
}

func newPaper(t testing.TB, members []Member) *paper {
	return &paper{t: t, members: members, down: map[string]bool{}, frozen: map[string]bool{}, sick: map[string]bool{}, gone: map[string]bool{}, bad: map[string]Line{}, wrong: map[string]bool{}}
}

// call is at the head of every order.
func (p *paper) call(ctx context.Context, what string, names ...string) error {
	p.calls++
	for _, n := range names {
		if !slices.Contains(namesOf(p.members), n) {
			p.t.Errorf("%s of %q, which is no member", what, n)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.fail != nil {
		return p.fail(what)
	}
	time.Sleep(time.Millisecond) // an order takes its time
	return nil
}

func (p *paper) Members() []Member { return p.members }

func (p *paper) Leader(context.Context) (string, bool) {
	for _, m := range p.members {
		if m.Voter && !p.down[m.Name] && !p.frozen[m.Name] {
			return m.Name, true
		}
	}
	return "", false
}

func (p *paper) Running(name string) bool { return !p.down[name] }

func (p *paper) Ready(_ context.Context, name string) bool { return !p.down[name] && !p.frozen[name] }

func (p *paper) Block(ctx context.Context, pairs []Pair) error {
	for _, pair := range pairs {
		if err := p.call(ctx, "block", pair.From, pair.To); err != nil {
			return err
		}
	}
	p.blocked = pairs
	return p.call(ctx, "block")
}

func (p *paper) set(ctx context.Context, what string, marks map[string]bool, mark bool, names ...string) error {
	if err := p.call(ctx, what, names...); err != nil {
		return err
	}
	for _, n := range names {
		marks[n] = mark
	}
	return nil
}

func (p *paper) Kill(ctx context.Context, names ...string) error {
	return p.set(ctx, "kill", p.down, true, names...)
}

func (p *paper) Stop(ctx context.Context, name string) error {
	return p.set(ctx, "stop", p.down, true, name)
}

func (p *paper) Start(ctx context.Context, names ...string) error {
	return p.set(ctx, "start", p.down, false, slices.DeleteFunc(slices.Clone(names), func(n string) bool { return p.gone[n] })...)
}

func (p *paper) Pause(ctx context.Context, names ...string) error {
	return p.set(ctx, "pause", p.frozen, true, names...)
}

func (p *paper) Resume(ctx context.Context, names ...string) error {
	return p.set(ctx, "resume", p.frozen, false, names...)
}

func (p *paper) SetLine(ctx context.Context, site string, l Line) error {
	if !slices.Contains(Remote(p.members), site) {
		p.t.Errorf("line of %q, which is no remote site", site)
	}
	if l.Loss > 1000 || l.Duplicate > 1000 || l.Reorder > 1000 || l.Corrupt > 1000 {
		p.t.Errorf("more than all packets: %+v", l)
	}
	p.bad[site] = l
	return p.call(ctx, "line")
}

func (p *paper) OwnClocks() bool { return true }

func (p *paper) Jump(ctx context.Context, _ time.Duration, names ...string) error {
	return p.set(ctx, "jump", p.wrong, true, names...)
}

func (p *paper) Strobe(ctx context.Context, _, period time.Duration, names ...string) error {
	if period < time.Millisecond {
		p.t.Errorf("strobe with a period of %v", period)
	}
	return p.set(ctx, "strobe", p.wrong, true, names...)
}

func (p *paper) Skew(ctx context.Context, gain float64, names ...string) error {
	if gain < -1 {
		p.t.Errorf("a clock runs backwards: it gains %v", gain)
	}
	return p.set(ctx, "skew", p.wrong, true, names...)
}

func (p *paper) SetRight(ctx context.Context, names ...string) error {
	return p.set(ctx, "set right", p.wrong, false, names...)
}

func (p *paper) Suspend(ctx context.Context, names ...string) error {
	return p.set(ctx, "suspend", p.frozen, true, names...)
}

func (p *paper) Bring(ctx context.Context, _ Moment, name string) error {
	return p.call(ctx, "bring", name)
}

func (p *paper) Transfer(ctx context.Context, _ string) error { return p.call(ctx, "transfer") }

func (p *paper) Remove(ctx context.Context, name string) error {
	return errors.Join(p.set(ctx, "remove", p.down, true, name), p.set(ctx, "remove", p.gone, true, name))
}

func (p *paper) Admit(ctx context.Context, name string) error {
	return errors.Join(p.set(ctx, "admit", p.gone, false, name), p.set(ctx, "admit", p.down, false, name))
}

func (p *paper) Move(ctx context.Context, name string) error {
	return p.set(ctx, "move", p.down, false, name)
}

func (p *paper) OtherLogStore(ctx context.Context, name string) error {
	if !p.down[name] {
		p.t.Errorf("%s changes its log store while it runs", name)
	}
	return p.call(ctx, "log store", name)
}

func (p *paper) Save(ctx context.Context) ([]byte, error) {
	return []byte("archive"), p.call(ctx, "save")
}

func (p *paper) Sicken(ctx context.Context, name string, _ Illness) error {
	return p.set(ctx, "sicken", p.sick, true, name)
}

func (p *paper) Cure(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		names = namesOf(p.members)
	}
	return p.set(ctx, "cure", p.sick, false, names...)
}

func (p *paper) OwnDisks() bool { return true }

func (p *paper) MayHang() bool { return true }

func (p *paper) LosePower(ctx context.Context, _ uint64, names ...string) error {
	return p.set(ctx, "lose power", p.down, true, names...)
}

func (p *paper) Folder(string) string { return "" }

func (p *paper) Restore(ctx context.Context, _ []byte) error { return p.call(ctx, "restore") }

// broken is what is not as it should be.
func (p *paper) broken() string {
	var b []string
	for _, m := range p.members {
		if p.down[m.Name] {
			b = append(b, m.Name+" is down")
		}
		if p.frozen[m.Name] {
			b = append(b, m.Name+" is frozen")
		}
		if p.sick[m.Name] {
			b = append(b, "the disk of "+m.Name+" is sick")
		}
		if p.wrong[m.Name] {
			b = append(b, "the clock of "+m.Name+" is wrong")
		}
		if p.gone[m.Name] {
			b = append(b, m.Name+" is removed")
		}
	}
	for site, l := range p.bad {
		if l != (Line{}) {
			b = append(b, "the line of "+site+" is bad")
		}
	}
	if len(p.blocked) > 0 {
		b = append(b, "cut: "+describe(p.blocked))
	}
	return strings.Join(b, ", ")
}

// TestEachFaultActsAndLeavesNothingBroken runs every fault on its own, with
// many seeds, and looks at the target while it acts and after it.
func TestEachFaultActsAndLeavesNothingBroken(t *testing.T) {
	for _, f := range All() {
		t.Run(f.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for seed := range uint64(20) {
					p := newPaper(t, cluster(3+2*int(seed%2)))
					if err := f.Fits(p); err != nil {
						t.Fatal(err)
					}
					step := Step{Fault: f, For: draw(rand.New(rand.NewPCG(seed, 0)), f.Least, f.Most), Seed: seed}
					r := step.act(t.Context(), p)
					if r.Err != nil {
						t.Fatalf("seed %d: %v", seed, r.Err)
					}
					if broken := p.broken(); broken != "" {
						t.Fatalf("seed %d leaves it broken: %s", seed, broken)
					}
					if p.calls == 0 || r.What == "" {
						t.Fatalf("seed %d: %d orders, %q", seed, p.calls, r.What)
					}
					if took := r.To.Sub(r.From); took > step.For+2*time.Second {
						t.Fatalf("seed %d took %v, was to take %v", seed, took, step.For)
					}
				}
			})
		})
	}
}

func TestFaultsHaveNamesThatTellThemApart(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range All() {
		if f.Name == "" || f.What == "" || f.Group == "" || f.Act == nil || f.Most < f.Least || f.Most == 0 {
			t.Errorf("%+v is not whole", f)
		}
		if seen[f.Name] || slices.Contains(Groups(), f.Name) {
			t.Errorf("two are called %q", f.Name)
		}
		seen[f.Name] = true
	}
	for list, want := range map[string]int{"": len(All()), "all": len(All()), "bridge": 1, "bridge,kill-one": 2, "line": len(lineFaults)} {
		if found, err := Named(list); err != nil || len(found) != want {
			t.Errorf("%q names %d faults, %v; want %d", list, len(found), err, want)
		}
	}
	if _, err := Named("no-such"); err == nil {
		t.Error("a fault that does not exist was found")
	}
}

func TestAPlanIsRepeatedFromItsSeed(t *testing.T) {
	show := func(seed uint64) string { return fmt.Sprint(Plan(seed, All(), 10*time.Minute)) }
	first := show(1)
	if again := show(1); again != first {
		t.Error("one seed gives two plans")
	}
	if show(2) == first {
		t.Error("two seeds give one plan")
	}
	var last time.Duration
	plan := Plan(7, All(), 10*time.Minute)
	for _, s := range plan {
		if s.At < last || s.At+s.For > 10*time.Minute || s.For < s.Fault.Least || s.For > s.Fault.Most {
			t.Errorf("%v does not fit", s)
		}
		last = s.At + s.For
	}
	if len(Plan(7, nil, time.Minute)) != 0 {
		t.Error("without faults there is nothing to plan")
	}
	names := map[string]int{}
	for _, s := range Plan(7, partitionFaults, time.Hour)[:2*len(partitionFaults)] {
		parts := Split(s.Fault.Name)
		names[parts[len(parts)-1]]++
	}
	for _, f := range partitionFaults {
		if names[f.Name] != 2 {
			t.Errorf("%s is drawn %d times in two rounds", f.Name, names[f.Name])
		}
	}
}

// TestAPlanPutsFaultsBesideOthers that act at once, so that both act.
func TestAPlanPutsFaultsBesideOthers(t *testing.T) {
	pairs := 0
	for _, s := range Plan(3, All(), 2*time.Hour) {
		parts := Split(s.Fault.Name)
		if len(parts) == 1 {
			continue
		}
		pairs++
		if first, second := named(All(), parts[0]), named(All(), parts[1]); !first.Prompt || first.Group == second.Group || second.Brings != "" {
			t.Errorf("%s stands beside %s", first.Name, second.Name)
		}
	}
	if pairs < 20 {
		t.Errorf("%d pairs in two hours", pairs)
	}
	both := beside(named(processFaults, "kill-all"), []Fault{named(partitionFaults, "halves")}, rand.New(rand.NewPCG(1, 1)))
	synctest.Test(t, func(t *testing.T) {
		r := Step{Fault: both, For: time.Second}.act(t.Context(), newPaper(t, cluster(3)))
		if r.Err != nil || !strings.Contains(r.What, "cut ") || !strings.Contains(r.What, "kill ") || r.Fault != "halves + kill-all" {
			t.Errorf("%+v", r)
		}
	})
}

// TestRunEndsWithAWholeTarget: at the plan's end, when it is broken off at any
// moment, and when orders fail.
func TestRunEndsWithAWholeTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(200) {
			p := newPaper(t, cluster(3))
			ctx, cancel := context.WithCancel(t.Context())
			if seed > 0 {
				time.AfterFunc(time.Duration(seed)*273*time.Millisecond, cancel)
			}
			var records []Record
			err := Run(ctx, p, Plan(seed, All(), time.Minute), func(r Record) { records = append(records, r) })
			cancel()
			if broken := p.broken(); err != nil || broken != "" {
				t.Fatalf("seed %d: %v; %s", seed, err, broken)
			}
			for i, r := range records {
				if r.Fault == "" || r.To.Before(r.From) || i > 0 && r.From.Before(records[i-1].To) {
					t.Fatalf("seed %d: record %+v", seed, r)
				}
			}
			if seed == 0 && len(records) < 5 {
				t.Fatalf("only %d faults in a minute", len(records))
			}
		}
	})
}

func TestRunReportsWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPaper(t, cluster(3))
		full := errors.New("no such process")
		p.fail = func(call string) error {
			if call == "kill" {
				return full
			}
			return nil
		}
		plan := []Step{{Fault: named(processFaults, "kill-one"), For: time.Second}}
		if err := Run(t.Context(), p, plan, nil); !errors.Is(err, full) {
			t.Errorf("got %v", err)
		}
		var got Record
		plan = []Step{{Fault: named(momentFaults, "kill-in-delta"), For: time.Second}}
		p.fail = func(call string) error {
			if call == "bring" {
				return fmt.Errorf("%w: it was too late", ErrMissed)
			}
			return nil
		}
		if err := Run(t.Context(), p, plan, func(r Record) { got = r }); err != nil || !errors.Is(got.Err, ErrMissed) {
			t.Errorf("a missed moment is an error: %v, %+v", err, got)
		}
	})
}

// bare is a target without any ability.
type bare struct{ Target }

func TestAFaultSaysWhatItLacks(t *testing.T) {
	for _, f := range All() {
		lacks := f.Fits(bare{newPaper(t, cluster(3))})
		if (lacks != nil) != (len(f.Needs) > 0) {
			t.Errorf("%s: needs %d abilities, says %v", f.Name, len(f.Needs), lacks)
		}
	}
	p := newPaper(t, []Member{{Name: "n1", Site: "home", Voter: true}, {Name: "n2", Site: "home", Voter: true}})
	for _, name := range []string{"bridge", "cut-site", "leader-with-learner", "spare-stands-in"} {
		if named(All(), name).Fits(p) == nil {
			t.Errorf("%s fits two voters at one site", name)
		}
	}
	if err := Heal(t.Context(), bare{newPaper(t, cluster(3))}); err != nil {
		t.Errorf("heal: %v", err)
	}
}
