package device

import (
	"errors"
	"strings"
	"time"

	"warmd/placement"
)

// death is the error of a worker that died.
type death struct{ cause, detail string }

func (d *death) Error() string { return d.cause }

// hear takes one event of the worker; it returns an error when it is dead.
func (l *life) hear(ev Event, ok bool) error {
	switch {
	case !ok:
		l.deaf = true // the runtime has stopped looking: the agent ends
	case ev.Kind == EventDead:
		d := &death{cause: ev.Message, detail: ev.Detail}
		if l.lastErr != nil {
			d.cause, d.detail = l.lastErr.Message, joinDetail(l.lastErr.Detail, ev.Detail)
		}
		return d
	case ev.Kind == EventError:
		l.lastErr = &ev
	case ev.Kind == EventState && l.e.Placement().State == placement.Ready:
		l.rested()
		l.d.post(func() {}) // the View shows it
	case ev.Kind == EventPhase:
		l.phase(ev.Phase.Name, ev.Phase.Proc, ev.Phase.Start, ev.Phase.Dur)
	}
	return nil
}

// joinDetail puts a traceback before the last log lines, unless they show it.
func joinDetail(trace, log string) string {
	trace, log = strings.TrimSpace(trace), strings.TrimSpace(log)
	end := trace[strings.LastIndexByte(trace, '\n')+1:]
	switch {
	case trace == "" || strings.Contains(log, end):
		return log
	case log == "" || strings.Contains(trace, log[strings.LastIndexByte(log, '\n')+1:]):
		return trace
	}
	return trace + "\n" + log
}

// events is the worker's channel while there is one to listen to.
func (l *life) events() <-chan Event {
	if l.worker == nil || l.deaf {
		return nil
	}
	return l.worker.Events()
}

// lastWord waits for the worker's death, which usually follows a broken call at
// once and says more than it; nil when the worker lives on.
func (l *life) lastWord(patience time.Duration) error {
	t := time.NewTimer(patience)
	defer t.Stop()
	for {
		select {
		case ev, ok := <-l.events():
			if dead := l.hear(ev, ok); dead != nil {
				return dead
			}
		case <-t.C:
			return nil
		case <-l.ctx.Done():
			return nil
		}
	}
}

// failure turns the error of a start into its ending.
func (l *life) failure(err error) *ending {
	if end, ok := errors.AsType[*ending](err); ok {
		return end
	}
	end := &ending{
		state: placement.Failed, code: placement.CodeStartFailed, reason: err.Error(),
		hint: "warmctl logs " + l.e.ID + " shows the engine's whole log",
	}
	if d, ok := errors.AsType[*death](err); ok {
		end.reason, end.detail = "the engine died while it started: "+d.cause, d.detail
	}
	if e, ok := errors.AsType[*placement.Error](err); ok {
		end.code, end.hint = e.Code, e.Hint
	}
	return end
}

// lost is the ending of a placement whose worker died under it.
func (l *life) lost(err error) *ending {
	end := &ending{
		state: placement.Failed, code: placement.CodeWorkerLost, reason: "the engine died: " + err.Error(),
		hint: "place it again; warmctl logs " + l.e.ID + " shows the engine's log",
	}
	if d, ok := errors.AsType[*death](err); ok {
		end.detail = d.detail
	}
	return end
}
