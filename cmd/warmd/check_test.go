package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"

	"warmd/agent/api/access/accesstest"
	"warmd/agent/api/access/pki"
)

// checkConfig runs --check-config on a file.
func checkConfig(t *testing.T, cmd *cli.Command, path string) (out string, err error) {
	t.Helper()
	var b bytes.Buffer
	app := &cli.App{Writer: &b, Commands: []*cli.Command{cmd}, ExitErrHandler: func(*cli.Context, error) {}}
	err = app.Run([]string{"warmd", cmd.Name, "--config", path, "--check-config"})
	return b.String(), err
}

func TestCheckConfigSaysWhatAConfigurationAmountsTo(t *testing.T) {
	certs := accesstest.New(t)
	tls := certs.Files("agent", "gpu1")
	dir := t.TempDir()
	keys := filepath.Join(dir, "gossip.keys")
	require.NoError(t, os.WriteFile(keys, []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o604))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "models/opt"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "models/opt/config.json"), []byte("{}"), 0o644))
	path := file(t, "agent.toml", fmt.Sprintf(`node = "gpu1"
listen = ["127.0.0.1:0"]
socket = ""
model_roots = [%q]
runtimes_dir = %q
access = { read = ["0"], place = [], admin = ["no-such-group"] }
tls = { ca = %q, cert = %q, key = %q }
gossip = { listen = "127.0.0.1:7946", join = ["gpu2", "gpu3"], keys_file = %q }
`, filepath.Join(dir, "models"), dir+"/runtimes", tls.CA, tls.Cert, tls.Key, keys))
	out, err := checkConfig(t, agentCommand(), path)
	require.NoError(t, err)
	until := time.Now().Add(time.Hour).UTC().Format(time.DateOnly)
	require.Equal(t, fmt.Sprintf(`warning: tls.cert: %[1]s ends in 1h0m0s
warning: gossip.keys_file: everybody on this host may read %[2]s: chmod o= %[2]s
warning: access: this host has no group no-such-group
%[3]s is valid
  node          gpu1
  tls           CN=gpu1,OU=agent for gpu1, signed by %[4]s, until %[5]s
  gossip        127.0.0.1:7946, 1 key, looks for gpu2, gpu3
  model_roots   %[6]s/models: 1 model
  runtimes      none yet: warmd runtime add NAME --vllm VERSION --device cpu|cuda
`, tls.Cert, keys, path, certs.CA.Cert.Subject.CommonName, until, dir), out)
}

func TestCheckConfigSaysEveryProblemOfTheHostByItsLine(t *testing.T) {
	certs := accesstest.New(t)
	wrong := certs.Files("coordinator", "gpu2")
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	path := file(t, "agent.toml", fmt.Sprintf(`node = "gpu1"
nammed = "typo"
listen = ["127.0.0.1:0", "192.0.2.7:7710"]
socket = %[1]q
data_dir = %[1]q
model_roots = ["/nonexistent/models"]
endpoint_host = "192.0.2.8"
nvml_library = "/nonexistent/libnvidia-ml.so.1"
[tls]
ca = %[2]q
cert = %[3]q
key = %[4]q
[gossip]
listen = "192.0.2.9:7946"
keys_file = "/nonexistent/keys"
`, filepath.Join(dir, "file"), wrong.CA, wrong.Cert, wrong.Key))
	_, err := checkConfig(t, agentCommand(), path)
	var got []string
	for line := range strings.Lines(err.Error()) {
		got = append(got, strings.TrimSpace(strings.TrimPrefix(line, path)))
	}
	require.Equal(t, []string{
		":2: unknown key nammed",
		`:3: listen[1] "192.0.2.7:7710" is not an address of this host (ip address shows them)`,
		":4: socket " + dir + "/file is there and is not a socket: move it away",
		":5: data_dir " + dir + "/file is there and is not a folder",
		":6: model_roots[0] open /nonexistent/models: no such file or directory",
		`:7: endpoint_host "192.0.2.8" is not an address of this host (ip address shows them)`,
		":8: nvml_library stat /nonexistent/libnvidia-ml.so.1: no such file or directory",
		":11: tls.cert " + wrong.Cert + " is CN=gpu2,OU=coordinator: it must have OU=agent, `warmctl pki issue agent gpu1` makes one",
		":11: tls.cert " + wrong.Cert + " is for gpu2: coordinators call this node gpu1",
		`:14: gossip.listen "192.0.2.9:7946" is not an address of this host (ip address shows them)`,
		":15: gossip.keys_file cannot be read: open /nonexistent/keys: no such file or directory",
	}, got)
	require.Equal(t, 2, run([]string{"warmd", "agent", "--config", path, "--check-config"}))
}

func TestCheckConfigOfACoordinatorReadsTheFilesForEtcd(t *testing.T) {
	certs := accesstest.New(t)
	etcd := certs.Issue(pki.Leaf{Name: "c1", Unit: "etcd", Client: true, Life: 24 * 365 * time.Hour}, time.Now())
	text := fmt.Sprintf("name = \"c1\"\nsocket = \"\"\netcd_endpoints = [\"https://e1:2379\"]\netcd_ca = %q\netcd_cert = %q\netcd_key = %q\naccess = { read = [], place = [], admin = [] }\n", etcd.CA, etcd.Cert, etcd.Key)
	_, err := checkConfig(t, coordinatorCommand(), file(t, "coordinator.toml", text))
	require.ErrorContains(t, err, "coordinator.toml: gossip.listen is missing")
	require.NotContains(t, err.Error(), "\n")
	text += "[gossip]\nlisten = \"127.0.0.1:7947\"\n"
	out, err := checkConfig(t, coordinatorCommand(), file(t, "coordinator.toml", text))
	require.NoError(t, err)
	require.Contains(t, out, "  etcd          CN=c1,OU=etcd for c1, signed by ")
	require.Contains(t, out, "  etcd          https://e1:2379 below /warmd/\n")
	require.NoError(t, os.Remove(etcd.Key))
	_, err = checkConfig(t, coordinatorCommand(), file(t, "coordinator.toml", text))
	require.ErrorContains(t, err, "coordinator.toml:6: etcd_key "+etcd.Key+" does not exist")
}

func TestAFileThatRootCanReadAndTheServiceCannotIsAProblem(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755)) // TempDir is for one user
	require.NoError(t, os.Chmod(dir, 0o755))
	at := filepath.Join(dir, "tls", "agent.key")
	require.NoError(t, os.Mkdir(filepath.Dir(at), 0o755))
	require.NoError(t, os.WriteFile(at, nil, 0o640))
	other := &account{name: "warmd", uid: 64000, gids: []uint32{64000}}
	require.Equal(t, at, other.mayRead(at))
	require.NoError(t, os.Chmod(at, 0o644))
	require.NoError(t, os.Chmod(filepath.Dir(at), 0o750))
	require.Equal(t, filepath.Dir(at), other.mayRead(at))
	member := &account{name: "warmd", uid: 64000, gids: []uint32{uint32(os.Getegid())}}
	require.Empty(t, member.mayRead(at))
	r := &report{service: other}
	r.readable("tls.key", at)
	require.EqualError(t, r.bad[0], "tls.key "+at+" cannot be read by user warmd, who runs the service: look at owner and mode of "+filepath.Dir(at))
}
