package http

import (
	"context"
	nethttp "net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is all that /metrics shows.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	inFlight atomic.Int64
	handler  nethttp.Handler
}

func newMetrics(others []Metric, n Node) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "holdfast_http_request_seconds",
			Help:    "Time from the headers of a request to the end of its reply.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route", "method", "code"}),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "holdfast_http_requests_in_flight", Help: "Requests that are being answered.",
		}, func() float64 { return float64(m.inFlight.Load()) }),
		newNodeCollector(n),
	)
	for _, o := range others {
		if o.Counter {
			m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: o.Name, Help: o.Help}, o.Value))
		} else {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: o.Name, Help: o.Help}, o.Value))
		}
	}
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	return m
}

// firstStatus and statuses bound the codes a reply can have.
const (
	firstStatus = 100
	statuses    = 500
)

// route returns the function that counts a route's replies. The histograms of
// its status codes are looked up once each.
func (m *metrics) route(method, path string) func(status int, took time.Duration) {
	if method == "" {
		method = "any"
	}
	var known [statuses]atomic.Pointer[prometheus.Observer]
	return func(status int, took time.Duration) {
		slot := &known[min(max(status-firstStatus, 0), statuses-1)]
		o := slot.Load()
		if o == nil {
			made := m.requests.WithLabelValues(path, method, strconv.Itoa(status))
			o = &made
			slot.Store(o)
		}
		(*o).Observe(took.Seconds())
	}
}

func (s *Server) getMetrics(x *exchange) {
	x.renewWrite()
	s.metrics.handler.ServeHTTP(x.w, x.r)
}

// nodeCollector shows what the node says of itself, asked once per scrape.
type nodeCollector struct {
	node                                        Node
	info, leads, knowsLeader, ready, started    *prometheus.Desc
	revision, term                              *prometheus.Desc
	lastIndex, commitIndex, appliedIndex        *prometheus.Desc
	lastContact, voters                         *prometheus.Desc
	leaderChanges, forced                       *prometheus.Desc
	running, status, failed, staleness, success *prometheus.Desc
	catchUp, catchUpBytes, catchUpSeconds       *prometheus.Desc
	diverged, damaged                           *prometheus.Desc
	lagEntries, lagBytes, lagSeconds            *prometheus.Desc
	logUsed, logExpires, learnerStatus          *prometheus.Desc
}

