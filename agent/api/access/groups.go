package access

import (
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"warmd/placement"
)

// Groups gives roles to the members of groups of this host; it is the table [access]
// of a configuration.
type Groups struct {
	Read  []string `toml:"read"`
	Place []string `toml:"place"`
	Admin []string `toml:"admin"`
}

// DefaultGroups are those that the packages make.
func DefaultGroups() Groups {
	return Groups{Read: []string{"warmd"}, Place: []string{"warmd-place"}, Admin: []string{"warmd-admin"}}
}

// names are the groups that have exactly a role.
func (g Groups) names(r Role) []string {
	switch r {
	case Read:
		return g.Read
	case Place:
		return g.Place
	case Admin:
		return g.Admin
	}
	return nil
}

// Validate checks the form; every error is a *placement.FieldError. A group that does
// not exist is no error: it has no members.
func (g Groups) Validate() error {
	var errs []error
	for r := Read; r <= Admin; r++ {
		for i, name := range g.names(r) {
			if name == "" || len(name) > 32 || strings.ContainsAny(name, " :,\t\n\x00") {
				errs = append(errs, &placement.FieldError{Field: fmt.Sprintf("access.%s[%d]", r, i), Problem: fmt.Sprintf("%.40q must be the name of a group", name)})
			}
		}
	}
	return errors.Join(errs...)
}

// members is Groups by number.
type members struct {
	Groups
	roles map[int]Role
}

// resolve looks the groups up; missing are those that the host does not have.
func (g Groups) resolve() (m *members, missing []string) {
	m = &members{Groups: g, roles: map[int]Role{}}
	for r := Read; r <= Admin; r++ {
		for _, name := range g.names(r) {
			gid, err := groupID(name)
			if err != nil {
				missing = append(missing, name)
				continue
			}
			m.roles[gid] = max(m.roles[gid], r)
		}
	}
	return m, missing
}

// groupID takes a name, or a number for hosts whose groups are kept elsewhere.
func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		if n, numErr := strconv.ParseUint(name, 10, 31); numErr == nil {
			return int(n), nil
		}
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// role is the highest that one of the groups gives.
func (m *members) role(gids []int) Role {
	best := None
	for _, gid := range gids {
		best = max(best, m.roles[gid])
	}
	return best
}

// enough names the groups that give at least a role, the lowest first.
func (m *members) enough(r Role) []string {
	var out []string
	for ; r <= Admin; r++ {
		for _, name := range m.names(r) {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}
