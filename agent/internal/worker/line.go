package worker

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Proto is the version of the control protocol that this agent speaks.
const Proto = 1

// maxLine bounds one line of the control protocol, both ways.
const maxLine = 1 << 20

var errLongLine = fmt.Errorf("a line is longer than %d bytes", maxLine)

// readLine returns the next line without its end. A longer one than maxLine is
// an error that ends the connection: there is no way to find the next line
// without trusting the sender.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxLine+1 {
			return nil, errLongLine
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// encodeRequest makes the line of a request: id and op before the fields of req.
func encodeRequest(id int64, op string, req any) ([]byte, error) {
	head, err := json.Marshal(struct {
		ID int64  `json:"id"`
		Op string `json:"op"`
	}{id, op})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", op, err)
	}
	if req != nil {
		body, err := json.Marshal(req)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", op, err)
		}
		if len(body) < 2 || body[0] != '{' {
			return nil, fmt.Errorf("encode %s: %T is not a JSON object", op, req)
		}
		if len(body) > 2 {
			head[len(head)-1] = ','
			head = append(head, body[1:]...)
		}
	}
	if len(head) > maxLine {
		return nil, fmt.Errorf("encode %s: %w", op, errLongLine)
	}
	return append(head, '\n'), nil
}

// message is the outer shape of every line we receive.
type message struct {
	id    int64
	isID  bool // id is a number: a reply to one of ours
	event string
	err   *RemoteError
	raw   []byte
}

// decodeMessage sorts a line into reply, error reply or event. A reply is an
// error only when it carries nothing else: the hello of a worker half that
// failed has an error among its other fields.
func decodeMessage(line []byte) (message, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		return message{}, fmt.Errorf("decode line: %w", err)
	}
	m := message{raw: line}
	if ev, ok := fields["ev"]; ok {
		if err := json.Unmarshal(ev, &m.event); err != nil {
			return message{}, fmt.Errorf("decode event: %w", err)
		}
		return m, nil
	}
	m.isID = json.Unmarshal(fields["id"], &m.id) == nil && string(fields["id"]) != "null"
	if e, ok := fields["error"]; ok && len(fields) <= 2 && string(e) != "null" {
		m.err = new(RemoteError)
		if err := json.Unmarshal(e, m.err); err != nil {
			return message{}, fmt.Errorf("decode error reply: %w", err)
		}
	}
	return m, nil
}

// RemoteError is the answer of a zygote or a worker half that refuses a request.
type RemoteError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *RemoteError) Error() string { return e.Code + ": " + e.Message }

// refusedWith reports whether err is a refusal with that code.
func refusedWith(err error, code string) bool {
	r, ok := errors.AsType[*RemoteError](err)
	return ok && r.Code == code
}
