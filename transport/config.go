package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

// Defaults of Config, used where a field is zero.
const (
	DefaultTimeout      = 3 * time.Second
	DefaultDialTimeout  = 2 * time.Second
	DefaultIdleTimeout  = 30 * time.Second
	DefaultPingInterval = time.Second
	DefaultDeadAfter    = 3 * time.Second
)

// Config is all a Transport needs to know. Functions are called from many
// goroutines at once and must not block, BeforeInstall excepted.
type Config struct {
	// Listen is the host:port to bind. Port 0 takes a free one.
	Listen string
	// Advertise is the host:port other nodes dial. Empty: the bound address,
	// which then must not be a wildcard.
	Advertise string
	// Listener binds Listen, and Dial connects to the node port of another, until its
	// context ends. Nil is TCP.
	Listener func(address string) (net.Listener, error)
	Dial     func(ctx context.Context, address string) (net.Conn, error)

	// Hello describes this node as it is now. It is asked once for each
	// connection, since the cluster id may appear later. ID, Name and Site must
	// be known from the start and never change. Required.
	Hello func() command.Hello
	// Resolve looks an address up in the members table. Nil knows nobody.
	Resolve func(id string) (addr string, ok bool)
	// Check holds further rules of the node, run on both sides of each new
	// connection after the transport's own: wanted id, cluster id, epoch. Its
	// error reaches the other side with its code.
	Check func(peer command.Hello) error
	// Forks are the epochs of the cluster behind the first, as far as this node knows
	// them, also ones it does not live in yet. They are part of every introduction. Nil
	// knows none.
	Forks func() []command.Fork
	// Newer is told of forks that a peer of the same cluster knows, some of them behind
	// this node's epoch, before anything else passes on the connection. It may be called
	// at any time, several times for the same, and by several goroutines. Nil ignores them.
	Newer func(forks []command.Fork)
	// Refused is told why a peer would not talk to this node. Nil ignores it.
	Refused func(reason error)
	// MayLead says whether this node may be told to stand for election at once, by
	// another node or by itself. While it says no, TimeoutNow is answered with an
	// error and never reaches Raft, which would make even a learner a candidate. Nil
	// says no.
	MayLead func() bool
	// Paused says whether this node takes no replication for now. While it says yes,
	// leaders are told so, and hold what they have for it; nothing of them reaches
	// Raft. Nil says no.
	Paused func() bool
	// Condition is what those who watch this node are told of it with each ping. Nil
	// says nothing.
	Condition func() command.Condition
	// Muted says whether this node must not be heard as a leader, though its Raft believes
	// that it leads. While it does, no AppendEntries leaves: heartbeats fail, and
	// replication waits. Nil says no.
	Muted func() bool
	// InTerm runs fn while Raft's term is term and cannot change, or says that it is
	// another one. Heartbeats of the term are answered within it, beside Raft's main loop,
	// and all others by that. Nil runs all.
	InTerm func(term uint64, fn func()) bool
	// EntryTerm is the term of an entry of this node's log, if it is there. With it
	// replication skips what a peer has by other ways than the log. Nil knows none.
	EntryTerm func(index uint64) (term uint64, ok bool)
	// BeforeInstall runs on the sender before a snapshot request goes out, and
	// may take hours: it is where the peer is made to fetch a full copy. Its
	// context ends with SetLeading(false), Disconnect of the peer, and Close. An
	// error fails the installation. Nil does nothing.
	BeforeInstall func(ctx context.Context, to string) error

	// Faults enables SetCut. Without it the fault switch costs nothing and does
	// nothing.
	Faults bool

	// Timeout is how long a Raft request waits while none of its bytes move, and
	// then for the answer; requests of more than 256 KiB get proportionally more. A
	// suspended peer is noticed no sooner, and larger values keep a dead connection
	// in use for longer. A request whose bytes move takes what time it needs.
	Timeout time.Duration
	// DialTimeout bounds connecting and the introduction together, on both sides.
	DialTimeout time.Duration
	// IdleTimeout ends a copy stream on which no byte moved for so long. There is
	// no bound on its total.
	IdleTimeout time.Duration
	// CopyRate bounds the bytes per second of all copy streams this node sends
	// together, as they travel: compressed where they are. They share it equally.
	// 0 is no bound; nothing else is counted or held up.
	CopyRate int64
	// WANRate bounds the bytes per second of replication and copies together to
	// each other site, as they travel. 0 is no bound; heartbeats, votes and calls
	// are never held up.
	WANRate int64
	// PingInterval is how often each end of a call connection shows that it is
	// alive, and DeadAfter how long one may be silent before it is given up and
	// its waiting calls fail. DeadAfter must be at least twice PingInterval. Time
	// in which this process was suspended does not count.
	PingInterval time.Duration
	DeadAfter    time.Duration

	// Log receives what the transport has to say. Nil discards it.
	Log hclog.Logger
}

// withDefaults fills what is zero and reports what cannot be.
func (c Config) withDefaults() (Config, error) {
	if c.Hello == nil {
		return c, errors.New("transport: Config.Hello is required")
	}
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
	if c.Listener == nil {
		c.Listener = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"Timeout", &c.Timeout, DefaultTimeout},
		{"DialTimeout", &c.DialTimeout, DefaultDialTimeout},
		{"IdleTimeout", &c.IdleTimeout, DefaultIdleTimeout},
		{"PingInterval", &c.PingInterval, DefaultPingInterval},
		{"DeadAfter", &c.DeadAfter, max(DefaultDeadAfter, 3*c.PingInterval)},
	} {
		if *d.value < 0 {
			return c, fmt.Errorf("transport: Config.%s is negative", d.name)
		}
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if c.CopyRate < 0 || c.WANRate < 0 {
		return c, errors.New("transport: Config.CopyRate or Config.WANRate is negative")
	}
	if c.DeadAfter < 2*c.PingInterval {
		return c, fmt.Errorf("transport: DeadAfter %v is below twice PingInterval %v; one late ping would end a healthy connection",
			c.DeadAfter, c.PingInterval)
	}
	return c, nil
}

// dialable reports why other nodes could not dial addr, nil if they can.
func dialable(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("advertised address %q: %w; give it as host:port", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() || port == "" || port == "0" {
		return fmt.Errorf("address %s cannot be dialled by other nodes; advertise the host:port at which they reach this one", addr)
	}
	return nil
}
