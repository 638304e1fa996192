package agent

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"warmd/agent/internal/device"
	"warmd/placement"
)

// metrics is what Prometheus sees of the agent. Gauges are read from the published
// state when somebody scrapes, so an idle agent does nothing for them.
type metrics struct {
	agent    *Agent
	registry *prometheus.Registry

	start      *prometheus.HistogramVec
	phase      *prometheus.HistogramVec
	placements *prometheus.CounterVec
	claims     *prometheus.CounterVec
	names      map[string]bool // of phases; the recorder's goroutine only

	workers  *prometheus.Desc
	slots    *prometheus.Desc
	viewAge  *prometheus.Desc
	freeByte *prometheus.Desc
}

var _ device.Observer = (*metrics)(nil)

// startBuckets span a warm start of a toy to a cold start of a large model.
var startBuckets = []float64{0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300}

func newMetrics(a *Agent, reg *prometheus.Registry) (*metrics, error) {
	own := reg == nil
	if own {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		agent: a, registry: reg, names: map[string]bool{},
		start: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "warmd_start_seconds", Help: "Claim received to first token.", Buckets: startBuckets,
		}, []string{"tier"}),
		phase: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "warmd_phase_seconds", Help: "One phase of a start, after the claim was received.", Buckets: startBuckets,
		}, []string{"phase", "tier"}),
		placements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warmd_placements_total", Help: "Placements by what became of them: ready, released, or the code of the failure.",
		}, []string{"result"}),
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warmd_claims_total", Help: "Claims by answer: accepted, or the code of the refusal.",
		}, []string{"code"}),
		workers:  prometheus.NewDesc("warmd_workers", "Workers by state.", []string{"state", "device", "runtime"}, nil),
		slots:    prometheus.NewDesc("warmd_slots", "Slots by use; the uses add up to the slots there are.", []string{"device", "use"}, nil),
		viewAge:  prometheus.NewDesc("warmd_view_age_seconds", "Age of this member's word about a node.", []string{"node"}, nil),
		freeByte: prometheus.NewDesc("warmd_device_free_bytes", "Free memory as last measured.", []string{"device"}, nil),
	}
	all := []prometheus.Collector{m.start, m.phase, m.placements, m.claims, m}
	if own {
		all = append(all, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// Started counts a first token.
func (m *metrics) Started(tier placement.Tier, seconds float64) {
	m.start.WithLabelValues(string(tier)).Observe(seconds)
}

// Ended counts what became of a placement.
func (m *metrics) Ended(result string) { m.placements.WithLabelValues(result).Inc() }

func (m *metrics) claim(code string) { m.claims.WithLabelValues(code).Inc() }

// maxPhaseNames bounds the label: names come from engines.
const maxPhaseNames = 200

// finished counts the phases of a trace to which nothing is added any more. The
// recorder calls it for one trace at a time.
func (m *metrics) finished(t placement.Trace) {
	for _, p := range t.Phases {
		name := p.Name
		if !m.names[name] && len(m.names) >= maxPhaseNames {
			name = "other"
		}
		m.names[name] = true
		if !p.Before {
			m.phase.WithLabelValues(name, string(t.Tier)).Observe(p.Duration)
		}
	}
}

// Describe names the gauges.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.workers, m.slots, m.viewAge, m.freeByte} {
		ch <- d
	}
}

// Collect reads the gauges.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, d := range m.agent.devices {
		v := d.View()
		count := map[[2]string]int{}
		for _, w := range v.Workers {
			count[[2]string{w.State, w.Runtime}]++
		}
		for k, n := range count {
			gauge(m.workers, float64(n), k[0], d.ID(), k[1])
		}
		gauge(m.slots, float64(v.Device.Free), d.ID(), "free")
		gauge(m.slots, float64(v.Device.Busy), d.ID(), "busy")
		gauge(m.slots, float64(v.Device.Quarantined), d.ID(), "quarantined")
		gauge(m.freeByte, float64(d.FreeBytes()), d.ID())
	}
	for _, n := range m.agent.Fleet().Nodes {
		gauge(m.viewAge, n.AgeSeconds, n.Node)
	}
}
