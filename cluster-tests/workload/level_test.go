package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// pretend is a node that answers what it is told to.
func pretend(t *testing.T, name, lineage, entries, sessions string) *Node {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Holdfast-Applied", "7")
		switch {
		case r.URL.Path == "/v1/replica/status":
			_ = json.NewEncoder(w).Encode(Status{Applied: 7, Lineage: lineage})
		case r.URL.Path == "/v1/session/list":
			fmt.Fprint(w, sessions)
		case r.URL.Query().Get("rev") != "7":
			http.Error(w, "not the revision that is compared", http.StatusBadRequest)
		default:
			fmt.Fprint(w, entries)
		}
	}))
	t.Cleanup(s.Close)
	return &Node{Name: name, URL: s.URL, Client: s.Client()}
}

func TestNodesThatHoldDifferentThingsAtOneRevisionAreFound(t *testing.T) {
	const one = `[{"Key":"a","Value":"eA==","Flags":1,"CreateIndex":2,"ModifyIndex":7}]`
	for _, c := range []struct {
		name                       string
		lineage, entries, sessions string // of the second node
		diverged                   bool
	}{
		{"the same", "aa", one, "[]", false},
		{"another lineage", "bb", one, "[]", true},
		{"another value", "aa", `[{"Key":"a","Value":"eQ==","Flags":1,"CreateIndex":2,"ModifyIndex":7}]`, "[]", true},
		{"other flags", "aa", `[{"Key":"a","Value":"eA==","Flags":2,"CreateIndex":2,"ModifyIndex":7}]`, "[]", true},
		{"created at another revision", "aa", `[{"Key":"a","Value":"eA==","Flags":1,"CreateIndex":3,"ModifyIndex":7}]`, "[]", true},
		{"changed at another revision", "aa", `[{"Key":"a","Value":"eA==","Flags":1,"CreateIndex":2,"ModifyIndex":6}]`, "[]", true},
		{"locked", "aa", `[{"Key":"a","Value":"eA==","Flags":1,"CreateIndex":2,"ModifyIndex":7,"Session":"s"}]`, "[]", true},
		{"a key more", "aa", one[:len(one)-1] + `,{"Key":"b"}]`, "[]", true},
		{"a key less", "aa", `[]`, "[]", true},
		{"another session", "aa", one, `[{"ID":"s"}]`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := []*Node{pretend(t, "n1", "aa", one, "[]"), pretend(t, "n2", c.lineage, c.entries, c.sessions)}
			err := CheckLevel(t.Context(), nodes)
			var d *Divergence
			if errors.As(err, &d) != c.diverged || !c.diverged && err != nil {
				t.Errorf("diverged: want %v, got %v", c.diverged, err)
			}
		})
	}
}
