package worker

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func code(n int, cause string, t int64) exit   { return exit{Code: &n, Cause: cause, TNS: t} }
func killed(n int, cause string, t int64) exit { return exit{Signal: &n, Cause: cause, TNS: t} }

func TestCauseNamesTheHalfThatEndedByItself(t *testing.T) {
	both := []string{roleAPI, roleEngine}
	for want, e := range map[string]ending{
		"stopped":                    {asked: true, deaths: both},
		"engine killed by signal 9":  {deaths: both, exits: map[string]exit{roleEngine: killed(9, "exit", 1), roleAPI: killed(9, "pair", 2)}},
		"engine killed by signal 11": {deaths: both, exits: map[string]exit{roleEngine: killed(11, "exit", 2), roleAPI: code(70, "exit", 1)}},
		"API server killed by signal 9": {
			deaths: []string{roleEngine, roleAPI}, exits: map[string]exit{roleEngine: code(70, "pair", 1), roleAPI: killed(9, "pair", 2)}},
		"engine exited with code 1: no such file": {
			deaths: both, exits: map[string]exit{roleEngine: code(1, "exit", 1)}, errors: map[string]string{roleEngine: "no such file"}},
		"engine exited with code 1: ValueError: bad": {
			deaths: both, exits: map[string]exit{roleEngine: code(1, "exit", 1)}, log: "a\n  ValueError: bad\nlast words\n"},
		"API server exited with code 0": {
			deaths: both, exits: map[string]exit{roleAPI: code(0, "exit", 1), roleEngine: killed(9, "pair", 2)}, log: "Error: old"},
		"engine was killed through its zygote": {
			deaths: both, exits: map[string]exit{roleEngine: killed(9, "kill", 1), roleAPI: killed(9, "pair", 2)}},
		"half a load": {
			reason: "half a load", deaths: both, exits: map[string]exit{roleEngine: killed(9, "kill", 1), roleAPI: killed(9, "kill", 2)}},
		"engine exited with code 3: oom": {
			reason: "half a load", deaths: both, exits: map[string]exit{roleEngine: code(3, "exit", 1), roleAPI: killed(9, "kill", 2)}, errors: map[string]string{roleEngine: "oom"}},
		"API server ended, its exit code is not known (its zygote is gone)": {deaths: both},
		"engine ended, its exit code is not known (its zygote is gone): bad model": {
			deaths: both, errors: map[string]string{roleEngine: "bad model"}},
		"engine process exited with code 2: usage: x": {
			deaths: []string{roleServe}, exits: map[string]exit{roleServe: code(2, "exit", 1)}, log: "usage: x"},
		"ended before it had a process": {},
	} {
		require.Equal(t, want, e.words())
	}
}

func TestErrorLineIsBounded(t *testing.T) {
	require.Equal(t, "", errorLine("\n \n"))
	require.Equal(t, "last", errorLine("first\nlast\n\n"))
	require.Len(t, errorLine("Error "+strings.Repeat("x", 5000)), 503)
}
