package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// The voters find a dead leader themselves, far sooner than Raft's timers would:
// each watches the leader it follows. One that finds it dead asks the other voters.
// When a majority of all voters, the dead one included in the count, finds in one
// term that nobody leads, the one of them with the most complete log has the others
// promise to leave it to that one, and tells its own Raft to stand for election.
//
// None of this bears on what Raft guarantees: an election more is all that a
// mistake here can cause, and where nothing is found Raft's timers do it.

const (
	// beatsPerHeartbeat is how often a voter pings the leader in Config.Heartbeat.
	beatsPerHeartbeat = 20
	// silentBeats is after how many beats of silence a leader is found dead. A process
	// that just started gives as many to a leader to show itself.
	silentBeats = 6
	// graceBeats is how long the outcome of an election is waited for.
	graceBeats = 2
)

// pace slows down elections that follow one another too soon.
type pace struct {
	began time.Time // when the present term was first seen
	hasty int       // how many terms up to this one each followed another too soon
}

// next notes a new term. It came too soon when the one before lasted less than two
// of its graces.
func (p *pace) next(now time.Time, beat time.Duration) {
	if !p.began.IsZero() && now.Sub(p.began) < 2*p.grace(beat) {
		p.hasty++
	} else {
		p.hasty = 0
	}
	p.began = now
}

// grace is how long this term's election is given, doubled for each that came too
// soon, up to twice the heartbeat.
func (p *pace) grace(beat time.Duration) time.Duration {
	return min(graceBeats*beat<<min(p.hasty, 10), 2*beatsPerHeartbeat*beat)
}

// allows reports whether an election may be forced now: after calm at once.
func (p *pace) allows(now time.Time, beat time.Duration) bool {
	return p.hasty == 0 || now.Sub(p.began) >= p.grace(beat)
}

// vigil is what a node knows of whether its present term has a leader.
type vigil struct {
	wake chan struct{} // holds one: there is something to look at

	mu      sync.Mutex // guards what follows
	term    uint64
	pace    pace
	leader  string // who was seen to lead the term, "" for nobody
	pulse   command.Pulse
	alone   int                // beats for which Raft has known no leader
	met     bool               // a leader was known since the process started
	others  map[string]finding // what other voters said of this term, by id
	news    bool               // one of them has come to find it leaderless since this node asked last
	asked   time.Time          // when this node asked last, having found this term leaderless; zero for not
	asks    int                // how often it has, without news
	stood   uint64             // the last term in which this node had itself elected
	promise promised

	forced, changes uint64 // elections forced by this node, and leaders seen
}

// promised is the voter to which this one leaves a term, for a while.
type promised struct {
	term  uint64
	to    string
	until time.Time
}

// finding is what a voter says of a term.
type finding struct {
	Term uint64 `json:"term"`
	// Leaderless: as far as it can tell nobody leads that term.
	Leaderless bool `json:"leaderless"`
	// Eligible: it could stand for election now, and has not in this term.
	Eligible bool `json:"eligible"`
	// LastTerm and LastIndex are those of the last entry of its log.
	LastTerm  uint64 `json:"last_term"`
	LastIndex uint64 `json:"last_index"`
	// Priority is its Config.LeaderPriority.
	Priority int `json:"priority"`
}

// compareLogs compares how complete the logs of two voters are, as Raft does when
// it grants a vote.
func compareLogs(a, b finding) int {
	return cmp.Or(cmp.Compare(a.LastTerm, b.LastTerm), cmp.Compare(a.LastIndex, b.LastIndex))
}

// choose says which of the voters that find a term leaderless is to stand: of those
// that can the one with the most complete log, then the highest priority, then the
// first by id. All that know the same choose the same.
func choose(voters map[string]finding) string {
	best := ""
	for id, f := range voters {
		if !f.Leaderless || !f.Eligible {
			continue
		}
		if b, some := voters[best]; !some || cmp.Or(compareLogs(f, b), cmp.Compare(f.Priority, b.Priority), strings.Compare(best, id)) > 0 {
			best = id
		}
	}
	return best
}

// leaderless counts the voters that find their term leaderless.
func leaderless(voters map[string]finding) (count int) {
	for _, f := range voters {
		if f.Leaderless {
			count++
		}
	}
	return count
}

// beat is how often the leader is pinged, the unit of all patience here.
func (n *Node) beat() time.Duration { return n.cfg.Heartbeat / beatsPerHeartbeat }

