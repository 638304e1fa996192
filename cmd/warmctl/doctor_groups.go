package main

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"warmd/agent/api/access"
)

// account is who runs doctor.
type account struct {
	name string
	uid  int
	gids []int // of this session
}

func thisAccount() account {
	a := account{name: "this user", uid: os.Geteuid()}
	if u, err := user.Current(); err == nil {
		a.name = u.Username
	}
	groups, _ := os.Getgroups()
	a.gids = append(groups, os.Getegid())
	return a
}

// connectGroup may connect to the sockets of the packaged units.
const connectGroup = "warmd"

// checkGroup sees whether this user may connect to the service's sockets, and what it
// may do there, by the groups that the packages make. [access] of a configuration may
// name others.
func (h host) checkGroup() []finding {
	raw, err := os.ReadFile(h.path("/etc/group"))
	if err != nil {
		return nil
	}
	gids, members := map[string]int{}, map[string][]string{}
	for line := range strings.SplitSeq(string(raw), "\n") {
		if f := strings.Split(line, ":"); len(f) >= 4 {
			gids[f[0]], _ = strconv.Atoi(f[2])
			members[f[0]] = strings.Split(f[3], ",")
		}
	}
	if _, installed := gids[connectGroup]; !installed {
		return nil // no packaged service on this host
	}
	if h.me.uid == 0 {
		return []finding{{"group", fine, "root may use the sockets and do everything there", ""}}
	}
	in := func(group string) bool {
		gid, there := gids[group]
		return there && slices.Contains(h.me.gids, gid)
	}
	if !in(connectGroup) {
		if slices.Contains(members[connectGroup], h.me.name) {
			return []finding{{"group", warn, h.me.name + " was put into group " + connectGroup + ", but this session began before", "log in again, or newgrp " + connectGroup}}
		}
		return []finding{{"group", warn, h.me.name + " is not in group " + connectGroup + " and may not use the service's sockets", addTo(connectGroup, h.me.name)}}
	}
	g := access.DefaultGroups()
	switch {
	case slices.ContainsFunc(g.Admin, in):
		return []finding{{"group", fine, h.me.name + " may do everything (role admin)", ""}}
	case slices.ContainsFunc(g.Place, in):
		return []finding{{"group", fine, fmt.Sprintf("%s may look, place and release (role place); draining takes group %s", h.me.name, g.Admin[0]), ""}}
	}
	return []finding{{"group", fine, fmt.Sprintf("%s may look (role read); placing and releasing take group %s, draining group %s", h.me.name, g.Place[0], g.Admin[0]), ""}}
}

func addTo(group, name string) string {
	return "sudo usermod -aG " + group + " " + name + ", then log in again"
}
