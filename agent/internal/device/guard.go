package device

import (
	"fmt"
	"time"

	"warmd/placement"
)

// guard ends a start that takes too long, or that nobody follows any more.
//
// Until its ready line was written to a follower, a placement lives by its
// stream: a coordinator that lost us may have placed it elsewhere, and we cannot
// know. So a start without a follower is given up after a grace in which the same
// claim may come back. Once ready was delivered the record rules.
func (l *life) guard(started <-chan struct{}) {
	t := l.d.cfg.Timings
	left := time.Until(l.e.Record().Deadline)
	deadline := time.NewTimer(left)
	defer deadline.Stop()
	grace := time.NewTimer(t.Follow)
	defer grace.Stop()
	alone := true
	for {
		followers, delivered := l.e.Feed.watch()
		switch {
		case delivered:
			if started == nil {
				return
			}
			grace.Stop()
		case followers > 0 && alone:
			grace.Stop()
			alone = false
		case followers == 0 && !alone:
			grace.Reset(t.Follow)
			alone = true
		}
		select {
		case <-l.ctx.Done():
			return
		case <-l.e.Feed.poke:
		case <-started:
			started = nil
			deadline.Stop()
		case <-deadline.C:
			took := time.Since(l.e.Record().Received)
			l.quit(&ending{
				state: placement.Failed, code: placement.CodeTimeout,
				reason: fmt.Sprintf("no token within the deadline (%.1f s since the claim)", took.Seconds()),
				hint:   "look at the last log lines; give it more time with --timeout if it was still loading",
			})
		case <-grace.C:
			l.quit(&ending{
				state: placement.Failed, code: placement.CodeStartFailed,
				reason: fmt.Sprintf("nobody followed the start for %s", t.Follow),
				hint:   "the coordinator that asked for it went away; it may have placed it elsewhere",
			})
		}
	}
}
