package nspawn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
)

// What an operator sees of an agent and its engines with systemd's own tools.

// readyWithItsZygote starts an agent while a zygote imports.
func (s *solo) readyWithItsZygote(t *testing.T) {
	s.Run(t, "systemctl stop "+agentUnit+"; systemctl start --no-block "+agentUnit)
	begin := time.Now()
	var said []string
	host.Until(t, imports, "the agent is ready", func() error {
		// The state first: when that is active, what is asked afterwards must be up.
		state, line := s.Run(t, "systemctl show -P ActiveState "+agentUnit), s.Run(t, "systemctl show -P StatusText "+agentUnit)
		st, err := s.node(t)
		require.NoError(t, err, "it answers while it starts")
		if state == "active" {
			assert.Equal(t, "up", zygote(st.Capacity), "active before its zygote was up")
			assert.True(t, st.Ready)
			return nil
		}
		require.Equal(t, "activating", state)
		said = append(said, line)
		return fmt.Errorf("zygote %s", zygote(st.Capacity))
	})
	figure("ready_seconds_while_a_zygote_imports", seconds(time.Since(begin)))
	assert.Contains(t, strings.Join(said, "\n"), "starting, waiting for "+vllmRuntime)
}

func TestOperatorSeesThePoolInTheStatusAndThePlacementInTheJournal(t *testing.T) {
	s := theSolo(t)
	p := s.place(t, tiny("seen"))
	client := &http.Client{Transport: &http.Transport{DialContext: lab.Dial}}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, load.Complete(ctx, client, p.Endpoint, "seen", 4))
	host.Until(t, 20*time.Second, "the status line", func() error {
		out, _ := s.Try(t.Context(), "systemctl status --no-pager "+agentUnit)
		if !strings.Contains(out, `Status: "1 device, 1 warm, 1 serving, 0 loading; `) || !strings.Contains(out, vllmRuntime+" up") {
			return errors.New(out)
		}
		return nil
	})

	described := s.Run(t, "warmctl describe "+p.ID)
	command := regexp.MustCompile(`journalctl .*`).FindString(described)
	require.Equal(t, "journalctl WARMD_PLACEMENT="+p.ID, command, "%s", described)
	host.Until(t, 20*time.Second, "lines of the agent and of the engine", func() error {
		out, err := s.Try(t.Context(), command+" -q --no-pager -o short")
		agent, engine := strings.Contains(out, " warmd["), strings.Contains(out, " warmd-engine")
		if err == nil && (!agent || !engine) {
			err = fmt.Errorf("agent %t, engine %t: %s", agent, engine, out)
		}
		return err
	})
	assert.Contains(t, s.Run(t, command+" -q --no-pager -o cat SYSLOG_IDENTIFIER=warmd-engine"), "POST /v1/completions")
	s.release(t, p.ID)

}
