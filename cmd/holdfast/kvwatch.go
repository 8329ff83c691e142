package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
)

// kvEvent is one line of kv watch --json.
type kvEvent struct {
	ID string
	kvChange
	Prev *kvEntry `json:",omitempty"`
}

func newKVWatch() *cobra.Command {
	var (
		conn  connectFlags
		reads readFlags
		start client.Start
	)
	cmd := &cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Print changes as they happen",
		Long: `Print each change of a key that starts with PREFIX, or of any key, as it happens,
until it is interrupted: one line per change, with --json one JSON object per line with whole
values. When a node goes away it goes on at the next of --http-addr; no change is left out and
none comes twice. A line's ID, given to --after, resumes behind it.`,
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if start.Init && start.From > 0 {
				return refuse("drop one of them", "--init begins with what there is now and does not go with --from")
			}
			opts, err := reads.options(cmd)
			if err != nil {
				return err
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			print := printEvent
			if conn.json {
				print = printEventJSON
			}
			err = c.Watch(cmd.Context(), strings.Join(args, ""), start, func(e client.Event) error {
				return print(cmd.OutOrStdout(), e)
			}, opts...)
			if cmd.Context().Err() != nil {
				return nil // interrupted, as it was to be
			}
			return err
		},
	}
	conn.add(cmd)
	reads.addMode(cmd)
	cmd.Flags().Uint64Var(&start.From, "from", 0, "begin with the changes of this index (default: what comes from now on)")
	cmd.Flags().BoolVar(&start.Init, "init", false, "begin with all keys there are, then a line that says sync")
	cmd.Flags().StringVar(&start.After, "after", "", "go on behind the line with this ID")
	return cmd
}

// printEvent prints an event for people.
func printEvent(w io.Writer, e client.Event) error {
	at := "-"
	if !e.Time.IsZero() {
		at = e.Time.Local().Format(time.DateTime)
	}
	line := fmt.Sprintf("%d  %s  %-6s", e.Index, at, e.Op)
	switch e.Op {
	case client.OpSync:
	case client.OpDelete:
		line += "  " + e.Record.Key
	default:
		line += "  " + e.Record.Key + " = " + excerpt(e.Record.Value)
	}
	_, err := fmt.Fprintln(w, strings.TrimRight(printable(line), " "))
	return err
}

// printEventJSON prints an event for programs.
func printEventJSON(w io.Writer, e client.Event) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if e.Op == client.OpSync {
		return enc.Encode(map[string]any{"ID": e.ID, "Index": e.Index, "Op": e.Op})
	}
	line := kvEvent{ID: e.ID, kvChange: changeOf(e.Change)}
	if e.Prev != nil {
		before := entryOf(*e.Prev)
		line.Prev = &before
	}
	return enc.Encode(line)
}
