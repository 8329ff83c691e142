package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// spawner starts processes, all from one operating system thread that lives as
// long as the spawner: Linux takes the death of the thread that started a
// child for the death of its parent.
type spawner struct {
	work chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func()), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer close(s.done)
		defer runtime.UnlockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

// close ends the thread. All children have ended before.
func (s *spawner) close() {
	close(s.work)
	<-s.done
}

// process is one run of a child.
type process struct {
	pid   int
	cmd   *exec.Cmd
	stdin io.Closer // its other end is the child's sign that we live
	log   string
	done  chan struct{} // closed when the process has ended
	err   error         // of Wait, once done is closed
}

// spawn starts binary with its output appended to the file log. ended is called
// on a goroutine of its own after the process ended.
func (s *spawner) spawn(binary string, args, env []string, log string, ended func(*process)) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fileProblem(log, err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(binary, args...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = childAttributes()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	s.work <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, refuse("check the program file", "%s cannot be started: %w", binary, err)
	}
	p := &process{pid: cmd.Process.Pid, cmd: cmd, stdin: stdin, log: log, done: make(chan struct{})}
	go func() { // ends with the process
		p.err = cmd.Wait()
		close(p.done)
		ended(p)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends a signal; a process that has ended already is no error.
func (p *process) signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// end says how the process ended, with its last words if it failed by itself.
func (p *process) end() string {
	var exit *exec.ExitError
	switch {
	case p.err == nil:
		return "ended with status 0"
	case errors.As(p.err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return "was ended by signal " + ws.Signal().String()
		}
		if words := lastWords(p.log); words != "" {
			return "ended: " + words
		}
		return "ended with " + exit.String()
	default:
		return "ended: " + p.err.Error()
	}
}

// lastWords finds the line with which an agent reported its failure: the last
// one of its log that has our form.
func lastWords(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const tail = 16 << 10
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	words := ""
	for line := range strings.Lines(string(b)) {
		if w, ok := strings.CutPrefix(line, "holdfast: "); ok {
			words = strings.TrimSpace(w)
		}
	}
	return words
}
