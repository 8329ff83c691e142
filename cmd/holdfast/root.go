package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newRoot(run runner) *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "A key-value store for one home site and many remote ones",
		Long: `Holdfast is a consistent key-value store for an organisation with a home site
and remote sites. Voters at home take the writes; learners at remote sites hold
a full copy and go on serving it when the link to home is cut.

Flags that say how to reach a node, and those of agent and dev, can also be
given in the environment: --http-addr as HOLDFAST_HTTP_ADDR, --data-dir as
HOLDFAST_DATA_DIR, and so on.`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true,
		TraverseChildren:   true, // root has flags of its own
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := inherit(cmd); err != nil {
				return err
			}
			return applySettings(cmd)
		},
	}
	new(connectFlags).add(root)
	root.Version = version // for --version
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(explainFlag)
	root.AddCommand(newAgent(run), newBench(), newCheck(), newDev(), newKV(), newLock(), newOperator(), newRejoin(), newReplica(), newReplicas(), newSession(), newSites(), newSnapshot(), newStatus(), newTxn(), newVersion())
	group(root)
	return root
}

// inherit gives a command the connection flags that stood before it, as in
// holdfast --http-addr A kv get K. Its own win.
func inherit(cmd *cobra.Command) error {
	root := cmd.Root()
	if cmd == root {
		return nil
	}
	var first error
	root.Flags().Visit(func(f *pflag.Flag) {
		own := cmd.Flags().Lookup(f.Name)
		switch {
		case first != nil || !f.Changed:
		case own == nil:
			first = refuse("leave it away", "%s has no flag --%s", cmd.CommandPath(), f.Name)
		case !own.Changed:
			if list, ok := f.Value.(pflag.SliceValue); ok {
				own.Changed = true
				first = own.Value.(pflag.SliceValue).Replace(list.GetSlice())
				return
			}
			first = cmd.Flags().Set(f.Name, f.Value.String())
		}
	})
	return first
}

// group makes a command that only holds others show its help when it is given
// nothing, and name the nearest subcommand when it is given a wrong one.
func group(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return wrongSubcommand(cmd, args[0])
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

func wrongSubcommand(cmd *cobra.Command, got string) error {
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			known = append(known, c.Name())
		}
	}
	return refuse(didYouMean(got, known, "", fmt.Sprintf("%s --help lists what there is", cmd.CommandPath())),
		"%s has no command %q", cmd.CommandPath(), got)
}

// exactArgs refuses any other number of arguments than those the usage names.
func exactArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return refuse("write: "+cmd.UseLine(), "%s needs %s, got %d", cmd.CommandPath(), arguments(least, most), len(args))
		case len(args) > most:
			return refuse("write: "+cmd.UseLine(), "%s takes %s, got %d", cmd.CommandPath(), arguments(least, most), len(args))
		}
		return nil
	}
}

func arguments(least, most int) string {
	s := fmt.Sprint(most, " arguments")
	switch {
	case most == 0:
		s = "no argument"
	case most == 1:
		s = "1 argument"
	}
	if least < most && least > 0 {
		s = fmt.Sprintf("%d to %s", least, s)
	}
	return s
}

// explainFlag puts pflag's errors in our form.
func explainFlag(cmd *cobra.Command, err error) error {
	help := cmd.CommandPath() + " --help lists them"
	var (
		unknown *pflag.NotExistError
		invalid *pflag.InvalidValueError
		missing *pflag.ValueRequiredError
	)
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if len(name) == 1 {
			return refuse(help, "%s has no flag -%s", cmd.CommandPath(), name)
		}
		return refuse(didYouMean(name, flagNames(cmd), "--", help), "%s has no flag --%s", cmd.CommandPath(), name)
	case errors.As(err, &invalid):
		return badValue("--"+invalid.GetFlag().Name, invalid.GetValue(), invalid.GetFlag(), invalid.Unwrap())
	case errors.As(err, &missing):
		return refuse("give one", "--%s has no value", missing.GetFlag().Name)
	default:
		return refuse(help, "%v", err)
	}
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return names
}

// badValue says what a flag's value should have been. source is how the user
// gave it: a flag, a variable, a key of the file.
func badValue(source, value string, f *pflag.Flag, err error) error {
	what := map[string]string{
		"int":      "a whole number",
		"uint64":   "a whole number from 0 to 18446744073709551615",
		"float64":  "a number",
		"bool":     "true or false",
		"duration": "a duration such as 5s or 2m30s",
	}[f.Value.Type()]
	if what == "" {
		what = err.Error()
	}
	return refuse("give "+strings.TrimPrefix(what, "it must be "), "%s=%q is not understood", source, value)
}
