package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

func newPromoteSite() *cobra.Command {
	var (
		conn    connectFlags
		confirm string
		force   bool
		wait    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "promote-site SITE",
		Short: "Make another site the home, when the home site is lost for good",
		Long: `Make another site the home, when the home site is lost for good. The data of the
learner that goes furthest, wherever it is, becomes the beginning of a new home at
SITE, in a new epoch of the cluster.

First it shows the plan: who can be reached, whose data it is, and what may be lost.
Nothing happens before the text that the plan names is given, on a terminal or with
--confirm. It names what the plan would do, so it fits no other one.

An old home that still runs goes on, as long as no node of it reaches a node of the
new one. From then on it takes no writes; what it wrote meanwhile is set aside by
holdfast rejoin, which brings its nodes back.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			defer c.Close()
			var plan command.PromotionPlan
			if confirm == "" {
				if plan, _, err = c.PromoteSite(cmd.Context(), args[0], "", force); err != nil {
					return err
				}
				if conn.json {
					return writeJSON(cmd.OutOrStdout(), plan)
				}
				if err := printPlan(cmd.OutOrStdout(), &plan); err != nil {
					return err
				}
				if confirm, err = askConfirmation(cmd, &plan); err != nil || confirm == "" {
					return err
				}
			}
			if plan, _, err = c.PromoteSite(cmd.Context(), args[0], confirm, force); err != nil {
				return err
			}
			if wait > 0 {
				if err := awaitHome(cmd.Context(), c, plan.Site, wait); err != nil {
					return err
				}
			}
			return conn.line(cmd, plan, "%s", promoted(&plan, wait > 0))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&confirm, "confirm", "", "the text that confirms the plan")
	fs.BoolVar(&force, "force", false, "go on though some voters of the home site are reached, as long as they are no majority")
	fs.DurationVar(&wait, "wait", time.Minute, "how long to wait until the site is home; 0 does not wait")
	conn.add(cmd)
	return cmd
}

func promoted(p *command.PromotionPlan, done bool) string {
	if done {
		return fmt.Sprintf("site %s is home now, in epoch %d; start its other nodes with --role voter --home to make them voters", p.Site, p.Epoch)
	}
	return fmt.Sprintf("%s is becoming the seed of the new home; holdfast sites shows when site %s is home", p.Seed, p.Site)
}

// printPlan shows a plan to whoever is to confirm it.
func printPlan(w io.Writer, p *command.PromotionPlan) error {
	rows := [][]string{{"SITE", "NODE", "ANSWERS", "LAST ENTRY", "REVISION", "KNOWN FRESH AT", "CUT OFF FOR", "NOTE"}}
	for _, s := range p.Members {
		row := []string{s.Site, s.Name, "no", "", "", "", "", ""}
		if s.Reachable {
			row = []string{s.Site, s.Name, "yes", fmt.Sprintf("%d of term %d", s.LastIndex, s.LastTerm), fmt.Sprint(s.Revision), moment(s.Certified), s.CutOff, s.Unfit}
		}
		if s.Name == p.Seed {
			row[7] = "the seed"
		}
		if s.Name == p.Source {
			row[7] = strings.TrimPrefix(row[7]+", its data goes furthest", ", ")
		}
		rows = append(rows, row)
	}
	if err := table(w, rows); err != nil {
		return err
	}
	text := fmt.Sprintf(`
Site %s becomes home in place of site %s, and epoch %d begins. %s becomes the only
voter and goes on with what %s holds: revision %d and what is in its log behind that.

May be lost: every write that was acknowledged at %s after %s.
`, p.Site, p.HomeSite, p.Epoch, p.Seed, p.Source, p.Revision, p.HomeSite, moment(p.Certified))
	if len(p.HomeReached) > 0 {
		text += fmt.Sprintf("Voters of the old home that can be reached, and are overridden: %s.\n", strings.Join(p.HomeReached, ", "))
	}
	text += fmt.Sprintf(`If the old home still runs somewhere it goes on until its first contact with the new
one. What it writes until then is not lost, but set aside: see holdfast rejoin.

To do it, confirm with the text %s
`, p.Confirm)
	_, err := io.WriteString(w, text)
	return err
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}

// askConfirmation asks a person for the text; empty without one.
func askConfirmation(cmd *cobra.Command, p *command.PromotionPlan) (string, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", nil
	}
	if _, err := fmt.Fprint(cmd.OutOrStdout(), "confirm: "); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(in).ReadString('\n')
	if line = strings.TrimSpace(line); err == nil && line != p.Confirm {
		return "", refuse("give the text that the plan names", "not confirmed; nothing was done")
	}
	return line, err
}

// awaitHome waits until the site is home and has a leader.
func awaitHome(ctx context.Context, c *client.Client, site string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		sites, _, err := c.Sites(ctx)
		for _, s := range sites {
			if err == nil && s.Name == site && s.Home && s.Leader {
				return nil
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return refuse("look at holdfast sites, and at the log of the seed, which goes on with it", "site %s is not home after %v", site, wait)
		}
	}
}
