package client

import (
	"net/http"
	"strconv"
	"time"
)

const stalenessUnknown = "unknown"

// parseMeta reads the headers of a reply. What is absent stays zero.
func parseMeta(s server, h http.Header) Meta {
	m := Meta{
		Address:     s.address,
		Index:       number(h, "X-Consul-Index"),
		Applied:     number(h, "X-Holdfast-Applied"),
		Oldest:      number(h, "X-Holdfast-Oldest"),
		Node:        h.Get("X-Holdfast-Node"),
		Site:        h.Get("X-Holdfast-Site"),
		KnownLeader: h.Get("X-Consul-KnownLeader") == "true",
		LastContact: time.Duration(number(h, "X-Consul-LastContact")) * time.Millisecond,
	}
	if age := h.Get("X-Holdfast-Staleness"); age != "" && age != stalenessUnknown {
		ms, err := strconv.ParseFloat(age, 64)
		m.StalenessKnown = err == nil
		m.Staleness = time.Duration(ms * float64(time.Millisecond))
	}
	m.AwaitTimeout = h.Get("X-Holdfast-Await") == "timeout"
	m.FreshAsOf, _ = time.Parse(time.RFC3339, h.Get("X-Holdfast-Fresh-As-Of"))
	return m
}

// number reads a header that is a number; 0 when it is absent.
func number(h http.Header, name string) uint64 {
	n, _ := strconv.ParseUint(h.Get(name), 10, 64)
	return n
}
