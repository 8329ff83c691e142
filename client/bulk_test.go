package client

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func numbered(n int) iter.Seq2[Pair, error] {
	return func(yield func(Pair, error) bool) {
		for i := range n {
			if !yield(Pair{Key: fmt.Sprintf("k%03d", i), Value: []byte("v")}, nil) {
				return
			}
		}
	}
}

// bulkServer records what it was sent. fail, when set, is asked before each
// record, counted over all requests, and takes over the answer when true.
type bulkServer struct {
	mu       sync.Mutex
	received []string // keys acknowledged
	requests int
	seen     int
	fail     func(seen int, w http.ResponseWriter, done int) bool
}

func (b *bulkServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	_ = http.NewResponseController(w).EnableFullDuplex()
	done := 0
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var p Pair
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		b.seen++
		if b.fail != nil && b.fail(b.seen, w, done) {
			return
		}
		b.received = append(b.received, p.Key)
		done++
		_, _ = fmt.Fprintf(w, `{"Done":%d,"Index":%d}`+"\n", done, len(b.received))
	}
	_, _ = fmt.Fprintf(w, `{"Done":%d,"Index":%d,"Errors":[]}`+"\n", done, len(b.received))
}

// wholeInput checks that all of n records arrived, once and in order.
func (b *bulkServer) wholeInput(t *testing.T, n int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.received) != n {
		t.Fatalf("%d of %d records arrived", len(b.received), n)
	}
	for i, k := range b.received {
		if want := fmt.Sprintf("k%03d", i); k != want {
			t.Fatalf("record %d is %s, want %s", i, k, want)
		}
	}
}

