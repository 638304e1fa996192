package bench

import (
	"math"
	"time"

	"warmd/placement"
)

// Moments is one start as its observers saw it: the client, and the engine with those
// who placed it (Trace, whose phases count from its Begin). All clocks are this host's.
type Moments struct {
	Sent, Answers, Token time.Time
	Trace                placement.Trace
}

// Stage is a line of the published table.
type Stage string

// The stages. Engine Creation is the sum of executor, startup and loading.
const (
	APIServer Stage = "api_server_overhead"
	Executor  Stage = "executor_init_config"
	Startup   Stage = "worker_startup_attach"
	Loading   Stage = "model_loading"
	Inference Stage = "inference"
)

// mark is a moment of a start, in seconds since the request was sent.
type mark string

// The marks, in the order in which they come in every arm.
const (
	sent    mark = "request sent"
	attach  mark = "attach begins"         // parked: the agent hands the model to the worker. Otherwise as handed
	handed  mark = "engine process begins" // parked: attach is done. Otherwise it is born
	execute mark = "executor init"
	load    mark = "model load begins"
	loaded  mark = "model load ends"
	up      mark = "engine is up"
	answers mark = "server answers"
	token   mark = "first token"
)

// formula cuts the line from the request to the first token at the marks. Each piece
// goes to one stage, so the stages add up to the total, in an arm that does one thing
// after the other as in one where the API server gets ready beside the engine: what
// counts is what the client waited for at that moment.
//
// The published table times an engine that is created inside a server; it names a
// line for the server, three for the engine and one for inference. Where its words
// leave room, the choice is by what the line is for:
//
//   - API Server Overhead is the client's wait while no engine of the model exists yet,
//     and again once the engine is up and the server is not. In a plain start that is
//     Python, imports, arguments, configuration and tokenizer of the server's process;
//     in a placed one the way through coordinator and agent. The published system has
//     that cost in both arms.
//   - Worker Startup / Attach is getting a worker: handing the model to a parked one, or
//     making its process and its device ready. On a GPU with one worker, that is the
//     device's context; on a CPU vLLM makes a process of its own for it.
//   - Executor Init & Config is the rest of the engine's own time: the birth and the
//     imports of its process, its configuration and handshake, and, after the load, KV
//     cache, warm-up and scheduler.
//   - Model Loading is vLLM's span "Load model": making the modules and reading the weights.
//     For a model that slept it is the wake: weights and KV cache come back.
//
// Imports of the engine's process are Executor Init & Config and not the server's
// overhead: they happen in that process, and a parked one has them behind it.
var formula = []struct {
	stage    Stage
	from, to mark
}{
	{APIServer, sent, attach},
	{Startup, attach, handed},
	{Executor, handed, execute},
	{Startup, execute, load},
	{Loading, load, loaded},
	{Executor, loaded, up},
	{APIServer, up, answers},
	{Inference, answers, token},
}

// Piece is one cut of a start, in seconds since the request was sent.
type Piece struct {
	Stage   Stage   `json:"stage"`
	From    string  `json:"from"`
	To      string  `json:"to"`
	Start   float64 `json:"start_seconds"`
	Seconds float64 `json:"seconds"`
}

// Stages is where the time of one start went.
type Stages struct {
	Seconds map[Stage]float64 `json:"seconds"`
	Pieces  []Piece           `json:"pieces"`
	// Unaccounted is what the pieces leave of the total: a mark that nobody reported,
	// or one that came before its predecessor. Missing names those marks.
	Unaccounted float64  `json:"unaccounted_seconds"`
	Missing     []string `json:"missing,omitempty"`
}

// Engine is the line Engine Creation.
func (s Stages) Engine() float64 {
	return s.Seconds[Executor] + s.Seconds[Startup] + s.Seconds[Loading]
}

// tick is how much two observers may disagree about what came first: the birth of a
// process is known to 10 ms.
const tick = 0.02

// StagesOf applies the formula.
func StagesOf(m Moments) Stages {
	at := marks(m)
	s := Stages{Seconds: map[Stage]float64{}, Unaccounted: m.Token.Sub(m.Sent).Seconds()}
	s.Missing = absent(at)
	for _, f := range formula {
		from, ok1 := at[f.from]
		to, ok2 := at[f.to]
		if !ok1 || !ok2 {
			continue
		}
		if to < from {
			if from-to > tick {
				s.Missing = append(s.Missing, string(f.to)+" before "+string(f.from))
				continue
			}
			to = from
			at[f.to] = from // the next piece begins where this one ends
		}
		s.Pieces = append(s.Pieces, Piece{Stage: f.stage, From: string(f.from), To: string(f.to), Start: from, Seconds: to - from})
		s.Seconds[f.stage] += to - from
		s.Unaccounted -= to - from
	}
	if math.Abs(s.Unaccounted) < 1e-9 {
		s.Unaccounted = 0
	}
	return s
}

// Names of phases that the agent's recorder gives; the others are vLLM's spans.
const (
	phaseAttach = "attach"
	phaseFork   = "fork"
	phaseWake   = "wake"
	phaseBirth  = "process start"
)

// marks finds the moments in the trace. A mark that is not in the map was not
// reported.
func marks(m Moments) map[mark]float64 {
	at := map[mark]float64{sent: 0, answers: m.Answers.Sub(m.Sent).Seconds(), token: m.Token.Sub(m.Sent).Seconds()}
	zero := m.Trace.Begin.Sub(m.Sent.Round(0)).Seconds()
	first := func(name mark, t float64) {
		if was, ok := at[name]; !ok || t < was {
			at[name] = t
		}
	}
	last := func(name mark, t float64) {
		if was, ok := at[name]; !ok || t > was {
			at[name] = t
		}
	}
	for _, p := range m.Trace.Phases {
		begin, end := zero+p.Start, zero+p.Start+p.Duration
		switch {
		case p.Before:
		case p.Name == phaseFork: // nobody was parked: a fork is part of getting a worker
			first(attach, max(begin, zero))
		case p.Name == phaseAttach:
			first(attach, begin)
			last(handed, end)
		case p.Name == phaseBirth && p.Proc == "engine":
			first(attach, begin)
			first(handed, begin)
		case p.Name == "Executor init":
			first(execute, begin)
		case p.Name == "Load model":
			first(load, begin)
			last(loaded, end)
		case p.Name == "EngineCoreProc init":
			last(up, end)
		case p.Name == phaseWake: // the worker, its process and its engine are there
			for _, m := range []mark{attach, handed, execute, load} {
				first(m, begin)
			}
			last(loaded, end)
			last(up, end)
			last(answers, end) // its server answers all the time, and 503 until then
		}
	}
	return at
}

// absent names the marks that nobody reported.
func absent(at map[mark]float64) (out []string) {
	for _, f := range formula {
		if _, ok := at[f.to]; !ok {
			out = append(out, string(f.to))
		}
	}
	return out
}

// whole reports whether a trace has every mark that is looked for in it.
func whole(t placement.Trace) bool {
	return len(absent(marks(Moments{Sent: t.Begin, Answers: t.Begin, Token: t.Begin, Trace: t}))) == 0
}
