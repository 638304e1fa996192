package nspawn

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"

	"warmd/packaging/nspawn/host"
)

func newGossipKey() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.StdEncoding.EncodeToString(b)
}

// writeGossipKeys gives agent and coordinator of each host the keyring: the first key
// encrypts, all decrypt. Two users read it, so there are two files.
func writeGossipKeys(t *testing.T, hosts []*host.Host, keys ...string) {
	t.Helper()
	each(t, hosts, func(h *host.Host) {
		h.Run(t, `for who in agent:warmd coordinator:warmd-coordinator; do
  install -m 640 -g ${who#*:} /dev/stdin /etc/warmd/gossip-${who%:*}.keys.new <<END && mv /etc/warmd/gossip-${who%:*}.keys.new /etc/warmd/gossip-${who%:*}.keys || exit
`+strings.Join(keys, "\n")+`
END
done`)
	})
}
