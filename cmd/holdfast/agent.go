package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/http"
	"github.com/holdfast-db/holdfast/internal/agent"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
)

// agentConfig is what the flags of agent say, complete and consistent.
type agentConfig struct {
	agent.Config
	// FaultSwitch is the path of a unix socket through which a test cuts this
	// node off from others, empty on a real one: see serveFaultSwitch. The
	// transport runs with faults enabled only if it is set.
	FaultSwitch string
	// TimerSlack is how late timers of the process may be: see relaxed.
	TimerSlack time.Duration
}

// defaultTimerSlack is a hundredth of the shortest time in which nodes expect to hear
// of each other, and maxTimerSlack a fifth.
const (
	defaultTimerSlack = 500 * time.Microsecond
	maxTimerSlack     = 10 * time.Millisecond
)

// Bounds of --leader-priority and --leader-hold-off. Members report twice a second,
// so a shorter hold-off would rest on a single report.
const (
	maxLeaderPriority = 100
	minLeaderHoldOff  = time.Second
)

// Bounds of --max-value. The upper one is what a log entry and a follower's
// memory can stand.
const (
	minMaxValue = 1 << 10
	maxMaxValue = 32 << 20
)

// Bounds of --session-ttl-min, --idempotency-retention and --idempotency-bytes. A
// session is ended after twice its TTL, and clients must be able to outlive an
// election; what is remembered is part of the state of every node.
const (
	minSessionTTLMin, maxSessionTTLMin          = time.Second, 24 * time.Hour
	minOnceRetention, maxOnceRetention          = time.Second, 7 * 24 * time.Hour
	minOnceBytes, maxOnceBytes         byteSize = 1 << 20, 4 << 30
)

// Bounds of what says how a disk does. A stall limit below what a sync may take on a
// busy disk would move leadership for nothing. The least reserve has room for a small
// segment of the log, a ballast and votes.
const (
	minStallLimit                           = 100 * time.Millisecond
	minSlowLimit                            = time.Millisecond
	minDiskReserve, maxDiskReserve byteSize = 8 << 20, 1 << 40
)

// minHistoryBytes is the least --history-bytes: below it a single large write
// would leave nothing to catch up from.
const minHistoryBytes = 1 << 20

// minLogOutage is the least --log-retention-outage: a restart must not need a copy.
const minLogOutage = time.Minute

// agentFlags are the values of the agent's flags before they are checked.
type agentFlags struct {
	agentConfig
	role, defaultRead         string
	logLevel, logFormat       string
	maxValue, maxDataSize     byteSize
	historyBytes, onceBytes   byteSize
	logRetention, catchUpRate byteSize
	wanRate                   byteSize
	diskReserve               byteSize
	withParent                bool
	config                    string
}

