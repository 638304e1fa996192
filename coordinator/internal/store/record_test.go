package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// TestRecordOfTheNextVersionIsRead: while a fleet is upgraded, coordinators of both
// versions share the records.
func TestRecordOfTheNextVersionIsRead(t *testing.T) {
	r, err := decode([]byte(`{"id":"p-1","state":"ready","node":"n","attempt":2,"owner":"c","request":{"model":"m","later":1},"later":{"x":[1]}}`), 7)
	require.NoError(t, err)
	require.Equal(t, "c", r.Owner)
	require.Equal(t, placement.Ready, r.State)
	require.EqualValues(t, 7, r.Revision)
}
