package manual

import (
	_ "embed"
	"strings"
)

// The scripts are thin: they hand the words of the line to `PROGRAM __complete`,
// so that all shells complete the same, and a new flag needs no new script.
var (
	//go:embed completion/bash
	bashScript string
	//go:embed completion/zsh
	zshScript string
	//go:embed completion/fish
	fishScript string
)

// Complete is the hidden command that the scripts call with the words behind the
// program's name, the last one being typed. It prints one candidate per line, a
// tab, and a description; ":dirs" or ":files" alone asks the shell for those.
const Complete = "__complete"

// CompletionFile is the name under which packages install a shell's script.
func CompletionFile(shell, program string) string {
	return map[string]string{"bash": program + ".bash", "zsh": "_" + program, "fish": program + ".fish"}[shell]
}

// Completion is the script of a shell for a program.
func Completion(shell, program string) (string, bool) {
	s, ok := map[string]string{"bash": bashScript, "zsh": zshScript, "fish": fishScript}[shell]
	return strings.ReplaceAll(s, "PROGRAM", program), ok
}