func newAgent(run runner) *cobra.Command {
	f := agentFlags{
		maxValue: command.DefaultMaxValue, historyBytes: byteSize(node.DefaultHistory.Bytes), logRetention: node.DefaultLogRetention,
		onceBytes: http.DefaultOnceBytes, diskReserve: byteSize(store.DefaultDiskLimits.Reserve),
	}
	cmd := &cobra.Command{
		Use:   "agent --node NAME --site NAME --data-dir DIR [flags]",
		Short: "Run a node",
		Long: `Run a node until it is told to stop (SIGTERM or Ctrl-C).

The first voters of a new cluster, all in the home site, are started with the
same --bootstrap-expect and each other's addresses in --join. Every later node
needs only --join. After its first start a node knows its cluster.

Every flag is also a variable, such as HOLDFAST_DATA_DIR for --data-dir, and a
key of the file that --config names. The command line wins over the environment,
and that over the file.`,
		Example: `  holdfast agent --node n1 --site home --home --data-dir /var/lib/holdfast \
      --http 10.0.0.1:8500 --raft 10.0.0.1:8300 \
      --bootstrap-expect 3 --join 10.0.0.2:8300,10.0.0.3:8300
  holdfast agent --node e1 --site east --data-dir /var/lib/holdfast \
      --http 10.1.0.1:8500 --raft 10.1.0.1:8300 --join 10.0.0.1:8300`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.check()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if f.withParent {
				ctx = untilEnd(ctx, cmd.InOrStdin())
			}
			return run(ctx, cfg)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.Node, "node", "", "name of this node, unique in the cluster")
	fs.StringVar(&f.Site, "site", "", "name of the site it stands at")
	fs.BoolVar(&f.Home, "home", false, "this site is the home site, where the voters are")
	fs.StringVar(&f.role, "role", "", "voter, spare or learner (default: voter with --home, else learner)")
	fs.StringVar(&f.DataDir, "data-dir", "", "directory of this node's data, made if absent")
	fs.StringVar(&f.HTTP, "http", "127.0.0.1:8500", "address to listen at for clients")
	fs.StringVar(&f.Raft, "raft", "127.0.0.1:8300", "address to listen at for other nodes")
	fs.StringVar(&f.AdvertiseHTTP, "advertise-http", "", "address clients reach this node at (default: --http, or the host of --advertise-raft)")
	fs.StringVar(&f.AdvertiseRaft, "advertise-raft", "", "address other nodes reach this node at (default: --raft)")
	fs.IntVar(&f.BootstrapExpect, "bootstrap-expect", 0, "form a new cluster as soon as this many voters see each other")
	fs.StringSliceVar(&f.Join, "join", nil, "address of the node port of a member; several, separated by commas or repeated")
	fs.StringVar(&f.Datacenter, "datacenter", "dc1", "name of the cluster for Consul clients")
	fs.StringVar(&f.LogStore, "log-store", "wal", "how the Raft log is kept: wal or boltdb")
	fs.IntVar(&f.RaftMultiplier, "raft-multiplier", 1, "stretch Raft's timeouts, 1 to 10, for slow hosts and networks")
	fs.IntVar(&f.LeaderPriority, "leader-priority", 0, "of the voters the one with the highest is to lead, 0 to 100")
	fs.DurationVar(&f.LeaderHoldOff, "leader-hold-off", node.DefaultLeaderHoldOff, "how long such a voter must have been fit before this leader hands over to it")
	fs.Var(&f.maxValue, "max-value", "largest value clients may write")
	fs.Var(&f.maxDataSize, "max-data-size", "size of all keys and values from which on puts are refused (0: no limit)")
	fs.DurationVar(&f.History.Age, "history-age", node.DefaultHistory.Age, "keep changes this long")
	fs.Uint64Var(&f.History.Changes, "history-changes", node.DefaultHistory.Changes, "keep at least this many changes")
	fs.Var(&f.historyBytes, "history-bytes", "but no more bytes of changes than this")
	fs.StringVar(&f.defaultRead, "default-read", "stale", "what a read that names no mode is on a learner: stale, or leader as on a voter")
	fs.DurationVar(&f.SessionTTLMin, "session-ttl-min", http.DefaultSessionTTLMin, "shortest TTL of a session that clients may create")
	fs.DurationVar(&f.OnceRetention, "idempotency-retention", http.DefaultOnceRetention, "remember the results of writes with idempotency keys this long")
	fs.Var(&f.onceBytes, "idempotency-bytes", "size of those results from which on such writes are refused")
	fs.Var(&f.logRetention, "log-retention", "size of the log that is kept for nodes that were away")
	fs.DurationVar(&f.LogOutage, "log-retention-outage", node.DefaultLogOutage, "longest absence that is to be made good from the log")
	fs.Var(&f.catchUpRate, "catchup-rate", "bytes per second of all copies sent to other nodes (0: no limit)")
	fs.Var(&f.wanRate, "wan-rate", "bytes per second of replication and copies to each other site (0: no limit)")
	fs.DurationVar(&f.ScrubPeriod, "scrub-period", 24*time.Hour, "read all stored data in this time and look for damage (0: never)")
	fs.DurationVar(&f.Disk.Stall, "disk-stall-limit", store.DefaultDiskLimits.Stall, "a call to the disk that takes longer than this hangs: a leader hands over")
	fs.DurationVar(&f.Disk.Slow, "slow-disk-limit", store.DefaultDiskLimits.Slow, "mean time of an append to the log from which a leader hands over to a voter with a better disk")
	fs.Var(&f.diskReserve, "disk-reserve", "free space below which a leader takes no writes that add data, and hands over to a voter that has more")
	fs.StringVar(&f.StandbyDir, "standby-data-dir", "", "empty directory on another disk, entered when that of --data-dir has failed")
	fs.DurationVar(&f.StandbyAfter, "standby-after", 30*time.Second, "enter it also when the disk of --data-dir has hung for this long")
	fs.DurationVar(&f.TimerSlack, "timer-slack", defaultTimerSlack, "how late timers may be, which spares processor time (Linux; 0: as the system has it)")
	fs.StringVar(&f.logLevel, "log-level", "info", "trace, debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "text", "text or json")
	fs.StringVar(&f.config, "config", "", "file with settings (.yaml, .toml or .json)")
	fs.StringVar(&f.FaultSwitch, "fault-switch", "", "unix socket that cuts this node off, for tests")
	fs.BoolVar(&f.withParent, "with-parent", false, "stop when standard input ends")
	for _, hidden := range []string{"fault-switch", "with-parent"} {
		if err := fs.MarkHidden(hidden); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return cmd
}

// namePattern keeps names usable in addresses of the fault switch, in tables,
// headers and file names.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// check makes a configuration of the flags, or says what is wrong with them.
func (f agentFlags) check() (agentConfig, error) {
	c := f.agentConfig
	c.Version = version

	for _, name := range []struct{ flag, value string }{{"node", c.Node}, {"site", c.Site}, {"datacenter", c.Datacenter}} {
		if name.value == "" {
			return c, refuse(fmt.Sprintf("give it with --%s or %s", name.flag, envName(name.flag)), "the name of the %s is missing", name.flag)
		}
		if !namePattern.MatchString(name.value) {
			return c, refuse("use up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit",
				"--%s %q is not a name", name.flag, name.value)
		}
	}
	switch {
	case f.role == "" && c.Home:
		c.Role = command.RoleVoter
	case f.role == "":
		c.Role = command.RoleLearner
	default:
		c.Role = command.Role(f.role)
	}
	switch {
	case !c.Role.MayVote() && c.Role != command.RoleLearner:
		return c, refuse("give voter, spare or learner", "--role %q is not known", f.role)
	case c.Role.MayVote() && !c.Home:
		return c, refuse(fmt.Sprintf("start it with --role learner, or with --home if %s is the home site", c.Site),
			"%s would be a %s outside the home site", c.Node, c.Role)
	}

	if c.DataDir == "" {
		return c, refuse("give it with --data-dir or "+envName("data-dir"), "the data directory is missing")
	}
	abs, err := filepath.Abs(c.DataDir)
	if err != nil {
		return c, refuse("give an absolute path", "--data-dir %s cannot be resolved: %w", c.DataDir, err)
	}
	c.DataDir = abs

	if err := c.checkAddresses(); err != nil {
		return c, err
	}
	switch {
	case c.BootstrapExpect != 0 && c.BootstrapExpect != 1 && c.BootstrapExpect != 3 && c.BootstrapExpect != 5:
		return c, refuse("give 1, 3 or 5", "--bootstrap-expect %d is not a number of voters", c.BootstrapExpect)
	case c.BootstrapExpect > 0 && c.Role != command.RoleVoter:
		return c, refuse("drop it, or start the node with --home --role voter", "%s is a %s and cannot form a cluster with --bootstrap-expect", c.Node, c.Role)
	case c.BootstrapExpect == 1 && len(c.Join) > 0:
		return c, refuse("drop --join to form a cluster of one, or --bootstrap-expect to join one", "%s would join a cluster and form one of its own", c.Node)
	case c.BootstrapExpect > 1 && len(c.Join) == 0:
		return c, refuse("give the addresses of the other voters with --join", "%s cannot find the other %d voters of --bootstrap-expect", c.Node, c.BootstrapExpect-1)
	}

	if c.LogStore != "wal" && c.LogStore != "boltdb" {
		return c, refuse("give wal or boltdb", "--log-store %q is not known", c.LogStore)
	}
	if c.RaftMultiplier < 1 || c.RaftMultiplier > 10 {
		return c, refuse("give 1 to 10", "--raft-multiplier %d is out of range", c.RaftMultiplier)
	}
	if c.LeaderPriority < 0 || c.LeaderPriority > maxLeaderPriority {
		return c, refuse(fmt.Sprintf("give 0 to %d", maxLeaderPriority), "--leader-priority %d is out of range", c.LeaderPriority)
	}
	if c.LeaderHoldOff < minLeaderHoldOff {
		return c, refuse(fmt.Sprintf("give %v or more", minLeaderHoldOff), "--leader-hold-off %v is out of range", c.LeaderHoldOff)
	}
	if f.maxValue < minMaxValue || f.maxValue > maxMaxValue {
		return c, refuse(fmt.Sprintf("give %v to %v", byteSize(minMaxValue), byteSize(maxMaxValue)), "--max-value %v is out of range", f.maxValue)
	}
	c.MaxValue = int(f.maxValue)
	if c.History.Age < 0 || f.historyBytes < minHistoryBytes {
		return c, refuse(fmt.Sprintf("give an age from 0 on and at least %v", byteSize(minHistoryBytes)),
			"--history-age %v with --history-bytes %v is out of range", c.History.Age, f.historyBytes)
	}
	if f.defaultRead != "stale" && f.defaultRead != "leader" {
		return c, refuse("give stale or leader", "--default-read %q is not known", f.defaultRead)
	}
	c.AskLeader = f.defaultRead == "leader"
	if c.SessionTTLMin < minSessionTTLMin || c.SessionTTLMin > maxSessionTTLMin {
		return c, refuse(fmt.Sprintf("give %v to %v", minSessionTTLMin, maxSessionTTLMin), "--session-ttl-min %v is out of range", c.SessionTTLMin)
	}
	if c.OnceRetention < minOnceRetention || c.OnceRetention > maxOnceRetention {
		return c, refuse(fmt.Sprintf("give %v to %v", minOnceRetention, maxOnceRetention), "--idempotency-retention %v is out of range", c.OnceRetention)
	}
	if f.onceBytes < minOnceBytes || f.onceBytes > maxOnceBytes {
		return c, refuse(fmt.Sprintf("give %v to %v", minOnceBytes, maxOnceBytes), "--idempotency-bytes %v is out of range", f.onceBytes)
	}
	c.OnceBytes = int64(f.onceBytes)
	if c.LogOutage < minLogOutage {
		return c, refuse(fmt.Sprintf("give %v or more", minLogOutage), "--log-retention-outage %v is out of range", c.LogOutage)
	}
	if c.ScrubPeriod != 0 && c.ScrubPeriod < time.Minute {
		return c, refuse("give 1m or more, or 0 to switch it off", "--scrub-period %v is out of range", c.ScrubPeriod)
	}
	c.History.Bytes, c.LogRetention = uint64(f.historyBytes), uint64(f.logRetention)
	c.MaxDataSize, c.CatchUpRate, c.WANRate = uint64(f.maxDataSize), int64(f.catchUpRate), int64(f.wanRate)

	if err := c.checkDisk(); err != nil {
		return c, err
	}
	if f.diskReserve < minDiskReserve || f.diskReserve > maxDiskReserve {
		return c, refuse(fmt.Sprintf("give %v to %v", byteSize(minDiskReserve), byteSize(maxDiskReserve)), "--disk-reserve %v is out of range", f.diskReserve)
	}
	c.Disk.Reserve = uint64(f.diskReserve)

	if c.TimerSlack < 0 || c.TimerSlack > maxTimerSlack {
		return c, refuse(fmt.Sprintf("give 0 to %v", maxTimerSlack), "--timer-slack %v is out of range", c.TimerSlack)
	}
	if c.LogLevel = hclog.LevelFromString(f.logLevel); c.LogLevel == hclog.NoLevel {
		return c, refuse("give trace, debug, info, warn or error", "--log-level %q is not known", f.logLevel)
	}
	if f.logFormat != "text" && f.logFormat != "json" {
		return c, refuse("give text or json", "--log-format %q is not known", f.logFormat)
	}
	c.LogJSON = f.logFormat == "json"
	return c, nil
}

// checkDisk checks the limits of the disk and the standby directory, but for the
// reserve.
func (c *agentConfig) checkDisk() error {
	for _, limit := range []struct {
		flag  string
		value time.Duration
		least time.Duration
	}{
		{"--disk-stall-limit", c.Disk.Stall, minStallLimit},
		{"--slow-disk-limit", c.Disk.Slow, minSlowLimit},
		{"--standby-after", c.StandbyAfter, c.Disk.Stall},
	} {
		if limit.value < limit.least {
			return refuse(fmt.Sprintf("give at least %v", limit.least), "%s %v is out of range", limit.flag, limit.value)
		}
	}
	if c.StandbyDir == "" {
		return nil
	}
	abs, err := filepath.Abs(c.StandbyDir)
	switch {
	case err != nil:
		return refuse("give an absolute path", "--standby-data-dir %s cannot be resolved: %w", c.StandbyDir, err)
	case abs == c.DataDir:
		return refuse("give a directory on another disk", "--standby-data-dir and --data-dir are both %s", abs)
	case len(c.Join) == 0:
		return refuse("give --join with the addresses of members", "%s could not enter the cluster again from --standby-data-dir", c.Node)
	}
	c.StandbyDir = abs
	return nil
}

// checkAddresses checks all addresses and fills in the advertised ones.
func (c *agentConfig) checkAddresses() error {
	if err := checkAddress("--http", c.HTTP, false); err != nil {
		return err
	}
	if err := checkAddress("--raft", c.Raft, false); err != nil {
		return err
	}
	if c.HTTP == c.Raft {
		return refuse("choose another port for one of them", "--http and --raft are both %s", c.HTTP)
	}
	if c.AdvertiseRaft == "" {
		if anyHost(c.Raft) {
			return refuse("give the address other nodes reach it at with --advertise-raft", "--raft %s listens at every address and names none", c.Raft)
		}
		c.AdvertiseRaft = c.Raft
	}
	if c.AdvertiseHTTP == "" {
		c.AdvertiseHTTP = c.HTTP
		if anyHost(c.HTTP) {
			host, _, _ := net.SplitHostPort(c.AdvertiseRaft)
			_, port, _ := net.SplitHostPort(c.HTTP)
			c.AdvertiseHTTP = net.JoinHostPort(host, port)
		}
	}
	if err := checkAddress("--advertise-raft", c.AdvertiseRaft, true); err != nil {
		return err
	}
	if err := checkAddress("--advertise-http", c.AdvertiseHTTP, true); err != nil {
		return err
	}
	c.Join = slices.DeleteFunc(c.Join, func(a string) bool { return strings.TrimSpace(a) == "" })
	for i, a := range c.Join {
		c.Join[i] = strings.TrimSpace(a)
		if err := checkAddress("--join", c.Join[i], true); err != nil {
			return err
		}
	}
	return nil
}

// checkAddress refuses what is not host:port. An address to dial names a host.
func checkAddress(flag, address string, dial bool) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return refuse("give host:port", "%s %q is not an address", flag, address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return refuse("give a port from 1 to 65535", "%s %q has no usable port", flag, address)
	}
	if dial && anyHost(address) {
		return refuse("give the address that others reach", "%s %q names no host", flag, address)
	}
	return nil
}

// anyHost reports whether an address to listen at stands for all of a host's.
func anyHost(address string) bool {
	host, _, _ := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return host == "" || (ip != nil && ip.IsUnspecified())
}

var errParentEnded = errors.New("the process that started this one has ended")

// untilEnd returns a context that also ends with in, which is a pipe whose
// other end the parent holds: it ends with the parent, however that ends.
func untilEnd(ctx context.Context, in io.Reader) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { // ends with the parent, or with this process
		_, _ = io.Copy(io.Discard, in)
		cancel(errParentEnded)
	}()
	return ctx
}

