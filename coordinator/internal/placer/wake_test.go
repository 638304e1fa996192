package placer

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

func TestAModelThatSleepsIsWokenInsteadOfStartedAgain(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		c := r.coordinator("c1")
		first := c.place(r.t.Context(), opt("req-1"))
		require.NoError(t, first.err)
		synctest.Wait() // its record says so, too
		_, err := c.fx.Agents[first.Node].Rest(first.ID, true)
		require.NoError(t, err)
		c.fx.Refresh()
		d, err := c.Decide(opt("req-2"))
		require.NoError(t, err)
		assert.Equal(t, first.ID, d.Candidates[0].Placement)

		got := c.place(r.t.Context(), opt("req-2"))
		require.NoError(t, got.err)
		assert.Equal(t, first.ID, got.ID)
		assert.Equal(t, placement.TierSleeping, got.Tier)
		assert.Equal(t, []string{"assigned", "ready"}, got.events)
		assert.False(t, got.Sleeping)
		rec := r.stored(first.ID)
		assert.Equal(t, placement.TierWarm, rec.Tier, "the record says how its own start was")
		assert.Equal(t, []string{"req-2"}, rec.Aliases)

		again := c.place(r.t.Context(), opt("req-2"))
		require.NoError(t, again.err)
		assert.Equal(t, first.ID, again.ID, "the request id names it from then on, awake as it is")
		another := c.place(r.t.Context(), opt("req-3"))
		require.NoError(t, another.err)
		assert.NotEqual(t, first.ID, another.ID, "who is awake is no reason to share")
	})
}

func TestWhatCannotBeWokenIsStarted(t *testing.T) {
	for name, spoil := range map[string]func(r *rig, first outcome){
		"its record is over": func(r *rig, first outcome) {
			rec := r.stored(first.ID)
			rec.State = placement.Released
			_, err := r.mem.Update(r.t.Context(), rec, store.NoFence)
			require.NoError(r.t, err)
		},
		"another request": func(*rig, outcome) {},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, func(r *rig) {
				r.agents[0].Slots = 2
				c := r.coordinator("c1")
				first := c.place(r.t.Context(), opt("req-1"))
				require.NoError(t, first.err)
				synctest.Wait()
				_, err := r.agents[0].Rest(first.ID, true)
				require.NoError(t, err)
				spoil(r, first)
				c.fx.Refresh()
				req := opt("req-2")
				if name == "another request" {
					req.Args = []string{"--max-model-len=512"}
				}
				got := c.place(r.t.Context(), req)
				require.NoError(t, got.err)
				assert.NotEqual(t, first.ID, got.ID)
				assert.Equal(t, []string{"assigned", "accepted", "ready"}, got.events)
			})
		})
	}
}
