package placement

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// codes reads the declared codes out of errors.go, so that no new one is forgotten.
func codes(t *testing.T) (out []Code) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	require.NoError(t, err)
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Code") {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			out = append(out, Code(text))
		}
		return true
	})
	require.NotEmpty(t, out)
	return out
}

func TestEveryCodeHasAStatus(t *testing.T) {
	for _, c := range codes(t) {
		_, ok := codeStatus[c]
		assert.True(t, ok, "%s has no HTTP status", c)
		assert.GreaterOrEqual(t, c.Status(), 400)
	}
	assert.Len(t, codeStatus, len(codes(t)))
	assert.Equal(t, 500, Code("new in a later version").Status())
}

// Another node helps only against trouble of this one: never against a bad request.
func TestOnlyTroubleOfANodeIsWorthAnother(t *testing.T) {
	for _, c := range []Code{CodeBadRequest, CodeUnauthorized, CodeForbidden, CodeArgRefused, CodeConflict, CodeReleased, CodeStaleAttempt, CodeTimeout, CodeInternal} {
		assert.False(t, c.Retryable(), c)
	}
	for _, c := range []Code{CodeNoCapacity, CodeNoWarm, CodeDraining, CodeDiskFull, CodeUnavailable} {
		assert.True(t, c.Retryable(), c)
	}
}

func TestAsErrorKeepsWhatIsKnown(t *testing.T) {
	e := Errorf(CodeNoCapacity, "all %d slots are taken", 2).WithHint("release one: warmctl release %s", "ID")
	assert.Same(t, e, AsError(fmt.Errorf("claim: %w", e)))
	assert.EqualError(t, e, "all 2 slots are taken (release one: warmctl release ID)")
	assert.EqualError(t, Errorf(CodeInternal, "x"), "x")

	bad := AsError(fmt.Errorf("read: %w", Request{}.Validate()))
	assert.Equal(t, CodeBadRequest, bad.Code)
	assert.Equal(t, "model", bad.Field)

	assert.Equal(t, &Error{Code: CodeInternal, Message: "boom"}, AsError(errors.New("boom")))
}

func TestErrorSurvivesTheWire(t *testing.T) {
	e := Errorf(CodeNoCapacity, "full").WithHint("wait")
	c := gpuNode(1)
	e.Capacity, e.Detail = &c, "log\nlines"
	b, err := json.Marshal(e)
	require.NoError(t, err)
	got := new(Error)
	require.NoError(t, json.Unmarshal(b, got))
	assert.Equal(t, e, got)
}
