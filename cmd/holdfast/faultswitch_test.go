package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheFaultSwitchObeysLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	var orders []string
	s, err := serveFaultSwitch(path, func(tokens []string) { orders = append(orders, strings.Join(tokens, "+")) })
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewScanner(c)
	for _, exchange := range [][2]string{
		{`{"cut":["east"]}`, `{"ok":true}`},
		{`{"cut":["east","node:n1"]}`, `{"ok":true}`},
		{`{"cut":[]}`, `{"ok":true}`},
		{`{"cut":"east"}`, `"ok":false`},
		{`{}`, `"ok":false`},
		{`nonsense`, `"ok":false`},
	} {
		if _, err := fmt.Fprintln(c, exchange[0]); err != nil {
			t.Fatal(err)
		}
		if !answers.Scan() || !strings.Contains(answers.Text(), exchange[1]) {
			t.Errorf("%s was answered %s", exchange[0], answers.Text())
		}
	}
	if err := s.Close(); err != nil { // with a connection open
		t.Error(err)
	}
	if got := strings.Join(orders, ","); got != "east,east+node:n1," {
		t.Errorf("orders %q", got)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestTheFaultSwitchBeginsWithTheInitialOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	if err := os.WriteFile(initialCut(path), []byte(`{"cut":["west"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	s, err := serveFaultSwitch(path, func(tokens []string) { got = tokens })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if len(got) != 1 || got[0] != "west" {
		t.Errorf("on return it was %q", got)
	}
}

func TestTheFaultSwitchReplacesADeadSocketOnly(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	s, err := serveFaultSwitch(dead, func([]string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := serveFaultSwitch(dead, func([]string) {}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a living socket was replaced: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := serveFaultSwitch(file, func([]string) {}); err == nil {
		t.Error("a file was replaced")
	}
}
