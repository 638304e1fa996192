package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/internal/device"
	"warmd/placement"
)

func openJournal(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := OpenJournal(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func record(id string, s placement.State) *device.Record {
	return &device.Record{Placement: placement.Placement{
		ID: id, State: s, Attempt: 1, Request: placement.Request{Model: "m"}, Updated: time.Unix(1700000000, 0).UTC(),
	}, WorkerRecord: json.RawMessage(`{"id":"w0-1"}`)}
}

func states(j *Journal) map[string]placement.State {
	out := map[string]placement.State{}
	for _, r := range j.placements() {
		out[r.Placement.ID] = r.Placement.State
	}
	return out
}

func TestTheJournalRemembers(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	require.NoError(t, j.Put(record("a", placement.Loading), true))
	require.NoError(t, j.Put(record("a", placement.Ready), false))
	require.NoError(t, j.Put(record("b", placement.Loading), true))
	j.Park(device.ParkedRecord{Worker: "w1", Device: "cpu-0", Runtime: "v", Record: json.RawMessage(`{}`)})
	j.Park(device.ParkedRecord{Worker: "w2", Device: "cpu-0", Runtime: "v", Record: json.RawMessage(`{}`)})
	j.Unpark("w1")
	require.NoError(t, j.SetDraining(true))
	// kill -9: nothing is closed, another process opens what is on the disk
	raw, err := os.ReadFile(filepath.Join(dir, journalFile))
	require.NoError(t, err)
	dir2 := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir2, journalFile), raw, 0o600))
	again := openJournal(t, dir2)
	require.Equal(t, map[string]placement.State{"a": placement.Ready, "b": placement.Loading}, states(again))
	require.Len(t, again.parked(), 1)
	require.Contains(t, again.parked(), "w2")
	require.True(t, again.state.draining)
	require.Zero(t, again.damaged)
}

// TestAJournalOfTheNextVersionIsRead: an agent that is downgraded goes on. It neither
// knows the fields and entries that were added, nor takes them for damage.
func TestAJournalOfTheNextVersionIsRead(t *testing.T) {
	dir := t.TempDir()
	var raw []byte
	for _, entry := range []string{
		`{"p":{"placement":{"id":"a","state":"ready","attempt":1,"request":{"model":"m","later":[1]},"later":{}},"worker_record":{"id":"w0","later":1},"later":"x"},"later":0}`,
		`{"w":{"worker":"w1","device":"cpu-0","runtime":"v","record":{"id":"w1","later":1},"later":{"x":null}}}`,
		`{"later":{"something":"else"}}`,
		`{"d":true,"later":1}`,
	} {
		raw = append(raw, frame([]byte(entry))...)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, journalFile), raw, 0o600))
	j := openJournal(t, dir)
	require.Zero(t, j.damaged)
	require.Equal(t, map[string]placement.State{"a": placement.Ready}, states(j))
	require.Contains(t, j.parked(), "w1")
	require.Len(t, j.workerRecords(), 2)
	require.Contains(t, string(j.parked()["w1"].Record), "later", "what belongs to the worker is kept as it is")
	require.True(t, j.state.draining)
}

func TestTwoAgentsDoNotShareAJournal(t *testing.T) {
	dir := t.TempDir()
	openJournal(t, dir)
	_, err := OpenJournal(dir, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "another agent uses it")
}

// sample is a small journal file and the states it holds after each frame.
func sample(t testing.TB) []byte {
	var b []byte
	add := func(e journalEntry) {
		p, err := json.Marshal(e)
		require.NoError(t, err)
		b = append(b, frame(p)...)
	}
	for _, id := range []string{"a", "b", "c"} {
		add(journalEntry{Placement: record(id, placement.Ready)})
		add(journalEntry{Park: &device.ParkedRecord{Worker: "w" + id, Device: "cpu-0"}})
	}
	return b
}

// Cut at any byte, or with any byte flipped, the file loses the records that were
// hit and no other.
func TestADamagedJournalKeepsWhatVerifies(t *testing.T) {
	whole := sample(t)
	full, damaged := replay(whole)
	require.Zero(t, damaged)
	require.Len(t, full.placements, 3)
	count := func(s journalState) int { return len(s.placements) + len(s.parked) }
	for i := range whole {
		s, _ := replay(whole[:i])
		n, at := 0, 0
		frames(whole, func(p []byte) {
			at += frameHead + len(p)
			if at <= i {
				n++
			}
		})
		require.Equal(t, n, count(s), "cut at %d", i)

		for _, bit := range []byte{0x01, 0x80, 0xff} {
			flipped := bytes.Clone(whole)
			flipped[i] ^= bit
			s, damaged := replay(flipped)
			require.Positive(t, damaged, "flipped at %d", i)
			require.Equal(t, 5, count(s), "flipped at %d", i)
		}
	}
}

