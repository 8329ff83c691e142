package main

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// kvChange is one change of a key as the HTTP API shows it.
type kvChange struct {
	Index uint64
	Op    client.Op
	KV    kvEntry
	Time  time.Time `json:",omitzero"`
}

func changeOf(ch client.Change) kvChange {
	return kvChange{Index: ch.Index, Op: ch.Op, KV: entryOf(ch.Record), Time: ch.Time}
}

// shownValue is how many characters of a value a table shows.
const shownValue = 40

func newKVHistory() *cobra.Command {
	var (
		conn  connectFlags
		reads readFlags
		span  client.Span
	)
	cmd := &cobra.Command{
		Use:   "history KEY",
		Short: "List the changes of a key",
		Long: `List the changes of a key, the newest first, as far back as history is kept. Times
are those of the leader's clock; with --json values are whole. To see the rest of the
store as it was at one of the changes, give its index to --rev of kv get or kv list.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if span.Limit < 1 {
				return refuse("give 1 or more", "--limit %d shows nothing", span.Limit)
			}
			opts, err := reads.options(cmd)
			if err != nil {
				return err
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			changes, meta, err := c.History(cmd.Context(), args[0], span, opts...)
			if err != nil && !errors.Is(err, command.ErrKeyNotFound) {
				return err
			}
			reads.report(cmd.ErrOrStderr(), meta)
			if err != nil {
				return refuse("holdfast kv list PREFIX shows what there is", "key %q does not exist, and no change of it is kept: %w", args[0], err)
			}
			if conn.json {
				list := make([]kvChange, len(changes))
				for i, ch := range changes {
					list[i] = changeOf(ch)
				}
				return writeJSON(cmd.OutOrStdout(), list)
			}
			rows := [][]string{{"INDEX", "TIME", "CHANGE", "FLAGS", "SIZE", "VALUE"}}
			for _, ch := range changes {
				rows = append(rows, historyRow(ch))
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
	conn.add(cmd)
	reads.add(cmd)
	cmd.Flags().Uint64Var(&span.From, "from", 0, "list only changes from this index on")
	cmd.Flags().Uint64Var(&span.To, "to", 0, "list only changes up to this index")
	cmd.Flags().IntVar(&span.Limit, "limit", 100, "list no more than this many")
	return cmd
}

func historyRow(ch client.Change) []string {
	row := []string{fmt.Sprint(ch.Index), "", string(ch.Op), "", "", ""}
	if !ch.Time.IsZero() {
		row[1] = ch.Time.Local().Format(time.DateTime)
	}
	if ch.Op != client.OpDelete {
		row[3] = fmt.Sprint(ch.Record.Flags)
		row[4] = size(uint64(len(ch.Record.Value)))
		row[5] = excerpt(ch.Record.Value)
	}
	return row
}

// excerpt is the beginning of a value, for a table.
func excerpt(value []byte) string {
	if !utf8.Valid(value) {
		return "(binary)"
	}
	if runes := []rune(string(value[:min(len(value), shownValue*utf8.UTFMax)])); len(runes) > shownValue {
		return string(runes[:shownValue-1]) + "…"
	}
	return string(value)
}
