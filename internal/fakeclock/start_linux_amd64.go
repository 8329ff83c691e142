package fakeclock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// start starts a command, stops it when it has become the program at path, gives that to
// own, and lets it go. It has ended when there is an error.
func start(cmd *exec.Cmd, path string, own func(program) error) error {
	runtime.LockOSThread() // the tracer of a process is a thread
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Ptrace = true
	if err := cmd.Start(); err != nil {
		return err
	}
	err := adopt(cmd.Process.Pid, path, own)
	if err != nil {
		err = fmt.Errorf("give %s a clock: %w", path, err)
		cmd.Process.Kill()
		cmd.Wait()
	}
	return err
}

func adopt(pid int, path string, own func(program) error) error {
	program, err := os.Stat(path)
	if err != nil {
		return err
	}
	// The first stop is at the end of the command's own execve.
	for first := true; ; first = false {
		status, err := wait(pid)
		if err != nil {
			return err
		}
		if !status.Stopped() {
			return errors.New("it ended before it had begun")
		}
		signal := 0
		switch {
		case first:
			err = unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACEEXEC)
		case status.TrapCause() != unix.PTRACE_EVENT_EXEC:
			signal = int(status.StopSignal())
		}
		if err != nil {
			return err
		}
		if signal == 0 {
			runs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
			if err != nil {
				return err
			}
			if os.SameFile(runs, program) {
				break
			}
		}
		if err := unix.PtraceCont(pid, signal); err != nil {
			return err
		}
	}
	m, err := replace(pid)
	if err != nil {
		return err
	}
	if err := own(m); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

func wait(pid int) (status unix.WaitStatus, err error) {
	for {
		if _, err = unix.Wait4(pid, &status, unix.WALL, nil); err != unix.EINTR {
			return status, err
		}
	}
}

// awaitStop waits until all threads of a child have stopped.
func awaitStop(pid int) error {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != unix.EINTR {
			return err
		}
	}
}

// Possible says why programs cannot be given clocks here; nil when they can.
var Possible = sync.OnceValue(func() (err error) {
	c := &Clock{}
	defer c.close()
	p, err := c.teller()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	c.Jump(24 * time.Hour)
	seen, err := p.ask()
	if err != nil {
		return err
	}
	if time.Until(seen.wall).Round(time.Hour) != 24*time.Hour {
		return errors.New("a program does not see it")
	}
	return nil
})

// teller is a process that tells what its clocks show: this program, started with
// tellArg as its only argument.
type teller struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
}

const tellArg = "holdfast-test-fakeclock"

// seen is what clocks show.
type seen struct {
	wall         time.Time
	steady, boot time.Duration // since the process began, by Go's clock and by CLOCK_BOOTTIME
}

// teller starts one, by the words of a command that becomes what stands behind them.
func (c *Clock) teller(by ...string) (*teller, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	words := append(by, self, tellArg)
	p := &teller{cmd: exec.Command(words[0], words[1:]...)}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.answers = bufio.NewReader(out)
	return p, c.Start(p.cmd, self)
}

func (p *teller) ask() (s seen, err error) {
	if _, err := fmt.Fprintln(p.in); err != nil {
		return s, err
	}
	line, err := p.answers.ReadString('\n')
	if err != nil {
		return s, err
	}
	var wall int64
	_, err = fmt.Sscan(line, &wall, (*int64)(&s.steady), (*int64)(&s.boot))
	s.wall = time.Unix(0, wall)
	return s, err
}

func (p *teller) end() error {
	p.in.Close()
	return p.cmd.Wait()
}

func init() {
	if len(os.Args) != 2 || os.Args[1] != tellArg {
		return
	}
	steady, boot := time.Now(), bootTime()
	for asked := bufio.NewScanner(os.Stdin); asked.Scan(); {
		now := time.Now()
		fmt.Println(now.UnixNano(), int64(now.Sub(steady)), int64(bootTime()-boot))
	}
	os.Exit(0)
}

func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}
