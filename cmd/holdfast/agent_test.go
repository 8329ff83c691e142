package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/agent"
	"github.com/holdfast-db/holdfast/store"
)

// parseAgent runs an agent command line and returns what the node would be given.
func parseAgent(t *testing.T, args ...string) (cfg agentConfig, r ran) {
	t.Helper()
	r = cliWith(t, func(_ context.Context, c agentConfig) error { cfg = c; return nil }, "", append([]string{"agent"}, args...)...)
	return cfg, r
}

func TestAgentFlagsBecomeAConfiguration(t *testing.T) {
	dir := t.TempDir()
	got, r := parseAgent(t, "--node", "n1", "--site", "berlin", "--home", "--data-dir", dir,
		"--http", "0.0.0.0:8500", "--raft", "[::]:8300", "--advertise-raft", "n1.example:8300",
		"--bootstrap-expect", "3", "--join", "n2:8300,n3:8300", "--join", "n4:8300",
		"--log-store", "boltdb", "--log-level", "debug", "--log-format", "json",
		"--raft-multiplier", "2", "--leader-priority", "7", "--leader-hold-off", "2m", "--max-value", "1MiB", "--max-data-size", "20GiB",
		"--history-age", "2h", "--history-changes", "5000000", "--history-bytes", "6GiB", "--log-retention", "1GiB", "--log-retention-outage", "48h", "--wan-rate", "5MiB",
		"--default-read", "leader", "--session-ttl-min", "1s", "--idempotency-retention", "1h", "--idempotency-bytes", "1GiB",
		"--catchup-rate", "10MiB", "--scrub-period", "0", "--datacenter", "eu", "--fault-switch", "/run/x.sock",
		"--disk-stall-limit", "2s", "--slow-disk-limit", "50ms", "--disk-reserve", "1GiB", "--standby-data-dir", "/mnt/other", "--standby-after", "1m",
		"--timer-slack", "1ms")
	want := agentConfig{Config: agent.Config{
		Node: "n1", Site: "berlin", Home: true, Role: command.RoleVoter, DataDir: dir,
		HTTP: "0.0.0.0:8500", Raft: "[::]:8300", AdvertiseHTTP: "n1.example:8500", AdvertiseRaft: "n1.example:8300",
		BootstrapExpect: 3, Join: []string{"n2:8300", "n3:8300", "n4:8300"}, Datacenter: "eu",
		LogStore: "boltdb", RaftMultiplier: 2, LeaderPriority: 7, LeaderHoldOff: 2 * time.Minute, MaxValue: 1 << 20, MaxDataSize: 20 << 30,
		History: command.Retention{Age: 2 * time.Hour, Changes: 5_000_000, Bytes: 6 << 30}, LogRetention: 1 << 30, LogOutage: 48 * time.Hour, CatchUpRate: 10 << 20, WANRate: 5 << 20,
		AskLeader: true, SessionTTLMin: time.Second, OnceRetention: time.Hour, OnceBytes: 1 << 30,
		Disk:       store.DiskLimits{Stall: 2 * time.Second, Slow: 50 * time.Millisecond, Reserve: 1 << 30},
		StandbyDir: "/mnt/other", StandbyAfter: time.Minute,
		LogLevel: hclog.Debug, LogJSON: true,
		Version: version,
	}, FaultSwitch: "/run/x.sock", TimerSlack: time.Millisecond}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\ngot  %+v\nwant %+v", r, got, want)
	}
}

func TestAgentDefaults(t *testing.T) {
	got, r := parseAgent(t, "--node", "e1", "--site", "east", "--data-dir", "data", "--join", "n1:8300")
	abs, err := filepath.Abs("data")
	if err != nil {
		t.Fatal(err)
	}
	want := agentConfig{Config: agent.Config{
		Node: "e1", Site: "east", Role: command.RoleLearner, DataDir: abs,
		HTTP: "127.0.0.1:8500", Raft: "127.0.0.1:8300", AdvertiseHTTP: "127.0.0.1:8500", AdvertiseRaft: "127.0.0.1:8300",
		Join: []string{"n1:8300"}, Datacenter: "dc1", LogStore: "wal", RaftMultiplier: 1, LeaderHoldOff: 30 * time.Second, MaxValue: command.DefaultMaxValue,
		History: command.Retention{Age: time.Hour, Changes: 1_000_000, Bytes: 1 << 30}, LogRetention: 512 << 20, LogOutage: 24 * time.Hour, ScrubPeriod: 24 * time.Hour,
		SessionTTLMin: 10 * time.Second, OnceRetention: 15 * time.Minute, OnceBytes: 64 << 20,
		Disk: store.DiskLimits{Stall: 1500 * time.Millisecond, Slow: 250 * time.Millisecond, Reserve: 128 << 20}, StandbyAfter: 30 * time.Second,
		LogLevel: hclog.Info, Version: version,
	}, TimerSlack: 500 * time.Microsecond}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\ngot  %+v\nwant %+v", r, got, want)
	}
}

