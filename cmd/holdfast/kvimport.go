package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
)

// importReport is what an import came to, for programs.
type importReport struct {
	Records uint64
	Bytes   uint64
	Index   uint64
	Retries int
	Seconds float64
}

func newKVImport() *cobra.Command {
	var (
		conn    connectFlags
		prefix  string
		timeout time.Duration
		batch   byteSize = client.DefaultBatchBytes
	)
	cmd := &cobra.Command{
		Use:   "import [FILE]",
		Short: "Set many keys from a file",
		Long: `Set the keys of a file, or of standard input if FILE is - or absent. It holds
what consul kv export writes, a JSON array, or one JSON object per line:

  {"key":"a/b","flags":0,"value":"aGVsbG8="}

The value is base64 or null. Records that a lost leader or connection leaves
unacknowledged are sent again until --timeout has passed without any progress.
An import that failed can be repeated as a whole: records that are there already
change nothing.`,
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return refuse("give a duration such as 60s", "--timeout %v is not a time to wait", timeout)
			}
			if batch < 1 {
				return refuse("give a size such as 4MiB", "--batch %v is not a size", batch)
			}
			in, total, closeInput, err := openInput(strings.Join(args, ""), cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer closeInput()
			c, err := conn.open()
			if err != nil {
				return err
			}
			counted := &countingReader{r: in}
			p := newProgress(cmd.ErrOrStderr())
			var last client.ImportResult
			state := func(waiting string) transfer {
				return transfer{records: last.Records, bytes: last.Bytes, done: counted.n.Load(), total: total, waiting: waiting}
			}
			p.show(state(""))
			done, err := c.Import(cmd.Context(), parsePairs(counted), client.ImportOptions{
				Prefix:     prefix,
				BatchBytes: int(batch),
				Patience:   timeout,
				Progress:   func(r client.ImportResult) { last = r; p.show(state("")) },
				Retrying:   func(err error, _ time.Duration) { p.show(state(err.Error())) },
			})
			p.clear()
			if err != nil {
				return stoppedImport(err, done)
			}
			report := importReport{Records: done.Records, Bytes: done.Bytes, Index: done.Index, Retries: done.Retries, Seconds: p.elapsed().Seconds()}
			retries := ""
			if done.Retries > 0 {
				retries = ", with " + plural(done.Retries, "retry")
			}
			return conn.line(cmd, report, "imported %s (%s) in %s (%s/s), up to index %d%s",
				plural(done.Records, "record"), size(done.Bytes), span(p.elapsed()),
				size(uint64(float64(done.Bytes)/max(report.Seconds, 0.001))), done.Index, retries)
		},
	}
	conn.add(cmd)
	cmd.Flags().StringVar(&prefix, "prefix", "", "put this before every key")
	cmd.Flags().DurationVar(&timeout, "timeout", client.DefaultImportPatience, "give up after this long without progress")
	cmd.Flags().Var(&batch, "batch", "send at most about this much per request")
	return cmd
}

// stoppedImport says where an import stopped, what is safe, and how to go on.
func stoppedImport(err error, done client.ImportResult) error {
	if done.Records == 0 {
		return refuse("nothing is imported; "+remedyOf(err), "the import stopped at %w", err)
	}
	return refuse(fmt.Sprintf("what is before it, %s, is imported; %s", plural(done.Records, "record"), remedyOf(err)), "the import stopped at %w", err)
}

func remedyOf(err error) string {
	var named *client.Error
	if errors.As(err, &named) && named.Hint != "" {
		return named.Hint + ", and import the file again"
	}
	var format *formatError
	if errors.As(err, &format) {
		return "correct it, and import the file again"
	}
	return "import the file again"
}

// openInput opens the input of an import. total is its length when that is
// known.
func openInput(path string, stdin io.Reader) (r io.Reader, total int64, closeInput func(), err error) {
	f, isFile := stdin.(*os.File)
	closeInput = func() {}
	if path != "" && path != "-" {
		path = strings.TrimPrefix(path, "@")
		if f, err = os.Open(path); err != nil {
			return nil, 0, nil, fileProblem(path, err)
		}
		isFile, closeInput = true, func() { _ = f.Close() }
		stdin = f
	}
	if isFile {
		info, err := f.Stat()
		switch {
		case err == nil && info.IsDir():
			closeInput()
			return nil, 0, nil, refuse("name a file", "%s is a directory", path)
		case err == nil && info.Mode().IsRegular():
			total = info.Size()
		}
	}
	return stdin, total, closeInput, nil
}

