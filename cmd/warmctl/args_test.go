package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestFlagsWorkAnywhere: each line means the same wherever its flags stand.
func TestFlagsWorkAnywhere(t *testing.T) {
	for name, tc := range map[string]struct{ line, want string }{
		"flags first":                    {"place --start cold /m", "place --start=cold -- /m"},
		"flags last":                     {"place /m --start cold", "place --start=cold -- /m"},
		"equals":                         {"place /m --start=cold", "place --start=cold -- /m"},
		"one dash, as Go allows":         {"place /m -start cold", "place --start=cold -- /m"},
		"switch takes no value":          {"place --dry-run /m", "place --dry-run=true -- /m"},
		"switch off":                     {"place /m --wait=false", "place --wait=false -- /m"},
		"global behind the command":      {"ps -o json", "--output=json ps --"},
		"global before the command":      {"-o json ps", "--output=json ps --"},
		"short and long are one":         {"logs p-1 -f", "logs --follow=true -- p-1"},
		"engine argument looks a flag":   {"place /m --arg --max-model-len=512", "place --arg=--max-model-len=512 -- /m"},
		"engine argument is a flag":      {"place /m --arg --name", "place --arg=--name -- /m"},
		"repeated":                       {"place /m --arg=-a --arg=-b", "place --arg=-a --arg=-b -- /m"},
		"negative value":                 {"logs p-1 --tail -5", "logs --tail=-5 -- p-1"},
		"double dash ends flags":         {"release -- --odd -o", "release -- --odd -o"},
		"double dash after a positional": {"release p-1 -- -x", "release -- p-1 -x"},
		"a dash is a word":               {"release -", "release -- -"},
		"raw command takes all":          {"__complete place --st", "__complete -- place --st"},
		"value with spaces and equals":   {"place /m --env A=b=c", "place --env=A=b=c -- /m"},
		"server between":                 {"release p-1 --server h:1 p-2", "--server=h:1 release -- p-1 p-2"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := arrange(strings.Fields(tc.line), globalFlags(), commands())
			require.NoError(t, err)
			require.Equal(t, tc.want, strings.Join(got.args, " "))
		})
	}
}

// TestArrangeLosesNoPositionalAndNoFlag: with any positionals and any flags in any
// order, all of them arrive, in their order.
func TestArrangeLosesNoPositionalAndNoFlag(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-z/][a-z0-9./-]{0,8}`)
		var line, wantFlags, wantWords []string
		line = append(line, "release")
		for range rapid.IntRange(1, 8).Draw(t, "n") {
			w := word.Draw(t, "word")
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				line, wantFlags = append(line, "--grace", w), append(wantFlags, "--grace="+w)
			case 1:
				line, wantFlags = append(line, "--grace="+w), append(wantFlags, "--grace="+w)
			default:
				line, wantWords = append(line, w), append(wantWords, w)
			}
		}
		if len(wantWords) == 0 {
			line, wantWords = append(line, "p"), []string{"p"}
		}
		got, err := arrange(line, globalFlags(), commands())
		if err != nil {
			t.Fatal(err)
		}
		want := append(append(append([]string{"release"}, wantFlags...), "--"), wantWords...)
		if strings.Join(got.args, "\n") != strings.Join(want, "\n") {
			t.Fatalf("%q became %q, want %q", line, got.args, want)
		}
	})
}

func FuzzArrangeNeverPanics(f *testing.F) {
	f.Add("place\x00/m\x00--arg")
	f.Add("-o\x00json\x00--\x00-")
	f.Add("\x00-\x00--=\x00-=x")
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x00")
		_ = asksJSON(args)
		if got, err := arrange(args, globalFlags(), commands()); err == nil && !got.help && got.command == nil {
			t.Fatalf("%q is neither a command nor help nor an error", args)
		}
	})
}

func TestJSONErrorsAreAskedForAnywhere(t *testing.T) {
	for line, want := range map[string]bool{
		"ps -o json": true, "-o json ps": true, "ps --output=json": true, "ps -o=json": true, "ps -output json": true,
		"ps": false, "ps -o table": false, "release -- -o json": false, "ps -o": false, "place output json": false,
	} {
		require.Equal(t, want, asksJSON(strings.Fields(line)), line)
	}
}

func TestNearestWordIsATypingMistakeAway(t *testing.T) {
	known := []string{"place", "ps", "release", "timeout", "wait", "no-wait"}
	for word, want := range map[string]string{"plcae": "place", "relase": "release", "tmeout": "timeout", "wiat": "wait", "zzz": "", "x": "", "": ""} {
		require.Equal(t, want, nearest(word, known), word)
	}
}
