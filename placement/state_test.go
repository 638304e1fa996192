package placement

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMoveFollowsTheTable(t *testing.T) {
	for _, from := range States() {
		for _, to := range States() {
			got, err := Move(from, to)
			if CanMove(from, to) {
				assert.NoError(t, err)
				assert.Equal(t, to, got)
			} else {
				assert.EqualError(t, err, "move placement: illegal transition "+string(from)+" -> "+string(to))
				assert.Equal(t, from, got, "an illegal move changes nothing")
			}
		}
	}
}

func TestTerminalStatesHaveNoWayOut(t *testing.T) {
	for _, s := range States() {
		assert.True(t, s.Valid())
		assert.Equal(t, s.Terminal(), len(moves[s]) == 0, s)
	}
	assert.Len(t, moves, len(States()), "every state is listed")
	assert.False(t, State("lost").Valid())
	assert.False(t, CanMove("lost", Ready))
}

func TestEveryStateIsReachedAndEnds(t *testing.T) {
	for _, from := range States() {
		seen := map[State]bool{from: true}
		for todo := []State{from}; len(todo) > 0; {
			s := todo[0]
			todo = todo[1:]
			for _, next := range moves[s] {
				if !seen[next] {
					seen[next] = true
					todo = append(todo, next)
				}
			}
		}
		assert.True(t, seen[Failed] || seen[Released], "%s never ends", from)
		if from == Pending {
			assert.Len(t, seen, len(States()))
		}
	}
}

// The drawing in doc.go is what people read: it must say what the table says.
func TestDrawingAgreesWithTheTable(t *testing.T) {
	drawn := edgesOf(t, drawing(t))
	for _, from := range States() {
		for _, to := range States() {
			assert.Equal(t, CanMove(from, to), drawn[[2]State{from, to}], "%s -> %s: the table says %v", from, to, CanMove(from, to))
		}
	}
}

// drawing is the indented lines of the section on the life of a placement.
func drawing(t *testing.T) []string {
	t.Helper()
	src, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	_, life, found := strings.Cut(string(src), "// # The life of a placement\n")
	require.True(t, found)
	life, _, found = strings.Cut(life, "// [CanMove]")
	require.True(t, found)
	var lines []string
	for line := range strings.Lines(life) {
		if art, ok := strings.CutPrefix(line, "//\t"); ok {
			lines = append(lines, strings.TrimRight(art, "\n"))
		}
	}
	return lines
}

var arrow = regexp.MustCompile(`--[^>]*?--> *`)

// edgesOf reads the arrows of a drawing: a --why--> b in a line, +--- why ---+ from
// the state above its right end to the state above its left end, a v at the end of a
// column of bars, and the sentence about release.
func edgesOf(t *testing.T, lines []string) map[[2]State]bool {
	t.Helper()
	edges := map[[2]State]bool{}
	for y, line := range lines {
		if strings.HasPrefix(line, "release is legal from every state that is not terminal") {
			for _, s := range States() {
				if !s.Terminal() {
					edges[[2]State{s, Released}] = true
				}
			}
			continue
		}
		states := arrow.Split(line, -1)
		for i := 1; i < len(states); i++ {
			for from := range strings.SplitSeq(states[i-1], ", ") {
				edges[[2]State{stateOf(t, from), stateOf(t, states[i])}] = true
			}
		}
		if left, right := strings.Index(line, "+-"), strings.LastIndex(line, "-+"); left >= 0 && right > left {
			edges[[2]State{above(t, lines, right+1, y), above(t, lines, left, y)}] = true
		}
		if x := strings.Index(line, " v"); x >= 0 && strings.TrimSpace(line[x+2:]) == "" {
			below := strings.TrimSpace(wordAt(lines[y+1], x+1))
			edges[[2]State{above(t, lines, x+1, y), stateOf(t, below)}] = true
		}
	}
	return edges
}

// above follows a column upwards to the state it hangs from.
func above(t *testing.T, lines []string, x, y int) State {
	t.Helper()
	for y--; y >= 0; y-- {
		if x < len(lines[y]) && !strings.ContainsRune("|+^", rune(lines[y][x])) {
			return stateOf(t, wordAt(lines[y], x))
		}
	}
	t.Fatalf("nothing above column %d", x)
	return ""
}

// wordAt is the word of a line that covers column x, or begins right behind it.
func wordAt(line string, x int) string {
	isLetter := func(i int) bool { return i >= 0 && i < len(line) && line[i] >= 'a' && line[i] <= 'z' }
	for x < len(line) && !isLetter(x) {
		x++
	}
	from, to := x, x
	for isLetter(from - 1) {
		from--
	}
	for isLetter(to) {
		to++
	}
	return line[from:to]
}

func stateOf(t *testing.T, word string) State {
	t.Helper()
	s := State(strings.TrimSpace(word))
	if !slices.Contains(States(), s) {
		t.Fatalf("doc.go draws %q, which is no state", word)
	}
	return s
}
