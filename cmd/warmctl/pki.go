package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"warmd/agent/api/access"
	"warmd/agent/api/access/pki"
	"warmd/placement"
)

// Lives of certificates, in days.
const (
	caDays   = 3650
	leafDays = 365
	pkiDir   = "pki"
)

func pkiCommand() command {
	return command{
		name: "pki", args: "init|issue|show|retire ...", min: 1, max: 3, complete: "init issue show retire",
		short: "make a fleet's certificates, for those who have no CA",
		long: `  pki init [DIR]           make two CAs: one for warmd, one for etcd (pki)
  pki issue KIND NAME      make a certificate in --dir; NAME is the node, the
                           coordinator, the etcd member or the person
  pki show FILE            say what the certificates in a file are for
  pki init --add [DIR]     change the CAs: make new ones, keep trusting the old
  pki retire [DIR]         end the change: trust the new ones only

KIND is the role that the certificate has (its OU): agent, coordinator, read, place,
admin, or etcd for a member of etcd. Clients call a server by a name that is in its
certificate: NAME, and every --address. Agents are called by the name of their node.
etcd has a CA of its own because it knows no roles: whoever its CA has signed may write
every record. A coordinator gets a certificate of each.

Keep ca.key and etcd-ca.key away from the hosts of the fleet. warmd reads certificates
again when the files change, so a change of CA needs no restart (of etcd it does, one
member after the other):
  1. pki init --add, and ca.crt to every host and every client
  2. pki issue --force for all, and the new files to their hosts
  3. pki retire, and ca.crt to every host and every client again`,
		examples: []example{
			{"warmctl pki init", ""},
			{"warmctl pki issue agent gpu1 --address 10.0.0.1", "for the agent of node gpu1"},
			{"warmctl pki issue coordinator gpu1-coordinator --address gpu1.example.org --address 10.0.0.1", ""},
			{"warmctl pki issue etcd e1 --address 10.0.0.1 --address 127.0.0.1", ""},
			{"warmctl pki issue place ada --days 90", "for a person"},
			{"warmctl pki show /etc/warmd/tls/agent.crt", ""},
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Value: pkiDir, Usage: "`DIR`: folder of the CAs"},
			&cli.StringSliceFlag{Name: "address", Usage: "`IP|NAME`: issue: what else the server is called by; may be repeated"},
			&cli.StringFlag{Name: "days", Usage: "`N`: life of what is made; default: 365, of a CA 3650"},
			&cli.BoolFlag{Name: "add", Usage: "init: a second pair of CAs beside the first"},
			&cli.BoolFlag{Name: "force", Usage: "init, issue: overwrite what is there"},
		},
		run: runPKI,
	}
}

// pkiFlags says which action takes which flag: one that is ignored would mislead.
var pkiFlags = map[string][]string{"dir": {"init", "issue", "retire"}, "address": {"issue"}, "days": {"init", "issue"}, "add": {"init"}, "force": {"init", "issue"}}

func runPKI(c *call) error {
	action, rest := c.args[0], c.args[1:]
	for name, actions := range pkiFlags {
		if c.flags.IsSet(name) && !slices.Contains(actions, action) {
			return usagef("pki %s takes no --%s", action, name).WithHint("warmctl pki --help")
		}
	}
	dir := c.flags.String("dir")
	if action != "issue" && len(rest) == 1 {
		dir = rest[0]
	}
	switch {
	case action == "init" && len(rest) <= 1:
		return pkiInit(c, dir)
	case action == "retire" && len(rest) <= 1:
		return pkiRetire(c, dir)
	case action == "issue" && len(rest) == 2:
		return pkiIssue(c, rest[0], rest[1])
	case action == "show" && len(rest) == 1:
		return pkiShow(c, rest[0])
	}
	return usagef("pki takes init [DIR], issue KIND NAME, show FILE or retire [DIR]").WithHint("warmctl pki --help")
}

// life reads --days.
func (c *call) life(def int) (time.Duration, error) {
	days := def
	if s := c.flags.String("days"); s != "" {
		if _, err := fmt.Sscanf(s, "%d", &days); err != nil || fmt.Sprint(days) != s || days < 1 || days > 36500 {
			return 0, usagef("--days %q must be a whole number between 1 and 36500", s)
		}
	}
	return time.Duration(days) * 24 * time.Hour, nil
}

// authorities are the two CAs by the stem of their files.
var authorities = []struct{ stem, unit string }{{"ca", pki.UnitFleet}, {"etcd-ca", pki.UnitEtcd}}

