package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
)

// lockKillAfter is how long the command may take to end once the lock is lost.
const lockKillAfter = 5 * time.Second

// lockLost is the exit status when the lock was lost while the command ran, and
// lockHeld when somebody else has it and --try was given.
const (
	lockLost = 3
	lockHeld = 4
)

func newLock() *cobra.Command {
	var (
		conn  connectFlags
		opts  client.LockOptions
		delay time.Duration
	)
	cmd := &cobra.Command{
		Use:   "lock KEY -- COMMAND [ARG]...",
		Short: "Run a command while holding a lock",
		Long: `Wait for the lock of KEY, run COMMAND while holding it, and give it back. If the
lock is lost meanwhile the command gets SIGTERM and, 5 seconds later, SIGKILL.

COMMAND finds HOLDFAST_LOCK_KEY, HOLDFAST_LOCK_SESSION and HOLDFAST_LOCK_FENCE in its
environment. The last goes up with each holder: what the lock guards can refuse who
comes with a lower one than it has seen.

Exit status: that of COMMAND; 128 and the signal's number when a signal ended it; 3
when the lock was lost; 4 with --try when somebody else has it; 1 on other failures.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); at != 1 || len(args) < 2 {
				return refuse("write: "+cmd.UseLine(), "%s needs a key, --, and a command", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.TTL < 0 || delay < 0 {
				return refuse("give a duration such as 15s", "--ttl and --lock-delay must not be negative")
			}
			if cmd.Flags().Changed("lock-delay") {
				opts.LockDelay = &delay
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			host, _ := os.Hostname()
			opts.Name = fmt.Sprintf("holdfast lock by pid %d at %s", os.Getpid(), host)
			l, err := c.Lock(cmd.Context(), args[0], opts)
			if errors.Is(err, client.ErrLockHeld) {
				return withStatus(lockHeld, refuse("try again later, or leave --try away to wait", "the lock of %s is held by somebody else", args[0]))
			}
			if err != nil {
				return err
			}
			return runLocked(cmd, l, args[1:])
		},
	}
	conn.add(cmd)
	cmd.Flags().DurationVar(&opts.TTL, "ttl", 15*time.Second, "how long, at least, nobody else gets the lock after this process has died")
	cmd.Flags().DurationVar(&delay, "lock-delay", 15*time.Second, "how long nobody gets the lock after it was lost")
	cmd.Flags().BoolVar(&opts.Try, "try", false, "do not wait when somebody else has the lock")
	return cmd
}

// runLocked runs a command under a lock, and gives the lock back.
func runLocked(cmd *cobra.Command, l *client.Lock, line []string) error {
	child := exec.CommandContext(l.Context(), line[0], line[1:]...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	child.Env = append(os.Environ(),
		"HOLDFAST_LOCK_KEY="+l.Key, "HOLDFAST_LOCK_SESSION="+l.Session, fmt.Sprint("HOLDFAST_LOCK_FENCE=", l.Fence))
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = lockKillAfter
	err := child.Start()
	if err == nil {
		// Who interrupts this process means the command.
		stop := context.AfterFunc(cmd.Context(), func() { _ = child.Process.Signal(syscall.SIGTERM) })
		err = child.Wait()
		stop()
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 10*time.Second)
	defer cancel()
	uerr := l.Unlock(bounded)
	var ended *exec.ExitError
	switch {
	case errors.Is(uerr, client.ErrLockLost):
		return withStatus(lockLost, refuse("what it did may not have been alone: check it", "the lock of %s was lost while the command ran", l.Key))
	case errors.As(err, &ended):
		status := ended.ExitCode()
		if s, ok := ended.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			status = 128 + int(s.Signal())
		}
		return withStatus(status, refuse("see what it printed", "%s ended with status %d", line[0], status))
	case err != nil:
		return refuse("check the name of the command", "the command cannot be run: %w", err)
	case uerr != nil:
		return fmt.Errorf("the command is done, but the lock is not given back and ends by itself: %w", uerr)
	}
	return nil
}
