package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/holdfast-db/holdfast/command"
)

// membersOf makes a state of words: a name and what is true of the member. "votes",
// "leads", "spare", "learner" (a voter is none of these), "away" (not at home), "dead",
// "broken" (its disk failed), "ill" (not healthy, not dead yet), "behind" (not level), "fresh" (as it is
// only since now), "long" (as it is for longer than the others).
func membersOf(words ...string) *autopilot.State {
	s, now := &autopilot.State{Servers: map[raft.ServerID]*autopilot.ServerState{}}, time.Now()
	for _, w := range words {
		f := strings.Fields(w)
		is := func(what string) bool { return slices.Contains(f[1:], what) }
		id := raft.ServerID(f[0])
		st := standing{role: command.RoleVoter, home: !is("away"), level: !is("behind") && !is("dead")}
		srv := &autopilot.ServerState{State: autopilot.RaftNonVoter}
		srv.Health.Healthy = !is("dead") && !is("ill")
		srv.Health.StableSince = now.Add(-time.Hour)
		switch {
		case is("spare"):
			st.role = command.RoleSpare
		case is("learner"):
			st.role = command.RoleLearner
		}
		if is("fresh") {
			srv.Health.StableSince = now
		}
		if is("long") {
			srv.Health.StableSince = now.Add(-2 * time.Hour)
		}
		if is("dead") {
			st.silent = time.Hour
		}
		if is("broken") {
			st.disk, st.level, srv.Health.Healthy = command.DiskFailed, false, false
		}
		if is("votes") || is("leads") {
			srv.State = autopilot.RaftVoter
			s.Voters = append(s.Voters, id)
		}
		if is("leads") {
			s.Leader, srv.State = id, autopilot.RaftLeader
		}
		srv.Server = autopilot.Server{ID: id, Ext: st}
		s.Servers[id] = srv
	}
	return s
}

func setting() *autopilot.Config {
	return &autopilot.Config{ServerStabilizationTime: time.Minute, Ext: command.DefaultAutopilot}
}

func TestWhoIsGivenAVoteAndWhoseIsTaken(t *testing.T) {
	for name, tt := range map[string]struct {
		members []string
		want    string
	}{
		"all is well":                                                                  {[]string{"n1 leads", "n2 votes", "n3 votes", "s1 spare", "e1 learner away"}, ""},
		"a voter that is level votes":                                                  {[]string{"n1 leads", "n2 votes", "n3 votes", "n4"}, "+n4"},
		"one that is behind does not":                                                  {[]string{"n1 leads", "n2 votes", "n3 votes", "n4 behind"}, ""},
		"nor one that has been well for too short":                                     {[]string{"n1 leads", "n2 votes", "n3 votes", "n4 fresh"}, ""},
		"nor one of another site, whatever it says it is":                              {[]string{"n1 leads", "n2 votes", "n3 votes dead", "e1 away", "e2 away spare", "e3 away learner", "l1 learner"}, ""},
		"without a spare a dead voter stays one":                                       {[]string{"n1 leads", "n2 votes", "n3 votes dead"}, ""},
		"one that is only ill is not replaced":                                         {[]string{"n1 leads", "n2 votes", "n3 votes ill", "s1 spare"}, ""},
		"a voter whose disk failed is as good as dead":                                 {[]string{"n1 leads", "n2 votes", "n3 votes broken", "s1 spare"}, "+s1"},
		"a spare votes first":                                                          {[]string{"n1 leads", "n2 votes", "n3 votes dead", "s1 spare"}, "+s1"},
		"the spare that has been well for longest":                                     {[]string{"n1 leads", "n2 votes", "n3 votes dead", "s1 spare fresh", "s2 spare"}, "+s2"},
		"no spare that is dead itself":                                                 {[]string{"n1 leads", "n2 votes", "n3 votes dead", "s1 spare dead"}, ""},
		"and then the dead one loses its vote":                                         {[]string{"n1 leads", "n2 votes", "n3 votes dead", "s1 spare votes"}, "-n3"},
		"the place is taken":                                                           {[]string{"n1 leads", "n2 votes", "n3 dead", "s1 spare votes", "s2 spare"}, ""},
		"who is back votes first":                                                      {[]string{"n1 leads", "n2 votes", "n3", "s1 spare votes"}, "+n3"},
		"and then the spare loses its vote":                                            {[]string{"n1 leads", "n2 votes", "n3 votes", "s1 spare votes"}, "-s1"},
		"but not while another is ill":                                                 {[]string{"n1 leads", "n2 votes ill", "n3 votes", "s1 spare votes"}, ""},
		"a spare that leads hands over first":                                          {[]string{"n1 votes", "n2 votes", "n3 votes", "s1 spare leads"}, ">n1"},
		"of a dead voter and a dead spare, the spare":                                  {[]string{"n1 leads", "n2 votes dead", "n3 votes", "n4 votes", "n5 votes", "s1 spare votes dead"}, "-s1"},
		"another spare for a spare that died":                                          {[]string{"n1 leads", "n2 votes", "n3 dead", "s1 spare votes dead", "s2 spare"}, "+s2"},
		"two dead of five, one at a time":                                              {[]string{"n1 leads", "n2 votes", "n3 votes", "n4 votes dead", "n5 votes dead", "s1 spare", "s2 spare"}, "+s1"},
		"before the second is replaced the first goes, which has been dead for longer": {[]string{"n1 leads", "n2 votes", "n3 votes", "n4 votes dead long", "n5 votes dead", "s1 spare votes", "s2 spare"}, "-n4"},
		"a spare stays where a voter was removed for good":                             {[]string{"n1 leads", "n2 votes", "s1 spare votes"}, ""},
		"also where that leaves an even number":                                        {[]string{"n1 leads", "n2 votes", "n3 votes", "n4 votes", "s1 spare votes"}, ""},
		"a spare of one voter does nothing":                                            {[]string{"n1 leads", "s1 spare"}, ""},
		"who asks to be a learner loses its vote":                                      {[]string{"n1 leads", "n2 votes", "n3 votes learner"}, "-n3"},
		"also the leader, which hands over first":                                      {[]string{"n1 leads learner", "n2 votes ill", "n3 votes"}, ">n3"},
	} {
		t.Run(name, func(t *testing.T) {
			c := promoter{}.CalculatePromotionsAndDemotions(setting(), membersOf(tt.members...))
			got := ""
			for _, id := range c.Promotions {
				got += "+" + string(id)
			}
			for _, id := range c.Demotions {
				got += "-" + string(id)
			}
			if c.Leader != "" {
				got += ">" + string(c.Leader)
			}
			if got != tt.want {
				t.Errorf("%q: got %q, want %q", tt.members, got, tt.want)
			}
		})
	}
}

