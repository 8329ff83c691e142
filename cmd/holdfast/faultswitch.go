package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// switchOrder is the one thing a fault switch can be told: whom to be cut off
// from, as tokens of transport.SetCut: "east" cuts a site, "node:n1" a node. It
// replaces what was said before; an empty list heals everything.
type switchOrder struct {
	Cut []string `json:"cut"`
}

type switchAnswer struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// initialCut is the file beside the socket that holds the order in force when
// a node starts, so that one which is cut off stays so from its first packet.
// Whoever works the switch writes it; the node only reads it.
func initialCut(socket string) string { return socket + ".cut" }

// serveFaultSwitch listens at a unix socket for orders, one JSON object per
// line, each answered by one line, and passes them to setCut, one at a time.
// It has called setCut with the initial order, if there is one, when it
// returns: the transport is to be served only after that.
//
// Close ends the connections, removes the socket, and returns when no call of
// setCut runs any more.
func serveFaultSwitch(path string, setCut func([]string)) (io.Closer, error) {
	if err := removeDeadSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, refuse("choose another --fault-switch", "fault switch %s cannot be served: %w", path, err)
	}
	s := &faultSwitch{l: l, setCut: setCut, conns: map[net.Conn]struct{}{}}
	// The file is read after the socket is there: an order given from now on
	// either is in the file already, or comes through the socket.
	switch b, err := os.ReadFile(initialCut(path)); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		_ = l.Close()
		return nil, fmt.Errorf("read the initial order of the fault switch: %w", err)
	default:
		if a := s.obey(b); !a.OK {
			_ = l.Close()
			return nil, refuse("remove the file", "%s holds no order: %s", initialCut(path), a.Error)
		}
	}
	s.running.Go(s.accept)
	return s, nil
}

type faultSwitch struct {
	l       net.Listener
	running sync.WaitGroup // accept and one goroutine per connection

	mu     sync.Mutex // guards all below and the calls of setCut
	setCut func([]string)
	conns  map[net.Conn]struct{}
	closed bool
}

func (s *faultSwitch) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.running.Go(func() { s.serve(c) })
		s.mu.Unlock()
	}
}

func (s *faultSwitch) serve(c net.Conn) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if json.NewEncoder(c).Encode(s.obey(lines.Bytes())) != nil {
			return
		}
	}
}

func (s *faultSwitch) obey(line []byte) switchAnswer {
	var order struct {
		Cut *[]string `json:"cut"`
	}
	if err := json.Unmarshal(line, &order); err != nil {
		return switchAnswer{Error: err.Error()}
	}
	if order.Cut == nil {
		return switchAnswer{Error: `no "cut" in it`}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setCut(*order.Cut)
	return switchAnswer{OK: true}
}

// Close implements io.Closer.
func (s *faultSwitch) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	err := s.l.Close()
	s.running.Wait()
	return err
}

// removeDeadSocket removes what a killed process left at the path, and refuses
// if something lives there.
func removeDeadSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return refuse("choose another path", "%s exists and is not a socket", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return refuse("stop that process, or choose another path", "another process serves socket %s", path)
	}
	return os.Remove(path)
}

// throwSwitch sends one order to the fault switch at path.
func throwSwitch(path string, cut []string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if cut == nil {
		cut = []string{}
	}
	if err := json.NewEncoder(c).Encode(switchOrder{Cut: cut}); err != nil {
		return err
	}
	var a switchAnswer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return err
	}
	if !a.OK {
		return errors.New(a.Error)
	}
	return nil
}
