package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
)

func newOperator() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "operator",
		Short: "Look after the cluster",
		Long:  "Look after the cluster: who leads, who belongs to it, and how its members do.",
	}
	cmd.AddCommand(newTransferLeader(), newPromoteSite(), newRemovePeer(), newListPeers(), newAutopilot())
	group(cmd)
	return cmd
}

func newTransferLeader() *cobra.Command {
	var conn connectFlags
	var to string
	cmd := &cobra.Command{
		Use:   "transfer-leader",
		Short: "Hand leadership to another voter",
		Long: `Hand leadership to another voter, the most complete one unless --id names one.
Requests wait meanwhile and do not fail.`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			if _, err := c.TransferLeader(cmd.Context(), to); err != nil {
				return err
			}
			peers, _, err := c.RaftConfiguration(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range peers {
				if p.Leader {
					return conn.line(cmd, p, "%s leads now", p.Node)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&to, "id", "", "ID or name of the voter that is to lead")
	conn.add(cmd)
	return cmd
}

func newRemovePeer() *cobra.Command {
	var conn connectFlags
	var id string
	cmd := &cobra.Command{
		Use:   "remove-peer",
		Short: "Take a member out of the cluster for good",
		Long: `Take a member out of the cluster for good. If it runs it learns of it and ends. It
cannot come back under its old identity; started with an empty data directory it
is a new member.`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id == "" {
				return refuse("list-peers shows the IDs", "--id is missing")
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			peers, _, err := c.RaftConfiguration(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range peers {
				if p.Node == id { // a name will do
					id = p.ID
				}
			}
			if _, err := c.RemovePeer(cmd.Context(), id); err != nil {
				return err
			}
			return conn.line(cmd, struct{ Removed string }{id}, "removed %s", id)
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "ID or name of the member")
	conn.add(cmd)
	return cmd
}

func newListPeers() *cobra.Command {
	var conn connectFlags
	var stale bool
	cmd := &cobra.Command{
		Use:   "list-peers",
		Short: "List the servers of the Raft configuration",
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			var opts []client.ReadOption
			if stale {
				opts = append(opts, client.Stale())
			}
			peers, _, err := c.RaftConfiguration(cmd.Context(), opts...)
			if err != nil {
				return err
			}
			return conn.table(cmd, peers, peerRows(peers))
		},
	}
	cmd.Flags().BoolVar(&stale, "stale", false, "as the node that is asked has it, which needs no leader")
	conn.add(cmd)
	return cmd
}

func peerRows(peers []client.RaftServer) [][]string {
	rows := [][]string{{"NODE", "ID", "NODE PORT", "STATE", "VOTER", "LAST INDEX"}}
	for _, p := range peers {
		state := "follower"
		if p.Leader {
			state = "leader"
		}
		rows = append(rows, []string{p.Node, p.ID, p.Address, state, fmt.Sprint(p.Voter), fmt.Sprint(p.LastIndex)})
	}
	return rows
}

func newAutopilot() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "autopilot",
		Short: "How the members do, who votes, and the setting that decides it",
	}
	cmd.AddCommand(newAutopilotHealth(), newAutopilotState(), newAutopilotGet(), newAutopilotSet())
	group(cmd)
	return cmd
}

// errUnhealthy makes the command end with status 1 after its answer.
var errUnhealthy = refuse("see which", "not all members are healthy")

func newAutopilotHealth() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Show how the leader sees the members; exit status 1 when not all are healthy",
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			h, _, err := c.Health(cmd.Context())
			if err != nil {
				return err
			}
			if err := conn.table(cmd, h, healthRows(h)); err != nil || h.Healthy {
				return err
			}
			return errUnhealthy
		},
	}
	conn.add(cmd)
	return cmd
}

func healthRows(h client.Health) [][]string {
	rows := [][]string{{"NODE", "ID", "NODE PORT", "HEALTHY", "SINCE", "VOTER", "LEADER", "LAST CONTACT", "LAST INDEX", "BECAUSE"}}
	for _, s := range h.Servers {
		rows = append(rows, []string{
			s.Name, s.ID, s.Address, fmt.Sprint(s.Healthy), s.StableSince.Local().Format(time.DateTime),
			fmt.Sprint(s.Voter), fmt.Sprint(s.Leader), s.LastContact, fmt.Sprint(s.LastIndex), s.UnhealthyBecause,
		})
	}
	return rows
}

func newAutopilotState() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "state",
		Short: "Show who votes, who is meant to, and how each does",
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			st, _, err := c.AutopilotState(cmd.Context())
			if err != nil {
				return err
			}
			return conn.table(cmd, st, stateRows(st))
		},
	}
	conn.add(cmd)
	return cmd
}

