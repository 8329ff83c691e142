package client

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// How often servers are looked at again while nothing changes, and how long one may
// take to say that it is ready.
const (
	discoverEvery = 30 * time.Second
	readyWithin   = 2 * time.Second
)

// Discover keeps the servers this client asks up to date, until ctx ends, whose cause
// it returns: all servers of the cluster, as /v1/sites lists them and soon after that
// changes, those that are ready first and the nearest of them, by the time they take
// to answer, before the others. The servers given to New come last. Run it beside
// the use of the client:
//
//	go c.Discover(ctx)
func (c *Client) Discover(ctx context.Context) error {
	var index uint64
	for {
		sites, meta, err := c.sitesSince(ctx, index)
		if err == nil {
			index = meta.Index
			c.use(c.byDistance(ctx, sites))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			_ = pause(ctx, leastRetry)
		}
	}
}

// Servers lists the servers in the order they are asked in: those given to New, or
// what Discover has found.
func (c *Client) Servers() []string { return addresses(*c.servers.Load()) }

// sitesSince is Sites once they are newer than index, or after a while.
func (c *Client) sitesSince(ctx context.Context, index uint64) ([]command.Site, Meta, error) {
	r := request{method: http.MethodGet, path: "/v1/sites"}
	if index > 0 {
		r.query = url.Values{"index": {strconv.FormatUint(index, 10)}, "wait": {discoverEvery.String()}}
		r.wait = discoverEvery + discoverEvery/16
	}
	var sites []command.Site
	meta, err := c.ask(ctx, r, &sites)
	return sites, meta, err
}

// byDistance orders the servers of the sites: ready ones by the time they take to
// say so, then the others.
func (c *Client) byDistance(ctx context.Context, sites []command.Site) []server {
	type candidate struct {
		server
		took time.Duration
	}
	var (
		mu  sync.Mutex
		all []candidate
		wg  sync.WaitGroup
	)
	for _, site := range sites {
		for _, sv := range site.Servers {
			s, err := parseServer(sv.HTTP)
			if err != nil {
				continue // it has told nobody where clients reach it
			}
			wg.Go(func() {
				took := c.readyIn(ctx, s)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, candidate{s, took})
			})
		}
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.took, b.took) })
	servers := make([]server, len(all))
	for i := range all {
		servers[i] = all[i].server
	}
	return servers
}

// readyIn is how long a server takes to say that it is ready; far more than any does
// when it is not.
func (c *Client) readyIn(ctx context.Context, s server) time.Duration {
	const never = time.Hour
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	// The second answer counts: the first one pays for the connection.
	took := never
	for range 2 {
		began := time.Now()
		res, _, err := c.send(ctx, s, request{method: http.MethodGet, path: "/readyz"}, nil)
		if err != nil {
			return never
		}
		_ = res.Body.Close()
		took = time.Since(began)
	}
	return took
}

// use makes these the servers to ask, and those given to New the last resort.
func (c *Client) use(servers []server) {
	for _, g := range c.given {
		if !slices.ContainsFunc(servers, func(s server) bool { return s.base == g.base }) {
			servers = append(servers, g)
		}
	}
	c.servers.Store(&servers)
	c.at.Store(0)
}