// countingReader counts what is read through it.
type countingReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// formatError: the input is not what an import can read.
type formatError struct {
	offset int64
	reason string
}

func (e *formatError) Error() string {
	return fmt.Sprintf("byte %d of the input: %s", e.offset, e.reason)
}

// parsePairs reads a JSON array of records, or records one after the other,
// without holding more than one of them. It ends at the first error.
func parsePairs(r io.Reader) iter.Seq2[client.Pair, error] {
	return func(yield func(client.Pair, error) bool) {
		in := bufio.NewReaderSize(r, 1<<20)
		skipped := skipMark(in)
		d := json.NewDecoder(in)
		fail := func(err error) {
			at := &formatError{offset: skipped + d.InputOffset()}
			var syntax *json.SyntaxError
			switch {
			case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
				at.reason = "it ends in the middle"
			case errors.As(err, &syntax):
				at.offset, at.reason = skipped+syntax.Offset-1, "not JSON: "+syntax.Error()
			default:
				yield(client.Pair{}, fmt.Errorf("read the input: %w", err))
				return
			}
			yield(client.Pair{}, at)
		}
		inArray, err := beginsArray(in)
		if errors.Is(err, io.EOF) {
			return // nothing to import
		}
		if err != nil {
			fail(err)
			return
		}
		if inArray {
			if _, err := d.Token(); err != nil {
				fail(err)
				return
			}
		}
		for {
			if inArray && !d.More() {
				break
			}
			var raw json.RawMessage
			if err := d.Decode(&raw); err != nil {
				if !inArray && errors.Is(err, io.EOF) {
					return
				}
				fail(err)
				return
			}
			p, reason := parsePair(raw)
			if reason != "" {
				yield(p, &formatError{offset: skipped + d.InputOffset() - int64(len(raw)), reason: reason})
				return
			}
			if !yield(p, nil) {
				return
			}
		}
		if _, err := d.Token(); err != nil { // the end of the array
			fail(err)
			return
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			yield(client.Pair{}, &formatError{offset: skipped + d.InputOffset(), reason: "something follows the array"})
		}
	}
}

func parsePair(raw []byte) (client.Pair, string) {
	if !utf8.Valid(raw) {
		return client.Pair{}, "not valid UTF-8"
	}
	var v struct {
		Key   *string
		Flags uint64
		Value []byte
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		var kind *json.UnmarshalTypeError
		p := client.Pair{}
		if v.Key != nil {
			p.Key = *v.Key
		}
		switch {
		case errors.As(err, &kind) && kind.Field == "":
			return p, "a " + kind.Value + " stands where a record should be"
		case errors.As(err, &kind):
			return p, "the " + strings.ToLower(kind.Field) + " of the record is not what it should be: " + kind.Value
		default: // base64 names no field
			return p, "the value is not base64: " + err.Error()
		}
	}
	if v.Key == nil {
		return client.Pair{}, "the record has no key"
	}
	return client.Pair{Key: *v.Key, Flags: v.Flags, Value: v.Value}, ""
}

// skipMark skips the byte order mark that some editors write.
func skipMark(in *bufio.Reader) int64 {
	mark := []byte("\xef\xbb\xbf")
	if b, err := in.Peek(len(mark)); err == nil && bytes.Equal(b, mark) {
		n, _ := in.Discard(len(mark))
		return int64(n)
	}
	return 0
}

// beginsArray looks at the first byte that is not white space.
func beginsArray(in *bufio.Reader) (bool, error) {
	for n := 1; ; n++ {
		b, err := in.Peek(n)
		if err != nil {
			return false, err
		}
		if c := b[n-1]; !strings.ContainsRune(" \t\r\n", rune(c)) {
			return c == '[', nil
		}
	}
}
