package transport

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// A connection begins with
//
//	magic (4) | version (1) | purpose (1) | length (4) | greeting (JSON)
//
// from the side that dialled, answered by the same from the other side. Nothing
// else is sent before the answer was read and found good.
const (
	magic           = "HFDT"
	protocolVersion = 1
	prefaceSize     = len(magic) + 2 + 4
	maxGreeting     = 64 << 10
)

// purpose is what a connection is for, all its life.
type purpose uint8

const (
	purposeRaft purpose = 1
	purposeCall purpose = 2
	purposeCopy purpose = 3
	// purposeWatch shows that the process at the other end lives, see watch.go.
	purposeWatch purpose = 4
)

func (p purpose) String() string {
	switch p {
	case purposeRaft:
		return "raft"
	case purposeCall:
		return "call"
	case purposeCopy:
		return "copy"
	case purposeWatch:
		return "watch"
	}
	return fmt.Sprintf("purpose %d", uint8(p))
}

var errVersion = errors.New("peer speaks node protocol version")

// greeting is what each side says first.
type greeting struct {
	command.Hello
	// Forks are the epochs behind the first that this side knows.
	Forks []command.Fork `json:"forks,omitempty"`
	// Want is the server id the dialler means to reach; empty: anyone.
	Want string `json:"want,omitempty"`
	// Packs: compressed replication is understood, see raftPacked.
	Packs bool `json:"packs,omitempty"`
	// Refusal is why the accepting side will not talk, see command.EncodeError.
	Refusal json.RawMessage `json:"refusal,omitempty"`
}

// RefusedError reports that two nodes reached each other and one would not talk.
// Nothing was sent. errors.Is sees its cause.
type RefusedError struct {
	// Peer is the id or the address that was dialled.
	Peer string
	// ByPeer: the other side refused this node. Otherwise this node refused it,
	// so that an ErrStaleEpoch, say, speaks of the peer and not of this node.
	ByPeer bool
	Err    error
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.ByPeer {
		return fmt.Sprintf("refused by %s: %v", e.Peer, e.Err)
	}
	return fmt.Sprintf("connection to %s given up: %v", e.Peer, e.Err)
}

// Unwrap gives the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// OfPeer reports whether the cause speaks of the peer and not of this node.
func (e *RefusedError) OfPeer() bool { return !e.ByPeer }

// hello is this node as it introduces itself now.
func (t *Transport) hello() command.Hello {
	h := t.cfg.Hello()
	if h.RaftAddr == "" {
		h.RaftAddr = t.advertise
	}
	return h
}

// judge applies the transport's own rules to a peer.
func judge(self, peer command.Hello, p purpose) error {
	switch {
	case peer.ID == "":
		return errors.New("peer did not say its id")
	case p == purposeCall && (self.ClusterID == "" || peer.ClusterID == ""):
		return nil // one of them is about to join
	case self.ClusterID == "":
		return command.ErrWrongCluster.With("%s is not in a cluster yet", self.Name)
	case peer.ClusterID == "":
		return command.ErrWrongCluster.With("%s is not in a cluster yet", peer.Name)
	case self.ClusterID != peer.ClusterID:
		return command.ErrWrongCluster.With("%s is in %s, %s in %s", self.Name, self.ClusterID, peer.Name, peer.ClusterID)
	case self.Epoch == 0 || peer.Epoch == 0:
		return nil // one of them has only promised to belong to it: it is being formed
	case peer.Epoch < self.Epoch:
		return command.ErrStaleEpoch.With("%s is at epoch %d, %s at %d", peer.Name, peer.Epoch, self.Name, self.Epoch)
	case peer.Epoch > self.Epoch:
		// Without the code: it would say that the other side is the old one.
		return fmt.Errorf("%s is at epoch %d, before epoch %d of %s", self.Name, self.Epoch, peer.Epoch, peer.Name)
	}
	return nil
}

// greeting is what this node says first.
func (t *Transport) greeting(want string) greeting {
	g := greeting{Hello: t.hello(), Want: want, Packs: true}
	if t.cfg.Forks != nil {
		g.Forks = t.cfg.Forks()
	}
	return g
}

