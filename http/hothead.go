package http

import (
	"bytes"
	nethttp "net/http"
	"strings"
)

const (
	// hotPath is before the key in the path of a hot request.
	hotPath = "/v1/kv/"
	// hotHeadSize bounds the head of a hot request, hotBodySize its body, in bytes. A body
	// of this size is less than net/http reads of one that no handler wanted.
	hotHeadSize = 4 << 10
	hotBodySize = 64 << 10
)

// fit is whether bytes are a hot request.
type fit uint8

const (
	fits fit = iota
	// misfits: net/http is to say what it is.
	misfits
	// unfinished: nothing speaks against it, but the head goes on.
	unfinished
)

// notHot are parameters that make a request wait for long, or its reply long.
var notHot = set(paramIndex, paramRecurse, paramKeys, paramAwait)

// fieldUse is what is made of a header field of a hot request.
type fieldUse uint8

const (
	fieldUnknown fieldUse = iota // its request is not hot
	fieldHost
	fieldLength
	fieldConnection
	fieldKept    // handlers read it
	fieldIgnored // nothing here depends on it
)

// hotFields has the use of each field by its name in lower case, and hotNames the names
// as handlers know them of those that they read. A field that is not here is left to
// net/http: so one that gets a meaning can be overlooked by no loop of ours.
var hotFields, hotNames = func() (map[string]fieldUse, map[string]string) {
	uses := map[string]fieldUse{"host": fieldHost, "content-length": fieldLength, "connection": fieldConnection}
	names := map[string]string{}
	for _, name := range []string{"Accept", ifMatch, ifNoneMatch, "Idempotency-Key", "X-Consul-Namespace", "X-Consul-Partition", "X-Holdfast-Min-Index"} {
		uses[strings.ToLower(name)], names[strings.ToLower(name)] = fieldKept, name
	}
	for _, name := range []string{
		"accept-charset", "accept-encoding", "accept-language", "authorization", "cache-control", "content-type", "cookie", "forwarded", "origin", "pragma", "referer",
		"traceparent", "tracestate", "user-agent", "via", "x-consul-token", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "x-request-id",
	} {
		uses[name] = fieldIgnored
	}
	return uses, names
}()

// hotFieldName is the length of the longest name among them, or more.
const hotFieldName = 24

// hotHead is the head of a hot request. Its slices are parts of what was parsed.
type hotHead struct {
	method string
	target []byte // path and query
	length int64  // of the body
	kept   []hotField

	hosts, lengths, connections int // how many there are
}

// hotField is a header field that handlers read.
type hotField struct {
	name  string // as they know it
	value []byte
}

// parse reads a head from the beginning of b, and returns its size. What fits has one
// meaning for all who read HTTP; whatever is rare, doubtful or wrong misfits, and does
// so with the first line that it is in. It follows that while a head is unfinished,
// net/http, too, would wait for more.
func (h *hotHead) parse(b []byte) (size int, f fit) {
	*h = hotHead{kept: h.kept[:0]}
	line, rest, f := cutLine(b)
	if f == fits && !h.parseRequest(line) {
		f = misfits
	}
	for f == fits {
		if line, rest, f = cutLine(rest); f == fits {
			if len(line) == 0 {
				break
			}
			if !h.parseField(line) {
				f = misfits
			}
		}
	}
	if f == fits && (h.hosts != 1 || h.length > 0 && h.method != nethttp.MethodPut) {
		f = misfits
	}
	return len(b) - len(rest), f
}

// cutLine cuts the first line from b, without its end.
func cutLine(b []byte) (line, rest []byte, f fit) {
	i := bytes.IndexByte(b, '\n')
	switch {
	case i < 0:
		return nil, nil, unfinished
	case i == 0 || b[i-1] != '\r':
		return nil, nil, misfits
	}
	return b[:i-1], b[i+1:], fits
}

func (h *hotHead) parseRequest(line []byte) bool {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(method) {
	case nethttp.MethodGet:
		h.method = nethttp.MethodGet
	case nethttp.MethodPut:
		h.method = nethttp.MethodPut
	case nethttp.MethodDelete:
		h.method = nethttp.MethodDelete
	default:
		return false
	}
	target, ok := bytes.CutSuffix(rest, []byte(" HTTP/1.1"))
	if !ok || !bytes.HasPrefix(target, []byte(hotPath)) {
		return false
	}
	for _, c := range target {
		// Escapes are for net/http to decode, or to refuse.
		if c <= ' ' || c > '~' || c == '%' || c == '#' || c == '+' {
			return false
		}
	}
	h.target = target
	for _, query, _ := bytes.Cut(target, []byte("?")); len(query) > 0; {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte("&"))
		name, _, _ := bytes.Cut(pair, []byte("="))
		if p, known := paramsByName[string(name)]; known && notHot.has(p) {
			return false
		}
	}
	return true
}

func (h *hotHead) parseField(line []byte) bool {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) > hotFieldName {
		return false
	}
	var lower [hotFieldName]byte
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	value = bytes.Trim(value, " \t")
	for _, c := range value {
		if (c < ' ' && c != '\t') || c > '~' {
			return false
		}
	}
	switch hotFields[string(lower[:len(name)])] {
	case fieldHost:
		h.hosts++
		return plainHost(value)
	case fieldLength:
		h.lengths++
		h.length, ok = plainLength(value)
		return ok && h.lengths == 1
	case fieldConnection:
		h.connections++
		return h.connections == 1 && bytes.EqualFold(value, []byte("keep-alive"))
	case fieldKept:
		h.kept = append(h.kept, hotField{hotNames[string(lower[:len(name)])], value})
		return true
	case fieldIgnored:
		return true
	default:
		return false
	}
}

// plainHost reports whether a host is a name or an address, with or without a port.
func plainHost(host []byte) bool {
	for _, c := range host {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '-', c == '_', c == ':', c == '[', c == ']':
		default:
			return false
		}
	}
	return len(host) > 0
}

// plainLength reads the length of a body, and reports whether it is written as usual
// and in bounds.
func plainLength(digits []byte) (n int64, ok bool) {
	if len(digits) == 0 || digits[0] == '0' && len(digits) > 1 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = 10*n + int64(c-'0'); n > hotBodySize {
			return 0, false
		}
	}
	return n, true
}
