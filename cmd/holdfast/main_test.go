package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// fakeAgents makes this test binary act as the program, with agents that only
// look like nodes.
const fakeAgents = "TEST_FAKE_AGENTS"

// acts are what else this test binary does instead of running tests, by the variable that
// asks for it, with its value.
var acts = map[string]func(value string) error{}

func TestMain(m *testing.M) {
	if os.Getenv(fakeAgents) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		os.Exit(execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, fakeAgent))
	}
	for name, act := range acts {
		if value := os.Getenv(name); value != "" {
			if err := act(value); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	// Settings of whoever runs the tests are not part of them.
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, envPrefix+"_") {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// fakeAgent serves what the supervisor looks at. The file "leader" beside the
// data directories names the leader, n1 without it; the file "<node>.fails"
// makes a node fail at its start.
func fakeAgent(ctx context.Context, cfg agentConfig) error {
	beside := filepath.Dir(cfg.DataDir)
	if b, err := os.ReadFile(filepath.Join(beside, cfg.Node+".fails")); err == nil {
		return errors.New(string(b))
	}
	var cut atomic.Bool
	fault, err := serveFaultSwitch(cfg.FaultSwitch, func(tokens []string) { cut.Store(slices.Contains(tokens, cfg.Site)) })
	if err != nil {
		return err
	}
	defer func() { _ = fault.Close() }()
	l, err := net.Listen("tcp", cfg.HTTP)
	if err != nil {
		return err
	}
	status := func() command.ReplicaStatus {
		s := command.ReplicaStatus{Running: true, Mode: string(cfg.Role), Status: "level"}
		if cut.Load() {
			s.Status = "cut-off"
		}
		leader := "n1"
		if b, err := os.ReadFile(filepath.Join(beside, "leader")); err == nil {
			leader = string(b)
		}
		if leader == cfg.Node {
			s.Mode = "leader"
		}
		return s
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/replica/status" {
			_ = json.NewEncoder(w).Encode(status())
		}
	})}
	go func() { _ = srv.Serve(l) }()
	<-ctx.Done()
	_, _ = fmt.Fprintln(os.Stderr, "stopped:", context.Cause(ctx))
	return srv.Close()
}

// ran is what one command line did.
type ran struct {
	status   int
	out, err string
}

// cli runs one command line in this process.
func cli(t *testing.T, stdin string, args ...string) ran {
	t.Helper()
	return cliWith(t, func(context.Context, agentConfig) error { return nil }, stdin, args...)
}

func cliWith(t *testing.T, run runner, stdin string, args ...string) ran {
	t.Helper()
	var out, errs bytes.Buffer
	status := execute(t.Context(), args, strings.NewReader(stdin), &out, &errs, run)
	return ran{status: status, out: out.String(), err: errs.String()}
}

// refusal checks that a run failed with exactly one line that has all parts.
func (r ran) refusal(t *testing.T, parts ...string) {
	t.Helper()
	if r.status != 1 || r.out != "" {
		t.Errorf("status %d, output %q, errors %q", r.status, r.out, r.err)
	}
	line, rest, _ := strings.Cut(r.err, "\n")
	if !strings.HasPrefix(line, "holdfast: ") || !strings.Contains(line, "; ") || rest != "" {
		t.Errorf("not one line with cause and remedy: %q", r.err)
	}
	for _, p := range parts {
		if !strings.Contains(line, p) {
			t.Errorf("%q is not in %q", p, line)
		}
	}
}

// success checks that a run succeeded with exactly this output.
func (r ran) success(t *testing.T, want string) {
	t.Helper()
	if r.status != 0 || r.out != want || r.err != "" {
		t.Errorf("status %d, errors %q, output:\n%s\nwant:\n%s", r.status, r.err, r.out, want)
	}
}

// eventually waits for something that must come true soon.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestUnknownWordsAreRefusedWithTheNearestOne(t *testing.T) {
	for args, parts := range map[string][]string{
		"agnet":                         {`no command "agnet"`, "did you mean agent?"},
		"frobnicate":                    {`no command "frobnicate"`, "holdfast --help"},
		"kv gett k":                     {`holdfast kv has no command "gett"`, "did you mean get?"},
		"dev ctu east":                  {"did you mean cut?"},
		"kv get k --stal":               {"no flag --stal", "did you mean --stale?"},
		"kv get k -q":                   {"no flag -q"},
		"kv get":                        {"needs 1 argument, got 0", "holdfast kv get KEY"},
		"kv get a b":                    {"takes 1 argument, got 2"},
		"kv put a":                      {"needs 2 arguments, got 1"},
		"version x":                     {"takes no argument, got 1"},
		"kv put a b --cas x":            {`--cas="x"`, "whole number"},
		"kv get a --max-stale 5":        {`--max-stale="5"`, "a duration such as 5s"},
		"kv get a --max-stale":          {"--max-stale has no value"},
		"kv get a --max-stale -1s":      {"--max-stale"},
		"kv get a --stale --consistent": {"--consistent contradicts --stale"},
		"kv get a --raw --json":         {"--raw"},
		"kv delete a --recurse --cas 1": {"--cas"},
		"kv get a --http-addr ftp://x":  {"ftp://x", "--http-addr"},
		"kv get /a":                     {"begins with a slash", "; "},
	} {
		t.Run(args, func(t *testing.T) { cli(t, "", strings.Fields(args)...).refusal(t, parts...) })
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	for _, args := range [][]string{{}, {"kv"}, {"--help"}, {"agent", "--help"}, {"dev", "--help"}, {"kv", "import", "-h"}} {
		if r := cli(t, "", args...); r.status != 0 || r.err != "" || !strings.Contains(r.out, "Usage:") {
			t.Errorf("%q: status %d, errors %q, output %q", args, r.status, r.err, r.out)
		}
	}
}

func TestVersion(t *testing.T) {
	if r := cli(t, "", "version"); r.status != 0 || !strings.HasPrefix(r.out, "holdfast "+version) {
		t.Errorf("%+v", r)
	}
	var v versionReport
	if r := cli(t, "", "version", "--json"); json.Unmarshal([]byte(r.out), &v) != nil || v.Version != version || v.Go == "" {
		t.Errorf("%+v", r)
	}
}

func TestErrorsBecomeOneLine(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("disk\nis\n full"), "disk is full"},
		{fmt.Errorf("join: %w", command.ErrNameInUse.With("n1")), "join: node name is in use: n1; choose another --node"},
		{errors.New("port is taken; choose another"), "port is taken; choose another"},
		{fmt.Errorf("start: %w", refuse("mend it", "it is %s", "broken")), "start: it is broken; mend it"},
		{context.Canceled, "interrupted"},
	} {
		if got := explain(c.err); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}
