package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/command"
)

const (
	defaultDevDir   = "holdfast-dev"
	defaultHTTPPort = 8500
	defaultRaftPort = 8300
)

// devNode is one of the five nodes of a dev cluster.
type devNode struct {
	Name, Site string
	Role       command.Role
	HTTP, Raft string
}

const devHome = "home"

// devLayout is the cluster that dev runs.
func devLayout(httpPort, raftPort int) []devNode {
	nodes := []devNode{
		{Name: "n1", Site: devHome, Role: command.RoleVoter},
		{Name: "n2", Site: devHome, Role: command.RoleVoter},
		{Name: "n3", Site: devHome, Role: command.RoleVoter},
		{Name: "e1", Site: "east", Role: command.RoleLearner},
		{Name: "w1", Site: "west", Role: command.RoleLearner},
	}
	for i := range nodes {
		nodes[i].HTTP = net.JoinHostPort("127.0.0.1", strconv.Itoa(httpPort+i))
		nodes[i].Raft = net.JoinHostPort("127.0.0.1", strconv.Itoa(raftPort+i))
	}
	return nodes
}

// devConfig is a checked description of a dev cluster.
type devConfig struct {
	Dir                string // absolute
	HTTPPort, RaftPort int    // of the first node; the others follow
	LogStore, LogLevel string
}

func newDev() *cobra.Command {
	var (
		cfg devConfig
		dir string
	)
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a cluster of three sites on this machine",
		Long: `Run a cluster of three sites on this machine until Ctrl-C: the voters n1, n2 and
n3 in the site home, the learner e1 in east and w1 in west, each a process of its
own. Print where they are, then what happens.

Break it and mend it from another terminal with dev cut, heal, kill and start.
The data of every node is in --dir, ./holdfast-dev by default, and is used again by
the next run; the logs beside it begin anew. A node that ends is reported and
stays down until dev start.`,
		Example: `  holdfast dev
  holdfast dev cut east      from another terminal: the link to the site is cut
  holdfast dev kill n1       kill -9
  holdfast dev start n1
  holdfast dev heal east`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Dir, err = devDir(dir); err != nil {
				return err
			}
			return runDev(cmd, cfg)
		},
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", defaultDevDir, "directory of the cluster")
	fs := cmd.Flags()
	fs.IntVar(&cfg.HTTPPort, "http-port", defaultHTTPPort, "first of five ports for clients")
	fs.IntVar(&cfg.RaftPort, "raft-port", defaultRaftPort, "first of five ports for traffic between nodes")
	fs.StringVar(&cfg.LogStore, "log-store", "wal", "how the nodes keep the Raft log: wal or boltdb")
	fs.StringVar(&cfg.LogLevel, "log-level", "info", "of the nodes' logs: trace, debug, info, warn or error")
	cmd.AddCommand(
		devOrder(&dir, "cut", "SITE", "Cut a site off from the others", "All traffic between the site's nodes and the others stops, silently."),
		devOrder(&dir, "heal", "SITE", "Let a site be reached again", "Undo dev cut."),
		devOrder(&dir, "kill", "NODE", "Kill a node (SIGKILL)", "The node's process ends at once, without any chance to tidy up."),
		devOrder(&dir, "start", "NODE", "Start a node that has ended", "The node starts with the data it had."),
		newDevStatus(&dir),
	)
	run := cmd.RunE
	group(cmd)
	cmd.RunE = run
	return cmd
}

// devOrder is a command that has the running supervisor do something.
func devOrder(dir *string, do, what, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:   do + " " + what,
		Short: short,
		Long:  long,
		Args:  exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			reply, err := tellSupervisor(*dir, devRequest{Do: do, What: args[0]})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), reply.Text)
			return err
		},
	}
}

func newDevStatus(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the nodes and their processes",
		Args:  exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := tellSupervisor(*dir, devRequest{Do: "status"})
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), reply.Nodes)
			}
			return table(cmd.OutOrStdout(), devRows(reply.Nodes))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func devRows(nodes []devNodeState) [][]string {
	rows := [][]string{{"NODE", "SITE", "ROLE", "STATE", "URL", "NODE PORT", "PID"}}
	for _, n := range nodes {
		pid := ""
		if n.PID > 0 {
			pid = strconv.Itoa(n.PID)
		}
		rows = append(rows, []string{n.Name, n.Site, string(n.Role), n.State, n.URL, n.Raft, pid})
	}
	return rows
}

// maxSocketPath is what all systems accept as the path of a unix socket, less
// the longest name we put in the directory.
const maxSocketPath = 103 - len("/control.sock")

func devDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", refuse("give an absolute path", "--dir %s cannot be resolved: %w", dir, err)
	}
	if len(abs) > maxSocketPath {
		return "", refuse(fmt.Sprintf("choose a --dir of at most %d bytes", maxSocketPath), "the path %s is too long for the sockets in it", abs)
	}
	return abs, nil
}

func runDev(cmd *cobra.Command, cfg devConfig) error {
	lock, err := claimDev(&cfg, cmd.Flags().Changed)
	if err != nil {
		return err
	}
	defer lock.release()
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	return newSupervisor(cmd.Context(), cfg, binary, cmd.OutOrStdout()).run()
}

// devFile marks a directory as a dev cluster's, remembers its ports, which the
// data in it refers to, and is locked while a supervisor runs.
const devFile = "dev.json"

type devRecord struct {
	HTTPPort int `json:"http_port"`
	RaftPort int `json:"raft_port"`
}

// devLock is a claim on a directory, until release or the process's end.
type devLock struct{ f *os.File }

func (l devLock) release() { _ = l.f.Close() }

