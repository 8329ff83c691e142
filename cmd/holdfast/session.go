package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
)

func newSession() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "See and end the sessions that locks belong to",
	}
	cmd.AddCommand(newSessionList(), newSessionDestroy())
	group(cmd)
	return cmd
}

func newSessionList() *cobra.Command {
	var (
		conn  connectFlags
		reads readFlags
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List all sessions",
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := reads.options(cmd)
			if err != nil {
				return err
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			sessions, meta, err := c.Sessions(cmd.Context(), opts...)
			if err != nil {
				return err
			}
			reads.report(cmd.ErrOrStderr(), meta)
			return conn.table(cmd, sessions, sessionRows(sessions))
		},
	}
	conn.add(cmd)
	reads.add(cmd)
	return cmd
}

func sessionRows(sessions []client.Session) [][]string {
	rows := [][]string{{"ID", "NAME", "NODE", "TTL", "BEHAVIOR", "LOCK DELAY", "CREATED AT"}}
	for _, s := range sessions {
		ttl, delay := s.TTL, "0s"
		if ttl == "" {
			ttl = "none"
		}
		if s.LockDelay != nil {
			delay = s.LockDelay.String()
		}
		rows = append(rows, []string{s.ID, s.Name, s.Node, ttl, string(s.Behavior), delay, fmt.Sprint(s.CreateIndex)})
	}
	return rows
}

func newSessionDestroy() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "destroy ID",
		Short: "End a session",
		Long: `End a session: the keys it holds are released, or deleted if it was made so, and
cannot be locked for its lock-delay. It is no error if there is no such session.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return refuse("session list shows the IDs", "the ID is empty")
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			meta, err := c.DestroySession(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return reportWrite(cmd, conn, "ended "+args[0], args[0], true, meta)
		},
	}
	conn.add(cmd)
	return cmd
}
