package main

import (
	"fmt"

	"warmd/cmd/internal/manual"
)

// manTool is who makes the pages.
const manTool = "go run ./cmd/warmctl docs"

// manProgram is warmctl.1.
func manProgram() string {
	var m manual.Page
	m.Title(manTool, "warmctl", 1, programShort)
	m.Section("SYNOPSIS")
	m.Text("warmctl COMMAND [flags] [arguments]")
	m.Section("DESCRIPTION")
	m.Text(programLong)
	m.Section("COMMANDS")
	for _, c := range commands() {
		if !c.hidden {
			m.Term("warmctl-"+c.name+"(1)", c.short)
		}
	}
	m.Section("GLOBAL FLAGS")
	m.Flags(manual.Flags(globalFlags()))
	m.Section("ADDRESSES")
	m.Text(addressHelp)
	manExits(&m)
	m.Section("ENVIRONMENT")
	m.Term("WARMD_SERVER", "address of the coordinator")
	m.Term("WARMD_AGENT", "address of the agent")
	m.Term("WARMD_TLS_CA, WARMD_TLS_CERT, WARMD_TLS_KEY", "files of TLS, see ADDRESSES")
	m.Term("TRACEPARENT", "W3C trace context that the trace of a placement joins")
	m.Term("COLUMNS", "width of the terminal, for warmctl trace")
	m.Term("LC_ALL, LC_CTYPE, LANG", "without UTF-8 in them warmctl trace draws with ASCII")
	m.Section("SEE ALSO")
	m.Text("warmd(8)")
	return m.String()
}

// manCommand is the page of one command.
func manCommand(c command) string {
	var m manual.Page
	m.Title(manTool, "warmctl-"+c.name, 1, c.short)
	m.Section("SYNOPSIS")
	m.Text(usageLine(&c))
	if c.long != "" {
		m.Section("DESCRIPTION")
		m.Text(c.long)
	}
	if flags := manual.Flags(c.flags); len(flags) > 0 {
		m.Section("FLAGS")
		m.Flags(flags)
	}
	m.Section("GLOBAL FLAGS")
	m.Flags(manual.Flags(globalFlags()))
	m.Section("EXAMPLES")
	for _, e := range c.examples {
		if e.says != "" {
			m.Text(e.says + ":")
		}
		m.Code(e.line)
	}
	manExits(&m)
	m.Section("SEE ALSO")
	m.Text("warmctl(1)")
	return m.String()
}

func manExits(m *manual.Page) {
	m.Section("EXIT STATUS")
	for _, e := range exitCodes {
		m.Term(fmt.Sprint(e.code), e.says)
	}
}
