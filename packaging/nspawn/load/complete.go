package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Complete streams one completion and answers nil only if it came whole: tokens,
// a reason to finish, and the mark of the end.
func Complete(ctx context.Context, client *http.Client, endpoint, model string, tokens int) error {
	body, err := json.Marshal(map[string]any{"model": model, "prompt": "Hello, my name is", "max_tokens": tokens, "ignore_eos": true, "stream": true})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("complete: %s: %s", resp.Status, text)
	}
	return readStream(resp.Body)
}

func readStream(body io.Reader) error {
	chunks, finished := 0, false
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			if chunks == 0 || !finished {
				return fmt.Errorf("complete: the stream ended after %d chunks, without a reason", chunks)
			}
			return nil
		}
		var chunk struct {
			Choices []struct {
				Text         string  `json:"text"`
				FinishReason *string `json:"finish_reason"`
			} `json:"choices"`
			Error any `json:"error"`
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return fmt.Errorf("complete: decode chunk: %w", err)
		}
		if chunk.Error != nil {
			return fmt.Errorf("complete: the engine says %v", chunk.Error)
		}
		for _, c := range chunk.Choices {
			chunks++
			finished = finished || c.FinishReason != nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("complete: after %d chunks: %w", chunks, err)
	}
	return fmt.Errorf("complete: cut off after %d chunks: %w", chunks, io.ErrUnexpectedEOF)
}
