package conf

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// part is one expression of a file: a table's header with all that is under it, or
// one key with its value.
type part struct {
	table      bool
	begin, end int // bytes
	first      int // line
	last       int
}

// index notes on which line each key stands, and returns the expressions. The error
// is the one of a file that is no TOML.
func (f *File) index(text []byte) ([]part, error) {
	lineOf := func(offset int) int { return 1 + bytes.Count(text[:min(offset, len(text))], []byte{'\n'}) }
	var parts []part
	var table []string
	closeTable := func(end int) {
		for i := range slices.Backward(parts) {
			if parts[i].table {
				parts[i].end = end
				return
			}
		}
	}
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		key, at := keyOf(e)
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			begin := bytes.LastIndexByte(text[:at], '\n') + 1
			closeTable(begin)
			table = key
			f.note(key, lineOf(at))
			parts = append(parts, part{table: true, begin: begin, end: len(text), first: lineOf(at), last: lineOf(at)})
		case unstable.KeyValue:
			begin, end := int(e.Raw.Offset), int(e.Raw.Offset+e.Raw.Length)
			parts = append(parts, part{begin: begin, end: end, first: lineOf(begin), last: lineOf(end - 1)})
			f.value(append(slices.Clip(table), key...), lineOf(at), e.Value(), lineOf)
		}
	}
	if p.Error() != nil {
		var any map[string]any
		return nil, toml.Unmarshal(text, &any) // the same error, with its position
	}
	return parts, nil
}

// value notes a key, and what is inside of its value.
func (f *File) value(key []string, line int, v *unstable.Node, lineOf func(int) int) {
	f.note(key, line)
	inside := v.Children()
	switch v.Kind {
	case unstable.Array:
		for i := 0; inside.Next(); i++ {
			if n := inside.Node(); n.Raw.Length > 0 {
				f.note(append(slices.Clone(key[:len(key)-1]), fmt.Sprintf("%s[%d]", key[len(key)-1], i)), lineOf(int(n.Raw.Offset)))
			}
		}
	case unstable.InlineTable:
		for inside.Next() {
			sub, at := keyOf(inside.Node())
			f.value(append(slices.Clone(key), sub...), lineOf(at), inside.Node().Value(), lineOf)
		}
	}
}

func (f *File) note(key []string, line int) {
	if k := dotted(toml.Key(key)); f.lines[k] == 0 {
		f.lines[k] = line
	}
}

// keyOf is the dotted key of an expression, and where it begins.
func keyOf(n *unstable.Node) (key []string, at int) {
	for k := n.Key(); k.Next(); {
		if len(key) == 0 {
			at = int(k.Node().Raw.Offset)
		}
		key = append(key, string(k.Node().Data))
	}
	return key, at
}

// blank takes the expression on a line out of the text, so that the rest can be
// decoded; it reports whether there was one.
func blank(text []byte, parts []part, row int) bool {
	for _, p := range parts {
		if row < p.first || row > p.last || len(bytes.TrimSpace(text[p.begin:p.end])) == 0 {
			continue
		}
		for i := p.begin; i < p.end; i++ {
			if text[i] != '\n' {
				text[i] = ' '
			}
		}
		return true
	}
	return false
}
