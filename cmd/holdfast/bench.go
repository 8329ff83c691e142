package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/internal/bench"
)

func newBench() *cobra.Command {
	var (
		conn      connectFlags
		cfg       bench.Config
		mix       string
		valueSize byteSize = 256
	)
	target, distribution, watchBy := string(bench.Holdfast), string(bench.Uniform), ""
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Put a load on a cluster and measure it",
		Long: `Put a load on a cluster and print how many requests it answers and how long they take.
The connections are spread over all of --http-addr; no other node is asked instead of one that fails.

Without --rate each connection sends its next request when it has the answer to the one before.
With it requests are due at fixed moments, and each latency counts from the moment the request
was due: a stall counts for all requests that were due meanwhile.

--mix names what is asked, with weights: put; get, a read that names no mode; stale; consistent;
and txn, a transaction that sets --txn-ops keys. With --watchers, clients wait for changes of a key
each, and the row "watch" is how long after the acknowledgement of a write they were told of it.

The keys begin with --prefix. They are all written once before the load begins, and stay;
holdfast kv delete --recurse bench/ removes them. Do not run it against data you care about.

--target drives Consul, etcd and rqlite by their own HTTP APIs with the same loads.`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := cmd.Flags()
			if flags.Changed("count") && flags.Changed("duration") {
				return refuse("drop one of them", "--count and --duration both say when to end")
			}
			if flags.Changed("count") && cfg.Count == 0 {
				return refuse("give 1 or more", "--count 0 measures nothing")
			}
			if flags.Changed("rate") && cfg.Rate == 0 {
				return refuse("give requests per second, or leave it out for as many as the servers answer", "--rate 0 asks for nothing")
			}
			if !slices.Contains(bench.Targets(), target) {
				return unknownName("--target", target, bench.Targets())
			}
			if !slices.Contains(bench.Distributions(), distribution) {
				return unknownName("--distribution", distribution, bench.Distributions())
			}
			var err error
			if cfg.Mix, err = parseMix(mix); err != nil {
				return err
			}
			cfg.Target, cfg.Distribution, cfg.WatchBy = bench.Target(target), bench.Distribution(distribution), bench.WatchBy(watchBy)
			cfg.Addresses, cfg.Token, cfg.ValueSize = conn.addresses, conn.token, int(valueSize)
			if !flags.Changed("http-addr") {
				cfg.Addresses = []string{cfg.Target.DefaultAddress()}
			}
			if w := cmd.ErrOrStderr(); isTerminal(w) {
				cfg.Progress = func(m bench.Moment) { _, _ = fmt.Fprintln(w, momentLine(m)) }
			}
			res, err := bench.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if conn.json {
				err = writeJSON(cmd.OutOrStdout(), res)
			} else {
				err = printBench(cmd.OutOrStdout(), res)
			}
			if err == nil && !slices.ContainsFunc(res.Operations, func(o bench.Operation) bool { return o.Count > 0 }) && !res.Interrupted {
				err = refuse("see what went wrong above", "no request was carried out")
			}
			return err
		},
	}
	conn.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&target, "target", target, "what is driven: "+strings.Join(bench.Targets(), ", "))
	fs.StringVar(&mix, "mix", "put", "what is asked, such as put=10,get=90, of "+strings.Join(bench.OpNames(), ", "))
	fs.IntVar(&cfg.TxnOps, "txn-ops", 4, "how many keys a transaction sets")
	fs.IntVar(&cfg.Connections, "connections", 64, "connections, each with one request under way at a time")
	fs.Float64Var(&cfg.Rate, "rate", 0, "requests per second of all connections, due at fixed moments")
	fs.DurationVar(&cfg.Duration, "duration", 10*time.Second, "how long it is measured")
	fs.IntVar(&cfg.Count, "count", 0, "measure so many requests instead")
	fs.DurationVar(&cfg.WarmUp, "warm-up", time.Second, "how long there is load before it is measured")
	fs.IntVar(&cfg.Keys, "keys", 10_000, "how many keys there are")
	fs.StringVar(&cfg.Prefix, "prefix", "bench/", "what all keys begin with")
	fs.StringVar(&distribution, "distribution", distribution, "how keys are chosen: "+strings.Join(bench.Distributions(), ", "))
	fs.Var(&valueSize, "value-size", "size of a value")
	fs.BoolVar(&cfg.Fill, "fill", true, "write every key once before the load begins")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "fixes which requests each connection makes, in which order")
	fs.DurationVar(&cfg.Timeout, "timeout", 10*time.Second, "how long a request may take")
	fs.IntVar(&cfg.Watchers, "watchers", 0, "clients that wait for changes, each of one key, the most popular first")
	fs.StringVar(&watchBy, "watch-by", "", "how: stream or query (default: stream where the target has it)")
	fs.StringSliceVar(&cfg.CPUOf, "cpu-of", nil, "servers whose processor time counts (default: all of --http-addr)")
	return cmd
}

