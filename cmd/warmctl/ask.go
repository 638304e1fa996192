package main

import (
	"errors"
	"strings"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// answerer says who answered, for the footer of a table.
type answerer struct {
	role string // coordinator, agent
	// instead says why an agent answered in the coordinator's place; empty when it
	// was asked first.
	instead string
}

func (c *call) coordinator() (*coordapi.Client, address, error) {
	a := c.coordinatorAddress()
	k, err := coordapi.NewClient(a.addr, nil)
	if err != nil {
		return nil, a, badAddress(a, err)
	}
	c.conns = append(c.conns, k)
	return k, a, nil
}

func (c *call) agent() (*agentapi.Client, address, error) {
	a := c.agentAddress()
	k, err := agentapi.NewClient(a.addr, nil)
	if err != nil {
		return nil, a, badAddress(a, err)
	}
	c.conns = append(c.conns, k)
	return k, a, nil
}

func badAddress(a address, err error) error {
	e := placement.AsError(err)
	if f, ok := errors.AsType[*placement.FieldError](err); ok {
		return usagef("%s %s", a.given, f.Problem)
	}
	return e
}

// ask asks the coordinator, and the local agent when the coordinator cannot be
// reached: an operator wants an answer most when something is down. Refusals are
// answers; they never fall back.
func ask[T any](c *call, coord func(*coordapi.Client) (T, error), agent func(*agentapi.Client) (T, error)) (T, answerer, error) {
	var none T
	if c.flags.String("agent") != "" && c.flags.String("server") == "" {
		got, err := askAgent(c, agent)
		return got, answerer{role: "agent"}, err
	}
	k, at, err := c.coordinator()
	if err != nil {
		return none, answerer{}, err
	}
	got, err := coord(k)
	why := notReached(err)
	if why == "" {
		return got, answerer{role: "coordinator"}, err
	}
	first := explainUnreached(err, at)
	got, err = askAgent(c, agent)
	if notReached(err) != "" || isBadAddress(err) {
		both := placement.AsError(first)
		return none, answerer{}, placement.Errorf(placement.CodeUnavailable, "%s; nor %s", both.Message, placement.AsError(err).Message).
			WithHint("%s", both.Hint)
	}
	return got, answerer{role: "agent", instead: placement.AsError(first).Message}, err
}

func askAgent[T any](c *call, agent func(*agentapi.Client) (T, error)) (T, error) {
	var none T
	k, at, err := c.agent()
	if err != nil {
		return none, err
	}
	got, err := agent(k)
	if notReached(err) != "" {
		return none, explainUnreached(err, at)
	}
	return got, err
}

// onCoordinator asks the coordinator alone: for what only it may do.
func onCoordinator[T any](c *call, coord func(*coordapi.Client) (T, error)) (T, error) {
	var none T
	k, at, err := c.coordinator()
	if err != nil {
		return none, err
	}
	got, err := coord(k)
	if notReached(err) != "" {
		return got, explainUnreached(err, at)
	}
	return got, err
}

const reachPrefix = "reach "

// notReached is the cause when a server could not be reached at all, as opposed
// to one that answered "unavailable" (etcd is down, say).
func notReached(err error) string {
	e, ok := errors.AsType[*placement.Error](err)
	if !ok || e.Code != placement.CodeUnavailable || !strings.HasPrefix(e.Message, reachPrefix) {
		return ""
	}
	_, cause, _ := strings.Cut(e.Message, ": ")
	return cause
}

func isBadAddress(err error) bool {
	e, ok := errors.AsType[*placement.Error](err)
	return ok && e.Code == placement.CodeBadRequest
}

// explainUnreached names the address that was tried and says what to do.
func explainUnreached(err error, a address) error {
	cause := notReached(err)
	if i := strings.LastIndex(cause, "connect: "); i >= 0 {
		cause = cause[i+len("connect: "):] // the address is in the message already
	}
	e := placement.Errorf(placement.CodeUnavailable, "%s%s at %s: %s", reachPrefix, a.role, a.addr, cause)
	switch {
	case strings.Contains(cause, "permission denied"):
		return e.WithHint("the socket belongs to group warmd: sudo usermod -aG warmd $USER, then log in again")
	case a.given != "":
		return e.WithHint("is it running there? the address came from %s", a.given)
	}
	return e.WithHint("start `warmd dev`, or systemctl start warmd-%s, or name another one with %s or %s", a.role, a.flag, a.env)
}

// resolveOnAgent finds a placement the way the coordinator does: by id, unique
// id prefix, or served name.
func resolveOnAgent(c *call, k *agentapi.Client, key string) (placement.Placement, error) {
	all, err := k.Placements(c.ctx)
	if err != nil {
		return placement.Placement{}, err
	}
	return findPlacement(all, key)
}

func findPlacement(all []placement.Placement, key string) (placement.Placement, error) {
	var byPrefix, byName []placement.Placement
	for _, p := range all {
		switch {
		case p.ID == key:
			return p, nil
		case strings.HasPrefix(p.ID, key):
			byPrefix = append(byPrefix, p)
		case p.Request.ServedName() == key && !p.State.Terminal():
			byName = append(byName, p)
		}
	}
	for _, found := range [][]placement.Placement{byPrefix, byName} {
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			var ids []string
			for _, p := range found {
				ids = append(ids, p.ID)
			}
			return placement.Placement{}, usagef("%q means %d placements: %s", key, len(found), strings.Join(ids, ", ")).
				WithHint("give more of the id")
		}
	}
	return placement.Placement{}, placement.Errorf(placement.CodeNotFound, "no placement %q", key).WithHint("warmctl ps --all lists them")
}
