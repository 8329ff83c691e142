package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

// TestOnlyFittingNodesTalk holds who may connect to whom for what, and which
// side says no.
func TestOnlyFittingNodesTalk(t *testing.T) {
	blank := func(h command.Hello) command.Hello { h.ClusterID, h.Epoch = "", 0; return h }
	other := func(h command.Hello) command.Hello { h.ClusterID = "d"; return h }
	epoch2 := func(h command.Hello) command.Hello { h.Epoch = 2; return h }
	same := func(h command.Hello) command.Hello { return h }
	checked := errors.New("no")

	for _, tc := range []struct {
		name           string
		dialler, other func(command.Hello) command.Hello
		want           string // id wanted; "n2" answers
		check1, check2 error  // Config.Check of dialler and acceptor

		call, bulk error // nil: allowed; bulk is for raft and copy
		byPeer     bool  // the refusal came from the other side
	}{
		{name: "same cluster and epoch", dialler: same, other: same, want: "n2"},
		{name: "any identity", dialler: same, other: same},
		{name: "wrong identity", dialler: same, other: same, want: "n3", call: command.ErrWrongIdentity, bulk: command.ErrWrongIdentity},
		{name: "another cluster", dialler: other, other: same, want: "n2", call: command.ErrWrongCluster, bulk: command.ErrWrongCluster, byPeer: true},
		{name: "blank caller", dialler: blank, other: same, want: "n2", bulk: command.ErrWrongCluster, byPeer: true},
		{name: "blank callee", dialler: same, other: blank, want: "n2", bulk: command.ErrWrongCluster, byPeer: true},
		{name: "both blank", dialler: blank, other: blank, want: "n2", bulk: command.ErrWrongCluster, byPeer: true},
		{name: "caller of an older epoch", dialler: same, other: epoch2, want: "n2", call: command.ErrStaleEpoch, bulk: command.ErrStaleEpoch, byPeer: true},
		{name: "callee of an older epoch", dialler: epoch2, other: same, want: "n2", call: command.ErrStaleEpoch, bulk: command.ErrStaleEpoch},
		{name: "the caller's own rule", dialler: same, other: same, want: "n2", check1: command.ErrWentBack.With("x"), call: command.ErrWentBack, bulk: command.ErrWentBack},
		{name: "the callee's own rule", dialler: same, other: same, want: "n2", check2: command.ErrRemoved, call: command.ErrRemoved, bulk: command.ErrRemoved, byPeer: true},
		{name: "a rule without a code", dialler: same, other: same, want: "n2", check1: checked, call: checked, bulk: checked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBook()
			cfg1, cfg2 := testConfig(t, b, tc.dialler(hello("n1"))), testConfig(t, b, tc.other(hello("n2")))
			cfg1.Check = func(command.Hello) error { return tc.check1 }
			cfg2.Check = func(command.Hello) error { return tc.check2 }
			n1, n2 := start(t, b, cfg1, nil), start(t, b, cfg2, nil)
			for _, p := range []purpose{purposeRaft, purposeCall, purposeCopy} {
				expect := tc.bulk
				if p == purposeCall {
					expect = tc.call
				}
				c, err := n1.dial(context.Background(), p, tc.want, n2.Addr())
				if err == nil {
					c.Close()
				}
				if !errors.Is(err, expect) {
					t.Fatalf("%v: got %v, want %v", p, err, expect)
				}
				var refused *RefusedError
				if errors.As(err, &refused) && refused.ByPeer != tc.byPeer {
					t.Errorf("%v: refused by peer: %v, want %v (%v)", p, refused.ByPeer, tc.byPeer, err)
				}
				if expect != nil && refused == nil {
					t.Errorf("%v: not a RefusedError: %v", p, err)
				}
			}
		})
	}
}

