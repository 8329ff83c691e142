package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
)

// connectFlags say which cluster a command talks to and how it prints.
type connectFlags struct {
	addresses []string
	token     string
	json      bool
}

func (f *connectFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringSliceVar(&f.addresses, "http-addr", []string{client.DefaultAddress}, "addresses of nodes, separated by commas; the next is asked when one does not answer")
	fs.StringVar(&f.token, "token", "", "token to send with each request")
	fs.BoolVar(&f.json, "json", false, "print JSON")
}

// open returns a client for the nodes given.
func (f *connectFlags) open() (*client.Client, error) {
	c, err := client.New(client.Config{Addresses: f.addresses, Token: f.token})
	if err != nil {
		return nil, refuse("check --http-addr and HOLDFAST_HTTP_ADDR", "%w", err)
	}
	return c, nil
}

// table prints an answer as it was asked for: v for programs, or rows for people.
func (f *connectFlags) table(cmd *cobra.Command, v any, rows [][]string) error {
	if f.json {
		return writeJSON(cmd.OutOrStdout(), v)
	}
	return table(cmd.OutOrStdout(), rows)
}

// line is table for an answer that people need only a line of.
func (f *connectFlags) line(cmd *cobra.Command, v any, format string, args ...any) error {
	if f.json {
		return writeJSON(cmd.OutOrStdout(), v)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
	return err
}

// readFlags say how a read is to be answered.
type readFlags struct {
	stale, consistent bool
	maxStale          time.Duration
	minIndex          uint64
	rev               uint64
	wait              time.Duration
	verbose           bool
}

func (f *readFlags) add(cmd *cobra.Command) {
	f.addMode(cmd)
	fs := cmd.Flags()
	fs.Uint64Var(&f.minIndex, "min-index", 0, "read a state that contains this revision")
	fs.DurationVar(&f.wait, "wait", 0, "how long the node waits for --min-index or --rev (default 5s)")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "say on standard error which node answered and how old the answer may be")
}

// addMode is for commands that have no one answer.
func (f *readFlags) addMode(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.stale, "stale", false, "read the copy of the node that is asked, whatever its age")
	fs.BoolVar(&f.consistent, "consistent", false, "confirm with the leader first, at every node")
	fs.DurationVar(&f.maxStale, "max-stale", 0, "read a copy at most this old")
}

// addRev is for commands that can also read the past.
func (f *readFlags) addRev(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&f.rev, "rev", 0, "read the state exactly as it was at this revision")
}

func (f *readFlags) options(cmd *cobra.Command) ([]client.ReadOption, error) {
	bounded := cmd.Flags().Changed("max-stale")
	switch {
	case f.consistent && (f.stale || bounded):
		return nil, refuse("drop one of them", "--consistent contradicts --stale and --max-stale")
	case bounded && f.maxStale <= 0:
		return nil, refuse("give a duration such as 5s", "--max-stale %v is not a bound", f.maxStale)
	case f.wait < 0:
		return nil, refuse("give a duration such as 5s", "--wait %v is negative", f.wait)
	case f.rev == 0 && cmd.Flags().Changed("rev"):
		return nil, refuse("give 1 or more, or leave --rev out for the newest state", "--rev 0 is not a revision")
	}
	var opts []client.ReadOption
	switch {
	case f.consistent:
		opts = append(opts, client.Consistent())
	case bounded:
		opts = append(opts, client.MaxStale(f.maxStale))
	case f.stale:
		opts = append(opts, client.Stale())
	}
	if f.minIndex > 0 {
		opts = append(opts, client.MinIndex(f.minIndex, f.wait))
	}
	if f.rev > 0 {
		opts = append(opts, client.AtRevision(f.rev, f.wait))
	}
	return opts, nil
}

// report prints the worth of an answer when it is asked for.
func (f *readFlags) report(w io.Writer, m client.Meta) {
	if f.verbose {
		_, _ = fmt.Fprintf(w, "index %d, answered by %s at %s (%s) which has applied %d, %s\n", m.Index, m.Node, m.Site, m.Address, m.Applied, age(m))
	}
}

// age says how old an answer may be.
func age(m client.Meta) string {
	switch {
	case m.StalenessKnown:
		return fmt.Sprintf("at most %v old", m.Staleness)
	case m.FreshAsOf.IsZero():
		return "of unknown age"
	default:
		return "certified last at " + m.FreshAsOf.Local().Format(time.DateTime)
	}
}