func TestImportSendsBoundedBatches(t *testing.T) {
	s := &bulkServer{}
	var steps []uint64
	got, err := connect(t, serve(t, s.ServeHTTP)).Import(t.Context(), numbered(25), ImportOptions{
		BatchRecords: 10, Progress: func(r ImportResult) { steps = append(steps, r.Records) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.wholeInput(t, 25)
	if want := (ImportResult{Records: 25, Bytes: 25 * 5, Index: 25}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if s.requests != 3 {
		t.Errorf("%d requests", s.requests)
	}
	if len(steps) != 25 || steps[24] != 25 {
		t.Errorf("progress %v", steps)
	}
}

func TestImportRepeatsOnlyWhatIsNotAcknowledged(t *testing.T) {
	for name, fail := range map[string]func(w http.ResponseWriter, done int){
		"connection lost": func(w http.ResponseWriter, _ int) {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"leader lost": func(w http.ResponseWriter, done int) {
			_, _ = fmt.Fprintf(w, `{"Done":%d,"Index":1,"Errors":[{"error":"outcome_unknown","message":"lost"}]}`, done)
		},
		"answer cut off": func(http.ResponseWriter, int) {},
	} {
		t.Run(name, func(t *testing.T) {
			s := &bulkServer{}
			s.fail = func(seen int, w http.ResponseWriter, done int) bool {
				if seen != 8 {
					return false
				}
				fail(w, done)
				return true
			}
			var retries []error
			got, err := connect(t, serve(t, s.ServeHTTP)).Import(t.Context(), numbered(20), ImportOptions{
				Retrying: func(err error, _ time.Duration) { retries = append(retries, err) },
			})
			if err != nil {
				t.Fatal(err)
			}
			s.wholeInput(t, 20)
			if got.Records != 20 || got.Retries != 1 || len(retries) != 1 {
				t.Errorf("%+v, retries %v", got, retries)
			}
		})
	}
}

func TestImportGoesToAnotherServerWhenOneDies(t *testing.T) {
	second := &bulkServer{}
	c := connect(t, serve(t, hangUp), serve(t, second.ServeHTTP))
	if _, err := c.Import(t.Context(), numbered(5), ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	second.wholeInput(t, 5)
}

func TestImportStopsAtARecordThatIsRefused(t *testing.T) {
	s := &bulkServer{}
	s.fail = func(seen int, w http.ResponseWriter, done int) bool {
		if seen < 8 {
			return false
		}
		_, _ = fmt.Fprintf(w, `{"Done":%d,"Errors":[{"error":"too_large","message":"Record 3 (\"k007\"): value is too large","hint":"split it"}]}`, done)
		return true
	}
	got, err := connect(t, serve(t, s.ServeHTTP)).Import(t.Context(), numbered(20), ImportOptions{BatchRecords: 5})
	var at *ImportError
	var named *Error
	if !errors.As(err, &at) || at.Record != 8 || at.Key != "k007" || !errors.As(err, &named) || named.Code != "too_large" ||
		err.Error() != "record 8 (k007): value is too large" {
		t.Errorf("%v", err)
	}
	if got.Records != 7 || got.Retries != 0 || s.requests != 2 {
		t.Errorf("%+v after %d requests", got, s.requests)
	}
}

func TestImportGivesUpWithoutProgress(t *testing.T) {
	c := connect(t, serve(t, refuse(500, "no_leader", "No cluster leader")))
	begin := time.Now()
	got, err := c.Import(t.Context(), numbered(3), ImportOptions{Patience: 300 * time.Millisecond})
	if !errors.Is(err, command.ErrNoLeader) || got.Records != 0 || got.Retries == 0 {
		t.Errorf("%+v %v", got, err)
	}
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("gave up after %v", took)
	}
}

func TestImportKeepsWhatComesBeforeABadRecord(t *testing.T) {
	s := &bulkServer{}
	bad := errors.New("value is not base64")
	got, err := connect(t, serve(t, s.ServeHTTP)).Import(t.Context(), func(yield func(Pair, error) bool) {
		_ = yield(Pair{Key: "k000"}, nil) && yield(Pair{Key: "k001"}, nil) && yield(Pair{}, bad)
	}, ImportOptions{})
	var at *ImportError
	if !errors.Is(err, bad) || !errors.As(err, &at) || at.Record != 3 || got.Records != 2 {
		t.Errorf("%+v %v", got, err)
	}
	s.wholeInput(t, 2)
	if _, err := connect(t, serve(t, s.ServeHTTP)).Import(t.Context(), func(yield func(Pair, error) bool) {
		yield(Pair{Key: "a\xff"}, nil)
	}, ImportOptions{}); err == nil {
		t.Error("a key that JSON cannot carry was sent")
	}
}

func TestImportEndsWhenNothingMoves(t *testing.T) {
	c := connect(t, serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	c.timeout = 50 * time.Millisecond
	_, err := c.Import(t.Context(), numbered(1), ImportOptions{Patience: time.Millisecond})
	if !errors.Is(err, errStalled) || !errors.Is(err, command.ErrOutcomeUnknown) {
		t.Errorf("%v", err)
	}
}

func TestExportDeliversAllOrFails(t *testing.T) {
	whole := `[{"key":"a","flags":1,"value":"eA=="},{"key":"b","flags":0,"value":null}]`
	export := func(t *testing.T, addresses ...string) ([]string, Meta, error) {
		var keys []string
		meta, err := connect(t, addresses...).Export(t.Context(), "p", func(p Pair) error {
			keys = append(keys, p.Key+"="+string(p.Value))
			return nil
		})
		return keys, meta, err
	}
	t.Run("whole", func(t *testing.T) {
		keys, meta, err := export(t, closed(t), serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/bulk/p" {
				t.Errorf("path %s", r.URL.Path)
			}
			w.Header().Set("X-Consul-Index", "5")
			_, _ = io.WriteString(w, whole)
		}))
		if err != nil || strings.Join(keys, " ") != "a=x b=" || meta.Index != 5 {
			t.Errorf("%q %+v %v", keys, meta, err)
		}
	})
	t.Run("cut off after a record", func(t *testing.T) {
		second := serve(t, answerWith(whole))
		keys, _, err := export(t, serve(t, answerWith(whole[:45])), second)
		if !errors.Is(err, io.ErrUnexpectedEOF) || len(keys) != 1 {
			t.Errorf("%q %v", keys, err)
		}
	})
	t.Run("cut off before any", func(t *testing.T) {
		keys, _, err := export(t, serve(t, hangUp), serve(t, answerWith(whole)))
		if err != nil || len(keys) != 2 {
			t.Errorf("%q %v", keys, err)
		}
	})
	t.Run("stands still", func(t *testing.T) {
		c := connect(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, whole[:45])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
		c.timeout = 50 * time.Millisecond
		_, err := c.Export(t.Context(), "p", func(Pair) error { return nil })
		if !errors.Is(err, errStalled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("the caller stops", func(t *testing.T) {
		enough := errors.New("enough")
		_, err := connect(t, serve(t, answerWith(whole))).Export(t.Context(), "", func(Pair) error { return enough })
		if err != enough {
			t.Errorf("%v", err)
		}
	})
}
