package http

import (
	"bytes"
	"io"
	"strconv"
)

// pair is one record of a bulk upload. encoding/json matches the names of its
// fields whatever their case, reads flags exactly, and takes null for no value.
type pair struct {
	Key       string
	Flags     uint64
	Value     []byte // standard base64
	Namespace string
	Partition string
}

// recordReader takes the records of a bulk upload off a stream: the elements
// of one JSON array, or JSON objects one after the other. It finds where each
// object ends before anything is decoded, so that none can take more memory
// than allowed.
type recordReader struct {
	r   io.Reader
	max int // bytes of one record

	// starved is called before a read that may block.
	starved func()

	buf        []byte
	start, end int // what of buf is still to be looked at
	begun      bool
	array      bool // the input is one JSON array
	closed     bool // and it has ended
	separated  bool // a comma came after the last element
	elements   int
}

func newRecordReader(r io.Reader, limit int64, starved func()) *recordReader {
	return &recordReader{r: r, max: int(limit), starved: starved, buf: make([]byte, 64<<10)}
}

// next returns the next record. io.EOF says that the input was complete.
func (rr *recordReader) next() (p pair, err error) {
	object, err := rr.object()
	if err != nil {
		return pair{}, err
	}
	if err := decode(object, &p); err != nil {
		return pair{}, badRequest("it is not a record: " + err.Error())
	}
	return p, nil
}

// object returns the bytes of the next JSON object, valid until the next call.
func (rr *recordReader) object() ([]byte, error) {
	for {
		c, err := rr.visible()
		switch {
		case err == io.EOF:
			if rr.array && !rr.closed {
				return nil, badRequest("the input ended inside its array")
			}
			return nil, io.EOF
		case err != nil:
			return nil, err
		case rr.closed:
			return nil, badRequest("the input goes on after its array")
		case c == '[' && !rr.begun:
			rr.begun, rr.array = true, true
			rr.start++
			continue
		case c == ']' && rr.array && (rr.elements == 0 || !rr.separated):
			rr.closed = true
			rr.start++
			continue
		case c == ',' && rr.array && rr.elements > 0 && !rr.separated:
			rr.separated = true
			rr.start++
			continue
		case c == '{' && (!rr.array || rr.elements == 0 || rr.separated):
			rr.begun, rr.separated = true, false
			rr.elements++
			return rr.balanced()
		default:
			return nil, badRequest("expected a JSON object, found " + strconv.QuoteRune(rune(c)))
		}
	}
}

// visible skips white space and returns the byte that follows, without taking
// it.
func (rr *recordReader) visible() (byte, error) {
	for {
		for ; rr.start < rr.end; rr.start++ {
			switch c := rr.buf[rr.start]; c {
			case ' ', '\t', '\r', '\n':
			default:
				return c, nil
			}
		}
		if err := rr.fill(); err != nil {
			return 0, err
		}
	}
}

// balanced takes one object, from the brace at start to the one that closes it.
func (rr *recordReader) balanced() ([]byte, error) {
	var (
		depth   int
		quoted  bool
		escaped bool
	)
	for i := 0; ; {
		for ; rr.start+i < rr.end; i++ {
			c := rr.buf[rr.start+i]
			switch {
			case escaped:
				escaped = false
			case quoted:
				if c == '\\' {
					escaped = true
				} else if c == '"' {
					quoted = false
				} else {
					i += plain(rr.buf[rr.start+i:rr.end]) - 1
				}
			case c == '"':
				quoted = true
			case c == '{':
				depth++
			case c == '}':
				if depth--; depth == 0 {
					object := rr.buf[rr.start : rr.start+i+1]
					rr.start += i + 1
					return object, nil
				}
			}
		}
		if i > rr.max {
			return nil, tooLarge("it is too large (more than "+strconv.Itoa(rr.max)+" bytes of JSON)", hintMaxValue)
		}
		if err := rr.fill(); err == io.EOF {
			return nil, badRequest("the input ended inside it")
		} else if err != nil {
			return nil, err
		}
	}
}

// plain counts the bytes before the first quote or backslash.
func plain(b []byte) int {
	if i := bytes.IndexByte(b, '"'); i >= 0 {
		b = b[:i]
	}
	if i := bytes.IndexByte(b, '\\'); i >= 0 {
		b = b[:i]
	}
	return len(b)
}

// fill reads more, keeping what is still to be looked at.
func (rr *recordReader) fill() error {
	if rr.start > 0 {
		rr.end = copy(rr.buf, rr.buf[rr.start:rr.end])
		rr.start = 0
	}
	if rr.end == len(rr.buf) {
		rr.buf = append(rr.buf, make([]byte, len(rr.buf))...)
	}
	rr.starved()
	n, err := rr.r.Read(rr.buf[rr.end:])
	rr.end += n
	if n > 0 {
		return nil
	}
	return err
}