// made is one pair of files, for people and for -o json.
type made struct {
	Cert    string    `json:"cert"`
	Key     string    `json:"key,omitempty"`
	CA      string    `json:"ca,omitempty"`
	Subject string    `json:"subject"`
	Names   string    `json:"names,omitempty"`
	Until   time.Time `json:"until"`
}

func pkiInit(c *call, dir string) error {
	life, err := c.life(caDays)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	add, there := c.flags.Bool("add"), exists(filepath.Join(dir, "ca.key"))
	switch {
	case add && !there:
		return usagef("%s holds no CA that another could stand beside", dir).WithHint("warmctl pki init %s makes the first", dir)
	case add && exists(filepath.Join(dir, "ca-old.key")):
		return usagef("%s holds two CAs already: a change is under way", dir).WithHint("finish it: warmctl pki retire %s", dir)
	case there && !add && !c.flags.Bool("force"):
		return usagef("%s holds a CA already", dir).
			WithHint("--add makes a second one for a change; --force throws the first away, and with it every certificate that it signed")
	}
	var out []made
	for _, a := range authorities {
		ca, err := pki.NewAuthority(a.unit, c.Now(), life)
		if err != nil {
			return err
		}
		key, err := pki.EncodeKey(ca.Key)
		if err != nil {
			return err
		}
		base := filepath.Join(dir, a.stem)
		bundle := pki.EncodeCerts(ca.Cert)
		if add {
			old, err := os.ReadFile(base + ".crt")
			if err != nil {
				return fmt.Errorf("read CA: %w", err)
			}
			bundle = append(bundle, old...)
			if err := os.Rename(base+".key", base+"-old.key"); err != nil {
				return fmt.Errorf("keep the old key: %w", err)
			}
		}
		if err := errors.Join(replaceFile(base+".key", key, 0o600), replaceFile(base+".crt", bundle, 0o644)); err != nil {
			return err
		}
		out = append(out, made{Cert: base + ".crt", Key: base + ".key", Subject: access.Subject(ca.Cert), Until: ca.Cert.NotAfter})
	}
	if add {
		return c.tell(out, "both CAs are trusted by whoever has this ca.crt: bring it to every host and client, then issue anew with --force")
	}
	return c.tell(out, "keep the keys secret; next: warmctl pki issue agent NODE --dir "+dir)
}

// pkiRetire takes the old CAs out of the files.
func pkiRetire(c *call, dir string) error {
	var out []made
	for _, a := range authorities {
		base := filepath.Join(dir, a.stem)
		ca, err := readAuthority(dir, a.stem)
		if err != nil {
			return err
		}
		if err := replaceFile(base+".crt", pki.EncodeCerts(ca.Cert), 0o644); err != nil {
			return err
		}
		if err := os.Remove(base + "-old.key"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the old key: %w", err)
		}
		out = append(out, made{Cert: base + ".crt", Key: base + ".key", Subject: access.Subject(ca.Cert), Until: ca.Cert.NotAfter})
	}
	return c.tell(out, "bring ca.crt to every host and client: certificates of the old CA are refused from then on")
}

// tell prints what was made, and what to do with it.
func (c *call) tell(out []made, next string) error {
	if c.json {
		return c.printJSON(out)
	}
	for _, m := range out {
		says := m.Subject
		if m.Names != "" {
			says += " for " + m.Names
		}
		fmt.Fprintf(c.Out, "%s  %s, until %s\n", m.Cert, printable(says), m.Until.Format(time.DateOnly))
		fmt.Fprintf(c.Out, "%s\n", m.Key)
	}
	fmt.Fprintf(c.Out, "\n%s\n", next)
	return nil
}

// readAuthority reads a CA, with words that say where it should have come from.
func readAuthority(dir, stem string) (*pki.Authority, error) {
	base := filepath.Join(dir, stem)
	cert, err := os.ReadFile(base + ".crt")
	key, keyErr := os.ReadFile(base + ".key")
	if err = errors.Join(err, keyErr); errors.Is(err, fs.ErrNotExist) {
		return nil, placement.Errorf(placement.CodeNotFound, "%s holds no CA: %s.crt and %s.key are not both there", dir, stem, stem).
			WithHint("warmctl pki init %s makes one; --dir names another folder", dir)
	} else if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	ca, err := pki.ParseAuthority(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read CA %s: %w", base, err)
	}
	return ca, nil
}

// replaceFile writes a file that is whole at any moment and has its mode from the
// beginning: whoever reads it meanwhile gets the old one.
func replaceFile(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		_ = os.Remove(path + ".new")
		return fmt.Errorf("write file: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	return nil
}
