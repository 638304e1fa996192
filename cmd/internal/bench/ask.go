package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// What every arm is asked.
const prompt, tokens = "Hello my name is", 8

// pollEvery is how often a port is tried that nobody listens on yet.
const pollEvery = 5 * time.Millisecond

// answer is what a client saw of a start.
type answer struct {
	answers time.Time // first byte of an answer of the server, to anything
	token   time.Time // first token
	text    string
}

// ask asks for a streamed completion until somebody answers. A second connection
// asks for /health, a moment earlier: its answer says when the server serves, which
// is where the start of the server ends and inference begins, in every arm by the
// same clock.
func ask(ctx context.Context, base, model string) (answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waits, answers := make(chan struct{}), make(chan time.Time, 1)
	go func() { answers <- firstAnswer(ctx, base, waits) }()
	select {
	case <-waits:
	case <-ctx.Done():
		<-answers
		return answer{}, ctx.Err()
	}
	got, err := complete(ctx, base, model)
	if err != nil {
		cancel()
		<-answers
		return got, err
	}
	select {
	case got.answers = <-answers:
	case <-time.After(time.Second): // it serves, and does not know /health
		cancel()
		<-answers
		got.answers = got.token
	}
	if got.answers.After(got.token) {
		got.answers = got.token
	}
	return got, nil
}

// firstAnswer returns the moment of the first byte that the server sends; waits is
// closed when the question is on its way.
func firstAnswer(ctx context.Context, base string, waits chan struct{}) time.Time {
	u, err := url.Parse(base)
	for err == nil && ctx.Err() == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", u.Host)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			_, err = fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", u.Host)
			if waits != nil {
				close(waits)
				waits = nil
			}
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
			}
			at := time.Now()
			stop()
			conn.Close()
			if err == nil {
				return at
			}
		}
		if !pause(ctx, pollEvery) {
			break
		}
	}
	return time.Time{}
}

// complete asks for the completion and reads its stream.
func complete(ctx context.Context, base, model string) (got answer, err error) {
	body, _ := json.Marshal(map[string]any{"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var resp *http.Response
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/completions", bytes.NewReader(body))
		if err != nil {
			return got, fmt.Errorf("ask %s: %w", base, err)
		}
		req.Header.Set("Content-Type", "application/json")
		if resp, err = client.Do(req); err == nil {
			break
		}
		if !pause(ctx, pollEvery) {
			return got, ctx.Err()
		}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return got, fmt.Errorf("ask %s: %s: %s", base, resp.Status, b)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var chunk struct {
			Choices []struct{ Text string }
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return got, fmt.Errorf("decode stream: %w", err)
		}
		if len(chunk.Choices) == 0 {
			continue
		}
		if got.token.IsZero() {
			got.token = time.Now()
		}
		got.text += chunk.Choices[0].Text
	}
	if got.token.IsZero() {
		return got, errors.Join(errors.New("read stream: it ended without a token"), lines.Err())
	}
	return got, nil
}

// pause is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
