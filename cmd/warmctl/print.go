package main

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// table prints rows under a head. Columns are as wide as their widest cell and
// two spaces apart; nothing is cut, because ids and endpoints are for copying.
type table struct {
	head  []string
	right map[int]bool // columns of numbers
	rows  [][]string
}

// newTable makes a table; a head that starts with ">" is a column of numbers.
func newTable(head ...string) *table {
	t := &table{right: map[int]bool{}}
	for i, h := range head {
		if rest, ok := strings.CutPrefix(h, ">"); ok {
			h, t.right[i] = rest, true
		}
		t.head = append(t.head, h)
	}
	return t
}

// add adds a row; an empty cell is printed as "-".
func (t *table) add(cells ...string) {
	for i, c := range cells {
		if c = printable(c); c == "" {
			c = "-"
		}
		cells[i] = c
	}
	t.rows = append(t.rows, cells)
}

// write prints the table, each line after the indent.
func (t *table) write(w io.Writer, indent string) {
	width := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for _, row := range append([][]string{t.head}, t.rows...) {
		var line strings.Builder
		line.WriteString(indent)
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if t.right[i] {
				line.WriteString(pad + c)
			} else {
				line.WriteString(c + pad)
			}
			line.WriteString("  ")
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// markdown prints the table for a document.
func (t *table) markdown(w io.Writer) {
	line := func(cells []string) {
		for _, c := range cells {
			fmt.Fprintf(w, "| %s ", strings.ReplaceAll(c, "|", "\\|"))
		}
		fmt.Fprintln(w, "|")
	}
	line(t.head)
	rule := make([]string, len(t.head))
	for i := range rule {
		if rule[i] = "---"; t.right[i] {
			rule[i] = "---:"
		}
	}
	line(rule)
	for _, row := range t.rows {
		line(row)
	}
}

// fields prints name and value pairs under each other; empty values are left out.
func fields(w io.Writer, indent string, pairs ...string) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			width = max(width, len(pairs[i]))
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%s%-*s  %s\n", indent, width, pairs[i], printable(pairs[i+1]))
		}
	}
}

// printJSON prints one value, indented, for people and jq alike.
func (c *call) printJSON(v any) error {
	enc := json.NewEncoder(c.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// printLine prints one value of a stream as a line of JSON.
func (c *call) printLine(v any) error {
	enc := json.NewEncoder(c.Out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// list prints a list: never null in JSON, a note instead of a bare head in a table.
func list[T any](c *call, items []T, none string, fill func()) error {
	if c.json {
		if items == nil {
			items = []T{}
		}
		return c.printJSON(items)
	}
	if len(items) == 0 {
		fmt.Fprintln(c.Err, none)
		return nil
	}
	fill()
	return nil
}

// printable takes colours and control characters out of text from elsewhere: a
// log line or a model name must not move the cursor of an operator's terminal.
func printable(s string) string {
	if !strings.ContainsFunc(s, unsafeRune) && utf8.ValidString(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case unsafeRune(r):
			return '?'
		}
		return r
	}, styled.ReplaceAllString(s, ""))
}

// styled matches the escape sequences that only colour text.
var styled = regexp.MustCompile("\x1b\\[[0-9;]*m")

func unsafeRune(r rune) bool { return r != '\t' && unicode.IsControl(r) }
