package http

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// description is the part of an OpenAPI document that these tests read.
type description struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string
		Parameters  []parameter
		Responses   map[string]any
	}
	Components struct {
		Parameters map[string]parameter
	}
}

type parameter struct {
	Ref      string `json:"$ref"`
	Name, In string
}

func readDescription(t *testing.T) (d description, raw []byte) {
	t.Helper()
	raw, err := os.ReadFile("../docs/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return d, raw
}

var pathParameter = regexp.MustCompile(`[*:]([a-z]+)`)

// TestRoutesAndDescriptionAgree holds what gin serves and what the description
// promises together, both ways, with methods and query parameters. That a
// handler reads no other parameter is for the route table to see to.
func TestRoutesAndDescriptionAgree(t *testing.T) {
	d, _ := readDescription(t)
	if !strings.HasPrefix(d.OpenAPI, "3.1.") {
		t.Errorf("OpenAPI %s", d.OpenAPI)
	}
	served := map[string]route{}
	bare := map[string]bool{}
	for _, rt := range routes() {
		served[rt.method+" "+pathParameter.ReplaceAllString(rt.path, "{$1}")] = rt
		if base, open := rt.base(); open {
			bare[rt.method+" "+base] = true
		}
	}
	for _, r := range newTestServer(t, newFakeNode()).engine.Routes() {
		key := r.Method + " " + pathParameter.ReplaceAllString(r.Path, "{$1}")
		if _, ok := served[key]; !ok && !bare[key] {
			t.Errorf("gin serves %s, which the route table does not have", key)
		}
	}
	described := map[string]bool{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			key := strings.ToUpper(method) + " " + path
			described[key] = true
			rt, ok := served[key]
			if !ok {
				t.Errorf("%s is described and not served", key)
				continue
			}
			var got, exp []string
			for _, p := range op.Parameters {
				if p.Ref != "" {
					p, ok = d.Components.Parameters[strings.TrimPrefix(p.Ref, "#/components/parameters/")]
					if !ok {
						t.Errorf("%s names an unknown parameter", key)
					}
				}
				switch p.In {
				case "query":
					got = append(got, p.Name)
				case "path":
					if !strings.Contains(path, "{"+p.Name+"}") {
						t.Errorf("%s has no %s in its path", key, p.Name)
					}
				}
			}
			for p := range paramCount {
				if rt.params.has(p) {
					exp = append(exp, paramNames[p])
				}
			}
			slices.Sort(got)
			slices.Sort(exp)
			if !slices.Equal(got, exp) {
				t.Errorf("%s: described with %v, reads %v", key, got, exp)
			}
			if op.OperationID == "" || len(op.Responses) == 0 {
				t.Errorf("%s lacks an operation id or responses", key)
			}
		}
	}
	for key := range served {
		if !described[key] {
			t.Errorf("%s is served and not described", key)
		}
	}
}

// TestDescriptionIsWhole follows every reference in the description.
func TestDescriptionIsWhole(t *testing.T) {
	_, raw := readDescription(t)
	var doc any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for name, e := range v {
				if ref, ok := e.(string); ok && name == "$ref" {
					used[ref] = true
					at := doc
					for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
						m, _ := at.(map[string]any)
						at = m[part]
					}
					if at == nil {
						t.Errorf("%s leads nowhere", ref)
					}
				}
				walk(e)
			}
		}
	}
	walk(doc)
	for kind, all := range doc.(map[string]any)["components"].(map[string]any) {
		for name := range all.(map[string]any) {
			if !used["#/components/"+kind+"/"+name] {
				t.Errorf("%s %s is not used", kind, name)
			}
		}
	}
}

func TestDescriptionIsServed(t *testing.T) {
	_, raw := readDescription(t)
	w := ask(t, newTestServer(t, newFakeNode(), func(c *Config) { c.OpenAPI = raw }), "GET", "/v1/openapi.json", nil)
	want(t, w, 200, string(raw))
	wantHeaders(t, w, "Content-Type", "application/json")
	if w := ask(t, newTestServer(t, newFakeNode()), "GET", "/v1/openapi.json", nil); w.Code != 404 {
		t.Errorf("without a description: %d", w.Code)
	}
}

func TestEachParameterHasANameOfItsOwn(t *testing.T) {
	for p, name := range paramNames {
		if got, ok := paramsByName[name]; name == "" || !ok || got != param(p) {
			t.Errorf("%q, the name of parameter %d, is parsed as %d", name, p, got)
		}
	}
}
