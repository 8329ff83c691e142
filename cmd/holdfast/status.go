package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// nodeReport is what status shows of one node.
type nodeReport struct {
	Address string
	Node    string
	ID      string
	Site    string
	// Leader is the node-port address of the leader it knows.
	Leader, LeaderName string
	Datacenter         string
	Ready              bool
	NotReadyBecause    string `json:",omitempty"`
	Version            string
	Replica            command.ReplicaStatus
}

func newStatus() *cobra.Command {
	var (
		conn  connectFlags
		ready bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how a node is",
		Long: `Show how the node that is asked is: its part in the cluster, how far its copy is,
and how old that may be. With --ready print nothing and tell by the exit status
whether it may serve: a voter that knows a leader, a learner with a whole copy.`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			if ready {
				return c.Ready(cmd.Context())
			}
			r, err := askNode(cmd.Context(), c, conn)
			if err != nil {
				return err
			}
			if conn.json {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return r.print(cmd.OutOrStdout())
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&ready, "ready", false, "only tell by the exit status whether the node may serve")
	return cmd
}

// askNode collects the report of the first node that answers.
func askNode(ctx context.Context, c *client.Client, conn connectFlags) (nodeReport, error) {
	replica, meta, err := c.ReplicaStatus(ctx)
	if err != nil {
		return nodeReport{}, err
	}
	// All further answers are to come from the same node.
	conn.addresses = []string{meta.Address}
	if c, err = conn.open(); err != nil {
		return nodeReport{}, err
	}
	r := nodeReport{Address: meta.Address, Replica: replica}
	self, _, err := c.Self(ctx)
	if err != nil {
		return r, err
	}
	r.Node, r.ID, r.Datacenter = self.Config.NodeName, self.Config.NodeID, self.Config.Datacenter
	r.Site, r.Version = self.Meta["holdfast-site"], self.Meta["holdfast-version"]
	r.LeaderName = self.Stats["holdfast"]["leader"]
	if r.Leader, _, err = c.Leader(ctx); err != nil {
		return r, err
	}
	var named *client.Error
	switch err := c.Ready(ctx); {
	case err == nil:
		r.Ready = true
	case errors.As(err, &named):
		r.NotReadyBecause = named.Message
	default:
		return r, err
	}
	return r, nil
}

func (r nodeReport) print(w io.Writer) error {
	leader := "none known"
	if r.Leader != "" {
		leader = fmt.Sprintf("%s (%s)", r.LeaderName, r.Leader)
		if r.LeaderName == "" {
			leader = r.Leader
		}
	}
	ready := "yes"
	if !r.Ready {
		ready = "no: " + r.NotReadyBecause
	}
	return table(w, slices.Concat(
		[][]string{{"Node", fmt.Sprintf("%s at %s (%s)", r.Node, r.Site, r.Address)}},
		partRows(r.Replica),
		[][]string{{"Ready", ready}, {"Leader", leader}, {"Datacenter", r.Datacenter}},
		copyRows(r.Replica),
		[][]string{{"Version", r.Version}},
		troubleRows(r.Replica),
	))
}

// partRows, copyRows and troubleRows say how a copy is: its part in the cluster, how
// far it is, and what is wrong with it.
func partRows(s command.ReplicaStatus) [][]string {
	return [][]string{{"Part", s.Mode}, {"Status", s.Status}}
}

func copyRows(s command.ReplicaStatus) [][]string {
	staleness := "unknown"
	switch {
	case s.Staleness >= 0:
		staleness = "at most " + (time.Duration(s.Staleness) * time.Millisecond).String()
	case s.FreshAsOf != "":
		staleness = "unknown, certified last at " + s.FreshAsOf
	}
	probe := "never"
	if at := s.SecondsSinceLastSuccess; at >= 0 {
		probe = fmt.Sprintf("%v ago", time.Duration(at)*time.Second)
		if n := s.FailedRequests; n > 0 {
			probe += fmt.Sprintf(", %d failed since", n)
		}
	}
	catchUp := "none"
	switch cu := s.LastCatchUp; cu.Kind {
	case "":
	case command.CatchUpLog:
		catchUp = fmt.Sprintf("by log: %s log entries, %s", count(cu.Records), span(seconds(cu.Seconds)))
	default:
		catchUp = fmt.Sprintf("by %s: %s, %s, %s", cu.Kind, plural(cu.Records, "record"), size(cu.Bytes), span(seconds(cu.Seconds)))
	}
	return [][]string{
		{"Revision", fmt.Sprintf("%d (Raft index %d)", s.Applied, s.AppliedIndex)},
		{"Lineage", s.Lineage},
		{"Staleness", staleness},
		{"Last probe", probe},
		{"Last catch-up", catchUp},
	}
}

func troubleRows(s command.ReplicaStatus) (rows [][]string) {
	if at := s.Diverged; at > 0 {
		rows = append(rows, []string{"Diverged", fmt.Sprintf("from revision %d on", at)})
	}
	for _, d := range s.Damaged {
		rows = append(rows, []string{"Damaged", fmt.Sprintf("%s from %s to %s, found at %s: %s", d.Table, d.From, d.To, d.Found.Local().Format(time.DateTime), d.Problem)})
	}
	return rows
}
