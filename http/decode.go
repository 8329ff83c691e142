package http

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// decode decodes a body, or a part of one, that holds one JSON value and nothing
// else. Field names are matched whatever their case, unknown ones are left alone. The
// error is in words for the client.
func decode(body []byte, into any) error {
	if err := checkText(body); err != nil {
		return err
	}
	return clientsWords(json.Unmarshal(body, into))
}

// decodeStrictly is decode that refuses unknown fields.
func decodeStrictly(body []byte, into any) error {
	if err := checkText(body); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return clientsWords(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("it goes on after its end")
	}
	return nil
}

// checkText refuses JSON with text that is not Unicode: the decoder would replace it,
// and write another key than the client meant.
func checkText(body []byte) error {
	switch {
	case !utf8.Valid(body):
		return errors.New("it is not valid UTF-8")
	case halfEscaped(body):
		return errors.New(`it has one half of a pair of \u escapes without the other`)
	}
	return nil
}

// halfEscaped reports whether a JSON text has one half of a surrogate pair, by which
// JSON escapes what is beyond 16 bits, without the other.
func halfEscaped(body []byte) bool {
	for {
		i := bytes.IndexByte(body, '\\')
		if i < 0 || i+1 == len(body) {
			return false
		}
		body = body[i:]
		r, ok := escaped16(body)
		switch {
		case !ok:
			body = body[2:]
		case !utf16.IsSurrogate(r):
			body = body[6:]
		default:
			low, ok := escaped16(body[6:])
			if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
				return true
			}
			body = body[12:]
		}
	}
}

// escaped16 reads the escape of the form \u12ab that b begins with.
func escaped16(b []byte) (r rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

// clientsWords says what the decoder found without naming the types it decodes into.
func clientsWords(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case err == nil:
		return nil
	case err == io.EOF:
		return errors.New("it is empty")
	case errors.As(err, &kind):
		where := strings.TrimPrefix(kind.Field, ".")
		if where != "" {
			where += ": "
		}
		return errors.New(where + kind.Value + " where " + wanted(kind.Type) + " is needed")
	case err == io.ErrUnexpectedEOF || errors.As(err, &syntax) && strings.HasPrefix(syntax.Error(), "unexpected end"):
		return errors.New("it ends too early")
	case syntax != nil:
		return errors.New(syntax.Error() + " (byte " + strconv.FormatInt(syntax.Offset, 10) + ")")
	}
	return errors.New(strings.TrimPrefix(err.Error(), "json: "))
}

// wanted is what JSON has for a type.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Uint64:
		return "a whole number from 0 to 2^64-1"
	case reflect.Int64, reflect.Float64:
		return "a number"
	case reflect.Bool:
		return "true or false"
	case reflect.Struct:
		return "an object"
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Uint8 { // bytes are a string
			return "an array"
		}
	}
	return "a string"
}