// byteSize is a flag that counts bytes: 65536, 64KiB, 64K, 1MiB.
type byteSize int64

var byteUnits = []struct {
	name string
	size byteSize
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1}}

// String gives the size in the largest unit that fits evenly.
func (b *byteSize) String() string { return fmt.Sprint(*b) }

// Format implements fmt.Formatter for values and pointers alike.
func (b byteSize) Format(s fmt.State, _ rune) {
	for _, u := range byteUnits[:3] {
		if b != 0 && b%u.size == 0 {
			_, _ = fmt.Fprintf(s, "%d%s", int64(b/u.size), u.name)
			return
		}
	}
	_, _ = fmt.Fprintf(s, "%d", int64(b))
}

// Set parses a size.
func (b *byteSize) Set(text string) error {
	number, size := strings.TrimSpace(text), byteSize(1)
	for _, u := range byteUnits {
		if n, ok := strings.CutSuffix(strings.ToLower(number), strings.ToLower(u.name)); ok {
			number, size = strings.TrimSpace(n), u.size
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || n > uint64(math.MaxInt64/size) {
		return errors.New("it must be a size such as 65536, 512KiB or 1MiB")
	}
	*b = byteSize(n) * size
	return nil
}

// Type names the flag's type in help texts.
func (*byteSize) Type() string { return "size" }
