package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

func newReplica() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replica",
		Short: "Pause and resume a learner's copy, and see how it is",
	}
	cmd.AddCommand(
		newReplicaOrder("pause", "Stop the syncing of the learner that is asked",
			`Stop the syncing of the learner that is asked. It goes on serving reads of what it
has, which grow older, also after a restart, and refuses at once what needs the
leader. resume starts the syncing again.`, (*client.Client).PauseReplica),
		newReplicaOrder("resume", "Start the syncing of a paused learner again",
			`Start the syncing of the learner that is asked again. It takes what it missed from
the log, or as a copy.`, (*client.Client).ResumeReplica),
		newReplicaStatus(),
	)
	group(cmd)
	return cmd
}

// newReplicaOrder is a command that gives the asked node an order.
func newReplicaOrder(use, short, long string, order func(*client.Client, context.Context) (command.ReplicaStatus, client.Meta, error)) *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			if len(conn.addresses) > 1 {
				return refuse("give the address of the learner with --http-addr", "it is not clear which of %d nodes is meant", len(conn.addresses))
			}
			s, meta, err := order(c, cmd.Context())
			if err != nil {
				return err
			}
			return conn.line(cmd, s, "the copy at %s is %s, at revision %d", meta.Address, s.Status, s.Applied)
		},
	}
	conn.add(cmd)
	return cmd
}

func newReplicaStatus() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the copy of the node that is asked is",
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			s, _, err := c.ReplicaStatus(cmd.Context())
			if err != nil {
				return err
			}
			if conn.json {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			return table(cmd.OutOrStdout(), slices.Concat(
				[][]string{{"Running", fmt.Sprint(s.Running)}}, partRows(s), copyRows(s), troubleRows(s)))
		},
	}
	conn.add(cmd)
	return cmd
}

func newReplicas() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "replicas",
		Short: "Show how the leader sees each learner",
		Long: `Show how the leader sees each learner: how far behind it is, when it was last
heard, what it was sent, and how much of the log that is kept for it is used up.
Any node may be asked.`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			all, _, err := c.Replicas(cmd.Context())
			if err != nil {
				return err
			}
			return conn.table(cmd, all, replicasRows(all))
		},
	}
	conn.add(cmd)
	return cmd
}

func replicasRows(all []command.Replica) [][]string {
	rows := [][]string{{"NODE", "SITE", "STATUS", "LAG", "AGE", "LAST SEEN", "LAST REQUEST", "ADDRESS", "ENTRIES", "SENT", "FULL", "DELTAS", "LOG USED"}}
	for _, r := range all {
		address := ""
		if r.RemoteAddress != "" {
			address = net.JoinHostPort(r.RemoteAddress, strconv.Itoa(r.RemotePort))
		}
		rows = append(rows, []string{
			r.Name, r.Site, r.Status, lagOf(r.Lag), orUnknown(r.Lag.Seconds), clock(r.LastSeenTimestamp), r.LastRequest, address,
			count(r.TransferredEntries), size(r.TransferredBytes), count(r.SnapshotsSent), count(r.DeltasSent), logUsed(r.Log),
		})
	}
	return rows
}

func lagOf(l command.Lag) string {
	if l.Entries == 0 {
		return "none"
	}
	return lacks(l)
}

// orUnknown is a number of seconds, unknown below 0.
func orUnknown(s float64) string {
	if s < 0 {
		return "unknown"
	}
	return span(seconds(s))
}

// clock is the time of day of a timestamp.
func clock(timestamp string) string {
	at, err := time.Parse(time.RFC3339Nano, timestamp)
	if err != nil {
		return "never"
	}
	return at.Local().Format(time.DateTime)
}

func logUsed(p command.LogPlace) string {
	if p.Distance < 0 {
		return "beyond it: needs a copy"
	}
	text := fmt.Sprintf("%.0f%%", p.Used*100)
	if p.Warning && p.ExpiresIn >= 0 {
		text += ", needs a copy in " + span(seconds(p.ExpiresIn))
	}
	return text
}