// parted looks whether two nodes of one cluster have parted: whether one of them does
// not live in the epoch yet that the other knows of, which is then told, or another
// site became home for each of them.
func (t *Transport) parted(mine, theirs *greeting) error {
	if mine.ClusterID == "" || mine.ClusterID != theirs.ClusterID || mine.Epoch == 0 {
		return nil
	}
	for _, a := range mine.Forks {
		for _, b := range theirs.Forks {
			if a.Epoch == b.Epoch && !command.SameFork(a, b) {
				return fmt.Errorf("%s knows %s as the home of epoch %d, %s knows %s: two sites were promoted, each without the other; stop one of the two homes and rejoin its nodes",
					mine.Name, a.Site, a.Epoch, theirs.Name, b.Site)
			}
		}
	}
	if _, newer := command.ForkAfter(theirs.Forks, mine.Epoch); newer && t.cfg.Newer != nil {
		t.cfg.Newer(theirs.Forks)
	}
	return nil
}

func (t *Transport) check(peer command.Hello) error {
	if t.cfg.Check == nil {
		return nil
	}
	return t.cfg.Check(peer)
}

// welcome is the accepting side of the introduction. On success the connection
// has its purpose and belongs to its peer.
func (t *Transport) welcome(c *conn) error {
	if err := c.SetDeadline(time.Now().Add(t.cfg.DialTimeout)); err != nil {
		return err
	}
	p, theirs, err := readGreeting(c)
	if errors.Is(err, errVersion) {
		// Our preface tells the other side what it met.
		_ = writeGreeting(c, p, greeting{})
	}
	if err != nil {
		return err
	}
	c.purpose, c.remote = p, theirs.Hello
	if t.cfg.Faults {
		if err := t.stallWelcome(c); err != nil {
			return err
		}
	}
	mine := t.greeting("")
	apart := t.parted(&mine, &theirs)
	switch {
	case p < purposeRaft || p > purposeWatch:
		err = fmt.Errorf("connection for unknown %v", p)
	case apart != nil:
		err = apart
	case theirs.Want != "" && theirs.Want != mine.ID:
		err = command.ErrWrongIdentity.With("%s was wanted, this is %s", theirs.Want, mine.ID)
	default:
		err = judge(mine.Hello, theirs.Hello, p)
	}
	if err == nil {
		err = t.check(theirs.Hello)
	}
	if err != nil {
		mine.Refusal = command.EncodeError(err)
		_ = writeGreeting(c, p, mine) // the refusal stands, heard or not
		return err
	}
	// Before the answer: whoever has read it may rely on being known here.
	t.introduced(c, theirs.Hello, "")
	if err := writeGreeting(c, p, mine); err != nil {
		return err
	}
	c.peer.announce()
	return c.SetDeadline(time.Time{})
}

// stallWelcome leaves a peer that is cut off without an answer. It outlasts the
// peer's dial, which is to end by its own timeout and not by ours.
func (t *Transport) stallWelcome(c *conn) error {
	ctx, cancel := context.WithTimeout(t.ctx, 2*t.cfg.DialTimeout)
	defer cancel()
	if err := t.faults.healed(ctx, c.remote); err != nil {
		return err
	}
	return c.SetDeadline(time.Now().Add(t.cfg.DialTimeout))
}

// dial connects to addr for a purpose. want is the id that must answer there;
// empty takes anyone. Errors are plain network errors or a RefusedError: nothing
// but the introduction was sent.
func (t *Transport) dial(ctx context.Context, p purpose, want, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.DialTimeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()

	if t.cfg.Faults {
		if err := t.faults.healed(ctx, t.lastSeen(want, addr)); err != nil {
			return nil, dialError(want, addr, err)
		}
	}
	nc, err := t.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, dialError(want, addr, err)
	}
	c, ok := t.track(nc)
	if !ok {
		return nil, command.ErrStopping
	}
	c.purpose = p
	// The end of ctx interrupts the introduction, which knows no contexts.
	uninterrupted := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	hello, err := t.introduce(ctx, c, want, addr)
	if !uninterrupted() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		c.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer: %w", ctx.Err())
		}
		return nil, dialError(want, addr, err)
	}
	t.introduced(c, hello, addr)
	return c, nil
}

