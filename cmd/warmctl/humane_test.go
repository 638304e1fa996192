package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSizesAreReadAsWritten(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1024": 1024, "8GiB": 8 << 30, "8G": 8 << 30, "8g": 8 << 30, "512M": 512 << 20, "1.5T": 3 << 39, "8GB": 8e9, "1 KiB": 1024, "7B": 7, "2kb": 2000,
	} {
		got, err := parseSize(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "G", "-1", "8Q", "8GiBB", "1e400", "NaN", "inf", "99999999T", "8 G x"} {
		_, err := parseSize(in)
		require.ErrorContains(t, err, "is not a size", in)
	}
}

func TestPrintedSizesReadBackNearly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<50).Draw(t, "n")
		back, err := parseSize(size(n))
		if err != nil {
			t.Fatalf("%s: %v", size(n), err)
		}
		if d := back - n; d > n/10 || -d > n/10 {
			t.Fatalf("%d printed as %s read as %d", n, size(n), back)
		}
	})
}

func TestTimesAreReadAsWritten(t *testing.T) {
	for in, want := range map[string]time.Duration{"90": 90 * time.Second, "90s": 90 * time.Second, "2m": 2 * time.Minute, "0": 0, "0.5": 500 * time.Millisecond, "1h30m": 90 * time.Minute} {
		got, err := parseTime(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "soon", "-1", "-1s", "1e30", "NaN", "5 minutes"} {
		_, err := parseTime(in)
		require.ErrorContains(t, err, "is not a time", in)
	}
}

func TestTimesArePrintedInTheirLargestUnit(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 999 * time.Millisecond: "0s", -time.Second: "0s", time.Second: "1s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d",
	} {
		require.Equal(t, want, age(d))
	}
	for s, want := range map[float64]string{0: "", 0.0004: "0.4 ms", 0.0099: "9.9 ms", 0.031: "31 ms", 2.814: "2.81 s", 123.4: "123 s", -300: "-300 s", -0.004: "-4.0 ms", 7200: "2h"} {
		require.Equal(t, want, seconds(s))
	}
}