// keepVigil watches the leader, and acts when there is none.
func (n *Node) keepVigil() {
	v := &n.vigil
	type subject struct {
		term   uint64
		leader string
	}
	var watched subject
	unwatch := func() {}
	defer func() { unwatch() }()
	counted := time.Now()
	for {
		changed := n.changed.wait()
		var now subject
		if now.term, now.leader = n.noteTerm(); !n.hasVote() {
			now.leader = "" // and nobody to watch
		}
		if now != watched {
			unwatch()
			watched, unwatch = now, n.watchLeader(now.term, now.leader)
		}
		pause := n.beat()
		if settled := n.KnowsLeader() && (n.hasVote() || n.Learner()); n.look() && settled {
			pause = n.cfg.Heartbeat // a notice may have been missed
		}
		select {
		case <-changed:
		case <-v.wake:
		case <-time.After(pause):
		case <-n.stop:
			return
		}
		if time.Since(counted) >= n.beat() {
			counted = time.Now()
			n.countAlone()
		}
	}
}

// noteTerm takes in Raft's term and leader, and returns the term and who was seen to
// lead it, "" if that is nobody or this node itself.
func (n *Node) noteTerm() (term uint64, leader string) {
	v := &n.vigil
	v.mu.Lock()
	defer v.mu.Unlock()
	term, known := n.raftTerm() // with mu held, so that no older one is noted after it
	if term != v.term {
		v.pace.next(time.Now(), n.beat())
		v.term, v.leader, v.pulse, v.alone = term, "", command.Pulse{}, 0
		v.others, v.asked, v.asks = nil, time.Time{}, 0
	}
	if known != "" {
		v.alone, v.met = 0, true
		if v.leader != known {
			v.leader, v.pulse = known, command.Pulse{}
			v.changes++
		}
	}
	if v.leader == n.id {
		return v.term, ""
	}
	return v.term, v.leader
}

// raftTerm is Raft's term, and the leader it knows of that very term.
func (n *Node) raftTerm() (term uint64, leader string) {
	for {
		term, leader = n.raft.CurrentTerm(), n.raftLeader()
		if n.raft.CurrentTerm() == term {
			return term, leader // Raft forgets the leader before it changes the term
		}
	}
}

// countAlone counts a beat without a leader.
func (n *Node) countAlone() {
	_, known := n.raftTerm()
	v := &n.vigil
	v.mu.Lock()
	defer v.mu.Unlock()
	if known == "" {
		v.alone++
	}
}

// hasVote reports whether this node is a voter in its latest configuration.
func (n *Node) hasVote() bool { return n.isVoter(n.id) }

// watchLeader watches the leader of a term, if there is one to watch, until the
// function it returns is called.
func (n *Node) watchLeader(term uint64, leader string) (stop func()) {
	if leader == "" {
		return func() {}
	}
	v := &n.vigil
	ctx, cancel := context.WithCancel(n.ctx)
	n.loop(func() {
		n.parts.Transport.Watch(ctx, leader, n.beat(), func(p command.Pulse) {
			v.mu.Lock()
			current := v.term == term && v.leader == leader
			if current {
				v.pulse = p
			}
			v.mu.Unlock()
			if current {
				n.lookAgain()
			}
		})
	})
	return cancel
}

// lookAgain makes the vigil look soon.
func (n *Node) lookAgain() {
	select {
	case n.vigil.wake <- struct{}{}:
	default:
	}
}

// find says what this node finds of its present term, and why it finds that nobody
// leads it, if so. A node without a vote, or with a Raft that ended, finds nothing.
func (n *Node) find() (f finding, why string) {
	f.Term, _ = n.noteTerm()
	if state := n.raft.State(); !n.hasVote() || state != raft.Follower && state != raft.Candidate {
		return f, ""
	}
	v := &n.vigil
	v.mu.Lock()
	if v.term == f.Term {
		why = n.whyLeaderless()
	}
	stood := v.stood >= f.Term
	v.mu.Unlock()
	if why == "" {
		return f, ""
	}
	f.Leaderless, f.Priority = true, n.cfg.LeaderPriority
	f.Eligible = !stood && n.MayLead() && n.raft.State() == raft.Follower
	f.LastTerm, f.LastIndex = n.lastEntry()
	return f, why
}