func dialError(want, addr string, err error) error {
	if want == "" {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fmt.Errorf("connect to %s at %s: %w", want, addr, err)
}

// introduce is the dialling side of the introduction.
func (t *Transport) introduce(ctx context.Context, c *conn, want, addr string) (command.Hello, error) {
	mine := t.greeting(want)
	if err := writeGreeting(c, c.purpose, mine); err != nil {
		return command.Hello{}, err
	}
	_, theirs, err := readGreeting(c)
	if err != nil {
		return command.Hello{}, err
	}
	c.remote, c.packs = theirs.Hello, theirs.Packs
	if err := t.faults.healed(ctx, theirs.Hello); err != nil {
		return command.Hello{}, err
	}
	name := want
	if name == "" {
		name = addr
	}
	apart := t.parted(&mine, &theirs)
	own := judge(mine.Hello, theirs.Hello, c.purpose)
	switch {
	case apart != nil:
		return command.Hello{}, &RefusedError{Peer: name, Err: apart}
	case want != "" && theirs.ID != want:
		return command.Hello{}, &RefusedError{Peer: name, Err: command.ErrWrongIdentity.With("%s was wanted, %s answered", want, theirs.ID)}
	case errors.Is(own, command.ErrStaleEpoch):
		return command.Hello{}, &RefusedError{Peer: name, Err: own}
	case len(theirs.Refusal) > 0:
		reason := command.DecodeError(theirs.Refusal)
		if t.cfg.Refused != nil {
			t.cfg.Refused(reason)
		}
		return command.Hello{}, &RefusedError{Peer: name, ByPeer: true, Err: reason}
	case own == nil:
		own = t.check(theirs.Hello)
	}
	if own != nil {
		return command.Hello{}, &RefusedError{Peer: name, Err: own}
	}
	return theirs.Hello, nil
}

// dialPeer connects to a node wherever it may be.
func (t *Transport) dialPeer(ctx context.Context, p purpose, id string) (*conn, error) {
	err := fmt.Errorf("no address of %s is known", id)
	for _, addr := range t.addresses(id) {
		var c *conn
		c, derr := t.dial(ctx, p, id, addr)
		if derr == nil {
			return c, nil
		}
		err = derr
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// lastSeen is what is known of whoever a dial will reach: enough to tell
// whether it is cut off.
func (t *Transport) lastSeen(id, addr string) command.Hello {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.peers[id]; ok && id != "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.hello
	}
	return t.seenAt[addr]
}

func writeGreeting(w io.Writer, p purpose, g greeting) error {
	body, err := json.Marshal(g)
	if err != nil {
		return err
	}
	b := make([]byte, 0, prefaceSize+len(body))
	b = append(b, magic...)
	b = append(b, protocolVersion, byte(p))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	_, err = w.Write(append(b, body...))
	return err
}

func readGreeting(r io.Reader) (purpose, greeting, error) {
	var g greeting
	var pre [prefaceSize]byte
	if _, err := io.ReadFull(r, pre[:]); err != nil {
		return 0, g, err
	}
	if string(pre[:len(magic)]) != magic {
		return 0, g, errors.New("not a Holdfast node")
	}
	rest := pre[len(magic):]
	if rest[0] != protocolVersion {
		return 0, g, fmt.Errorf("%w %d, this build version %d", errVersion, rest[0], protocolVersion)
	}
	n := binary.BigEndian.Uint32(rest[2:])
	if n > maxGreeting {
		return 0, g, fmt.Errorf("introduction of %d bytes is too long", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, g, err
	}
	if err := json.Unmarshal(body, &g); err != nil {
		return 0, g, fmt.Errorf("introduction cannot be read: %w", err)
	}
	return purpose(rest[1]), g, nil
}
