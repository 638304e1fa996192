package main

import (
	"strings"

	"warmd/cmd/internal/manual"
)

// setting is a key of a configuration file as its file explains it.
type setting struct {
	table string // "" for the keys above the first table; its keys follow it
	key   string // "" for the table itself
	value string
	says  string
}

// settings reads a configuration file of the packages: comments explain the key or
// table below them, and `#key = value`, without a space, is a key that is commented
// out. What stands above the first blank line is about the file.
func settings(text string) (about string, all []setting) {
	var says []string
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		bare := strings.TrimPrefix(line, "#")
		key, value, isKey := strings.Cut(bare, " = ")
		switch {
		case line == "":
			if about == "" {
				about = strings.Join(says, "\n")
			}
			says = nil
		case strings.HasPrefix(line, "# ") || line == "#":
			says = append(says, strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
		case strings.HasPrefix(bare, "["):
			table = strings.Trim(bare, "[]")
			all = append(all, setting{table: table, says: strings.Join(says, "\n")})
			says = nil
		case isKey:
			all = append(all, setting{table, key, value, strings.Join(says, "\n")})
			says = nil
		}
	}
	return about, all
}

// manConfig is the page of a configuration file, made of the file that the package
// installs: what an operator reads there and in the manual is the same.
func manConfig(name, text string) string {
	about, all := settings(text)
	var m manual.Page
	m.Title(docsTool, "warmd-"+name+".toml", 5, "configuration of the warmd "+name)
	m.Section("SYNOPSIS")
	m.Text("/etc/warmd/" + name + ".toml")
	m.Section("DESCRIPTION")
	m.Text(about)
	m.Text(`The file is TOML. An unknown key, a value of a wrong type and a value that is refused are errors that say
file, line and key; a reload with an error changes nothing.`)
	m.Section("KEYS")
	for _, s := range all {
		if s.key == "" {
			m.Section("TABLE [" + strings.ToUpper(s.table) + "]")
			m.Text(s.says)
			continue
		}
		m.Term(s.key+" = "+s.value, strings.ReplaceAll(s.says, "\n", " "))
	}
	m.Section("SEE ALSO")
	m.Text("warmd-" + name + "(8), warmd(8)")
	return m.String()
}
