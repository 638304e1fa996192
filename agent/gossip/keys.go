package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"

	"warmd/placement"
)

// ErrNotEncrypted is what SetKeys says of a member that began without keys, or is to
// go on without: encryption is a decision of the whole fleet, at its start.
var ErrNotEncrypted = errors.New("a fleet begins with keys, or without: restart every member to change that")

// SetKeys replaces the keys while the member runs: the first encrypts, all decrypt. A
// fleet changes its key without losing a packet when every member has taken old,new
// before the first takes new,old, and every one that before the first takes new.
//
// The order of the steps is that of a fleet: first decrypt with the new ones, then
// encrypt, then forget the old ones.
func (m *Member) SetKeys(keys [][]byte) error {
	for i, k := range keys {
		if memberlist.ValidateKey(k) != nil {
			return &placement.FieldError{Field: fmt.Sprintf("keys[%d]", i), Problem: "must have 16, 24 or 32 bytes"}
		}
	}
	if m.ring == nil || len(keys) == 0 {
		if m.ring == nil && len(keys) == 0 {
			return nil
		}
		return ErrNotEncrypted
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		if err := m.ring.AddKey(k); err != nil {
			return fmt.Errorf("add key: %w", err)
		}
	}
	if err := m.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("use key: %w", err)
	}
	wanted := func(k []byte) bool {
		return slices.ContainsFunc(keys, func(w []byte) bool { return bytes.Equal(k, w) })
	}
	have := slices.Clone(m.ring.GetKeys())
	first := slices.IndexFunc(have, func(k []byte) bool { return !wanted(k) })
	if first < 0 {
		return nil
	}
	// From the end: the library removes any other one by moving what is behind it, in a
	// list that packets under way are read with. In a rotation the old key is the last.
	for _, k := range slices.Backward(have[first:]) {
		if err := m.ring.RemoveKey(k); err != nil {
			return fmt.Errorf("remove key: %w", err)
		}
	}
	for _, k := range have[first:] {
		if wanted(k) {
			if err := m.ring.AddKey(k); err != nil {
				return fmt.Errorf("add key: %w", err)
			}
		}
	}
	return nil
}