// whyLeaderless says why nobody leads the present term; empty when somebody may.
// Called with vigil.mu held.
func (n *Node) whyLeaderless() string {
	v := &n.vigil
	patience := graceBeats
	if !v.met {
		patience = silentBeats
	}
	switch p := v.pulse; {
	case v.leader == n.id:
	case v.leader != "" && p.Refused:
		return "the leader's connection is lost, and its port refuses new ones"
	case v.leader != "" && p.Replaced:
		return "the leader's process was replaced by another"
	case v.leader != "" && p.Missed >= silentBeats:
		return "the leader is silent"
	case v.leader != "" && p.Said.Unfit != "":
		return "the leader must not lead: " + p.Said.Unfit
	case v.leader != "" && p.Said.Term == v.term && !p.Said.Leads:
		return "the leader has stepped down"
	case v.alone >= patience:
		return "no leader is known"
	}
	return ""
}

// look acts if the present term is found leaderless. calm: it is not.
func (n *Node) look() (calm bool) {
	mine, why := n.find()
	if why == "" {
		n.askNoMore()
		return true
	}
	if !n.mayAsk() {
		return false
	}
	others, need := n.witnesses()
	found := n.inquire(mine, others, need)
	if leaderless(found) < need {
		return false
	}
	n.askSoon()
	if choose(found) == n.id && n.paced() && !n.stand(mine, why, others, need) {
		n.takeBack(mine.Term)
	}
	return false
}

// askSoon notes that a majority finds the term leaderless: somebody is to stand, and if
// that fails it is tried again soon.
func (n *Node) askSoon() {
	n.vigil.mu.Lock()
	defer n.vigil.mu.Unlock()
	n.vigil.asks = 0
}

// witnesses lists the voters to ask, and how many voters, with this one, are a
// majority of all. The leader that is found dead is not asked, but counts.
func (n *Node) witnesses() (others []string, need int) {
	others, self := n.voters()
	need = (len(others)+self)/2 + 1
	n.vigil.mu.Lock()
	defer n.vigil.mu.Unlock()
	return slices.DeleteFunc(others, func(id string) bool { return id == n.vigil.leader }), need
}

// askNoMore notes that there is nothing to ask, so that the next time there is it is
// asked at once.
func (n *Node) askNoMore() {
	v := &n.vigil
	v.mu.Lock()
	defer v.mu.Unlock()
	v.others, v.news, v.asked, v.asks = nil, false, time.Time{}, 0
}

// mayAsk reports whether the other voters are to be asked now, and notes it: at once
// when there is something new, and else less and less often.
func (n *Node) mayAsk() bool {
	v := &n.vigil
	v.mu.Lock()
	defer v.mu.Unlock()
	pause := min(graceBeats*n.beat()<<min(v.asks, 10), n.cfg.Heartbeat)
	if !v.news && !v.asked.IsZero() && time.Since(v.asked) < pause {
		return false
	}
	if !v.news {
		v.asks++
	}
	v.asked, v.news = time.Now(), false
	return true
}

// paced reports whether an election may be forced, so far as those before it matter.
func (n *Node) paced() bool {
	n.vigil.mu.Lock()
	defer n.vigil.mu.Unlock()
	return n.vigil.pace.allows(time.Now(), n.beat())
}

// inquire tells the other voters what this one finds, and returns what each of them
// and this one find of the same term. It waits for all, but once a majority finds
// the term leaderless no longer than half a beat.
func (n *Node) inquire(mine finding, others []string, need int) map[string]finding {
	ctx, cancel := context.WithTimeout(n.ctx, silentBeats*n.beat())
	defer cancel()
	req, err := encode(mine)
	if err != nil {
		return nil
	}
	type said struct {
		id string
		finding
		err error
	}
	answers := make(chan said, len(others))
	for _, id := range others {
		go func() {
			s := said{id: id}
			var answer []byte
			if answer, s.err = n.parts.Transport.Call(ctx, id, methodFind, req); s.err == nil {
				s.err = json.Unmarshal(answer, &s.finding)
			}
			answers <- s
		}()
	}
	found := map[string]finding{n.id: mine}
	var enough <-chan time.Time
	for range others {
		select {
		case s := <-answers:
			if s.err == nil && s.Term == mine.Term {
				found[s.id] = s.finding
			}
		case <-enough:
			return found
		case <-ctx.Done():
			return found
		}
		if enough == nil && leaderless(found) >= need {
			enough = time.After(n.beat() / 2)
		}
	}
	return found
}

