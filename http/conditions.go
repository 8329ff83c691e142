package http

import (
	"strconv"
	"strings"
)

// The headers by which HTTP itself makes a write conditional. Single-key reads send
// the entity tag they compare.
const (
	ifMatch     = "If-Match"
	ifNoneMatch = "If-None-Match"
)

// preconditioned reports whether a header makes the write conditional.
func (x *exchange) preconditioned() bool {
	return len(x.r.Header[ifMatch])+len(x.r.Header[ifNoneMatch]) > 0
}

// precondition is what a header asks of the key's index, as check-and-set puts it: 0
// is a key that does not exist.
func (x *exchange) precondition() (index uint64, given bool, err error) {
	match, none := x.r.Header[ifMatch], x.r.Header[ifNoneMatch]
	switch {
	case len(match)+len(none) == 0:
		return 0, false, nil
	case len(match)+len(none) > 1:
		return 0, true, badRequest("Conflicting conditions: only one of If-Match and If-None-Match may be given, once")
	case len(none) > 0:
		if none[0] != "*" {
			err = badRequest("Invalid If-None-Match: " + strconv.Quote(none[0]) + " on a write must be *")
		}
		return 0, true, err
	}
	digits, quoted := strings.CutPrefix(match[0], `"`)
	digits, closed := strings.CutSuffix(digits, `"`)
	if index, err = strconv.ParseUint(digits, 10, 64); !quoted || !closed || err != nil || index == 0 {
		return 0, true, badRequest("Invalid If-Match: " + strconv.Quote(match[0]) + ` must be one entity tag, such as "42" with its quotes`)
	}
	return index, true, nil
}

// has reports whether the client has what it asks for already: an answer of this
// entity tag.
func (x *exchange) has(tag string) bool {
	for _, list := range x.r.Header[ifNoneMatch] {
		for known := range strings.SplitSeq(list, ",") {
			if known = strings.TrimPrefix(strings.TrimSpace(known), "W/"); known == tag || known == "*" {
				return true
			}
		}
	}
	return false
}
