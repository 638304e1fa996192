package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
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

// coordinator is the client of the coordinator. A command that asks again and again
// keeps its connection.
func (c *call) coordinator() (*coordapi.Client, address, error) {
	a := c.coordinatorAddress()
	if k := c.kept.coordinator; k != nil && c.kept.coordinatorAddr == a {
		return k, a, nil
	}
	addr, rt, err := c.connect(a, access.UnitCoordinator)
	if err != nil {
		return nil, a, err
	}
	k, err := coordapi.NewClient(addr, rt)
	if err != nil {
		return nil, a, badAddress(a, err)
	}
	c.conns = append(c.conns, k)
	c.kept.coordinator, c.kept.coordinatorAddr = k, a
	return k, a, nil
}

func (c *call) agent() (*agentapi.Client, address, error) {
	a := c.agentAddress()
	if k := c.kept.agent; k != nil && c.kept.agentAddr == a {
		return k, a, nil
	}
	addr, rt, err := c.connect(a, access.UnitAgent)
	if err != nil {
		return nil, a, err
	}
	k, err := agentapi.NewClient(addr, rt)
	if err != nil {
		return nil, a, badAddress(a, err)
	}
	c.conns = append(c.conns, k)
	c.kept.agent, c.kept.agentAddr = k, a
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
	why := c.notReached(err)
	if why == "" {
		return got, answerer{role: "coordinator"}, err
	}
	first := explainUnreached(err, why, at)
	got, err = askAgent(c, agent)
	if _, ok := errors.AsType[*unreached](err); ok || isBadAddress(err) {
		both := placement.AsError(first)
		return none, answerer{}, placement.Errorf(both.Code, "%s; nor %s", both.Message, placement.AsError(err).Message).
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
	if why := c.notReached(err); why != "" {
		return none, explainUnreached(err, why, at)
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
	if why := c.notReached(err); why != "" {
		return got, explainUnreached(err, why, at)
	}
	return got, err
}

// unreached is an error of a server that did not answer, in words that name the
// address.
type unreached struct {
	err   *placement.Error
	cause string
}

func (u *unreached) Error() string { return u.err.Error() }
func (u *unreached) Unwrap() error { return u.err }

// reachPrefix begins the message of agentapi.Conn when the connection failed. A
// coordinator may pass on such a message about one of its nodes, so the prefix
// alone says nothing: see call.answered.
const reachPrefix = "reach server: "

// notReached is the cause when the server that was asked last did not answer, and
// empty when it did, or when err is another one.
func (c *call) notReached(err error) string {
	if u, ok := errors.AsType[*unreached](err); ok {
		return u.cause
	}
	if c.answered.Load() {
		return ""
	}
	return connectionCause(err)
}

// connectionCause is what is wrong with a connection, empty for other errors.
func connectionCause(err error) string {
	e, ok := errors.AsType[*placement.Error](err)
	if !ok || e.Code != placement.CodeUnavailable {
		return ""
	}
	cause, ok := strings.CutPrefix(e.Message, reachPrefix)
	if !ok {
		return ""
	}
	return cause
}

func isBadAddress(err error) bool {
	e, ok := errors.AsType[*placement.Error](err)
	return ok && e.Code == placement.CodeBadRequest
}

// explainUnreached names the address that was tried and says what to do.
func explainUnreached(err error, cause string, a address) error {
	short := cause
	if i := strings.LastIndex(cause, "connect: "); i >= 0 {
		short = cause[i+len("connect: "):] // the address is in the message already
	}
	e := placement.Errorf(placement.CodeUnavailable, "reach %s at %s: %s", a.role, a.addr, short)
	switch was := placement.AsError(err); {
	case was != nil && was.Field == agentapi.FieldTLS: // somebody answers there: it is about who we are, or they
		e.Code, e.Hint = placement.CodeUnauthorized, was.Hint
	case strings.Contains(cause, "permission denied"):
		e.Hint = "the socket belongs to group warmd: sudo usermod -aG warmd $USER, then log in again"
	case a.given != "":
		e.Hint = "is it running there? the address came from " + a.given
	default:
		e.Hint = fmt.Sprintf("start `warmd dev`, or systemctl start warmd-%s, or name another one with %s or %s", a.role, a.flag, a.env)
	}
	return &unreached{e, cause}
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
	var living, ended []placement.Placement
	for _, p := range all {
		switch {
		case p.ID == key:
			return p, nil
		case p.Request.ServedName() != key && (len(key) < 3 || !strings.HasPrefix(p.ID, key)):
		case p.State.Terminal():
			ended = append(ended, p)
		default:
			living = append(living, p)
		}
	}
	switch {
	case len(living) == 1:
		return living[0], nil
	case len(living) > 1:
		var ids []string
		for _, p := range living {
			ids = append(ids, p.ID)
		}
		return placement.Placement{}, usagef("%q means %d placements: %s", key, len(living), strings.Join(ids, ", ")).WithHint("give more of the id")
	case len(ended) > 0: // a name is used again and again: the latest is meant
		return slices.MaxFunc(ended, func(a, b placement.Placement) int { return a.Updated.Compare(b.Updated) }), nil
	}
	return placement.Placement{}, placement.Errorf(placement.CodeNotFound, "no placement %q", key).WithHint("warmctl ps --all lists them")
}
