package main

import (
	"fmt"
	"strings"
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
			return conn.table(cmd, sites, siteRows(sites))
		},
	}
	conn.add(cmd)
	return cmd
}

func siteRows(sites []command.Site) [][]string {
	rows := [][]string{{"SITE", "NODE", "ROLE", "STATE", "DISK", "REVISION", "LINEAGE", "LAG", "LAST CONTACT", "HTTP", "NODE PORT", "VERSION"}}
	for _, site := range sites {
		name := site.Name
		if site.Home {
			name += " (home)"
		}
		for _, s := range site.Servers {
			rows = append(rows, []string{
				name, s.Name, string(s.Role), s.State, diskState(s), revision(s), short(s.Lineage), lag(s), s.LastContact, s.HTTP, s.Address, s.Version,
			})
		}
	}
	return rows
}

// diskState is how a server's disk does, as far as it told.
func diskState(s command.Server) string {
	if s.Disk == "" {
		return "unknown"
	}
	return string(s.Disk)
}

// short is the beginning of a lineage: enough to see that two differ.
func short(lineage string) string { return lineage[:min(12, len(lineage))] }

// revision is what a server has applied, as far as anybody told.
func revision(s command.Server) string {
	if s.LastContact == "never" {
		return "unknown"
	}
	return fmt.Sprint(s.Applied)
}

// lag says how far a copy is behind.
func lag(s command.Server) string {
	l := s.Lag
	if s.LastContact == "never" {
		return "unknown"
	}
	if l.Entries == 0 && l.Bytes == 0 {
		return "none"
	}
	return lacks(l, span(seconds(l.Seconds)))
}

// lacks says what a copy that is behind lacks, what else there is to say of it, and when it
// is expected to be level.
func lacks(l command.Lag, more ...string) string {
	parts := append([]string{plural(l.Entries, "entry"), size(l.Bytes)}, more...)
	if l.ETA > 0 {
		parts = append(parts, "level in "+span(seconds(l.ETA)))
	}
	return strings.Join(parts, ", ")
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
