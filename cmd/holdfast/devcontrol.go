package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/problem"
)

// devRequest is what a dev subcommand asks of the supervisor: one JSON line,
// answered by one.
type devRequest struct {
	Do   string `json:"do"` // cut, heal, kill, start, status
	What string `json:"what,omitempty"`
}

// devReply is the answer.
type devReply struct {
	Text   string         `json:"text,omitempty"`
	Nodes  []devNodeState `json:"nodes,omitempty"`
	Cause  string         `json:"cause,omitempty"` // set on refusal
	Remedy string         `json:"remedy,omitempty"`
}

// devNodeState is a node as the table shows it.
type devNodeState struct {
	Name  string
	Site  string
	Role  command.Role
	State string
	URL   string
	HTTP  string
	Raft  string
	PID   int // 0 when it does not run
	Cut   bool
	Log   string
}

func controlSocket(dir string) string { return filepath.Join(dir, "control.sock") }

// replyTimeout is more than any order takes.
const replyTimeout = time.Minute

// tellSupervisor sends one request to the supervisor of the cluster in dir.
func tellSupervisor(dir string, r devRequest) (devReply, error) {
	abs, err := devDir(dir)
	if err != nil {
		return devReply{}, err
	}
	c, err := net.DialTimeout("unix", controlSocket(abs), 2*time.Second)
	if err != nil {
		return devReply{}, refuse("start one with holdfast dev, or name its --dir", "no dev cluster runs in %s", abs)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return devReply{}, err
	}
	if err := json.NewEncoder(c).Encode(r); err != nil {
		return devReply{}, fmt.Errorf("ask the dev cluster: %w", err)
	}
	var reply devReply
	if err := json.NewDecoder(c).Decode(&reply); err != nil {
		return devReply{}, fmt.Errorf("the dev cluster in %s did not answer: %w", abs, err)
	}
	if reply.Cause != "" {
		return reply, refuse(reply.Remedy, "%s", reply.Cause)
	}
	return reply, nil
}

// controlServer answers requests at the control socket.
type controlServer struct {
	l       net.Listener
	running sync.WaitGroup
}

// serveControl answers every request with what do returns, until close.
func serveControl(path string, do func(devRequest) (devReply, error)) (*controlServer, error) {
	if err := removeDeadSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, refuse("choose another --dir", "socket %s cannot be served: %w", path, err)
	}
	s := &controlServer{l: l}
	s.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			s.running.Go(func() { answerControl(c, do) })
		}
	})
	return s, nil
}

func answerControl(c net.Conn, do func(devRequest) (devReply, error)) {
	defer func() { _ = c.Close() }()
	// A request comes at once; how long its answer takes is for do to bound.
	if c.SetReadDeadline(time.Now().Add(2*time.Second)) != nil {
		return
	}
	var r devRequest
	if json.NewDecoder(bufio.NewReader(c)).Decode(&r) != nil {
		return
	}
	reply, err := do(r)
	if err != nil {
		reply = devReply{Cause: err.Error()}
		var p *problem.Problem
		if errors.As(err, &p) {
			reply.Cause, reply.Remedy = p.Cause, p.Remedy
		}
	}
	_ = json.NewEncoder(c).Encode(reply)
}

// close returns when all requests are answered.
func (s *controlServer) close() {
	_ = s.l.Close()
	s.running.Wait()
}