func newNodeCollector(n Node) *nodeCollector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
	}
	return &nodeCollector{
		node:         n,
		info:         d("node_info", "Constant 1; who this node is.", "node", "id", "site", "cluster", "version"),
		leads:        d("raft_leader", "1 on the node that leads."),
		knowsLeader:  d("raft_known_leader", "1 when this node knows a leader."),
		ready:        d("ready", "1 when this node may serve."),
		started:      d("start_time_seconds", "When this node started, in seconds since 1970."),
		revision:     d("revision", "Revision of this node's state."),
		term:         d("raft_term", "Raft's current term."),
		lastIndex:    d("raft_last_index", "Raft index of the last entry in the log."),
		commitIndex:  d("raft_commit_index", "Highest Raft index known to be committed."),
		appliedIndex: d("raft_applied_index", "Raft index of the last entry the state machine applied."),
		lastContact:  d("raft_last_contact_seconds", "Time since this node heard from the leader; 0 on it."),
		voters:       d("raft_voters", "Voters in the latest configuration."),

		leaderChanges: d("raft_leader_changes_total", "Leaders this node has seen follow one another since it started."),
		forced:        d("raft_elections_forced_total", "How often this node had itself elected because the voters found the leader gone."),

		running:        d("replica_running", "1 while this copy is kept in step."),
		status:         d("replica_status", "1 for the status this copy is in.", "mode", "status"),
		failed:         d("replica_failed_requests", "Consecutive failed freshness probes."),
		staleness:      d("replica_staleness_seconds", "Upper bound of the age of local answers; absent while unknown."),
		success:        d("replica_last_success_seconds", "Time since the last successful freshness probe; absent when there was none."),
		catchUp:        d("replica_last_catch_up_records", "Records moved by the last catch-up.", "kind"),
		catchUpBytes:   d("replica_last_catch_up_bytes", "Bytes moved by the last catch-up.", "kind"),
		catchUpSeconds: d("replica_last_catch_up_seconds", "Time taken by the last catch-up.", "kind"),
		diverged:       d("replica_diverged", "1 while this copy's contents are known to differ from the leader's."),
		damaged:        d("damaged_ranges", "Parts of the stored state found bad and not repaired yet."),

		lagEntries:    d("learner_lag_entries", "On the leader: log entries a learner lacks.", "learner", "site"),
		lagBytes:      d("learner_lag_bytes", "On the leader: about how many bytes of log a learner lacks.", "learner", "site"),
		lagSeconds:    d("learner_lag_seconds", "On the leader: upper bound of the age of a learner's copy; absent while unknown.", "learner", "site"),
		logUsed:       d("learner_log_used_ratio", "On the leader: which part of what the log keeps a learner lacks; at 1 it needs a copy.", "learner", "site"),
		logExpires:    d("learner_log_expires_seconds", "On the leader: when a learner is expected to lack more than the log keeps; absent when it is not.", "learner", "site"),
		learnerStatus: d("learner_status", "On the leader: 1 for the status a learner is in.", "learner", "site", "status"),
	}
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.info, c.leads, c.knowsLeader, c.ready, c.started, c.revision, c.term, c.lastIndex, c.commitIndex, c.appliedIndex,
		c.lastContact, c.voters, c.running, c.status, c.failed, c.staleness, c.success, c.catchUp, c.catchUpBytes, c.catchUpSeconds,
		c.diverged, c.damaged, c.lagEntries, c.lagBytes, c.lagSeconds, c.logUsed, c.logExpires, c.learnerStatus,
		c.leaderChanges, c.forced,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	flag := func(d *prometheus.Desc, v bool, labels ...string) {
		n := 0.0
		if v {
			n = 1
		}
		gauge(d, n, labels...)
	}
	st := c.node.Status()
	gauge(c.info, 1, st.Name, st.ID, st.Site, st.Cluster.ID, st.Version)
	flag(c.leads, st.State == "Leader")
	flag(c.knowsLeader, st.Leader != "" || st.LeaderID != "")
	flag(c.ready, st.Ready)
	if !st.Started.IsZero() {
		gauge(c.started, float64(st.Started.UnixMilli())/1000)
	}
	gauge(c.revision, float64(st.Revision))
	gauge(c.term, float64(st.Term))
	gauge(c.lastIndex, float64(st.LastIndex))
	gauge(c.commitIndex, float64(st.CommitIndex))
	gauge(c.appliedIndex, float64(st.AppliedIndex))
	gauge(c.lastContact, st.LastContact.Seconds())
	gauge(c.voters, float64(len(st.VoterRaftAddrs)))
	out <- prometheus.MustNewConstMetric(c.leaderChanges, prometheus.CounterValue, float64(st.LeaderChanges))
	out <- prometheus.MustNewConstMetric(c.forced, prometheus.CounterValue, float64(st.ElectionsForced))

	rs := c.node.ReplicaStatus()
	flag(c.running, rs.Running)
	flag(c.status, true, rs.Mode, rs.Status)
	gauge(c.failed, float64(rs.FailedRequests))
	if rs.Staleness >= 0 {
		gauge(c.staleness, float64(rs.Staleness)/1000)
	}
	if rs.SecondsSinceLastSuccess >= 0 {
		gauge(c.success, float64(rs.SecondsSinceLastSuccess))
	}
	flag(c.diverged, rs.Diverged > 0)
	gauge(c.damaged, float64(len(rs.Damaged)))
	if k := rs.LastCatchUp.Kind; k != "" {
		gauge(c.catchUp, float64(rs.LastCatchUp.Records), k)
		gauge(c.catchUpBytes, float64(rs.LastCatchUp.Bytes), k)
		gauge(c.catchUpSeconds, rs.LastCatchUp.Seconds, k)
	}

	if st.State != "Leader" {
		return
	}
	all, err := c.node.Replicas(context.Background()) // asks nobody else
	if err != nil {
		return // it leads no longer
	}
	for _, r := range all {
		flag(c.learnerStatus, true, r.Name, r.Site, r.Status)
		gauge(c.lagEntries, float64(r.Lag.Entries), r.Name, r.Site)
		gauge(c.lagBytes, float64(r.Lag.Bytes), r.Name, r.Site)
		if r.Lag.Seconds >= 0 {
			gauge(c.lagSeconds, r.Lag.Seconds, r.Name, r.Site)
		}
		gauge(c.logUsed, r.Log.Used, r.Name, r.Site)
		if r.Log.ExpiresIn >= 0 {
			gauge(c.logExpires, r.Log.ExpiresIn, r.Name, r.Site)
		}
	}
}
