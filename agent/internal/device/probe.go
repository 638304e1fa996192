package device

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// refusedFor is how long an engine may answer the probe with a client error
// before it is believed: some servers answer 404 while they still start.
const refusedFor = 3 * time.Second

// Probe asks the endpoint for one token and returns when it came. `ready` means
// this answer, never /health: an engine that answers /health may still be unable
// to infer. It tries again while the engine is not there yet, until ctx ends; the
// last problem is in the error then.
func Probe(ctx context.Context, base, model string) error {
	c := &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, DisableKeepAlives: true,
	}}
	return probe(ctx, base, model, func(ctx context.Context, url string, body map[string]any) (int, error) {
		return oneToken(ctx, c, url, body)
	})
}

// probe is the rule of Probe; ask makes one request.
func probe(ctx context.Context, base, model string, ask func(ctx context.Context, url string, body map[string]any) (int, error)) error {
	begin := time.Now()
	wait := 20 * time.Millisecond
	var last error
	for {
		status, err := ask(ctx, base+"/v1/completions", map[string]any{"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0})
		if status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusBadRequest {
			// A chat-only model has no completions route.
			s2, err2 := ask(ctx, base+"/v1/chat/completions", map[string]any{
				"model": model, "max_tokens": 1, "temperature": 0,
				"messages": []map[string]string{{"role": "user", "content": "a"}},
			})
			if err2 == nil {
				err = nil
			} else if s2 != http.StatusNotFound && s2 != 0 {
				status, err = s2, err2
			}
		}
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if status >= 400 && status < 500 && status != http.StatusTooManyRequests && time.Since(begin) > refusedFor {
			return fmt.Errorf("ask %s for a token: %w", base, last)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("ask %s for a token: %w (last: %w)", base, context.Cause(ctx), last)
		case <-t.C:
		}
		wait = min(wait*3/2, 250*time.Millisecond)
	}
}

// oneToken makes one request. The status is 0 when no answer came.
func oneToken(ctx context.Context, c *http.Client, url string, body map[string]any) (int, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("the engine answered %s: %.300s", resp.Status, bytes.TrimSpace(text))
	}
	if err != nil {
		return 0, fmt.Errorf("read answer: %w", err)
	}
	var got struct {
		Choices []json.RawMessage `json:"choices"`
	}
	if err := json.Unmarshal(text, &got); err != nil || len(got.Choices) == 0 {
		return resp.StatusCode, errors.Join(fmt.Errorf("the engine answered without a choice: %.200s", text), err)
	}
	return resp.StatusCode, nil
}