func TestBadAgentFlagsAreRefused(t *testing.T) {
	base := "--node=n1 --site=home --home --data-dir=d "
	for args, parts := range map[string][]string{
		"--site=home --data-dir=d":                        {"name of the node", "HOLDFAST_NODE"},
		"--node=n1 --data-dir=d":                          {"name of the site", "--site"},
		"--node=n1 --site=home":                           {"data directory is missing", "--data-dir"},
		"--node=a:b --site=home --data-dir=d":             {`"a:b" is not a name`},
		"--node=n1 --site=east --role=voter --data-dir=d": {"voter outside the home site", "--role learner"},
		base + "--role=boss":                              {`--role "boss"`, "voter, spare or learner"},
		"--node=n1 --site=east --role=spare --data-dir=d": {"spare outside the home site", "--role learner"},
		base + "--role=spare --bootstrap-expect=3":        {"spare", "--bootstrap-expect"},
		base + "--role=learner --bootstrap-expect=3":      {"learner", "--bootstrap-expect"},
		base + "--bootstrap-expect=3":                     {"2 voters", "--join"},
		base + "--bootstrap-expect=9":                     {"--bootstrap-expect 9"},
		base + "--http=8500":                              {`--http "8500"`, "host:port"},
		base + "--raft=127.0.0.1:0":                       {"--raft", "1 to 65535"},
		base + "--raft=127.0.0.1:8500":                    {"--http and --raft are both"},
		base + "--raft=:8300":                             {"--raft :8300", "--advertise-raft"},
		base + "--advertise-http=0.0.0.0:8500":            {"--advertise-http", "names no host"},
		base + "--join=n2":                                {`--join "n2"`, "host:port"},
		base + "--log-store=rocks":                        {"--log-store", "wal or boltdb"},
		base + "--log-level=loud":                         {"--log-level", "trace, debug"},
		base + "--log-format=xml":                         {"--log-format", "text or json"},
		base + "--raft-multiplier=0":                      {"--raft-multiplier 0", "1 to 10"},
		base + "--leader-priority=101":                    {"--leader-priority 101", "0 to 100"},
		base + "--leader-hold-off=10ms":                   {"--leader-hold-off 10ms", "1s or more"},
		base + "--max-value=12":                           {"--max-value 12", "1KiB to 32MiB"},
		base + "--max-value=big":                          {`--max-value="big"`, "512KiB"},
		base + "--max-data-size=99999999999GiB":           {"--max-data-size", "512KiB"},
		base + "--history-bytes=1000":                     {"--history-bytes 1000", "1MiB"},
		base + "--history-age=-1h":                        {"--history-age -1h"},
		base + "--default-read=fast":                      {`--default-read "fast"`, "stale or leader"},
		base + "--session-ttl-min=0":                      {"--session-ttl-min 0s", "1s to 24h0m0s"},
		base + "--idempotency-retention=1ms":              {"--idempotency-retention 1ms", "1s to 168h0m0s"},
		base + "--idempotency-bytes=1KiB":                 {"--idempotency-bytes 1KiB", "1MiB to 4GiB"},
		base + "--log-retention-outage=1s":                {"--log-retention-outage 1s", "1m0s or more"},
		base + "--wan-rate=fast":                          {"--wan-rate", "512KiB"},
		base + "--scrub-period=1s":                        {"--scrub-period 1s", "1m or more"},
		base + "--disk-stall-limit=1ms":                   {"--disk-stall-limit 1ms", "100ms"},
		base + "--slow-disk-limit=0":                      {"--slow-disk-limit 0s", "1ms"},
		base + "--disk-reserve=1MiB":                      {"--disk-reserve 1MiB", "8MiB to 1024GiB"},
		base + "--timer-slack=1s":                         {"--timer-slack 1s", "0 to 10ms"},
		base + "--standby-after=10ms":                     {"--standby-after 10ms", "1.5s"},
		base + "--join=n2:8300 --standby-data-dir=d":      {"--standby-data-dir and --data-dir are both", "another disk"},
		base + "--standby-data-dir=e":                     {"could not enter the cluster again", "--join"},
		base + "--config=/nowhere/x.yaml":                 {"/nowhere/x.yaml", "no such file"},
	} {
		t.Run(args, func(t *testing.T) {
			_, r := parseAgent(t, strings.Fields(args)...)
			r.refusal(t, parts...)
		})
	}
}

