// Command holdfast is the whole of Holdfast: the server (agent), a cluster of
// five on one machine to try it on (dev), and the command line.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup does
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	// The first signal asks for a clean end, the second one enforces it.
	context.AfterFunc(ctx, stop)
	os.Exit(execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, relaxed(runAgent)))
}

// runner is what turns a checked configuration into a running node, until ctx
// ends. It returns nil after a clean stop.
type runner func(ctx context.Context, cfg agentConfig) error

// execute runs one command line and returns its exit status. A failure is one
// line on stderr that names the cause and the remedy.
func execute(ctx context.Context, args []string, in io.Reader, out, errs io.Writer, run runner) int {
	root := newRoot(run)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	if err := root.ExecuteContext(ctx); err != nil {
		_, _ = fmt.Fprintln(errs, "holdfast:", explain(err))
		return exitStatus(err)
	}
	return 0
}
