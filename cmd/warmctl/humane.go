package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// seconds prints a measured time with three digits that matter.
func seconds(s float64) string {
	switch {
	case s == 0:
		return ""
	case math.Abs(s) < 0.01:
		return fmt.Sprintf("%.1f ms", s*1000)
	case math.Abs(s) < 1:
		return fmt.Sprintf("%.0f ms", s*1000)
	case math.Abs(s) < 100:
		return fmt.Sprintf("%.2f s", s)
	case math.Abs(s) < 6000:
		return fmt.Sprintf("%.0f s", s)
	}
	return age(time.Duration(s * float64(time.Second)))
}

// age prints how long ago something was, in its largest unit.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// since is the age of a moment, empty when there is none.
func (c console) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(c.Now().Sub(t))
}

// stamp is a moment for people who compare it with other logs: UTC, and how long ago.
func (c console) stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", t.UTC().Format("2006-01-02 15:04:05 UTC"), c.since(t))
}

// size prints bytes in powers of 1024.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 || f >= 100 {
		return fmt.Sprintf("%.0f %s", f, units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// parseSize reads 8GiB, 8G, 512M, 1.5T or a number of bytes. K, M, G and T are
// powers of 1024, as is KiB; KB, MB, GB and TB are powers of 1000.
func parseSize(s string) (int64, error) {
	num := strings.TrimRight(s, "BKMGTikbmgt ")
	unit := strings.ToLower(strings.TrimSpace(s[len(num):]))
	f, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if err != nil || f < 0 || math.IsInf(f, 0) || math.IsNaN(f) {
		return 0, fmt.Errorf("%q is not a size: write 8GiB, 512M or a number of bytes", s)
	}
	base := 1024.0
	if len(unit) == 2 && unit[1] == 'b' {
		base = 1000
	}
	power, ok := map[string]float64{"": 0, "b": 0, "k": 1, "kb": 1, "kib": 1, "m": 2, "mb": 2, "mib": 2, "g": 3, "gb": 3, "gib": 3, "t": 4, "tb": 4, "tib": 4}[unit]
	n := f * math.Pow(base, power)
	if !ok || n >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size: write 8GiB, 512M or a number of bytes", s)
	}
	return int64(n), nil
}

// parseTime reads a duration; a bare number is seconds.
func parseTime(s string) (time.Duration, error) {
	if f, err := strconv.ParseFloat(s, 64); err == nil && f >= 0 && f < 1e9 {
		return time.Duration(f * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time: write 90s, 2m or a number of seconds", s)
	}
	return d, nil
}

// plural puts a number before a noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// shortDevice is a device id short enough for a table: the first block of a
// GPU's UUID names it well enough among eight.
func shortDevice(id string) string {
	if strings.HasPrefix(id, "GPU-") || strings.HasPrefix(id, "MIG-") {
		if parts := strings.Split(id, "-"); len(parts) > 2 {
			return parts[0] + "-" + parts[1]
		}
	}
	return id
}