// From whatever state: each change is made, and the next is asked for. Live voters are a
// majority all the time, nobody who must not vote does, and it comes to an end.
func TestEveryChangeOfVotersLeavesALiveMajorityAndItEnds(t *testing.T) {
	kinds := []string{"votes", "votes dead", "", "dead", "spare", "spare dead", "spare votes", "spare votes dead", "learner away", "votes learner"}
	states := 0
	var try func(members []string, from int)
	try = func(members []string, from int) {
		if len(members) == 5 {
			states++
			settles(t, append([]string{"n0 leads"}, members...))
			return
		}
		for k := from; k < len(kinds); k++ {
			try(append(slices.Clip(members), string(rune('a'+len(members)))+" "+kinds[k]), k)
		}
	}
	try(nil, 0)
	if states < 1000 {
		t.Errorf("only %d states were tried", states)
	}
}

func settles(t *testing.T, members []string) {
	s := membersOf(members...)
	live := func() (n int) {
		for _, id := range s.Voters {
			if s.Servers[id].Health.Healthy {
				n++
			}
		}
		return n
	}
	if live() < len(s.Voters)/2+1 {
		return // nobody leads there
	}
	for range 20 {
		c := promoter{}.CalculatePromotionsAndDemotions(setting(), s)
		switch {
		case len(c.Promotions)+len(c.Demotions) > 1:
			t.Fatalf("%q: more than one change at a time: %+v", members, c)
		case len(c.Promotions) == 1:
			srv := s.Servers[c.Promotions[0]]
			if st, _ := standingOf(&srv.Server); !st.home || st.role == command.RoleLearner || !srv.Health.Healthy {
				t.Fatalf("%q: %s is made a voter", members, c.Promotions[0])
			}
			srv.State = autopilot.RaftVoter
			s.Voters = append(s.Voters, c.Promotions[0])
		case len(c.Demotions) == 1:
			s.Servers[c.Demotions[0]].State = autopilot.RaftNonVoter
			s.Voters = slices.DeleteFunc(s.Voters, func(id raft.ServerID) bool { return id == c.Demotions[0] })
		default:
			return
		}
		if live() < len(s.Voters)/2+1 {
			// Whether it was taken in spite of that is for canSpare to say.
			if learner, _ := standingOf(&s.Servers[last(c)].Server); learner.role != command.RoleLearner {
				t.Fatalf("%q: %+v leaves %d of %d voters", members, c, live(), len(s.Voters))
			}
			return
		}
	}
	t.Fatalf("%q: it never ends", members)
}

func last(c autopilot.RaftChanges) raft.ServerID {
	return slices.Concat(c.Promotions, c.Demotions)[0]
}

func TestWhoIsRemovedWhenItHasBeenDeadForLong(t *testing.T) {
	for name, tt := range map[string]struct {
		member string
		silent time.Duration
		quorum uint64
		left   int
		want   bool
	}{
		"a voter":                            {"n4", 16 * time.Minute, 0, 3, true},
		"not yet":                            {"n4", 14 * time.Minute, 0, 3, false},
		"not if two are left":                {"n4", time.Hour, 0, 2, false},
		"but if that is said to be enough":   {"n4", time.Hour, 2, 2, true},
		"not if fewer are left than is said": {"n4", time.Hour, 4, 3, false},
		"a spare":                            {"s1 spare", time.Hour, 0, 3, true},
		"a learner takes longer":             {"e1 learner away", 71 * time.Hour, 0, 3, false},
		"but not for ever":                   {"e1 learner away", 73 * time.Hour, 5, 3, true},
	} {
		srv := membersOf(tt.member).Servers[raft.ServerID(strings.Fields(tt.member)[0])].Server
		st, _ := standingOf(&srv)
		st.silent = tt.silent
		srv.Ext = st
		pilot := command.DefaultAutopilot
		pilot.MinQuorum = tt.quorum
		if got := removable(&pilot, &srv, tt.left); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
