package otlp

import (
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// errBody is a body that is not OTLP.
var errBody = errors.New("not an OTLP trace request")

// maxSpans bounds one batch.
const maxSpans = 8192

// Decode reads the spans of an ExportTraceServiceRequest.
//
// It walks the wire format itself, because the generated types would make a body
// of two million empty spans, 4 MB, into half a gigabyte of structs. Here memory is
// bounded by maxSpans and unread fields cost nothing. A test compares the result
// with the generated types'.
func Decode(body []byte) ([]Span, error) {
	var out []Span
	err := fields(body, func(num protowire.Number, v value) error {
		if num != 1 { // resource_spans
			return nil
		}
		return resourceSpans(v, &out)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBody, err)
	}
	return out, nil
}

func resourceSpans(v value, out *[]Span) error {
	var kind, module string
	var pid int
	// The resource may stand after its spans: look for it first.
	err := v.fields(func(num protowire.Number, v value) error {
		if num != 1 { // resource
			return nil
		}
		return v.fields(func(num protowire.Number, v value) error {
			if num != 1 { // attributes
				return nil
			}
			key, val, err := keyValue(v)
			switch key {
			case "vllm.process_kind":
				kind = val
			case "vllm.instrumenting_module_name":
				module = val
			case "vllm.process_id":
				pid = processID(val)
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	return v.fields(func(num protowire.Number, v value) error {
		if num != 2 { // scope_spans
			return nil
		}
		scope := ""
		err := v.fields(func(num protowire.Number, v value) error {
			if num != 1 { // scope
				return nil
			}
			return v.fields(func(num protowire.Number, v value) error {
				if num == 1 { // name
					v.text(&scope)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
		proc := procOf(kind, module, scope)
		return v.fields(func(num protowire.Number, v value) error {
			if num != 2 || v.typ != protowire.BytesType { // spans
				return nil
			}
			s, ok, err := oneSpan(v)
			if err != nil || !ok {
				return err
			}
			if len(*out) >= maxSpans {
				return fmt.Errorf("more than %d spans in one batch", maxSpans)
			}
			s.Proc, s.PID = proc, pid
			*out = append(*out, s)
			return nil
		})
	})
}

// oneSpan is not ok for a span without proper ids: the specification says to
// ignore it.
func oneSpan(v value) (s Span, ok bool, err error) {
	var trace, id, parent []byte
	err = v.fields(func(num protowire.Number, v value) error {
		switch num {
		case 1:
			v.raw(&trace)
		case 2:
			v.raw(&id)
		case 4:
			v.raw(&parent)
		case 5:
			v.text(&s.Name)
		case 7:
			v.fixed64(&s.Start)
		case 8:
			v.fixed64(&s.End)
		}
		return nil
	})
	ok = len(trace) == len(s.Trace) && len(id) == len(s.ID) && (len(parent) == 0 || len(parent) == len(s.Parent))
	copy(s.Trace[:], trace)
	copy(s.ID[:], id)
	copy(s.Parent[:], parent)
	return s, ok && s.Trace != TraceID{} && s.ID != SpanID{}, err
}

// processID is 0 for what no process of Linux is called.
func processID(s string) int {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 1<<22 {
		return n
	}
	return 0
}

// keyValue reads an attribute with a string value; any other value reads empty.
func keyValue(v value) (key, val string, err error) {
	err = v.fields(func(num protowire.Number, v value) error {
		switch num {
		case 1: // key
			v.text(&key)
		case 2: // value
			return v.fields(func(num protowire.Number, v value) error {
				if num == 1 { // string_value
					v.text(&val)
				} else if typ, ok := otherValues[num]; ok && v.typ == typ {
					val = ""
				}
				return nil
			})
		}
		return nil
	})
	return key, val, err
}

// otherValues are the other members of the oneof in AnyValue: the last one counts.
var otherValues = map[protowire.Number]protowire.Type{
	2: protowire.VarintType, 3: protowire.VarintType, 4: protowire.Fixed64Type,
	5: protowire.BytesType, 6: protowire.BytesType, 7: protowire.BytesType, 8: protowire.VarintType,
}

// value is one field on the wire. Its readers leave their target alone when the
// wire type is another than they want: protobuf takes such a field for unknown.
type value struct {
	typ   protowire.Type
	bytes []byte // length-delimited content
	bits  uint64 // fixed64
}

func (v value) raw(to *[]byte) {
	if v.typ == protowire.BytesType {
		*to = v.bytes
	}
}

func (v value) text(to *string) {
	if v.typ == protowire.BytesType {
		*to = string(v.bytes[:min(len(v.bytes), 4096)]) // no name of ours is longer: do not copy it
	}
}

func (v value) fixed64(to *uint64) {
	if v.typ == protowire.Fixed64Type {
		*to = v.bits
	}
}

func (v value) fields(f func(protowire.Number, value) error) error {
	if v.typ != protowire.BytesType {
		return nil
	}
	return fields(v.bytes, f)
}

// fields calls f for each field of a message.
func fields(b []byte, f func(protowire.Number, value) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		v := value{typ: typ}
		switch typ {
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(b)
		case protowire.Fixed64Type:
			v.bits, n = protowire.ConsumeFixed64(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(num, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
