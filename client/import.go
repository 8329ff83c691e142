package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/holdfast-db/holdfast/command"
)

// Defaults for ImportOptions.
const (
	DefaultBatchBytes     = 4 << 20
	DefaultBatchRecords   = 20_000
	DefaultImportPatience = time.Minute
)

// Bounds of the pause before an import tries again.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
)

// ImportOptions says how an import goes about it. The zero value is usable.
type ImportOptions struct {
	// Prefix is put before every key.
	Prefix string
	// BatchBytes and BatchRecords bound one request, and with it the memory an
	// import needs: a batch is kept until it is acknowledged. Larger ones save
	// round trips on long lines.
	BatchBytes   int
	BatchRecords int
	// Patience is how long an import goes on trying without any progress.
	Patience time.Duration
	// Progress, when set, is called after each step, never concurrently.
	Progress func(ImportResult)
	// Retrying, when set, is called before each pause that a failure causes.
	Retrying func(err error, pause time.Duration)
}

// ImportResult is how far an import has come.
type ImportResult struct {
	// Records and Bytes (of keys and values) are acknowledged: on the disks of
	// a majority of the voters. They are the first ones of the input.
	Records uint64
	Bytes   uint64
	// Index is the revision of the last acknowledged write.
	Index uint64
	// Retries counts failed tries that were made good.
	Retries int
}

// ImportError says which record an import ended at.
type ImportError struct {
	// Record counts the input's records from 1: the first one that is not
	// acknowledged.
	Record uint64
	// Key is that record's key, when it could be read.
	Key string
	Err error
}

// Error names the record and the reason.
func (e *ImportError) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("record %d: %v", e.Record, e.Err)
	}
	return fmt.Sprintf("record %d (%s): %v", e.Record, e.Key, e.Err)
}

// Unwrap gives the reason.
func (e *ImportError) Unwrap() error { return e.Err }

// Import sets every pair of the input, in order, and returns when all are
// acknowledged, or with an *ImportError and what was acknowledged until then.
// It is not atomic as a whole.
//
// What was not acknowledged is sent again, at the next server if there are
// several, until Patience is over. A repeated pair sets the value it had set
// already; a write by someone else in between can be overwritten by it.
func (c *Client) Import(ctx context.Context, pairs iter.Seq2[Pair, error], o ImportOptions) (ImportResult, error) {
	path, err := bulkPath(o.Prefix)
	if err != nil {
		return ImportResult{}, err
	}
	if o.BatchBytes <= 0 {
		o.BatchBytes = DefaultBatchBytes
	}
	if o.BatchRecords <= 0 {
		o.BatchRecords = DefaultBatchRecords
	}
	if o.Patience <= 0 {
		o.Patience = DefaultImportPatience
	}
	m := &importer{c: c, path: path, o: o}
	var b batch
	for p, err := range pairs {
		if err != nil {
			// What came before the bad record is good.
			if ferr := m.send(ctx, &b); ferr != nil {
				return m.done, ferr
			}
			return m.done, &ImportError{Record: m.done.Records + 1, Key: p.Key, Err: err}
		}
		if err := b.add(p); err != nil {
			return m.done, &ImportError{Record: m.done.Records + uint64(len(b.ends)) + 1, Key: p.Key, Err: err}
		}
		if len(b.lines) >= o.BatchBytes || len(b.ends) >= o.BatchRecords {
			if err := m.send(ctx, &b); err != nil {
				return m.done, err
			}
		}
	}
	err = m.send(ctx, &b)
	return m.done, err
}

// batch is some records as NDJSON, with what is needed to cut off those that
// are acknowledged.
type batch struct {
	lines []byte
	ends  []mark // one per record
}

type mark struct {
	end   int // of the record's line
	bytes int // of its key and value
	key   string
}

func (b *batch) add(p Pair) error {
	if !utf8.ValidString(p.Key) {
		return fmt.Errorf("key %q is not valid UTF-8", p.Key)
	}
	line, err := json.Marshal(p)
	if err != nil {
		return err
	}
	b.lines = append(append(b.lines, line...), '\n')
	b.ends = append(b.ends, mark{end: len(b.lines), bytes: len(p.Key) + len(p.Value), key: p.Key})
	return nil
}

func (b *batch) reset() { b.lines, b.ends = b.lines[:0], b.ends[:0] }

// from is what remains after the first n records.
func (b *batch) from(n int) []byte {
	if n == 0 {
		return b.lines
	}
	return b.lines[b.ends[n-1].end:]
}

// importer is one running Import.
type importer struct {
	c    *Client
	path string
	o    ImportOptions
	done ImportResult
}

