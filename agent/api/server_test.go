package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"warmd/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serving runs a handler behind the real server on a Unix socket.
func serving(t *testing.T, h http.HandlerFunc) *Conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, NewServer(h, slog.New(slog.DiscardHandler)), time.Second, ln) }()
	c, err := NewConn(path, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		cancel()
		require.NoError(t, <-done)
	})
	return c
}

func TestBodyIsReadStrictly(t *testing.T) {
	for name, c := range map[string]struct{ body, says string }{
		"empty":         {"", "EOF"},
		"unknown field": {`{"modle":"x"}`, "modle"}, //nolint:misspell // that is the point
		"two values":    {`{"model":"x"}{}`, "more than one"},
		"wrong type":    {`{"model":7}`, "model"},
		"bomb":          {strings.Repeat(`{"env":`, 40) + "1" + strings.Repeat("}", 40), "deeper than 32"},
		"oversize":      {`{"model":"` + strings.Repeat("x", MaxBody) + `"}`, "larger than"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(c.body))
		var v placement.Request
		err := ReadJSON(httptest.NewRecorder(), r, &v)
		require.Error(t, err, name)
		e := placement.AsError(err)
		assert.Equal(t, placement.CodeBadRequest, e.Code, name)
		assert.Contains(t, e.Message, c.says, name)
	}
	var v placement.Request
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"model":"a {[\"","args":["x"]}`))
	require.NoError(t, ReadJSON(httptest.NewRecorder(), r, &v))
	assert.Equal(t, `a {["`, v.Model)
}

func TestRefusalComesBackWithItsCodeHintAndCapacity(t *testing.T) {
	c := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		e := placement.Errorf(placement.CodeNoCapacity, "full").WithHint("release something")
		e.Capacity = &placement.Capacity{Node: "n", Generation: 7}
		WriteError(w, e)
	})
	e, ok := errors.AsType[*placement.Error](c.Do(t.Context(), http.MethodGet, "/", nil, nil))
	require.True(t, ok)
	assert.Equal(t, placement.CodeNoCapacity, e.Code)
	assert.Equal(t, "release something", e.Hint)
	assert.Equal(t, uint64(7), e.Capacity.Generation)
}

func TestHandlerThatPanicsIsAnsweredForNotJustCutOff(t *testing.T) {
	c := serving(t, func(http.ResponseWriter, *http.Request) { panic("oh") })
	e := placement.AsError(c.Do(t.Context(), http.MethodGet, "/x", nil, nil))
	require.NotNil(t, e)
	assert.Equal(t, placement.CodeInternal, e.Code)
	assert.Contains(t, e.Message, "oh")
}

func TestStreamEndsAtTheLastLineAndABrokenOneIsUnexpected(t *testing.T) {
	whole := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		l := NewLines(w, 200)
		_ = l.Write(placement.Progress{Event: placement.EventAccepted})
		_ = l.Write(placement.Progress{Event: placement.EventReady})
	})
	var got []string
	client := Client{whole}
	require.NoError(t, client.Place(t.Context(), "p", Claim{}, func(p placement.Progress) bool { got = append(got, p.Event); return true }))
	assert.Equal(t, []string{placement.EventAccepted, placement.EventReady}, got)

	broken := Client{serving(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = NewLines(w, 200).Write(placement.Progress{Event: placement.EventAccepted})
	})}
	err := broken.Place(t.Context(), "p", Claim{}, func(placement.Progress) bool { return true })
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestServerThatIsNotThereIsUnavailableAndSaysWhatToCheck(t *testing.T) {
	c, err := NewConn(filepath.Join(t.TempDir(), "none"), nil)
	require.NoError(t, err)
	e := placement.AsError(c.Do(t.Context(), http.MethodGet, "/", nil, nil))
	require.NotNil(t, e)
	assert.Equal(t, placement.CodeUnavailable, e.Code)
	assert.Contains(t, e.Hint, "systemctl")
}

func TestAddressIsASocketOrAURL(t *testing.T) {
	for _, ok := range []string{"unix:///run/x.sock", "/run/x.sock", "127.0.0.1:80", "http://h:1", "https://h"} {
		c, err := NewConn(ok, nil)
		require.NoError(t, err, ok)
		c.Close()
	}
	for _, bad := range []string{"ftp://h", "http://", "://"} {
		_, err := NewConn(bad, nil)
		require.Error(t, err, bad)
	}
}

func FuzzDepthIsBoundedBeforeDecoding(f *testing.F) {
	f.Add([]byte(`{"a":[{"b":"]}"}]}`))
	f.Add([]byte(`"\\"[[[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d := jsonDepth(b); d < 0 || d > len(b) {
			t.Errorf("depth %d of %d bytes", d, len(b))
		}
	})
}
