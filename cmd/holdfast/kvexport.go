package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
)

func newKVExport() *cobra.Command {
	var (
		conn   connectFlags
		reads  readFlags
		output string
		format string
	)
	cmd := &cobra.Command{
		Use:   "export [PREFIX]",
		Short: "Write many keys to a file",
		Long: `Write all keys that start with PREFIX, or all keys, to standard output or a file,
all as they are at one revision, or with --rev as they were at that one. The form is that of consul kv export, a JSON
array, or with --format ndjson one JSON object per line; kv import reads both.
The file of --output appears, or is replaced, only once it is complete.`,
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "json" && format != "ndjson" {
				return refuse("give json or ndjson", "--format %q is not known", format)
			}
			opts, err := reads.options(cmd)
			if err != nil {
				return err
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			toFile := output != "" && output != "-"
			if conn.json && !toFile {
				return refuse("drop --json, or name a file with --output", "--json prints a summary where the export goes")
			}
			p := newProgress(cmd.ErrOrStderr())
			if !toFile && isTerminal(cmd.OutOrStdout()) {
				p.w = nil // the records are progress enough
			}
			var (
				seen transfer
				meta client.Meta
			)
			write := func(w io.Writer) error {
				return writePairs(w, format == "ndjson", func(each func(client.Pair) error) error {
					meta, err = c.Export(cmd.Context(), strings.Join(args, ""), func(pair client.Pair) error {
						if err := each(pair); err != nil {
							return err
						}
						seen.records++
						seen.bytes += uint64(len(pair.Key) + len(pair.Value))
						p.show(seen)
						return nil
					}, opts...)
					return err
				})
			}
			if toFile {
				err = replaceFile(output, write)
			} else {
				err = buffered(cmd.OutOrStdout(), write)
			}
			p.clear()
			if err != nil {
				return err
			}
			reads.report(cmd.ErrOrStderr(), meta)
			if !toFile {
				return nil
			}
			report := importReport{Records: seen.records, Bytes: seen.bytes, Index: meta.Index, Seconds: p.elapsed().Seconds()}
			return conn.line(cmd, report, "exported %s (%s) at index %d to %s in %s",
				plural(seen.records, "record"), size(seen.bytes), meta.Index, output, span(p.elapsed()))
		},
	}
	conn.add(cmd)
	reads.add(cmd)
	reads.addRev(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write (default: standard output)")
	cmd.Flags().StringVar(&format, "format", "json", "json or ndjson")
	return cmd
}

// writePairs writes what records passes on, as one array or line by line. The
// array is closed only if records succeeds.
func writePairs(w io.Writer, lines bool, records func(each func(client.Pair) error) error) error {
	before, between, after := "[\n\t", ",\n\t", "\n]\n"
	if lines {
		before, between, after = "", "\n", "\n"
	}
	n := 0
	err := records(func(p client.Pair) error {
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		lead := between
		if n == 0 {
			lead = before
		}
		n++
		if _, err := io.WriteString(w, lead); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
	switch {
	case err != nil:
		return err
	case n == 0 && lines:
		return nil
	case n == 0:
		after = "[]\n"
	}
	_, err = io.WriteString(w, after)
	return err
}

// buffered runs write on a buffered w.
func buffered(w io.Writer, write func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 64<<10)
	err := write(b)
	if ferr := b.Flush(); err == nil {
		err = ferr
	}
	return err
}

// replaceFile writes a file beside path and gives it that name when it is
// complete and synced. If anything fails, path is as it was.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fileProblem(path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := buffered(f, write); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return fileProblem(path, err)
	}
	if err := f.Sync(); err != nil {
		return fileProblem(path, err)
	}
	if err := f.Close(); err != nil {
		return fileProblem(path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fileProblem(path, err)
	}
	return nil
}
