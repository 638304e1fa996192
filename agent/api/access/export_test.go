package access

import "time"

// SetClock replaces the clock of the files' checks.
func (c *Certificates) SetClock(now func() time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}
