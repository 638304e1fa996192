package nspawn

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// Promise 3 of issue 4: socket activation for real.

func TestRequestToTheSocketOfAStoppedAgentStartsItAndIsAnswered(t *testing.T) {
	f := theFleet(t)
	n := f.nodes[0]
	for name, ask := range map[string]func(context.Context) error{
		"unix": func(ctx context.Context) error { _, err := n.agent.Fleet(ctx); return err },
		"tcp":  func(ctx context.Context) error { _, err := n.agentTCP.Fleet(ctx); return err },
	} {
		t.Run(name, func(t *testing.T) {
			// A coordinator that has just heard of the agent's return may ask it, too, and so start it.
			host.Until(t, 30*time.Second, "the agent is stopped", func() error {
				n.Run(t, "systemctl stop warmd-agent.service")
				if is := n.Run(t, "systemctl show -P ActiveState warmd-agent.service"); is != "inactive" {
					return fmt.Errorf("somebody has started it again: it is %s", is)
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			begin := time.Now()
			require.NoError(t, ask(ctx))
			figure("activation_seconds_"+name, seconds(time.Since(begin)))
			n.WaitUnit(t, "warmd-agent.service", "active", 30*time.Second)
		})
	}
}

func TestRestartsOfTheAgentUnderLoadRefuseNobodyAndLoseNothing(t *testing.T) {
	f := theFleet(t)
	n := f.nodes[0]
	unix := load.Ask(t.Context(), 500, func(ctx context.Context) error { _, err := n.agent.Fleet(ctx); return err })
	tcp := load.Ask(t.Context(), 100, func(ctx context.Context) error { _, err := n.agentTCP.Fleet(ctx); return err })
	stream := load.Place(t.Context(), f, load.Stream{
		Base: placement.Request{ID: "restart", Model: "any", Runtime: engineRuntime, Node: n.Name, WaitCapacity: true}, PerSecond: 1, Keep: 8, Patience: 90 * time.Second,
	})
	const restarts = 8
	for range restarts {
		n.Run(t, "systemctl restart warmd-agent.service")
		time.Sleep(2 * time.Second) // the load goes on between two restarts as well
	}
	told := stream.Stop()
	for name, l := range map[string]*load.Load{"unix": unix, "tcp": tcp} {
		got := l.Stop()
		t.Logf("%s: %s", name, got)
		assert.Zero(t, got.Failed(), "%s: %s", name, got)
		figure("requests_per_second_during_restarts_"+name, fmt.Sprintf("%.0f", got.Rate()))
		figure("longest_request_seconds_during_restarts_"+name, seconds(got.Longest()))
		figure("failed_requests_during_restarts_"+name, fmt.Sprintf("%d of %d", got.Failed(), got.OK()+got.Failed()))
	}
	f.prove(t, "restarts", told)
}