// answerFind serves methodFind: it takes in what another voter finds, and says what
// this one does. What it hears makes it ask, if it finds the same.
func (n *Node) answerFind(from string, theirs finding) (finding, error) {
	if err := n.votes(from); err != nil {
		return finding{}, err
	}
	mine, _ := n.find()
	v := &n.vigil
	v.mu.Lock()
	defer v.mu.Unlock()
	if theirs.Term == v.term && theirs.Leaderless && !v.others[from].Leaderless {
		v.news = true
		n.lookAgain()
	}
	if v.others == nil {
		v.others = map[string]finding{}
	}
	v.others[from] = theirs
	return mine, nil
}

// votes reports as an error that a node is no voter.
func (n *Node) votes(id string) error {
	if !n.isVoter(id) {
		return errors.New("only voters may ask that, and " + id + " is none")
	}
	return nil
}

// stand has the other voters leave the term to this one, and if a majority does
// tells Raft to stand for election: once in a term, and only while all that was
// found still holds. It is false when Raft was not told.
func (n *Node) stand(mine finding, why string, others []string, need int) bool {
	if !n.leaveTo(n.id, mine) {
		return false // this one has left it to another
	}
	ctx, cancel := context.WithTimeout(n.ctx, silentBeats*n.beat())
	defer cancel()
	req, err := encode(mine)
	if err != nil {
		return false
	}
	answers := make(chan bool, len(others))
	for _, id := range others {
		go func() {
			answer, err := n.parts.Transport.Call(ctx, id, methodYield, req)
			answers <- err == nil && len(answer) == 1 && answer[0] == 1
		}()
	}
	yielded := 1
	for left := len(others); yielded < need; left-- {
		if left < need-yielded {
			return false
		}
		if <-answers {
			yielded++
		}
	}
	now, _ := n.find()
	if now.Term != mine.Term || !now.Leaderless || !now.Eligible {
		return false
	}
	v := &n.vigil
	v.mu.Lock()
	v.stood = mine.Term
	v.forced++
	v.mu.Unlock()
	n.log.Warn("nobody leads: standing for election", "term", mine.Term, "because", why, "voters", yielded)
	if err := n.parts.Transport.InjectTimeoutNow(ctx); err != nil {
		n.log.Warn("Raft did not stand for election", "error", err)
	}
	return true
}

// answerYield serves methodYield: whether this voter leaves the term to another one.
// It does if it finds the term leaderless too, and its Raft would vote for the other.
func (n *Node) answerYield(from string, theirs finding) ([]byte, error) {
	if err := n.votes(from); err != nil {
		return nil, err
	}
	mine, _ := n.find()
	if mine.Term == theirs.Term && mine.Leaderless && compareLogs(mine, theirs) <= 0 && n.leaveTo(from, theirs) {
		return []byte{1}, nil
	}
	return []byte{0}, nil
}

// leaveTo promises a term to a voter, for as long as an answer is waited for. It is
// false when the term is another's. So no two voters are told to stand in one term,
// of which neither might win.
func (n *Node) leaveTo(id string, f finding) bool {
	v := &n.vigil
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if v.term != f.Term || v.promise.term == f.Term && v.promise.to != id && now.Before(v.promise.until) {
		return false
	}
	v.promise = promised{term: f.Term, to: id, until: now.Add(silentBeats * n.beat())}
	return true
}

// takeBack takes back that this node wanted a term for itself: another one may have a
// log that has grown longer meanwhile, and needs its word.
func (n *Node) takeBack(term uint64) {
	v := &n.vigil
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.promise.term == term && v.promise.to == n.id {
		v.promise = promised{}
	}
}

// Condition is what this node tells those who watch it.
func (n *Node) Condition() command.Condition {
	c := command.Condition{Term: n.raft.CurrentTerm()}
	c.Leads = n.raft.State() == raft.Leader // after the term: who leads it says so
	if err := n.Unfit(); err != nil {
		c.Unfit = cmp.Or(err.Error(), "no reason given")
	}
	return c
}

// elections counts the leaders seen, and the elections this node has forced.
func (n *Node) elections() (changes, forced uint64) {
	n.vigil.mu.Lock()
	defer n.vigil.mu.Unlock()
	return n.vigil.changes, n.vigil.forced
}

// standAsFirst makes the node that has formed a cluster its first leader: nobody
// else has the configuration yet, and there is nothing to wait for.
func (n *Node) standAsFirst(ctx context.Context) {
	if err := n.parts.Transport.InjectTimeoutNow(ctx); err != nil {
		n.log.Debug("the first election is left to Raft's timers", "error", err)
	}
}
