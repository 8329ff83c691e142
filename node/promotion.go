package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// How long a member is waited for that is asked how it stands, and it for each voter
// of the home site.
const (
	standingLimit = 2 * time.Second
	reachLimit    = time.Second
)

// restartGrace is how long a node that was ordered to start again waits, so that the
// answer to the order is on its way.
const restartGrace = 100 * time.Millisecond

// PromoteSite makes the data of the learner that goes furthest the beginning of a new
// home at a site, since the one that is home is lost for good. Without the text that
// confirms it, it only says what it would do. With it, the order is durable at the seed
// on return, which carries it out by itself from then on, also over a crash.
//
// Force lets it go on though voters of the home site are reached, as long as they are
// no majority of it: what only they hold is set aside later.
//
// Errors, after which nothing has changed: command.ErrNoTarget, the site has no
// learner that could be the seed; command.ErrHomeReachable; command.ErrPlanChanged;
// that of the seed. With command.ErrOutcomeUnknown the seed may have the order.
func (n *Node) PromoteSite(ctx context.Context, site, confirm string, force bool) (command.PromotionPlan, error) {
	plan, order, err := n.planPromotion(ctx, site, force)
	if err != nil || confirm == "" {
		return plan, err
	}
	if confirm != plan.Confirm {
		return plan, command.ErrPlanChanged.With("it is %s now, %s was given", plan.Confirm, confirm)
	}
	n.log.Warn("promoting a site", "site", site, "seed", plan.Seed, "source", plan.Source, "revision", plan.Revision, "epoch", plan.Epoch)
	if err := n.orderPromotion(ctx, plan, order); err != nil {
		return plan, err
	}
	plan.Started = true
	return plan, nil
}

// orderPromotion gives the order to the seed.
func (n *Node) orderPromotion(ctx context.Context, plan command.PromotionPlan, order command.Promotion) error {
	seed := plan.Members[slices.IndexFunc(plan.Members, func(s command.Standing) bool { return s.Name == plan.Seed })]
	if seed.ID == n.id {
		return n.acceptPromotion(order)
	}
	req, err := encode(order)
	if err == nil {
		_, err = n.parts.Transport.Call(ctx, seed.ID, methodPromote, req)
	}
	return err
}

// planPromotion asks everybody how they stand, and judges it.
func (n *Node) planPromotion(ctx context.Context, site string, force bool) (command.PromotionPlan, command.Promotion, error) {
	var order command.Promotion
	if err := n.parted(); err != nil {
		return command.PromotionPlan{}, order, err
	}
	cluster, members, err := n.table()
	if err != nil {
		return command.PromotionPlan{}, order, err
	}
	// A home that was lost again before this node had a copy of it counts as well.
	_, epoch := n.parts.Identity.Cluster()
	plan := command.PromotionPlan{Site: site, HomeSite: cluster.HomeSite, Epoch: max(cluster.Epoch, epoch) + 1}
	switch {
	case cluster.ID == "":
		return plan, order, command.ErrNotReady
	case site == cluster.HomeSite:
		return plan, order, command.ErrNoTarget.With("site %s is home", site)
	case !slices.ContainsFunc(members, func(m command.Member) bool { return m.Site == site }):
		return plan, order, command.ErrNoTarget.With("there is no site %q; there are %s", site, strings.Join(siteNames(members), ", "))
	}
	plan.Members = n.standings(ctx, members)
	if err := n.parted(); err != nil {
		return plan, order, err // one of them has told of a new home
	}
	if err := judgeHome(&plan, force); err != nil {
		return plan, order, err
	}
	order, err = chooseSeed(&plan)
	return plan, order, err
}

func siteNames(members []command.Member) (names []string) {
	for _, m := range members {
		if !slices.Contains(names, m.Site) {
			names = append(names, m.Site)
		}
	}
	slices.Sort(names)
	return names
}

