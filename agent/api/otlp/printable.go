package otlp

import (
	"strings"
	"unicode"
)

// maxText bounds a name, in bytes.
const maxText = 128

// Printable makes a name fit for a terminal and a metric label: engines are not
// trusted to be short and printable.
func Printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}
