package main

import (
	"context"
	"io"

	"github.com/holdfast-db/holdfast/internal/agent"
)

// runAgent runs a node on this machine until ctx ends or it can go on no longer.
func runAgent(ctx context.Context, cfg agentConfig) error {
	limitMemory(ctx)
	var host agent.Host
	if cfg.FaultSwitch != "" {
		host.FaultSwitch = func(setCut func([]string)) (io.Closer, error) { return serveFaultSwitch(cfg.FaultSwitch, setCut) }
	}
	return agent.Run(ctx, cfg.Config, host)
}