// stateRows lists the servers in the order of their names.
func stateRows(st client.AutopilotState) [][]string {
	servers := slices.SortedFunc(maps.Values(st.Servers), func(a, b client.ServerState) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	rows := [][]string{{"NODE", "ID", "TYPE", "STATUS", "HEALTHY", "SINCE", "LAST CONTACT", "BECAUSE"}}
	for _, s := range servers {
		rows = append(rows, []string{
			s.Name, s.ID, s.NodeType, s.Status, fmt.Sprint(s.Healthy), s.StableSince.Local().Format(time.DateTime), s.LastContact, s.UnhealthyBecause,
		})
	}
	return rows
}

func newAutopilotGet() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "get-config",
		Short: "Show the setting",
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			a, _, err := c.Autopilot(cmd.Context())
			if err != nil {
				return err
			}
			return writeAutopilot(cmd, &conn, a)
		},
	}
	conn.add(cmd)
	return cmd
}

func writeAutopilot(cmd *cobra.Command, conn *connectFlags, a client.Autopilot) error {
	return conn.table(cmd, a, [][]string{
		{"SETTING", "VALUE"},
		{"cleanup-dead-servers", fmt.Sprint(a.CleanupDeadServers)},
		{"dead-server-time", a.DeadServerTime.String()},
		{"last-contact-threshold", a.LastContactThreshold.String()},
		{"learner-cleanup-time", a.LearnerCleanupTime.String()},
		{"max-trailing-logs", fmt.Sprint(a.MaxTrailingLogs)},
		{"min-quorum", fmt.Sprint(a.MinQuorum)},
		{"server-stabilization-time", a.ServerStabilizationTime.String()},
		{"voter-cleanup-time", a.VoterCleanupTime.String()},
	})
}

func newAutopilotSet() *cobra.Command {
	var conn connectFlags
	var wish client.Autopilot
	cmd := &cobra.Command{
		Use:   "set-config",
		Short: "Change the setting; what is not given stays as it is",
		Args:  exactArgs(0, 0),
	}
	fs := cmd.Flags()
	// given takes over each part of the setting that is given.
	given := map[string]func(a *client.Autopilot){
		"cleanup-dead-servers":      func(a *client.Autopilot) { a.CleanupDeadServers = wish.CleanupDeadServers },
		"dead-server-time":          func(a *client.Autopilot) { a.DeadServerTime = wish.DeadServerTime },
		"last-contact-threshold":    func(a *client.Autopilot) { a.LastContactThreshold = wish.LastContactThreshold },
		"learner-cleanup-time":      func(a *client.Autopilot) { a.LearnerCleanupTime = wish.LearnerCleanupTime },
		"max-trailing-logs":         func(a *client.Autopilot) { a.MaxTrailingLogs = wish.MaxTrailingLogs },
		"min-quorum":                func(a *client.Autopilot) { a.MinQuorum = wish.MinQuorum },
		"server-stabilization-time": func(a *client.Autopilot) { a.ServerStabilizationTime = wish.ServerStabilizationTime },
		"voter-cleanup-time":        func(a *client.Autopilot) { a.VoterCleanupTime = wish.VoterCleanupTime },
	}
	duration := func(d *client.Duration, name, usage string) { fs.DurationVar((*time.Duration)(d), name, 0, usage) }
	fs.BoolVar(&wish.CleanupDeadServers, "cleanup-dead-servers", false, "remove members that have been dead for long; one that comes back enters by itself")
	duration(&wish.DeadServerTime, "dead-server-time", "how long after its last report a voter is dead and a spare takes its place")
	duration(&wish.LastContactThreshold, "last-contact-threshold", "how long a healthy member may be silent, beyond the half second between its reports")
	duration(&wish.LearnerCleanupTime, "learner-cleanup-time", "how long a learner has been dead when it is cleaned up")
	fs.Uint64Var(&wish.MaxTrailingLogs, "max-trailing-logs", 0, "how many entries of the log a healthy member may lack")
	fs.Uint64Var(&wish.MinQuorum, "min-quorum", 0, "clean up voters only while this many are left (0: three)")
	duration(&wish.ServerStabilizationTime, "server-stabilization-time", "how long a member must have been healthy before it becomes a voter")
	duration(&wish.VoterCleanupTime, "voter-cleanup-time", "how long a voter or spare has been dead when it is cleaned up")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := conn.open()
		if err != nil {
			return err
		}
		a, _, err := c.Autopilot(cmd.Context())
		if err != nil {
			return err
		}
		for name, take := range given {
			if fs.Changed(name) {
				take(&a)
			}
		}
		ok, _, err := c.SetAutopilot(cmd.Context(), a)
		if err != nil {
			return err
		}
		if !ok {
			return refuse("try again", "somebody else has changed the setting meanwhile")
		}
		return writeAutopilot(cmd, &conn, a)
	}
	conn.add(cmd)
	return cmd
}