// standings asks all members at once, and returns them in the order of their names.
func (n *Node) standings(ctx context.Context, members []command.Member) []command.Standing {
	ctx, cancel := context.WithTimeout(ctx, standingLimit)
	defer cancel()
	all := make([]command.Standing, len(members))
	var asked sync.WaitGroup
	for i, m := range members {
		asked.Go(func() { all[i] = n.standingOf(ctx, m) })
	}
	asked.Wait()
	slices.SortFunc(all, func(a, b command.Standing) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// standingOf asks one member.
func (n *Node) standingOf(ctx context.Context, m command.Member) command.Standing {
	if m.ID == n.id {
		return n.standing(ctx)
	}
	s := command.Standing{ID: m.ID, Name: m.Name, Site: m.Site, Address: m.RaftAddr, Role: m.Role}
	s.Voter = n.isVoter(m.ID)
	answer, err := n.parts.Transport.Call(ctx, m.ID, methodStanding, nil)
	if err != nil {
		return s
	}
	var told command.Standing
	if err := json.Unmarshal(answer, &told); err != nil || told.ID != m.ID {
		return s
	}
	return told
}

// standing is how this node stands.
func (n *Node) standing(ctx context.Context) command.Standing {
	self := n.cfg.Self
	s := command.Standing{
		ID: n.id, Name: self.Name, Site: self.Site, Address: self.RaftAddr, Role: self.Role, Reachable: true,
		Revision: n.parts.State.Revision(), Certified: n.parts.State.LastCertified(), CutOff: "never",
	}
	s.Voter = n.isVoter(n.id)
	if since, ok := n.LastContact(); ok {
		s.CutOff = since.Round(time.Millisecond).String()
	}
	var err error
	if s.LastIndex, s.LastTerm, err = n.lastHeld(); err != nil {
		s.Unfit = err.Error()
	}
	s.Reaches = n.reaches(ctx)
	switch unfit := n.Unfit(); {
	case s.Unfit != "":
	case unfit != nil:
		s.Unfit = unfit.Error()
	case n.wrong() != nil:
		s.Unfit = n.wrong().Error()
	case len(n.parts.State.Damaged()) > 0:
		s.Unfit = "contents are damaged"
	case n.Paused():
		s.Unfit = "it is paused"
	case s.Certified.IsZero():
		s.Unfit = "it holds no complete copy"
	}
	return s
}

// reaches lists the leader, if this node hears of one, and the voters of the
// configuration that answer it.
func (n *Node) reaches(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	_, members, err := n.table()
	if err != nil {
		return nil
	}
	name := func(id string) string {
		if i := slices.IndexFunc(members, func(m command.Member) bool { return m.ID == id }); i >= 0 {
			return members[i].Name
		}
		return id
	}
	others, self := n.voters()
	answers := make(chan string, len(others))
	for _, id := range others {
		go func() {
			if _, err := n.parts.Transport.Call(ctx, id, methodPing, nil); err != nil {
				id = ""
			}
			answers <- id
		}()
	}
	var reached []string
	for range others {
		if id := <-answers; id != "" {
			reached = append(reached, name(id))
		}
	}
	if self == 1 {
		reached = append(reached, n.cfg.Self.Name)
	}
	if leader := n.leaderID(); leader != "" && !slices.Contains(reached, name(leader)) {
		reached = append(reached, name(leader))
	}
	slices.Sort(reached)
	return reached
}

// judgeHome refuses a plan while the home site is not lost.
func judgeHome(p *command.PromotionPlan, force bool) error {
	voters := 0
	for _, s := range p.Members {
		if s.Voter {
			voters++
		}
		if !s.Reachable {
			p.Unreachable = append(p.Unreachable, s.Name)
		}
		for _, name := range s.Reaches {
			if !slices.Contains(p.HomeReached, name) {
				p.HomeReached = append(p.HomeReached, name)
			}
		}
	}
	slices.Sort(p.HomeReached)
	switch reached := len(p.HomeReached); {
	case reached > voters/2:
		return command.ErrHomeReachable.With("%s, a majority of its voters, can be reached", strings.Join(p.HomeReached, ", "))
	case reached > 0 && !force:
		return command.ErrHomeReachable.With("of its voters, %s can be reached: stop them, or force the promotion; what only they hold is set aside when they rejoin",
			strings.Join(p.HomeReached, ", "))
	}
	return nil
}

// chooseSeed names the source, the learner that goes furthest, and the seed at the site:
// the source itself, if it is there.
func chooseSeed(p *command.PromotionPlan) (order command.Promotion, err error) {
	further := func(a, b *command.Standing) bool {
		if a.LastTerm != b.LastTerm {
			return a.LastTerm > b.LastTerm
		}
		return a.LastIndex > b.LastIndex
	}
	var source, seed *command.Standing
	unfit := ""
	for i := range p.Members {
		s := &p.Members[i]
		switch {
		case !s.Reachable || s.Voter:
			continue
		case s.Unfit != "":
			if s.Site == p.Site {
				unfit = fmt.Sprintf("%s: %s", s.Name, s.Unfit)
			}
			continue
		}
		if source == nil || further(s, source) {
			source = s
		}
		if s.Site == p.Site && (seed == nil || further(s, seed)) {
			seed = s
		}
	}
	switch {
	case seed == nil && unfit != "":
		return order, command.ErrNoTarget.With("no learner of site %s can be the seed: %s", p.Site, unfit)
	case seed == nil:
		return order, command.ErrNoTarget.With("no learner of site %s can be reached", p.Site)
	case !further(source, seed):
		source = seed
	}
	p.Seed, p.Source, p.Revision, p.Certified = seed.Name, source.Name, source.Revision, source.Certified
	p.Confirm = p.ConfirmText()
	order = command.Promotion{Epoch: p.Epoch, Index: source.LastIndex, Term: source.LastTerm}
	if source != seed {
		order.Source, order.SourceAddr = source.Name, source.Address
	}
	return order, nil
}

// acceptPromotion makes this node the seed of a new home: durably on return, and
// carried out at a start that follows at once.
func (n *Node) acceptPromotion(p command.Promotion) error {
	n.learning.Lock()
	defer n.learning.Unlock()
	_, epoch := n.parts.Identity.Cluster()
	index, term, err := n.lastHeld()
	switch {
	case err != nil:
		return err
	case n.parted() != nil:
		return n.parted()
	case p.Epoch != epoch+1:
		return command.ErrPlanChanged.With("%s lives in epoch %d, the order is for epoch %d", n.cfg.Self.Name, epoch, p.Epoch)
	case n.leaderID() != "":
		return command.ErrHomeReachable.With("%s hears of a leader", n.cfg.Self.Name)
	case p.Source == "" && (index != p.Index || term != p.Term):
		return command.ErrPlanChanged.With("the log of %s ends with entry %d of term %d, the order is for %d of term %d", n.cfg.Self.Name, index, term, p.Index, p.Term)
	}
	if p.Source == "" {
		err = n.seal(p)
	} else {
		err = n.parts.Identity.SetPromotion(&p)
	}
	if err != nil {
		return err
	}
	n.apart.Store(&parting{command.ErrStopping.With("%s is becoming the home site", n.cfg.Self.Site)})
	time.AfterFunc(restartGrace, func() { n.Restart("it is to be the seed of a new home") })
	return nil
}
