package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/problem"
)

// refuse returns an error that says what is wrong and what to do about it.
var refuse = problem.Refuse

// explain puts an error in one line: its cause and, when something knows it,
// the remedy.
func explain(err error) string {
	line, remedy := err.Error(), ""
	var (
		ours    *problem.Problem
		named   *client.Error
		shared  *command.Error
		nowhere *client.UnreachableError
	)
	switch {
	case errors.As(err, &ours): // has it in its text
	case errors.As(err, &named):
		remedy = named.Hint
	case errors.As(err, &shared):
		remedy = shared.Hint
	case errors.As(err, &nowhere):
		remedy = "start a node, or name one that runs with --http-addr or HOLDFAST_HTTP_ADDR"
	case errors.Is(err, context.Canceled):
		line = "interrupted"
	}
	if remedy != "" && !strings.Contains(line, remedy) {
		line += "; " + remedy
	}
	return strings.Join(strings.Fields(line), " ")
}

// statusError is an error that ends the program with an exit status other than 1.
type statusError struct {
	error
	status int
}

func (e *statusError) Unwrap() error { return e.error }

// withStatus gives err, if it is one, an exit status.
func withStatus(status int, err error) error {
	if err == nil {
		return nil
	}
	return &statusError{err, status}
}

// exitStatus is the status that err ends the program with.
func exitStatus(err error) int {
	if e := new(statusError); errors.As(err, &e) {
		return e.status
	}
	return 1
}

// didYouMean is the remedy for a name that is not known: the nearest one that
// is, if any is near, else the fallback.
func didYouMean(got string, known []string, before, fallback string) string {
	best, distance := "", max(2, len(got)/3)+1
	for _, k := range known {
		d := editDistance(strings.ToLower(got), k)
		if strings.HasPrefix(k, got) && len(got) > 1 {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return fallback
	}
	return fmt.Sprintf("did you mean %s%s?", before, best)
}

// editDistance counts the insertions, deletions and replacements of bytes that
// turn a into b; - and _ are the same.
func editDistance(a, b string) int {
	a, b = strings.ReplaceAll(a, "_", "-"), strings.ReplaceAll(b, "_", "-")
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
