package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// showsSlack makes this test binary a node that says how much slack its threads have,
// and its process id.
const showsSlack = "TEST_SHOWS_SLACK"

func init() {
	if os.Getenv(showsSlack) == "" {
		return
	}
	slack, err := time.ParseDuration(os.Getenv(showsSlack))
	if err != nil {
		panic(err)
	}
	_ = relaxed(func(context.Context, agentConfig) error {
		// The thread that matters is out of reach, but of the same origin as those
		// that began before this code.
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, thread := range threads {
			if b, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns"); err == nil {
				fmt.Print(strings.TrimSpace(string(b)), " ")
			}
		}
		runtime.LockOSThread()
		fmt.Println(timerSlack(), os.Getpid())
		return nil
	})(context.Background(), agentConfig{TimerSlack: slack})
	os.Exit(0)
}

func TestAllThreadsOfANodeHaveItsTimerSlack(t *testing.T) {
	usual := fmt.Sprint(timerSlack())
	for slack, want := range map[string]string{"0": usual, "3ms": "3000000"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), showsSlack+"="+slack)
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		words := strings.Fields(said.String())
		if len(words) < 2 || words[len(words)-1] != fmt.Sprint(cmd.Process.Pid) {
			t.Fatalf("--timer-slack %s: process %d became %q", slack, cmd.Process.Pid, said.String())
		}
		for _, got := range words[:len(words)-1] {
			if got != want {
				t.Errorf("--timer-slack %s: slack of its threads in ns, and its process: %s", slack, said.String())
				break
			}
		}
	}
}
