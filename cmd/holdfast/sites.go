package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/command"
)

func newSites() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "sites",
		Short: "Show the sites and their nodes",
		Long: `Show the sites and their nodes, as the node that is asked knows them. Every node
knows them, also one that is cut off.`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			sites, _, err := c.Sites(cmd.Context())
			if err != nil {
				return err
			}
			if conn.json {
				return writeJSON(cmd.OutOrStdout(), sites)
			}
			return table(cmd.OutOrStdout(), siteRows(sites))
		},
	}
	conn.add(cmd)
	return cmd
}

func siteRows(sites []command.Site) [][]string {
	rows := [][]string{{"SITE", "NODE", "ROLE", "STATE", "REVISION", "LINEAGE", "LAG", "LAST CONTACT", "HTTP", "NODE PORT", "VERSION"}}
	for _, site := range sites {
		name := site.Name
		if site.Home {
			name += " (home)"
		}
		for _, s := range site.Servers {
			rows = append(rows, []string{
				name, s.Name, string(s.Role), s.State, fmt.Sprint(s.Applied), short(s.Lineage), lag(s.Lag), s.LastContact, s.HTTP, s.Address, s.Version,
			})
		}
	}
	return rows
}

// short is the beginning of a lineage: enough to see that two differ.
func short(lineage string) string { return lineage[:min(12, len(lineage))] }

// lag says how far a copy is behind.
func lag(l command.Lag) string {
	if l.Entries == 0 && l.Bytes == 0 {
		return "none"
	}
	entries := "1 entry"
	if l.Entries != 1 {
		entries = count(l.Entries) + " entries"
	}
	s := fmt.Sprintf("%s, %s, %s", entries, size(l.Bytes), span(seconds(l.Seconds)))
	if l.ETA > 0 {
		s += ", level in " + span(seconds(l.ETA))
	}
	return s
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