// The worst file: at every 12 bytes a head that asks for a sum over a megabyte.
func TestAHostileJournalCostsNoMoreThanItsSize(t *testing.T) {
	head := frame(nil)
	head[4], head[5], head[6] = 0xff, 0xff, 0x0f
	raw := bytes.Repeat(head, (4<<20)/len(head))
	begin := time.Now()
	_, damaged := replay(raw)
	require.Equal(t, len(raw), damaged)
	require.Less(t, time.Since(begin), 10*time.Second, "not its square")
}

func TestAnyFileIsOpenedAndSetAsideWhenDamaged(t *testing.T) {
	whole := sample(t)
	for name, raw := range map[string][]byte{
		"empty": {}, "noise": bytes.Repeat([]byte{0xa5, 0x00, 'w', 'j'}, 5000), "magic only": bytes.Repeat(frameMagic, 1000),
		"a frame of garbage": frame([]byte("not json")), "a frame of another time": frame([]byte(`{"z":1}`)),
		"cut": whole[:len(whole)-3], "noise before": append([]byte("garbage"), whole...),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, journalFile)
			require.NoError(t, os.WriteFile(path, raw, 0o600))
			j := openJournal(t, dir)
			_, err := os.Stat(path + ".damaged")
			require.Equal(t, j.damaged > 0, err == nil, "damage is kept for people to look at")
			require.NoError(t, j.Put(record("new", placement.Loading), true))
			require.Contains(t, states(j), "new")
		})
	}
}

func TestAFolderInPlaceOfTheJournalIsAnError(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, journalFile), 0o700))
	_, err := OpenJournal(dir, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "move it away")
}

func TestTheJournalIsRewrittenBeforeItGrows(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	long := record("a", placement.Ready)
	long.Placement.Reason = string(bytes.Repeat([]byte("x"), 50000))
	for range 200 {
		require.NoError(t, j.Put(long, false))
	}
	fi, err := os.Stat(filepath.Join(dir, journalFile))
	require.NoError(t, err)
	require.Less(t, fi.Size(), int64(2*compactAbove))
	for i := range keepEnded + 100 {
		r := record(fmt.Sprint("e", i), placement.Failed)
		r.Placement.Updated = time.Unix(int64(i), 0)
		require.NoError(t, j.Put(r, false))
	}
	j.mu.Lock()
	require.NoError(t, j.rewrite())
	j.mu.Unlock()
	require.Len(t, j.placements(), keepEnded+1, "all that live, and the youngest that do not")
	require.Contains(t, states(j), fmt.Sprint("e", keepEnded+99))
	require.NotContains(t, states(j), "e0")
}

func TestManyWritersShareTheSync(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() { require.NoError(t, j.Put(record(fmt.Sprint("p", i), placement.Loading), true)) })
	}
	wg.Wait()
	raw, err := os.ReadFile(filepath.Join(dir, journalFile))
	require.NoError(t, err)
	s, _ := replay(raw)
	require.Len(t, s.placements, 64)
}

// A disk that takes nothing: the file is closed under the journal's feet.
func TestAJournalThatCannotBeWrittenRefusesAndRecovers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	j := openJournal(t, dir)
	require.NoError(t, j.Put(record("a", placement.Ready), true))
	away := dir + ".away"
	require.NoError(t, os.Rename(dir, away)) // no new file can be made
	require.NoError(t, j.file.Close())       // and the open one takes nothing
	err := j.Put(record("b", placement.Loading), true)
	e, ok := errors.AsType[*placement.Error](err)
	require.True(t, ok)
	require.Equal(t, placement.CodeDiskFull, e.Code)
	require.NotEmpty(t, e.Hint)
	require.NotContains(t, states(j), "b", "what was refused is not remembered")
	require.NoError(t, j.Put(record("a", placement.Released), false), "an end is remembered all the same")
	require.NoError(t, os.Rename(away, dir))
	require.NoError(t, j.Put(record("c", placement.Loading), true))
	raw, err := os.ReadFile(filepath.Join(dir, journalFile))
	require.NoError(t, err)
	s, _ := replay(raw)
	require.Equal(t, placement.Released, s.placements["a"].Placement.State, "and reaches the disk with the next write")
	require.Contains(t, s.placements, "c")
}

// /dev/full answers every write with ENOSPC, as a full disk does.
func TestAFullDiskIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	_ = j.file.Close()
	j.file = f
	err = j.Put(record("b", placement.Loading), true)
	require.ErrorContains(t, err, "no space left on device")
}

func FuzzReplay(f *testing.F) {
	f.Add(sample(f))
	f.Add(frame([]byte(`{"p":{"placement":{"id":"x"}}}`)))
	f.Add(append(sample(f)[:50], sample(f)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, damaged := replay(raw)
		if damaged < 0 || damaged > len(raw) {
			t.Fatalf("%d bytes of %d are damaged", damaged, len(raw))
		}
		var again []byte // what was understood is written in a form that loses nothing
		for _, e := range s.entries() {
			p, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, frame(p)...)
		}
		s2, d2 := replay(again)
		if d2 != 0 || len(s2.placements) != len(s.placements) || len(s2.parked) != len(s.parked) || s2.draining != s.draining {
			t.Fatalf("rewritten, %d damaged: %+v is not %+v", d2, s2, s)
		}
	})
}
