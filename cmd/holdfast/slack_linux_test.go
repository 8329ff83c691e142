package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// showsSlack makes this test binary a node that says how much slack its threads have,
// and its process id.
const showsSlack = "TEST_SHOWS_SLACK"

func init() { acts[showsSlack] = showSlack }

func showSlack(slack string) error {
	d, err := time.ParseDuration(slack)
	if err != nil {
		return err
	}
	for range 100 { // what may bring a goroutine to another thread
		woken := make(chan struct{})
		go func() { runtime.Gosched(); close(woken) }()
		<-woken
	}
	return relaxed(func(context.Context, agentConfig) error {
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
		fmt.Println(timerSlack(), os.Getpid())
		_, _ = io.Copy(io.Discard, os.Stdin)
		return nil
	})(context.Background(), agentConfig{TimerSlack: d})
}

func TestAllThreadsOfANodeHaveItsTimerSlack(t *testing.T) {
	usual := fmt.Sprint(timerSlack())
	for slack, want := range map[string]string{"0": usual, "3ms": "3000000"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), showsSlack+"="+slack)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said, err := bufio.NewReader(out).ReadString('\n')
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		words := strings.Fields(said)
		if err != nil || len(words) < 2 || words[len(words)-1] != fmt.Sprint(cmd.Process.Pid) {
			t.Fatalf("--timer-slack %s: process %d became %q, %v", slack, cmd.Process.Pid, said, err)
		}
		for _, got := range words[:len(words)-1] {
			if got != want {
				t.Errorf("--timer-slack %s: slack of its threads in ns, and its process: %s", slack, said)
				break
			}
		}
	}
}

// Supervisors, dev and the tests among them, have the kernel end their nodes with them.
func TestANodeThatHasSetItsTimerSlackStillEndsWithItsParent(t *testing.T) {
	in, keep, err := os.Pipe() // held open by this process: its end is not what ends the node
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = in.Close(), keep.Close() }()
	var out io.ReadCloser
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), showsSlack+"=3ms")
	cmd.Stdin = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	end, started := make(chan struct{}), make(chan error)
	go func() { // on a thread that ends with it: that is the parent which the kernel means
		runtime.LockOSThread()
		started <- cmd.Start()
		<-end
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if said, err := r.ReadString('\n'); err != nil || !strings.Contains(said, "3000000") {
		t.Fatalf("the node says %q, %v", said, err)
	}
	close(end)
	time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() }) // or the test would wait for ever
	began := time.Now()
	_, _ = io.Copy(io.Discard, r)
	if _ = cmd.Wait(); time.Since(began) > 19*time.Second {
		t.Error("it went on without its parent")
	}
}
