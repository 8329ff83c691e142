package history_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// short is a history with a request of each outcome, and a fault.
func short() *history.History {
	h := history.New()
	struck := time.Now()
	put := h.Call(history.Op{Workload: "set", Client: 1, Node: "n1", Name: "add", In: 7})
	time.Sleep(20 * time.Millisecond)
	put.Decided(uint64(12))
	h.Call(history.Op{Workload: "set", Client: 1, Node: "n2", Name: "add", In: 8}).Refused("connection refused")
	h.Call(history.Op{Workload: "bank", Client: 0, Node: "n2", Name: "transfer", In: "</script>"}).Unknown("cut off")
	time.Sleep(30 * time.Millisecond)
	h.Struck("isolate the leader", "n1", struck, time.Now())
	h.Call(history.Op{Workload: "set", Client: 2, Node: "n3", Name: "read"}) // for ever
	return h
}

func TestARequestWithoutAnAnswerNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ops := short().Ops("")
		if len(ops) != 4 {
			t.Fatalf("%d requests", len(ops))
		}
		for i, want := range []struct {
			outcome history.Outcome
			ret     time.Duration
		}{{history.Decided, 20 * time.Millisecond}, {history.Refused, 20 * time.Millisecond}, {history.Unknown, history.Never}, {history.Unknown, history.Never}} {
			if ops[i].ID != i || ops[i].Outcome != want.outcome || ops[i].Return != want.ret {
				t.Errorf("request %d is %+v, want %+v", i, ops[i], want)
			}
		}
		if !ops[0].Before(ops[3]) || ops[2].Before(ops[3]) || ops[0].Before(ops[1]) {
			t.Error("what returned at the moment of a call, or never, is not known to come first; what returned earlier is")
		}
	})
}

func TestTheRecordIsOneJSONObjectALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var file bytes.Buffer
		if err := short().Write(&file); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(file.String()), "\n")
		if len(lines) != 5 {
			t.Fatalf("%d lines:\n%s", len(lines), file.String())
		}
		var fault history.Fault
		if err := json.Unmarshal([]byte(lines[0]), &fault); err != nil || fault.Name != "isolate the leader" || fault.To != 50*time.Millisecond {
			t.Errorf("%s: %+v, %v", lines[0], fault, err)
		}
		var op struct {
			ID      int
			Op      string
			Return  time.Duration
			Outcome string
			Out     int
		}
		if err := json.Unmarshal([]byte(lines[1]), &op); err != nil || op.Op != "add" || op.Outcome != "decided" || op.Out != 12 || op.Return != 20*time.Millisecond {
			t.Errorf("%s: %+v, %v", lines[1], op, err)
		}
	})
}

// The page itself is looked at with a browser; this demands what it draws from.
func TestTheTimelineHoldsEveryRequestAndIsOneFile(t *testing.T) {
	var page bytes.Buffer
	marks := []history.Mark{{Title: "set: lost", Text: "7 is gone", Ops: []int{0, 3}}}
	if err := short().WriteTimeline(&page, "seed 7", marks); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	for _, want := range []string{"isolate the leader n1", "client 2 at n3: read", "7 is gone", "cut off"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Count(text, "</script>") != 1 {
		t.Error("what a client wrote ends the page's script")
	}
	for _, elsewhere := range []string{"src=", "href=", "@import"} {
		if strings.Contains(text, elsewhere) {
			t.Errorf("the page needs another file: %s", elsewhere)
		}
	}
	if path := os.Getenv("HOLDFAST_TEST_TIMELINE"); path != "" { // to look at it
		if err := os.WriteFile(path, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
