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
	for _, h := range hosts {
		for file, group := range map[string]string{"agent": "warmd", "coordinator": "warmd-coordinator"} {
			path := "/etc/warmd/gossip-" + file + ".keys"
			h.Write(t, path, strings.Join(keys, "\n")+"\n", 0o640)
			h.Run(t, "chgrp "+group+" "+path)
		}
	}
}