// claimDev makes sure that the cluster can run and takes its directory.
// Nothing is changed on disk if it cannot. Ports that were not asked for come
// from the cluster's last run.
func claimDev(cfg *devConfig, asked func(flag string) bool) (devLock, error) {
	path := filepath.Join(cfg.Dir, devFile)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case err == nil:
		if err := lockFile(f, cfg.Dir); err != nil {
			_ = f.Close()
			return devLock{}, err
		}
	case !errors.Is(err, os.ErrNotExist):
		return devLock{}, fileProblem(path, err)
	default:
		if entries, err := os.ReadDir(cfg.Dir); err == nil && len(entries) > 0 {
			return devLock{}, refuse("choose an empty --dir", "%s holds other things than a dev cluster", cfg.Dir)
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			return devLock{}, fileProblem(cfg.Dir, err)
		}
	}
	ok := false
	defer func() {
		if !ok && f != nil {
			_ = f.Close()
		}
	}()
	if f != nil {
		if err := cfg.takeOver(f, asked); err != nil {
			return devLock{}, err
		}
	}
	if err := cfg.checkPorts(); err != nil {
		return devLock{}, err
	}
	if f == nil {
		if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
			return devLock{}, fileProblem(cfg.Dir, err)
		}
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
			return devLock{}, fileProblem(path, err)
		}
		if err := lockFile(f, cfg.Dir); err != nil {
			return devLock{}, err
		}
	}
	b, err := json.Marshal(devRecord{HTTPPort: cfg.HTTPPort, RaftPort: cfg.RaftPort})
	if err != nil {
		return devLock{}, err
	}
	if err := f.Truncate(0); err != nil {
		return devLock{}, fileProblem(path, err)
	}
	if _, err := f.WriteAt(append(b, '\n'), 0); err != nil {
		return devLock{}, fileProblem(path, err)
	}
	ok = true
	return devLock{f}, nil
}

// takeOver takes the ports of the cluster's last run.
func (c *devConfig) takeOver(f *os.File, asked func(string) bool) error {
	var last devRecord
	b, err := io.ReadAll(f)
	if err != nil {
		return fileProblem(f.Name(), err)
	}
	if len(b) == 0 { // a first run that was cut short
		return nil
	}
	if err := json.Unmarshal(b, &last); err != nil {
		return refuse("remove the directory, or choose another --dir", "%s is damaged: %w", f.Name(), err)
	}
	if !asked("http-port") {
		c.HTTPPort = last.HTTPPort
	}
	if !asked("raft-port") {
		c.RaftPort = last.RaftPort
	}
	if c.RaftPort != last.RaftPort {
		return refuse(fmt.Sprintf("use --raft-port %d, or another --dir", last.RaftPort),
			"the nodes in %s know each other by ports from %d on", c.Dir, last.RaftPort)
	}
	return nil
}

// checkPorts refuses ports that are out of range or in use.
func (c *devConfig) checkPorts() error {
	nodes := devLayout(c.HTTPPort, c.RaftPort)
	last := len(nodes) - 1
	for _, first := range []struct {
		flag string
		port int
	}{{"--http-port", c.HTTPPort}, {"--raft-port", c.RaftPort}} {
		if first.port < 1 || first.port+last > 65535 {
			return refuse(fmt.Sprintf("give 1 to %d", 65535-last), "%s %d leaves no room for %d ports", first.flag, first.port, len(nodes))
		}
	}
	if d := c.HTTPPort - c.RaftPort; d <= last && d >= -last {
		return refuse("keep them five apart", "the five ports from --http-port %d and from --raft-port %d overlap", c.HTTPPort, c.RaftPort)
	}
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for _, n := range nodes {
		for _, a := range []struct{ address, use, flag string }{{n.HTTP, "clients", "--http-port"}, {n.Raft, "other nodes", "--raft-port"}} {
			l, err := net.Listen("tcp", a.address)
			if errors.Is(err, syscall.EADDRINUSE) {
				_, port, _ := net.SplitHostPort(a.address)
				return refuse("stop the program that uses it, or choose other ports with "+a.flag,
					"port %s, where %s would listen for %s, is in use", port, n.Name, a.use)
			}
			if err != nil {
				return refuse("choose other ports with "+a.flag, "%s cannot listen at %s: %w", n.Name, a.address, err)
			}
			held = append(held, l)
		}
	}
	return nil
}

// lockFile refuses when another process has the lock.
func lockFile(f *os.File, dir string) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return refuse("stop it, or choose another --dir", "another holdfast dev runs the cluster in %s", dir)
	}
	if err != nil {
		return fileProblem(f.Name(), err)
	}
	return nil
}

// agentArgs is the command line of a node.
func (c devConfig) agentArgs(n devNode, all []devNode) []string {
	args := []string{
		"agent", "--node", n.Name, "--site", n.Site, "--role", string(n.Role),
		"--data-dir", filepath.Join(c.Dir, n.Name), "--http", n.HTTP, "--raft", n.Raft,
		"--log-store", c.LogStore, "--log-level", c.LogLevel,
		"--fault-switch", c.socket(n), "--with-parent",
	}
	var voters []string
	for _, o := range all {
		if o.Role == command.RoleVoter {
			voters = append(voters, o.Raft)
		}
	}
	if n.Role == command.RoleVoter {
		args = append(args, "--home", "--bootstrap-expect", strconv.Itoa(len(voters)))
	}
	join := slices.DeleteFunc(voters, func(a string) bool { return a == n.Raft })
	return append(args, "--join", strings.Join(join, ","))
}

func (c devConfig) socket(n devNode) string { return filepath.Join(c.Dir, n.Name+".sock") }
func (c devConfig) log(n devNode) string    { return filepath.Join(c.Dir, n.Name+".log") }

// agentEnv is our environment without settings: what the supervisor was told
// is not meant for all five nodes.
func agentEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, envPrefix+"_") })
}
