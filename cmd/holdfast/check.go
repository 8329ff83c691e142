package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/store"
)

// checkReport is what check found, for programs.
type checkReport struct {
	OK bool
	store.CheckStats
	// Found are the first of the problems and notes.
	Found []store.Problem
}

const (
	// checkShown bounds how many findings of a check are kept and shown.
	checkShown = 1000
	// checkQuiet is how long a check may take before it shows that it goes on.
	checkQuiet = 2 * time.Second
	// uncheckable is the exit status of a check that could not be made.
	uncheckable = 2
)

func newCheck() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check DATA_DIR",
		Short: "Check the data directory of a stopped node",
		Long: `Read everything in the data directory of a node that does not run, verify each
checksum and whether the parts fit together, and list what is wrong. Nothing is
changed. Notes are no damage: the next start copes with them. Exit status: 0 all is
well, 1 something is damaged, 2 it could not be checked.`,
		Args: func(cmd *cobra.Command, args []string) error {
			return withStatus(uncheckable, exactArgs(1, 1)(cmd, args))
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := check(cmd.Context(), args[0], cmd.ErrOrStderr())
			if err != nil {
				return withStatus(uncheckable, err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = r.print(cmd.OutOrStdout())
			}
			if err != nil {
				return withStatus(uncheckable, err)
			}
			if !r.OK {
				return refuse("do what is listed for it", "data directory %s has %s", args[0], plural(r.Problems, "problem"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withStatus(uncheckable, explainFlag(cmd, err))
	})
	return cmd
}

// check checks a directory until ctx ends. A check that is left behind has nothing
// to clean up.
func check(ctx context.Context, dir string, errs io.Writer) (checkReport, error) {
	var (
		r    = checkReport{Found: []store.Problem{}}
		err  error
		done = make(chan struct{})
	)
	go func() {
		defer close(done)
		r.CheckStats, err = store.Check(dir, func(p store.Problem) {
			if len(r.Found) < checkShown {
				r.Found = append(r.Found, p)
			}
		})
		r.OK = r.Problems == 0
	}()
	begin := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	shown := false
	defer func() {
		if shown {
			_, _ = fmt.Fprint(errs, "\r\x1b[K")
		}
	}()
	for {
		select {
		case <-done:
			return r, err
		case <-ctx.Done():
			return checkReport{}, ctx.Err()
		case <-tick.C:
			if took := time.Since(begin); took > checkQuiet && isTerminal(errs) {
				shown = true
				_, _ = fmt.Fprintf(errs, "\rchecking %s for %s\x1b[K", printable(dir), span(took))
			}
		}
	}
}

func (r checkReport) print(w io.Writer) error {
	log := "empty"
	if r.LogLast > 0 {
		log = fmt.Sprintf("%s, entries %d to %d", r.LogStore, r.LogFirst, r.LogLast)
	}
	result := "all is well"
	if !r.OK {
		result = plural(r.Problems, "problem")
	}
	if r.Notes > 0 {
		result += ", " + plural(r.Notes, "note")
	}
	if err := table(w, [][]string{
		{"Node", r.ID},
		{"Log", log},
		{"Revision", fmt.Sprintf("%d (Raft index %d), history from %d", r.Revision, r.RaftIndex, r.Oldest)},
		{"Keys", fmt.Sprintf("%s (%s)", count(r.Keys), size(r.DataBytes))},
		{"Records", count(r.Records)},
		{"Result", result},
	}); err != nil || len(r.Found) == 0 {
		return err
	}
	rows := [][]string{{"FINDING", "FILE", "TABLE", "AT", "WHAT"}}
	var hints []string
	for _, p := range r.Found {
		kind := "problem"
		if p.Note {
			kind = "note"
		}
		rows = append(rows, []string{kind, p.File, p.Table, p.At, p.What})
		if hint := p.File + ": " + p.Hint; p.Hint != "" && (len(hints) == 0 || hints[len(hints)-1] != hint) {
			hints = append(hints, hint)
		}
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if more := r.Problems + r.Notes - uint64(len(r.Found)); more > 0 {
		hints = append([]string{fmt.Sprintf("and %s more", count(more))}, hints...)
	}
	for _, h := range hints {
		if _, err := fmt.Fprintln(w, printable(h)); err != nil {
			return err
		}
	}
	return nil
}