func unknownName(flag, got string, known []string) error {
	return refuse(didYouMean(got, known, "", "give one of "+strings.Join(known, ", ")), "%s %q is not known", flag, got)
}

// parseMix reads kinds of requests with their weights; a kind alone has the weight 1.
func parseMix(text string) (bench.Mix, error) {
	mix := bench.Mix{}
	for part := range strings.SplitSeq(text, ",") {
		name, weight, weighed := strings.Cut(strings.TrimSpace(part), "=")
		op, known := bench.OpNamed(name)
		if !known {
			return nil, unknownName("--mix: the request", name, bench.OpNames())
		}
		if _, twice := mix[op]; twice {
			return nil, refuse("give one weight", "--mix names %s twice", name)
		}
		mix[op] = 1
		if weighed {
			n, err := strconv.ParseUint(weight, 10, 16)
			if err != nil {
				return nil, refuse("give a whole number from 0 to 65535, as in put=10,get=90", "--mix: the weight %q of %s is not understood", weight, name)
			}
			mix[op] = int(n)
		}
	}
	return mix, nil
}

// momentLine says how a run is going.
func momentLine(m bench.Moment) string {
	line := fmt.Sprintf("%4.0fs  %9s/s  p50 %s ms  p99 %s ms", m.Elapsed.Seconds(), count(uint64(m.PerSecond)),
		latency(m.P50.Seconds()*1000), latency(m.P99.Seconds()*1000))
	if m.Errors > 0 {
		line += "  " + plural(uint64(m.Errors), "error")
	}
	if m.WarmingUp {
		line += "  (warm-up)"
	}
	return line
}

// latency prints milliseconds with three digits.
func latency(ms float64) string {
	switch {
	case ms < 9.995:
		return fmt.Sprintf("%.2f", ms)
	case ms < 99.95:
		return fmt.Sprintf("%.1f", ms)
	default:
		return fmt.Sprintf("%.0f", ms)
	}
}

// printBench prints a result for people.
func printBench(w io.Writer, res *bench.Result) error {
	loop := "closed loop"
	if res.Rate > 0 {
		loop = fmt.Sprintf("%g requests due per second", res.Rate)
	}
	interrupted := ""
	if res.Interrupted {
		interrupted = " (interrupted)"
	}
	if _, err := fmt.Fprintf(w, "%s at %s\n%s, %s, %.1fs measured%s; %s (%s), values of %s, seed %d\n\n",
		res.Target, strings.Join(res.Addresses, ", "), plural(res.Connections, "connection"), loop, res.Seconds, interrupted,
		plural(res.Keys, "key"), res.Distribution, size(uint64(res.ValueSize)), res.Seed); err != nil {
		return err
	}
	rows := [][]string{{"REQUEST", "PER SECOND", "COUNT", "MEAN MS", "P50", "P90", "P99", "P99.9", "MAX", "ERRORS", "OUTCOME UNKNOWN"}}
	troubles := [][]string{{"REQUEST", "ERROR", "COUNT"}}
	for _, o := range res.Operations {
		var failed int64
		for _, trouble := range slices.Sorted(maps.Keys(o.Errors)) {
			failed += o.Errors[trouble]
			if o.Name != bench.AllRow {
				troubles = append(troubles, []string{o.Name, trouble, count(uint64(o.Errors[trouble]))})
			}
		}
		ms := o.Milliseconds
		rows = append(rows, []string{
			o.Name, count(uint64(o.PerSecond)), count(uint64(o.Count)),
			latency(ms.Mean), latency(ms.P50), latency(ms.P90), latency(ms.P99), latency(ms.P999), latency(ms.Max),
			count(uint64(failed)), count(uint64(o.OutcomeUnknown)),
		})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if len(troubles) > 1 {
		_, _ = fmt.Fprintln(w)
		if err := table(w, troubles); err != nil {
			return err
		}
	}
	if res.Unsent > 0 {
		if _, err := fmt.Fprintf(w, "\n%s were due and not sent, since all connections were busy; no latency has them\n", plural(uint64(res.Unsent), "request")); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\nprocessor time per request: %s, this client %s\n", processorTime("servers", res.Server), processorTime("", res.Client))
	return err
}

// processorTime says what a request cost.
func processorTime(whose string, c bench.CPU) string {
	text := "not known"
	if c.MicrosecondsPerOperation != nil {
		text = fmt.Sprintf("%.1f µs", *c.MicrosecondsPerOperation)
	} else if len(c.Problems) > 0 {
		text += " (" + strings.Join(c.Problems, "; ") + ")"
	}
	return strings.TrimSpace(whose + " " + text)
}