// TestHelloAnswersWithAddress: a node whose hello names no address is reached
// where it advertises, without a members table.
func TestHelloAnswersWithAddress(t *testing.T) {
	known, unknown := newBook(), newBook()
	n1 := start(t, known, testConfig(t, known, hello("n1")), nil)
	n2 := start(t, unknown, testConfig(t, unknown, hello("n2")), nil)
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err == nil {
		t.Fatal("n2 was reached though nobody knows where it is")
	}
	if _, err := n2.CallAddr(within(t, patience), n1.Addr(), 1, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err != nil {
		t.Fatalf("n2 introduced itself and is not known: %v", err)
	}
}

// TestMovedPeerIsFound: when the members table is out of date, the hint helps.
func TestMovedPeerIsFound(t *testing.T) {
	b := newBook()
	n1, n2 := start(t, b, testConfig(t, b, hello("n1")), nil), start(t, b, testConfig(t, b, hello("n2")), nil)
	n3 := start(t, b, testConfig(t, b, hello("n3")), nil)
	for name, wrong := range map[string]string{"nobody there": freeAddr(t), "another node there": n3.Addr()} {
		b.set("n2", wrong)
		n1.Learn("n2", n2.Addr())
		if c, err := n1.dialPeer(within(t, patience), purposeRaft, "n2"); err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			c.Close()
		}
	}
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestStrangersDoNoHarm: whatever arrives at the port, only its connection ends.
func TestStrangersDoNoHarm(t *testing.T) {
	b := newBook()
	n1, n2 := start(t, b, testConfig(t, b, hello("n1")), nil), start(t, b, testConfig(t, b, hello("n2")), nil)
	for name, say := range map[string]string{
		"http":             "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"nothing":          "",
		"half a preface":   "HFDT\x01",
		"huge greeting":    "HFDT\x01\x01\xff\xff\xff\xff",
		"no JSON":          "HFDT\x01\x01\x00\x00\x00\x02xx",
		"no id":            "HFDT\x01\x02\x00\x00\x00\x02{}",
		"unknown purpose":  "HFDT\x01\x09\x00\x00\x00\x0a{\"id\":\"x\"}",
		"another version":  "HFDT\x02\x01\x00\x00\x00\x02{}",
		"bad call frame":   "HFDT\x01\x02\x00\x00\x00\x0a{\"id\":\"x\"}\xff\xff\xff\xff\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00",
		"cut-short call":   "HFDT\x01\x02\x00\x00\x00\x0a{\"id\":\"x\"}\x00\x00\x00\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"huge raft frame":  "HFDT\x01\x01\x00\x00\x00\x23{\"id\":\"x\",\"cluster_id\":\"c\",\"epoch\":1}"[:9] + "\x26{\"id\":\"x\",\"cluster_id\":\"c\",\"epoch\":1}\xff\xff\xff\xff\x01",
		"broken raft vote": "HFDT\x01\x01\x00\x00\x00\x26{\"id\":\"x\",\"cluster_id\":\"c\",\"epoch\":1}\x00\x00\x00\x02\x03\xff\xff",
	} {
		c, err := net.Dial("tcp", n1.Addr())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, say)
		c.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: connection was not closed: %v", name, err)
		}
		if name == "another version" {
			if _, _, err := readGreeting(strings.NewReader(string(answer))); err != nil {
				t.Errorf("%s: was not told ours: %v", name, err)
			}
		}
		c.Close()
	}
	if _, err := n2.Call(within(t, patience), "n1", 1, nil); err != nil {
		t.Fatal(err)
	}
}

// TestListenSaysWhatIsWrong holds the errors an operator sees at start.
func TestListenSaysWhatIsWrong(t *testing.T) {
	b := newBook()
	taken := start(t, b, testConfig(t, b, hello("n1")), nil).Addr()
	for name, tc := range map[string]struct {
		change func(*Config)
		says   []string
	}{
		"port in use":        {func(c *Config) { c.Listen = taken }, []string{taken, "in use", "another address"}},
		"foreign address":    {func(c *Config) { c.Listen = "192.0.2.1:8300" }, []string{"192.0.2.1:8300", "of this machine"}},
		"wildcard":           {func(c *Config) { c.Listen = "0.0.0.0:0" }, []string{"0.0.0.0", "advertise"}},
		"advertised nowhere": {func(c *Config) { c.Advertise = "nonsense" }, []string{`"nonsense"`, "host:port"}},
		"no hello":           {func(c *Config) { c.Hello = nil }, []string{"Hello"}},
		"hasty":              {func(c *Config) { c.DeadAfter = c.PingInterval }, []string{"DeadAfter"}},
		"negative":           {func(c *Config) { c.Timeout = -1 }, []string{"Timeout"}},
	} {
		cfg := testConfig(t, b, hello("n9"))
		tc.change(&cfg)
		n, err := Listen(cfg)
		if err == nil {
			n.Close()
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, s := range tc.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not say %q", name, err, s)
			}
		}
	}
}
