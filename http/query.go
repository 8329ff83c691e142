package http

import (
	nethttp "net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// param is one query parameter some route reads.
type param uint8

// The parameters. A route sees only those it declares; all others are ignored,
// since clients send parameters everywhere.
const (
	paramDatacenter param = iota
	paramDC
	paramNamespace
	paramPartition
	paramPretty
	paramRecurse
	paramKeys
	paramSeparator
	paramRaw
	paramStale
	paramConsistent
	paramMaxStale
	paramMinIndex
	paramIndex
	paramWait
	paramRev
	paramFrom
	paramTo
	paramLimit
	paramAfter
	paramStream
	paramInit
	paramCAS
	paramFlags
	paramAcquire
	paramRelease
	paramStrict
	paramAwait
	paramID
	paramAddress
	paramSite
	paramConfirm
	paramForce
	paramCount
)

// paramNames are the names as the description of the API spells them.
var paramNames = [paramCount]string{
	paramDatacenter: "datacenter",
	paramDC:         "dc",
	paramNamespace:  "ns",
	paramPartition:  "partition",
	paramPretty:     "pretty",
	paramRecurse:    "recurse",
	paramKeys:       "keys",
	paramSeparator:  "separator",
	paramRaw:        "raw",
	paramStale:      "stale",
	paramConsistent: "consistent",
	paramMaxStale:   "max_stale",
	paramMinIndex:   "min_index",
	paramIndex:      "index",
	paramWait:       "wait",
	paramRev:        "rev",
	paramFrom:       "from",
	paramTo:         "to",
	paramLimit:      "limit",
	paramAfter:      "after",
	paramStream:     "stream",
	paramInit:       "init",
	paramCAS:        "cas",
	paramFlags:      "flags",
	paramAcquire:    "acquire",
	paramRelease:    "release",
	paramStrict:     "strict",
	paramAwait:      "await",
	paramID:         "id",
	paramAddress:    "address",
	paramSite:       "site",
	paramConfirm:    "confirm",
	paramForce:      "force",
}

// paramsByName finds a parameter by its name.
var paramsByName = func() map[string]param {
	m := map[string]param{"seperator": paramSeparator} // as some clients write it
	for p, name := range paramNames {
		m[name] = param(p)
	}
	return m
}()

// params is a set of parameters.
type params uint64

func set(ps ...param) params {
	var s params
	for _, p := range ps {
		s |= 1 << p
	}
	return s
}

func (s params) has(p param) bool { return s&(1<<p) != 0 }

// Sets that several routes share.
var (
	paramsEverywhere = set(paramDatacenter, paramDC, paramNamespace, paramPartition, paramPretty)
	paramsOfReads    = set(paramStale, paramConsistent, paramMaxStale, paramMinIndex, paramIndex, paramWait)
)

// query is the parsed query string: the parameters the route declares, each
// with the first value it was given.
type query struct {
	given  params
	values [paramCount]string
}

func (q *query) has(p param) bool { return q.given.has(p) }

// get gives a parameter's value, empty when it was not given.
func (q *query) get(p param) string {
	if !q.given.has(p) {
		return ""
	}
	return q.values[p]
}

// parse reads raw, keeping what allowed names. A broken escape in one of those
// is refused rather than dropped: a write must not lose its condition.
func (q *query) parse(raw string, allowed params) error {
	q.given = 0
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		name, value, _ := strings.Cut(pair, "=")
		name, err := unescape(name)
		if err != nil {
			continue // whatever it names, we do not know it
		}
		p, known := paramsByName[name]
		if !known || !allowed.has(p) || q.given.has(p) {
			continue
		}
		if value, err = unescape(value); err != nil {
			return badRequest("Invalid " + name + ": " + err.Error())
		}
		q.given |= 1 << p
		q.values[p] = value
	}
	return nil
}

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	return url.QueryUnescape(s)
}

// number reads an unsigned integer; zero when the parameter was not given.
func (q *query) number(p param) (uint64, error) {
	if !q.has(p) {
		return 0, nil
	}
	n, err := strconv.ParseUint(q.values[p], 10, 64)
	if err != nil {
		return 0, badRequest("Invalid " + paramNames[p] + ": " + strconv.Quote(q.values[p]) + " is not a number from 0 to 2^64-1")
	}
	return n, nil
}

// countedNumber is number for what is counted from 1: revisions and limits.
func (q *query) countedNumber(p param) (uint64, error) {
	n, err := q.number(p)
	if err == nil && n == 0 && q.has(p) {
		err = badRequest("Invalid " + paramNames[p] + ": it must be 1 or more")
	}
	return n, err
}

// longestWait bounds the time a client may ask to be kept waiting.
const longestWait = 10 * time.Minute

// index reads the index that the client knows; 0 when it names none.
func (q *query) index() (index uint64, err error) {
	if v := q.get(paramIndex); v != "" {
		if index, err = strconv.ParseUint(v, 10, 64); err != nil {
			return 0, badRequest("Invalid index").advise("give the X-Consul-Index of an earlier reply")
		}
	}
	return index, nil
}

// waiting reads wait, 0 when it is not given or negative. It is judged on every
// read, and so is index.
func (q *query) waiting() (wait time.Duration, err error) {
	if _, err := q.index(); err != nil {
		return 0, err
	}
	if v := q.get(paramWait); v != "" {
		if wait, err = time.ParseDuration(v); err != nil {
			return 0, badRequest("Invalid wait time").advise("give a duration with its unit, like 30s or 5m")
		}
	}
	return min(max(wait, 0), longestWait), nil
}

// scope refuses what this cluster does not have: other datacenters, and
// namespaces and partitions of any name but the default one.
func (q *query) scope(datacenter string, h nethttp.Header) error {
	dc := q.get(paramDatacenter)
	if dc == "" {
		dc = q.get(paramDC)
	}
	if dc != "" && dc != datacenter {
		return errNoDatacenter
	}
	for _, s := range [...]struct {
		name, value string
	}{
		{"ns", q.get(paramNamespace)},
		{"partition", q.get(paramPartition)},
		{"X-Consul-Namespace", headerValue(h, "X-Consul-Namespace")},
		{"X-Consul-Partition", headerValue(h, "X-Consul-Partition")},
	} {
		if !defaultScope(s.value) {
			return foreignScope(s.name, s.value)
		}
	}
	return nil
}

// defaultScope reports whether a namespace or partition is the one there is.
func defaultScope(name string) bool { return name == "" || name == "default" }

func foreignScope(parameter, value string) error {
	return &problem{
		status: nethttp.StatusBadRequest, code: codeBadRequest,
		text: "Invalid " + parameter + ": " + strconv.Quote(value) + " does not exist here",
		hint: `leave it out or say "default"; use a key prefix to keep data apart`,
	}
}

// headerValue is Header.Get for a name that is canonical already.
func headerValue(h nethttp.Header, canonical string) string {
	if v := h[canonical]; len(v) > 0 {
		return v[0]
	}
	return ""
}
