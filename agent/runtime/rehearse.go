package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// rehearse runs the Python side's rehearsal on a folder that holds a manifest: two
// real loads of tiny models, which fill the engine's caches and leave profile.json.
func rehearse(ctx context.Context, m Manifest, folder string, report *progress) error {
	scripts, err := Unpack(m.Dir)
	if err != nil {
		return err
	}
	c := command{
		argv: []string{m.Python, filepath.Join(scripts, "rehearse.py"), "--runtime", folder},
		env:  m.Environ(), dir: folder, log: filepath.Join(folder, "rehearse.log"),
		// It has engines to end before it ends.
		wait: 20 * time.Second,
	}
	c.line = func(line string) {
		var p struct {
			Step        string  `json:"step"`
			FirstAnswer float64 `json:"first_answer_s"`
			Modules     int     `json:"modules"`
			Error       string  `json:"error"`
		}
		if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &p) != nil || p.Step == "" || p.Step == "failed" {
			return
		}
		more := ""
		if p.FirstAnswer > 0 {
			more = fmt.Sprintf(" (first answer after %.1f s)", p.FirstAnswer)
		}
		if p.Modules > 0 {
			more += fmt.Sprintf(" (%d modules)", p.Modules)
		}
		report.say("rehearse", "%s%s", p.Step, more)
	}
	if err := c.run(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return hint(fmt.Errorf("rehearse: %w", err), "the whole output is in %s", c.log)
	}
	return nil
}
