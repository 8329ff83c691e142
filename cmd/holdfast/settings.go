package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

const envPrefix = "HOLDFAST"

// envName is the variable that stands for a flag.
func envName(flag string) string {
	return envPrefix + "_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// isSetting reports whether a flag can also come from the environment or the
// file.
//
// What a single request does (recurse, cas, ...) cannot: a variable that was
// left behind must not turn one delete into many.
func isSetting(cmd *cobra.Command, f *pflag.Flag) bool {
	if f.Name == "help" || f.Name == "config" {
		return false
	}
	return cmd.Name() == "agent" || cmd.Name() == "dev" || cmd.Root().Flags().Lookup(f.Name) != nil
}

// applySettings gives each flag that is not on the command line its value from
// the environment, else from the file that --config names, where the command
// has that flag.
func applySettings(cmd *cobra.Command) error {
	env := viper.New()
	env.SetEnvPrefix(envPrefix)
	env.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	env.AutomaticEnv()

	file := viper.New()
	var path string
	if f := cmd.Flags().Lookup("config"); f != nil {
		path = f.Value.String()
		if path == "" {
			path = env.GetString("config")
		}
	}
	if path != "" {
		if err := readConfig(cmd, file, path); err != nil {
			return err
		}
	}
	var first error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if first != nil || f.Changed || !isSetting(cmd, f) {
			return
		}
		switch {
		case env.IsSet(f.Name):
			first = setFlag(cmd, f, envName(f.Name), env.Get(f.Name))
		case file.InConfig(f.Name):
			first = setFlag(cmd, f, f.Name+" in "+path, file.Get(f.Name))
		}
	})
	return first
}

// readConfig reads the file and refuses keys that are no flags.
func readConfig(cmd *cobra.Command, file *viper.Viper, path string) error {
	file.SetConfigFile(path)
	if err := file.ReadInConfig(); err != nil {
		var kind viper.UnsupportedConfigError
		if errors.As(err, &kind) || strings.Contains(err.Error(), "decoder not found") {
			return refuse("name it .yaml, .toml or .json, for what it holds", "the format of configuration file %s is not known", path)
		}
		if pe := new(os.PathError); errors.As(err, &pe) {
			return refuse("check --config", "configuration file %s cannot be read: %w", path, pe.Err)
		}
		return refuse("correct the file", "configuration file %s is damaged: %w", path, err)
	}
	var known []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if isSetting(cmd, f) && !f.Hidden {
			known = append(known, f.Name)
		}
	})
	keys := file.AllKeys()
	slices.Sort(keys)
	for _, key := range keys {
		if f := cmd.Flags().Lookup(key); f == nil || !isSetting(cmd, f) {
			return refuse(didYouMean(key, known, "", cmd.CommandPath()+" --help lists the flags, and each is a key"),
				"configuration file %s has an unknown key %q", path, key)
		}
	}
	return nil
}

// setFlag sets f to a value of the environment or the file.
func setFlag(cmd *cobra.Command, f *pflag.Flag, source string, value any) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		var items []string
		switch v := value.(type) {
		case []any:
			for _, item := range v {
				items = append(items, fmt.Sprint(item))
			}
		default:
			for item := range strings.SplitSeq(fmt.Sprint(v), ",") {
				items = append(items, strings.TrimSpace(item))
			}
		}
		f.Changed = true
		return list.Replace(items)
	}
	switch value.(type) {
	case []any, map[string]any:
		return refuse("give a single value", "%s holds more than one value", source)
	}
	text := fmt.Sprint(value)
	if err := cmd.Flags().Set(f.Name, text); err != nil {
		var invalid *pflag.InvalidValueError
		if errors.As(err, &invalid) {
			err = invalid.Unwrap()
		}
		return badValue(source, text, f, err)
	}
	return nil
}