// send gets the batch acknowledged, whatever number of tries it takes, and
// empties it.
func (m *importer) send(ctx context.Context, b *batch) error {
	acked := 0
	delay, progress := firstPause, time.Now()
	for acked < len(b.ends) {
		before := acked
		acknowledge := func(n int, index uint64) {
			if n <= acked || n > len(b.ends) {
				return
			}
			for _, e := range b.ends[acked:n] {
				m.done.Bytes += uint64(e.bytes)
			}
			m.done.Records += uint64(n - acked)
			m.done.Index = max(m.done.Index, index)
			acked = n
			if m.o.Progress != nil {
				m.o.Progress(m.done)
			}
		}
		err := m.try(ctx, b.from(acked), func(n int, index uint64) { acknowledge(before+n, index) })
		if err == nil && acked < len(b.ends) {
			err = fmt.Errorf("the server acknowledged %d of %d records and named no error", acked-before, len(b.ends)-before)
		}
		if err == nil {
			break
		}
		if acked > before {
			delay, progress = firstPause, time.Now()
		}
		stop := &ImportError{Record: m.done.Records + 1, Key: b.ends[acked].key, Err: withoutPlace(err)}
		if ctx.Err() != nil {
			stop.Err = context.Cause(ctx)
			return stop
		}
		left := m.o.Patience - time.Since(progress)
		if !passing(err) || left <= 0 {
			return stop
		}
		m.done.Retries++
		wait := min(delay/2+rand.N(delay), left)
		if m.o.Retrying != nil {
			m.o.Retrying(err, wait)
		}
		if err := pause(ctx, wait); err != nil {
			stop.Err = err
			return stop
		}
		delay = min(2*delay, longestPause)
	}
	b.reset()
	return nil
}

// try sends records once. acknowledge is called with how many of them, from
// the first on, are acknowledged.
func (m *importer) try(ctx context.Context, records []byte, acknowledge func(n int, index uint64)) error {
	r := request{
		method: http.MethodPut, path: m.path, body: records, write: true,
		kind: "application/x-ndjson", accept: "application/x-ndjson, application/json",
	}
	return m.c.each(ctx, r, func(s server) (bool, error) {
		ctx, dog := watch(ctx, m.c.timeout)
		defer dog.stop()
		res, sent, err := m.c.send(ctx, s, r, dog)
		if err != nil {
			return sent, dog.cause(err)
		}
		defer func() { _ = res.Body.Close() }()
		err = readProgress(s, watchedReader{res.Body, dog}, acknowledge)
		return true, dog.cause(err)
	})
}

// readProgress reads the lines a server answers an import with. Only the last
// one has Errors.
func readProgress(s server, r io.Reader, acknowledge func(n int, index uint64)) error {
	d := json.NewDecoder(r)
	for {
		var line struct {
			Done, Index uint64
			Errors      json.RawMessage
		}
		if err := d.Decode(&line); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("the answer was cut off: %w", err)
		}
		acknowledge(int(line.Done), line.Index)
		if line.Errors != nil {
			return bulkError(s, line.Errors)
		}
	}
}

// bulkError makes an error of the last line's Errors: an array of objects like
// the body of any other error, or of plain texts. Only the first one counts,
// since a server stops there.
func bulkError(s server, raw json.RawMessage) error {
	var each []json.RawMessage
	if err := json.Unmarshal(raw, &each); err != nil {
		return fmt.Errorf("%s sent errors of an unknown form: %w", s.address, err)
	}
	if len(each) == 0 {
		return nil
	}
	var wire struct {
		Error, Code, Message, Hint string
		Status                     int
	}
	if json.Unmarshal(each[0], &wire) != nil {
		if json.Unmarshal(each[0], &wire.Message) != nil {
			wire.Message = string(each[0])
		}
	}
	if wire.Error == "" {
		wire.Error = wire.Code
	}
	if wire.Message == "" {
		wire.Message = wire.Error
	}
	return &Error{
		Address: s.address, Status: wire.Status,
		Code: wire.Error, Message: wire.Message, Hint: wire.Hint, sentinel: sentinelOf(wire.Error),
	}
}

// passing reports whether the same request may succeed a little later: yes for
// the network, and for whatever a server takes on itself; no for a refusal that
// names the request as its cause.
func passing(err error) bool {
	var named *Error
	if !errors.As(err, &named) {
		return true
	}
	for _, e := range []error{command.ErrNoLeader, command.ErrNotLeader, command.ErrOutcomeUnknown, command.ErrStopping} {
		if errors.Is(err, e) {
			return true
		}
	}
	return named.Status >= http.StatusInternalServerError ||
		named.Status == http.StatusTooManyRequests || named.Status == http.StatusRequestTimeout
}

// recordPrefix is how a server names a record it refuses: by its place in the
// request. An ImportError names it by its place in the input.
var recordPrefix = regexp.MustCompile(`^Record \d+( \("(\\.|[^"\\])*"\))?: `)

// withoutPlace drops recordPrefix.
func withoutPlace(err error) error {
	var named *Error
	if errors.As(err, &named) {
		named.Message = recordPrefix.ReplaceAllString(named.Message, "")
	}
	return err
}
