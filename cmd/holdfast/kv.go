package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

func newKV() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kv",
		Short: "Read and write keys",
	}
	cmd.AddCommand(newKVGet(), newKVPut(), newKVDelete(), newKVList(), newKVHistory(), newKVWatch(), newKVExport(), newKVImport())
	group(cmd)
	return cmd
}

// kvEntry is a record as the HTTP API shows it, the value in base64.
type kvEntry struct {
	Key         string
	Value       []byte
	Flags       uint64
	LockIndex   uint64
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func entryOf(r command.Record) kvEntry {
	return kvEntry{
		Key: r.Key, Value: r.Value, Flags: r.Flags, LockIndex: r.LockIndex, Session: r.Session,
		CreateIndex: r.CreateRevision, ModifyIndex: r.ModifyRevision,
	}
}

func entriesOf(records []command.Record) []kvEntry {
	entries := make([]kvEntry, len(records))
	for i, r := range records {
		entries[i] = entryOf(r)
	}
	return entries
}

func newKVGet() *cobra.Command {
	var (
		conn          connectFlags
		reads         readFlags
		raw           bool
		recurse, keys bool
		separator     string
	)
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key",
		Long: `Print the value of a key and a newline; with --raw exactly its bytes.
With --recurse print "key:value" for every key that starts with KEY, with --keys
only the keys.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if raw && (recurse || keys || conn.json) {
				return refuse("drop --raw, or the other", "--raw prints one value and does not go with --recurse, --keys or --json")
			}
			opts, err := reads.options(cmd)
			if err != nil {
				return err
			}
			if keys {
				return printKeys(cmd, conn, reads, args[0], separator, false, opts)
			}
			if recurse {
				return printRecords(cmd, conn, reads, args[0], opts, func(w io.Writer, records []command.Record) error {
					for _, r := range records {
						if _, err := fmt.Fprintf(w, "%s:%s\n", r.Key, r.Value); err != nil {
							return err
						}
					}
					return nil
				})
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			rec, meta, err := c.Get(cmd.Context(), args[0], opts...)
			if err != nil && !errors.Is(err, command.ErrKeyNotFound) {
				return err
			}
			reads.report(cmd.ErrOrStderr(), meta)
			switch w := cmd.OutOrStdout(); {
			case err != nil && reads.rev > 0:
				return refuse("holdfast kv history KEY shows when it did", "key %q did not exist at revision %d: %w", args[0], reads.rev, err)
			case err != nil:
				return refuse("holdfast kv list PREFIX shows what there is", "key %q does not exist: %w", args[0], err)
			case conn.json:
				return writeJSON(w, entryOf(rec))
			case raw:
				_, err = w.Write(rec.Value)
				return err
			default:
				_, err = fmt.Fprintf(w, "%s\n", rec.Value)
				return err
			}
		},
	}
	conn.add(cmd)
	reads.add(cmd)
	reads.addRev(cmd)
	cmd.Flags().BoolVar(&raw, "raw", false, "print exactly the bytes of the value")
	cmd.Flags().BoolVar(&recurse, "recurse", false, "print all keys that start with KEY, and their values")
	cmd.Flags().BoolVar(&keys, "keys", false, "print all keys that start with KEY")
	cmd.Flags().StringVar(&separator, "separator", "", "with --keys: cut keys after this behind the prefix, and print what is equal once")
	return cmd
}

func newKVList() *cobra.Command {
	var (
		conn      connectFlags
		reads     readFlags
		long      bool
		keys      bool
		count     bool
		separator string
	)
	cmd := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List keys",
		Long: `List the keys that start with PREFIX, one per line in ascending order; all keys
without it. With --long print a table with flags, sizes and revisions, too; with --count only
how many there are.`,
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if long && (keys || count || separator != "") {
				return refuse("drop one of them", "--long shows whole records and does not go with --keys, --count or --separator")
			}
			opts, err := reads.options(cmd)
			if err != nil {
				return err
			}
			prefix := strings.Join(args, "")
			if !long {
				return printKeys(cmd, conn, reads, prefix, separator, count, opts)
			}
			return printRecords(cmd, conn, reads, prefix, opts, func(w io.Writer, records []command.Record) error {
				rows := [][]string{{"KEY", "FLAGS", "SIZE", "CREATED", "MODIFIED", "SESSION"}}
				for _, r := range records {
					rows = append(rows, []string{
						r.Key, fmt.Sprint(r.Flags), size(uint64(len(r.Value))),
						fmt.Sprint(r.CreateRevision), fmt.Sprint(r.ModifyRevision), r.Session,
					})
				}
				return table(w, rows)
			})
		},
	}
	conn.add(cmd)
	reads.add(cmd)
	reads.addRev(cmd)
	cmd.Flags().BoolVarP(&long, "long", "l", false, "print a table; with --json the whole records")
	cmd.Flags().BoolVar(&keys, "keys", false, "print only keys, as without --long")
	cmd.Flags().BoolVar(&count, "count", false, "print only how many there are")
	cmd.Flags().StringVar(&separator, "separator", "", "cut keys after this behind the prefix, and print what is equal once")
	return cmd
}

func printKeys(cmd *cobra.Command, conn connectFlags, reads readFlags, prefix, separator string, count bool, opts []client.ReadOption) error {
	c, err := conn.open()
	if err != nil {
		return err
	}
	keys, meta, err := c.Keys(cmd.Context(), prefix, separator, opts...)
	if err != nil {
		return err
	}
	reads.report(cmd.ErrOrStderr(), meta)
	if count {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), len(keys))
		return err
	}
	if conn.json {
		if keys == nil {
			keys = []string{}
		}
		return writeJSON(cmd.OutOrStdout(), keys)
	}
	return buffered(cmd.OutOrStdout(), func(w io.Writer) error {
		for _, k := range keys {
			if _, err := fmt.Fprintln(w, k); err != nil {
				return err
			}
		}
		return nil
	})
}

func printRecords(cmd *cobra.Command, conn connectFlags, reads readFlags, prefix string, opts []client.ReadOption,
	print func(io.Writer, []command.Record) error,
) error {
	c, err := conn.open()
	if err != nil {
		return err
	}
	records, meta, err := c.List(cmd.Context(), prefix, opts...)
	if err != nil {
		return err
	}
	reads.report(cmd.ErrOrStderr(), meta)
	if conn.json {
		return writeJSON(cmd.OutOrStdout(), entriesOf(records))
	}
	return buffered(cmd.OutOrStdout(), func(w io.Writer) error { return print(w, records) })
}

// writeReport is what a write came to, for programs.
type writeReport struct {
	OK    bool
	Index uint64
}

var errCondition = errors.New("the key is at another revision")

func newKVPut() *cobra.Command {
	var (
		conn       connectFlags
		cas, flags uint64
	)
	cmd := &cobra.Command{
		Use:   "put KEY VALUE",
		Short: "Set a key",
		Long: `Set a key. VALUE is the value itself, @FILE for the contents of a file, or - for
standard input. It is on the disks of a majority of the voters when the command
returns.`,
		Args: exactArgs(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := valueOf(args[1], cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			opts := []client.WriteOption{client.Flags(flags)}
			if cmd.Flags().Changed("cas") {
				opts = append(opts, client.CAS(cas))
			}
			ok, meta, err := c.Put(cmd.Context(), args[0], value, opts...)
			if err != nil {
				return err
			}
			return reportWrite(cmd, conn, fmt.Sprintf("set %s", args[0]), args[0], ok, meta)
		},
	}
	conn.add(cmd)
	cmd.Flags().Uint64Var(&cas, "cas", 0, "set it only if its ModifyIndex is this; 0: only if it does not exist")
	cmd.Flags().Uint64Var(&flags, "flags", 0, "number to store beside the value")
	return cmd
}

func newKVDelete() *cobra.Command {
	var (
		conn    connectFlags
		recurse bool
		cas     uint64
	)
	cmd := &cobra.Command{
		Use:   "delete KEY",
		Short: "Delete a key, or all keys with a prefix",
		Long: `Delete a key. It is no error if there is none. With --recurse delete all keys
that start with KEY in one step; an empty KEY ("") is all of them.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conditional := cmd.Flags().Changed("cas")
			if recurse && conditional {
				return refuse("drop one of them", "--cas is about one key and does not go with --recurse")
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			if recurse {
				meta, err := c.DeleteTree(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return reportWrite(cmd, conn, fmt.Sprintf("deleted all keys under %q", args[0]), args[0], true, meta)
			}
			var opts []client.WriteOption
			if conditional {
				opts = append(opts, client.CAS(cas))
			}
			ok, meta, err := c.Delete(cmd.Context(), args[0], opts...)
			if err != nil {
				return err
			}
			return reportWrite(cmd, conn, fmt.Sprintf("deleted %s", args[0]), args[0], ok, meta)
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&recurse, "recurse", false, "delete all keys that start with KEY")
	cmd.Flags().Uint64Var(&cas, "cas", 0, "delete it only if its ModifyIndex is this")
	return cmd
}

// reportWrite prints what a write came to. A failed condition is a failure of
// the command, so that scripts notice.
func reportWrite(cmd *cobra.Command, conn connectFlags, what, key string, ok bool, meta client.Meta) error {
	w := cmd.OutOrStdout()
	if conn.json {
		if err := writeJSON(w, writeReport{OK: ok, Index: meta.Index}); err != nil {
			return err
		}
	}
	if !ok {
		return refuse("read it again for its ModifyIndex", "%s was left as it is at index %d, --cas does not hold: %w", key, meta.Index, errCondition)
	}
	if conn.json {
		return nil
	}
	_, err := fmt.Fprintf(w, "%s at index %d\n", what, meta.Index)
	return err
}

// valueOf is the value an argument stands for.
func valueOf(arg string, stdin io.Reader) ([]byte, error) {
	if arg == "-" {
		b, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read the value from standard input: %w", err)
		}
		return b, nil
	}
	if path, ok := strings.CutPrefix(arg, "@"); ok {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fileProblem(path, err)
		}
		return b, nil
	}
	return []byte(arg), nil
}

// fileProblem explains why a file of the user's cannot be used.
func fileProblem(path string, err error) error {
	if pe := new(os.PathError); errors.As(err, &pe) {
		err = pe.Err
	}
	return refuse("check the path and its permissions", "file %s cannot be used: %w", path, err)
}