func TestSettingsComeFromFlagsThenEnvironmentThenFile(t *testing.T) {
	for name, content := range map[string]string{
		"c.yaml": "node: file\nsite: file\nhome: true\ndata-dir: d\nbootstrap-expect: 3\njoin: [n2:8300, n3:8300]\nlog-level: warn\n",
		"c.toml": "node = 'file'\nsite = 'file'\nhome = true\ndata-dir = 'd'\nbootstrap-expect = 3\njoin = ['n2:8300', 'n3:8300']\nlog-level = 'warn'\n",
		"c.json": `{"node":"file","site":"file","home":true,"data-dir":"d","bootstrap-expect":3,"join":"n2:8300, n3:8300","log-level":"warn"}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("HOLDFAST_CONFIG", path)
			t.Setenv("HOLDFAST_SITE", "env")
			t.Setenv("HOLDFAST_NODE", "env")
			got, r := parseAgent(t, "--node", "flag")
			if r.status != 0 {
				t.Fatal(r.err)
			}
			if got.Node != "flag" || got.Site != "env" || !got.Home || got.BootstrapExpect != 3 || got.LogLevel != hclog.Warn ||
				strings.Join(got.Join, " ") != "n2:8300 n3:8300" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestBadSettingsNameTheirSource(t *testing.T) {
	for name, c := range map[string]struct {
		file, content string
		env           map[string]string
		parts         []string
	}{
		"unknown key":         {file: "c.yaml", content: "nodee: x\n", parts: []string{"c.yaml", `unknown key "nodee"`, "did you mean node?"}},
		"underscore":          {file: "c.yaml", content: "data_dir: x\n", parts: []string{`"data_dir"`, "did you mean data-dir?"}},
		"nested key":          {file: "c.json", content: `{"raft":{"address":"x"}}`, parts: []string{`"raft.address"`}},
		"config in the file":  {file: "c.json", content: `{"config":"x"}`, parts: []string{`unknown key "config"`}},
		"no number":           {file: "c.toml", content: "bootstrap-expect = 'many'\n", parts: []string{"bootstrap-expect in", "whole number"}},
		"list for one":        {file: "c.json", content: `{"node":["a","b"]}`, parts: []string{"node in", "more than one value"}},
		"damaged file":        {file: "c.json", content: `{"node":`, parts: []string{"c.json is damaged"}},
		"unknown format":      {file: "c.ini", content: "node=x", parts: []string{"c.ini", ".yaml"}},
		"variable, no number": {env: map[string]string{"HOLDFAST_BOOTSTRAP_EXPECT": "many"}, parts: []string{`HOLDFAST_BOOTSTRAP_EXPECT="many"`}},
		"variable, no bool":   {env: map[string]string{"HOLDFAST_HOME": "berlin"}, parts: []string{`HOLDFAST_HOME="berlin"`, "true or false"}},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			var args []string
			if c.file != "" {
				path := filepath.Join(t.TempDir(), c.file)
				if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
					t.Fatal(err)
				}
				args = []string{"--config", path}
			}
			_, r := parseAgent(t, args...)
			r.refusal(t, c.parts...)
		})
	}
}

func TestAFatalErrorOfTheAgentIsOneLine(t *testing.T) {
	r := cliWith(t, func(context.Context, agentConfig) error {
		return command.ErrWrongCluster.With("n9 belongs to\nanother one")
	}, "", "agent", "--node=n1", "--site=s", "--data-dir=d")
	r.refusal(t, "node belongs to another cluster: n9 belongs to another one", "--data-dir")
}

func TestAnAgentWithAParentEndsWithIt(t *testing.T) {
	var cause error
	r := cliWith(t, func(ctx context.Context, _ agentConfig) error {
		<-ctx.Done()
		cause = context.Cause(ctx)
		return nil
	}, "the parent says something and ends", "agent", "--node=n1", "--site=s", "--data-dir=d", "--with-parent")
	if r.status != 0 || !errors.Is(cause, errParentEnded) {
		t.Errorf("%+v, cause %v", r, cause)
	}
}
