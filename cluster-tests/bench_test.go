package clustertests

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/bench"
)

// holdfast bench drives a real cluster with every kind of request, and none fails.
func TestBenchDrivesACluster(t *testing.T) {
	c := startCluster(t, threeSites)
	var addresses []string
	for _, n := range c.nodes {
		addresses = append(addresses, n.http)
	}
	leader := c.waitLeader()
	for name, load := range map[string][]string{
		"closed loop": {"--count", "1500", "--connections", "10", "--mix", "put=2,get=1,stale=1,consistent=1,txn=1"},
		"open loop":   {"--rate", "300", "--duration", "2s", "--connections", "10", "--distribution", "zipf"},
		"consul":      {"--target", "consul", "--count", "300", "--connections", "5", "--mix", "put,get,stale,consistent,txn"},
	} {
		args := append([]string{"bench", "--json", "--http-addr", strings.Join(addresses, ","), "--keys", "50", "--watchers", "3", "--warm-up", "100ms"}, load...)
		stdout, stderr, err := c.run(time.Minute, leader, args...)
		var res bench.Result
		if err != nil || stderr != "" || json.Unmarshal([]byte(stdout), &res) != nil {
			t.Fatalf("%s: %v\n%s%s", name, err, stdout, stderr)
		}
		for _, o := range res.Operations {
			// A learner that is read as it is may not have what has just been written for the first time.
			if delete(o.Errors, "no such key"); o.Count == 0 || len(o.Errors) > 0 || o.OutcomeUnknown > 0 || o.Milliseconds.Max <= 0 {
				t.Errorf("%s: %+v", name, o)
			}
		}
		if used := res.Server.MicrosecondsPerOperation; used == nil && name != "consul" || used != nil && *used <= 0 {
			t.Errorf("%s: processor time of the servers: %+v", name, res.Server)
		}
	}
	if stdout, stderr, err := c.run(10*time.Second, leader, "kv", "list", "bench/", "--count", "--consistent"); err != nil || stdout != "50\n" {
		t.Errorf("%v, %s%s", err, stdout, stderr)
	}
}
