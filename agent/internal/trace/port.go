package trace

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"warmd/agent/api/otlp"
)

// portFile holds the address that engines of this node send their spans to. An
// engine reads it once, from its environment, and outlives the agent: the next agent
// listens there again, if nobody else does by now.
const portFile = "endpoint"

// listen opens the endpoint: where it was, or on any port.
func listen(opt Options, take func([]otlp.Span)) (*otlp.Receiver, error) {
	addr := cmp.Or(opt.Addr, "127.0.0.1:0")
	path := filepath.Join(opt.Dir, portFile)
	if _, port, err := net.SplitHostPort(addr); err != nil || port != "0" || opt.Dir == "" {
		return otlp.Listen(addr, take, opt.Log)
	}
	if was, err := os.ReadFile(path); err == nil {
		r, err := otlp.Listen(strings.TrimSpace(string(was)), take, opt.Log)
		if err == nil {
			return r, nil
		}
		opt.Log.Warn("spans of engines that an earlier agent started are lost", "err", err)
	}
	r, err := otlp.Listen(addr, take, opt.Log)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path+tempSuffix, []byte(r.Addr()+"\n"), 0o640); err == nil {
		err = os.Rename(path+tempSuffix, path)
		if err != nil {
			opt.Log.Warn("the next agent will not find the spans of this one's engines", "err", fmt.Errorf("write trace endpoint: %w", err))
		}
	}
	return r, nil
}
