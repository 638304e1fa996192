// Package conf reads the TOML files of the agent and the coordinator. It is strict:
// an unknown key is an error, and every error says file, line and key, those of
// values that are well-formed and then refused by the program included.
package conf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"warmd/placement"
)

// File is a configuration file that has been read: it knows on which line each key
// stands. The zero File is none: everything comes from defaults and flags.
type File struct {
	path  string
	lines map[string]int    // by dotted key, elements of lists as key[0]
	flags map[string]string // by dotted key: the flag that was given instead
}

// Problem is one thing that is wrong, with the place to correct it.
type Problem struct {
	Path string // empty: not in a file
	Line int    // 0: no single line
	Err  error
}

func (p *Problem) Error() string {
	switch {
	case p.Path == "":
		return p.Err.Error()
	case p.Line == 0:
		return fmt.Sprintf("%s: %v", p.Path, p.Err)
	}
	return fmt.Sprintf("%s:%d: %v", p.Path, p.Line, p.Err)
}

func (p *Problem) Unwrap() error { return p.Err }

// Read decodes a file over the defaults that into, a pointer to a struct, holds. The
// error joins every [Problem], by line. With one, into holds what was well-formed, so
// that its values can be checked all the same.
func Read(path string, into any) (*File, error) {
	f := &File{path: path, lines: map[string]int{}}
	text, err := os.ReadFile(path)
	if err != nil {
		return f, &Problem{Err: fmt.Errorf("read configuration: %w", err)}
	}
	parts, err := f.index(text)
	if err != nil {
		return f, f.at(err, "")
	}
	text = slices.Clone(text)
	var found []error
	for { // the decoder stops at the first value of a wrong type: take it out, go on
		err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(into)
		if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			for i := range unknown.Errors {
				found = append(found, f.at(&unknown.Errors[i], "unknown key "+dotted(unknown.Errors[i].Key())))
			}
			break
		}
		wrong, ok := errors.AsType[*toml.DecodeError](err)
		if !ok {
			if err != nil {
				found = append(found, &Problem{Path: path, Err: err})
			}
			break
		}
		found = append(found, f.at(err, dotted(wrong.Key())+" "+inWords(wrong.Error())))
		if row, _ := wrong.Position(); !blank(text, parts, row) {
			break
		}
	}
	return f, join(found)
}

// at makes the Problem of an error that knows its line; what replaces its words.
func (f *File) at(err error, what string) error {
	row := 0
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ = d.Position()
		err = errors.New(inWords(d.Error()))
	}
	if what != "" {
		err = errors.New(what)
	}
	return &Problem{Path: f.path, Line: row, Err: err}
}

// SetByFlag says that the value of a key comes from a flag, so that errors name the
// flag and not a line that does not count.
func (f *File) SetByFlag(key, flag string) {
	if f.flags == nil {
		f.flags = map[string]string{}
	}
	f.flags[key] = flag
}

// Locate gives every *placement.FieldError in err its place. Other errors stay.
func (f *File) Locate(err error) error {
	if err == nil {
		return nil
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range all.Unwrap() {
			out = append(out, f.Locate(e))
		}
		return join(out)
	}
	if _, ok := errors.AsType[*Problem](err); ok {
		return err
	}
	field, ok := errors.AsType[*placement.FieldError](err)
	if !ok {
		return err
	}
	for key := field.Field; key != ""; key = parent(key) {
		if flag := f.flags[key]; flag != "" {
			return &Problem{Err: &placement.FieldError{Field: flag + strings.TrimPrefix(field.Field, key), Problem: field.Problem}}
		}
	}
	for key := field.Field; key != ""; key = parent(key) {
		if line := f.lines[key]; line != 0 {
			return &Problem{Path: f.path, Line: line, Err: field}
		}
	}
	return &Problem{Path: f.path, Err: field}
}

// parent is the key that holds a key: listen for listen[0], a for a.b.
func parent(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

// join joins problems by their lines.
func join(errs []error) error {
	slices.SortStableFunc(errs, func(a, b error) int { return cmp.Compare(line(a), line(b)) })
	return errors.Join(errs...)
}

func line(err error) int {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p.Line
	}
	return 0
}

var typeError = regexp.MustCompile(`^cannot decode TOML ([a-z ]+) into struct field \S+ of type (\S+)$`)

var typeNames = map[string]string{
	"string": "a string", "int": "a whole number", "float64": "a number", "bool": "true or false", "[]string": "a list of strings",
}

// inWords says the library's message as an operator would.
func inWords(msg string) string {
	msg = strings.TrimPrefix(msg, "toml: ")
	if m := typeError.FindStringSubmatch(msg); m != nil && typeNames[m[2]] != "" {
		return fmt.Sprintf("must be %s, not a TOML %s", typeNames[m[2]], m[1])
	}
	return msg
}

func dotted(k toml.Key) string { return strings.Join(k, ".") }
