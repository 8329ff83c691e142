// Package bench puts a load on a cluster and measures what becomes of it. It drives
// Holdfast and, with the same loads through their own HTTP APIs, its peers, so that figures can be
// compared.
//
// A run goes through these steps (run.go): every server is asked whether it is what it
// is taken for; every key is written once, so that reads find something and writes overwrite; the
// load begins, and after the warm-up what happens is counted.
//
// The load is closed or open. In a closed one each connection sends its next
// request when it has the answer to the one before: it shows what the servers can do, but
// whoever is slow is asked less often. In an open one requests are due at fixed moments, whatever
// became of those before, and a request's latency counts from the moment it was due. So a
// stall of the servers is charged to all requests that were due in it, not only to those that were
// under way.
//
// The seed fixes which requests each connection makes, and in which order (requests.go).
//
// Load and servers often share a machine. So the way of a request through this package is
// short: it is put together in a buffer that is used again, written to the connection, and its
// answer is parsed in place (conn.go). net/http would take several times as much.
package bench
