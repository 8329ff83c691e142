package http

import (
	"context"
	nethttp "net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// awaitFor is how long a request waits for sites when it does not say.
	awaitFor = 5 * time.Second
	// lookEvery is how often the servers' positions are looked at meanwhile. They
	// report themselves twice a second.
	lookEvery = 100 * time.Millisecond
)

// awaited is which sites are to have a write before it is answered.
type awaited struct {
	wanted bool
	site   string // all of them when empty
	wait   time.Duration
}

// awaited reads the parameter await. A site that does not exist is told of before
// anything is written.
func (x *exchange) awaited() (a awaited, err error) {
	if a.wanted = x.q.has(paramAwait); !a.wanted {
		return a, nil
	}
	if a.wait, err = x.patience(); err != nil {
		return a, err
	}
	v := x.q.get(paramAwait)
	if v == "all" {
		return a, nil
	}
	site, ok := strings.CutPrefix(v, "site:")
	if !ok || site == "" {
		return a, badRequest("Invalid await: " + strconv.Quote(v) + " is neither all nor site: and a name")
	}
	a.site = site
	_, err = x.s.appliedAt(x.r.Context(), site)
	return a, err
}

// patience is how long the client wants to wait for sites.
func (x *exchange) patience() (time.Duration, error) {
	wait, err := x.q.waiting()
	fill(&wait, awaitFor)
	return wait, err
}

// reached waits until the sites have applied a revision, and reports whether they
// have. The write was decided, so nothing that goes wrong here is an error of it.
func (s *Server) reached(ctx context.Context, a awaited, revision uint64) bool {
	_, err := s.awaitSite(ctx, a.site, revision, a.wait)
	return err == nil
}

// siteApplied is how far the servers of a site are.
type siteApplied struct {
	Site    string
	Applied uint64            // by all of them
	Servers map[string]uint64 // by id
}

// getApplied is GET /v1/sites/NAME/applied: it waits until all servers of the site
// have applied a revision.
func (s *Server) getApplied(x *exchange) {
	site := strings.TrimSuffix(strings.TrimPrefix(x.r.URL.Path, "/v1/sites/"), "/applied")
	index, err := x.q.index()
	var wait time.Duration
	if err == nil {
		wait, err = x.patience()
	}
	if err != nil {
		x.fail(err)
		return
	}
	a, err := s.awaitSite(x.r.Context(), site, index, wait)
	st := s.node.Status()
	x.statusHeaders(&st)
	if err != nil {
		x.fail(err)
		return
	}
	x.replyValue(a)
}

// awaitSite waits until all servers of a site, or of all sites when it is empty, have
// applied a revision; ErrRevisionNotReached when that takes longer than wait.
func (s *Server) awaitSite(ctx context.Context, site string, revision uint64, wait time.Duration) (siteApplied, error) {
	late := time.NewTimer(wait)
	defer late.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		a, err := s.appliedAt(ctx, site)
		if err != nil || a.Applied >= revision {
			return a, err
		}
		select {
		case <-look.C:
		case <-late.C:
			return a, command.ErrRevisionNotReached.With("revision %d, the servers of %s have %d", revision, a.name(), a.Applied)
		case <-ctx.Done():
			return a, ctx.Err()
		case <-s.stopping.Done():
			return a, command.ErrStopping
		}
	}
}

func (a *siteApplied) name() string {
	if a.Site == "" {
		return "all sites"
	}
	return "site " + a.Site
}

// appliedAt looks at how far the servers of a site, or of all when it is empty, are.
func (s *Server) appliedAt(ctx context.Context, site string) (siteApplied, error) {
	sites, _, err := s.node.Sites(ctx)
	if err != nil {
		return siteApplied{}, err
	}
	a := siteApplied{Site: site, Servers: map[string]uint64{}}
	for i := range sites {
		if site != "" && sites[i].Name != site {
			continue
		}
		for _, server := range sites[i].Servers {
			if len(a.Servers) == 0 || server.Applied < a.Applied {
				a.Applied = server.Applied
			}
			a.Servers[server.ID] = server.Applied
		}
	}
	if len(a.Servers) == 0 {
		return a, &problem{
			status: nethttp.StatusNotFound, code: codeUnknownSite,
			text: "No such site: " + strconv.Quote(site), hint: "GET /v1/sites lists all sites",
		}
	}
	return a, nil
}
