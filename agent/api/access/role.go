package access

import "fmt"

// Role is what somebody may do; each includes those before it.
type Role int

// The roles.
const (
	None  Role = iota // nothing but to ask for /healthz
	Read              // look at everything
	Place             // place and release models
	Admin             // drain nodes, and whatever no rule names
)

var roleNames = [...]string{"none", "read", "place", "admin"}

func (r Role) String() string {
	if r < None || r > Admin {
		return fmt.Sprintf("Role(%d)", int(r))
	}
	return roleNames[r]
}

// ParseRole reads read, place or admin.
func ParseRole(s string) (Role, error) {
	for r := Read; r <= Admin; r++ {
		if s == r.String() {
			return r, nil
		}
	}
	return None, fmt.Errorf("role %q must be read, place or admin", s)
}
