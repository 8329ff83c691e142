package main

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/bench"
)

func TestBenchRefusesWhatMakesNoSense(t *testing.T) {
	for args, parts := range map[string][]string{
		"--mix put=10,gt=90":          {`"gt" is not known`, "did you mean get?"},
		"--mix put=10,frobnicate":     {`"frobnicate" is not known`, "give one of put, get, stale, consistent, txn"},
		"--mix put=x":                 {`the weight "x" of put`, "put=10,get=90"},
		"--mix put=-1":                {`the weight "-1" of put`, "put=10,get=90"},
		"--mix put,put":               {"names put twice"},
		"--mix put=0":                 {"--mix asks for nothing"},
		"--target ectd":               {`--target "ectd"`, "did you mean etcd?"},
		"--distribution zpf":          {`--distribution "zpf"`, "did you mean zipf?"},
		"--rate 0":                    {"--rate 0 asks for nothing", "requests per second"},
		"--rate abc":                  {`--rate="abc"`, "give a number"},
		"--count 5 --duration 3s":     {"--count and --duration", "drop one"},
		"--count 0":                   {"--count 0 measures nothing"},
		"--watchers 1 --mix get":      {"--watchers wait for changes", "add put to --mix"},
		"--http-addr 127.0.0.1:1":     {"no server answers at 127.0.0.1:1: connection refused", "--http-addr"},
		"--http-addr ftp://127.0.0.1": {`"ftp://127.0.0.1" is not a server address`, "host:port"},
		"leader":                      {"takes no argument"},
	} {
		t.Run(args, func(t *testing.T) {
			cli(t, "", append([]string{"bench"}, strings.Fields(args)...)...).refusal(t, parts...)
		})
	}
}

func TestMixes(t *testing.T) {
	for text, want := range map[string]bench.Mix{
		"put":              {bench.Put: 1},
		"put=10,get=90":    {bench.Put: 10, bench.Get: 90},
		"stale, txn=3":     {bench.Stale: 1, bench.Txn: 3},
		"consistent,get=0": {bench.Consistent: 1, bench.Get: 0},
	} {
		if got, err := parseMix(text); err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestBenchResultsForPeople(t *testing.T) {
	each, own := 112.34, 9.06
	var b strings.Builder
	err := printBench(&b, &bench.Result{
		Target: bench.Holdfast, Addresses: []string{"a:1", "b:1"}, Connections: 64, Rate: 2000, Keys: 10_000, Distribution: bench.Uniform,
		ValueSize: 256, Seed: 1, Seconds: 10, Unsent: 7,
		Operations: []bench.Operation{
			{Name: "get", Count: 18_000, PerSecond: 1800, Milliseconds: bench.Latency{Mean: 0.7, P50: 0.6, P90: 1, P99: 12.34, P999: 99.95, Max: 1234}},
			{
				Name: "put", Count: 1990, PerSecond: 199, Milliseconds: bench.Latency{Mean: 1, P50: 1, P90: 1, P99: 1, P999: 1, Max: 1},
				Errors: map[string]int64{"500 no_leader": 8, "connection lost": 2}, OutcomeUnknown: 2,
			},
		},
		Server: bench.CPU{MicrosecondsPerOperation: &each}, Client: bench.CPU{MicrosecondsPerOperation: &own},
	})
	want := `holdfast at a:1, b:1
64 connections, 2000 requests due per second, 10.0s measured; 10,000 keys (uniform), values of 256 B, seed 1

REQUEST  PER SECOND  COUNT   MEAN MS  P50   P90   P99   P99.9  MAX   ERRORS  OUTCOME UNKNOWN
get      1,800       18,000  0.70     0.60  1.00  12.3  100    1234  0       0
put      199         1,990   1.00     1.00  1.00  1.00  1.00   1.00  10      2

REQUEST  ERROR            COUNT
put      500 no_leader    8
put      connection lost  2

7 requests were due and not sent, since all connections were busy; no latency has them

processor time per request: servers 112.3 µs, this client 9.1 µs
`
	if err != nil || b.String() != want {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func TestBenchTellsHowItGoes(t *testing.T) {
	for want, m := range map[string]bench.Moment{
		"   1s     14,569/s  p50 4.08 ms  p99 10.3 ms  (warm-up)": {Elapsed: time.Second, WarmingUp: true, PerSecond: 14569.2, P50: 4080 * time.Microsecond, P99: 10300 * time.Microsecond},
		"  12s          0/s  p50 0.00 ms  p99 0.00 ms  3 errors":  {Elapsed: 12 * time.Second, Errors: 3},
	} {
		if got := momentLine(m); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
