package http

import (
	"encoding/base64"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/holdfast-db/holdfast/command"
)

// appendEntry writes a record as the entry of a KV reply.
func appendEntry(b []byte, r *command.Record) []byte {
	b = append(b, `{"LockIndex":`...)
	b = appendUint(b, r.LockIndex)
	b = append(b, `,"Key":`...)
	b = appendString(b, r.Key)
	b = append(b, `,"Flags":`...)
	b = appendUint(b, r.Flags)
	b = append(b, `,"Value":`...)
	if len(r.Value) == 0 {
		b = append(b, "null"...)
	} else {
		b = appendBase64(b, r.Value)
	}
	b = append(b, `,"CreateIndex":`...)
	b = appendUint(b, r.CreateRevision)
	b = append(b, `,"ModifyIndex":`...)
	b = appendUint(b, r.ModifyRevision)
	if r.Session != "" {
		b = append(b, `,"Session":`...)
		b = appendString(b, r.Session)
	}
	return append(b, '}')
}

// appendPair writes a record in the form of `consul kv export`.
func appendPair(b []byte, r *command.Record) []byte {
	b = append(b, `{"key":`...)
	b = appendString(b, r.Key)
	b = append(b, `,"flags":`...)
	b = appendUint(b, r.Flags)
	b = append(b, `,"value":`...)
	b = appendBase64(b, r.Value)
	return append(b, '}')
}

func appendUint(b []byte, n uint64) []byte { return strconv.AppendUint(b, n, 10) }

func appendBase64(b, value []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, value)
	return append(b, '"')
}

const hex = "0123456789abcdef"

// appendString writes s as a JSON string that is also safe inside HTML.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0 // of what is still to be copied
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, s[start:i]...)
			b = append(b, `\ufffd`...)
			start = i + n
		case r == '\u2028' || r == '\u2029': // line ends in older JavaScript
			b = append(b, s[start:i]...)
			b = append(b, `\u202`...)
			b = append(b, hex[r&15])
			start = i + n
		}
		i += n
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// What a change did, as replies name it.
const (
	opPut    = "put"
	opDelete = "delete"
	opLock   = "lock"
	opUnlock = "unlock"
)

// appendChange writes one change of a key; before may be nil.
func appendChange(b []byte, c *command.Change, op string, before *command.Record) []byte {
	b = append(b, `{"Index":`...)
	b = appendUint(b, c.At.Revision)
	b = append(b, `,"Op":"`...)
	b = append(b, op...)
	b = append(b, `","KV":`...)
	b = appendEntry(b, &c.Record)
	if before != nil {
		b = append(b, `,"Prev":`...)
		b = appendEntry(b, before)
	}
	if !c.Wall.IsZero() {
		b = append(b, `,"Time":"`...)
		b = c.Wall.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"')
	}
	return append(b, '}')
}

// orNone makes of no list an empty one, so that it is [] in JSON and not null.
func orNone[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
