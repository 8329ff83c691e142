package http

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-db/holdfast/command"
)

var errMissingKey = badRequest("Missing key name").advise("name a key, as in /v1/kv/app/colour; GET lists all keys with ?keys, all entries with ?recurse")

// named is the key, or whatever else the path names: all that follows the route's
// own part of it, decoded, without leading slashes.
func (x *exchange) named() string {
	return strings.TrimLeft(x.r.URL.Path[len(x.base):], "/")
}

// checkKey says why a key, or the prefix of keys, cannot exist. Emptiness is
// for the caller to judge.
func checkKey(key string) error {
	if len(key) > command.MaxKey {
		return badRequest("Key is too long (" + strconv.Itoa(len(key)) + " > " + strconv.Itoa(command.MaxKey) + " bytes)").advise("shorten the key, or put part of it into the value")
	}
	segment := 0 // where the current segment starts
	for i := 0; i <= len(key); i++ {
		if i == len(key) || key[i] == '/' {
			if s := key[segment:i]; s == "." || s == ".." {
				return badRequest("Invalid key: the segment " + strconv.Quote(s) + " is not allowed, since HTTP tools rewrite it")
			}
			segment = i + 1
			continue
		}
		if c := key[i]; c < ' ' || c == 0x7f {
			return errControl
		} else if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(key[i:])
			if r == utf8.RuneError && n == 1 {
				return badRequest("Invalid key: it is not valid UTF-8").advise("percent-encode the key's UTF-8 form")
			}
			if unicode.IsControl(r) {
				return errControl
			}
			i += n - 1
		}
	}
	return nil
}

var errControl = badRequest("Invalid key: control characters are not allowed")
