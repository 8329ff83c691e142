// Package http is the HTTP JSON API: the dialect of Consul's key-value store
// and Holdfast's extensions to it. It decodes a request, calls a Node, and
// encodes what came of it; it decides nothing about data.
//
// A request passes through four places. The route table (routes.go) names every
// path with its methods and the query parameters it reads; a handler cannot see
// a parameter its route does not name, and a test holds the table and the
// OpenAPI description together. An exchange (exchange.go) carries one request
// with its parsed parameters and its pooled buffers. The handlers (kv.go,
// txn.go, session.go, bulk.go, status.go and others) do the work; what all
// writes have in common is in write.go. One table (errors.go) turns the errors that
// all layers share into statuses and texts.
//
// Reading or writing one key is the hot path: a loop of its own reads it from the
// connection (hot.go), its JSON is written by hand into a pooled buffer, its
// parameters are parsed without a map, and nothing is logged. Everything else comes
// through net/http and gin, and may use encoding/json.
package http
