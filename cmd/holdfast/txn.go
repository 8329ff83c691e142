package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// txnReport is what a transaction came to, for programs.
type txnReport struct {
	OK      bool
	Results []kvEntry
	Errors  []client.TxnError
}

var errTxn = errors.New("transaction was not carried out")

func newTxn() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "txn FILE",
		Short: "Carry out several operations in one step, all or none",
		Long: `Carry out several operations in one step, all or none. FILE, or - for standard
input, is a JSON array of operations as PUT /v1/txn takes it, with values in base64:

  [{"KV": {"Verb": "cas", "Key": "a", "Index": 12, "Value": "bmV3"}},
   {"KV": {"Verb": "get", "Key": "b"}}]

Exit status: 0 it was carried out, 1 it was not.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := args[0]
			if source != "-" {
				source = "@" + source
			}
			file, err := valueOf(source, cmd.InOrStdin())
			if err != nil {
				return err
			}
			ops, err := parseTxn(file)
			if err != nil {
				return err
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			res, meta, err := c.Txn(cmd.Context(), ops)
			if err != nil {
				return err
			}
			return reportTxn(cmd, conn, ops, res, meta)
		},
	}
	conn.add(cmd)
	return cmd
}

// parseTxn reads operations in the form of the HTTP API.
func parseTxn(file []byte) ([]client.TxnOp, error) {
	var wire []struct {
		KV *struct {
			Verb, Key, Session string
			Value              []byte
			Flags, Index       uint64
		}
	}
	d := json.NewDecoder(bytes.NewReader(file))
	d.DisallowUnknownFields()
	if err := d.Decode(&wire); err != nil {
		return nil, refuse("see holdfast txn --help for the form", "the operations cannot be read: %w", err)
	}
	ops := make([]client.TxnOp, len(wire))
	for i, w := range wire {
		if w.KV == nil {
			return nil, refuse("see holdfast txn --help for the form", "operation %d has no KV", i)
		}
		verb, ok := command.VerbNamed(w.KV.Verb)
		if !ok {
			known := command.VerbNames()
			return nil, refuse(didYouMean(w.KV.Verb, known, "", "the verbs are "+strings.Join(known, ", ")), "operation %d has the verb %q", i, w.KV.Verb)
		}
		ops[i] = client.TxnOp{Verb: verb, Key: w.KV.Key, Value: w.KV.Value, Flags: w.KV.Flags, Index: w.KV.Index, Session: w.KV.Session}
	}
	return ops, nil
}

func reportTxn(cmd *cobra.Command, conn connectFlags, ops []client.TxnOp, res client.TxnResult, meta client.Meta) error {
	w := cmd.OutOrStdout()
	var err error
	switch {
	case conn.json:
		err = writeJSON(w, txnReport{OK: res.OK, Results: entriesOf(res.Records), Errors: res.Errors})
	case res.OK:
		if _, err = fmt.Fprintf(w, "%s carried out at index %d\n", plural(len(ops), "operation"), meta.Index); err == nil && len(res.Records) > 0 {
			rows := [][]string{{"KEY", "INDEX", "FLAGS", "VALUE"}}
			for _, r := range res.Records {
				rows = append(rows, []string{r.Key, fmt.Sprint(r.ModifyRevision), fmt.Sprint(r.Flags), excerpt(r.Value)})
			}
			err = table(w, rows)
		}
	default:
		rows := [][]string{{"OPERATION", "VERB", "KEY", "PROBLEM"}}
		for _, e := range res.Errors {
			var verb, key string
			if e.OpIndex >= 0 && e.OpIndex < len(ops) {
				verb, key = ops[e.OpIndex].Verb.String(), ops[e.OpIndex].Key
			}
			rows = append(rows, []string{fmt.Sprint(e.OpIndex), verb, key, e.What})
		}
		err = table(w, rows)
	}
	if err == nil && !res.OK {
		err = refuse("put right what is listed", "%s cannot be done: %w", plural(len(res.Errors), "operation"), errTxn)
	}
	return err
}
