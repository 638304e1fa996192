package gossip

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func keysFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gossip.keys")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestSettingsMakeAMember(t *testing.T) {
	k1, k2 := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 16)
	file := keysFile(t, "# current\n"+base64.StdEncoding.EncodeToString(k1)+"\n\n "+base64.StdEncoding.EncodeToString(k2)+" \n")
	s := Settings{Listen: "10.0.0.1:7946", Advertise: "192.0.2.1", Join: []string{"gpu2"}, Label: "blue", KeysFile: file}
	require.NoError(t, s.Validate())
	c, err := s.Config()
	require.NoError(t, err)
	assert.Equal(t, Config{BindAddr: "10.0.0.1", BindPort: 7946, Advertise: "192.0.2.1", Join: []string{"gpu2"}, Label: "blue", Keys: [][]byte{k1, k2}}, c)
	require.NoError(t, Settings{}.Validate(), "no fleet is a choice")
}

func TestSettingsNameEveryBadKey(t *testing.T) {
	for want, s := range map[string]Settings{
		`gossip.listen "here" must be ADDRESS:PORT`:                  {Listen: "here"},
		`gossip.listen "gpu1:1" must begin with an IP address`:       {Listen: "gpu1:1"},
		`gossip.listen port "x" must be a number`:                    {Listen: "127.0.0.1:x"},
		`gossip.listen is missing: gossip.join needs`:                {Join: []string{"gpu1"}},
		`gossip.keys_file is missing: whoever reaches :7946`:         {Listen: ":7946"},
		`gossip.keys_file is missing: whoever reaches 10.0.0.1:7946`: {Listen: "10.0.0.1:7946"},
		"gossip.label must have at most 255 bytes\ngossip.advertise \"gpu1\" must be an IP address, or IP:port\ngossip.join[1] \"a:b\" must be": {
			Listen: "127.0.0.1:7946", Label: string(make([]byte, 256)), Advertise: "gpu1", Join: []string{"gpu2", "a:b"}},
	} {
		assert.ErrorContains(t, s.Validate(), want)
	}
}

func TestAKeysFileSaysWhichLineIsWrong(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for text, want := range map[string]string{
		good + "\n# old\nnot base64!\n": "gossip.keys:3 is not base64",
		"\nAAAA\n":                      "gossip.keys:2 has 3 bytes, must have 16, 24 or 32",
		"# none\n":                      "holds none: `head -c 32 /dev/urandom | base64` makes one",
	} {
		_, err := Settings{Listen: "127.0.0.1:1", KeysFile: keysFile(t, text)}.Config()
		assert.ErrorContains(t, err, want)
	}
	_, err := Settings{KeysFile: "/nonexistent/keys"}.ReadKeys()
	assert.ErrorContains(t, err, "gossip.keys_file cannot be read: open /nonexistent/keys: no such file or directory")
}
