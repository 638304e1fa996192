package coordinator

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"warmd/placement"
)

// metrics is what Prometheus reads of a coordinator.
type metrics struct {
	place   *prometheus.HistogramVec
	results *prometheus.CounterVec
	start   *prometheus.HistogramVec
	leader  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, c *Coordinator) (*metrics, error) {
	m := &metrics{
		place: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "warmd_place_seconds",
			Help:    "Time of the coordinator's part of a placement, by phase: choose, txn (etcd), claim (PUT until the agent accepts).",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}}, []string{"phase"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "warmd_placements_total", Help: "Placements that ended, by result: ready, released, or the code of the refusal."}, []string{"result"}),
		start: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "warmd_start_seconds", Help: "Request at the agent to first token, by tier.",
			Buckets: []float64{.1, .25, .5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300}}, []string{"tier"}),
		leader: prometheus.NewGauge(prometheus.GaugeOpts{Name: "warmd_coordinator_leader", Help: "1 while this coordinator sweeps."}),
	}
	queue := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "warmd_queue_length", Help: "Requests that wait for capacity."}, func() float64 {
		n, _ := c.placer.Counts()
		return float64(n)
	})
	for _, col := range []prometheus.Collector{m.place, m.results, m.start, m.leader, queue, &view{c}} {
		if err := reg.Register(col); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) phase(name string, d time.Duration) {
	m.place.WithLabelValues(name).Observe(d.Seconds())
}

func (m *metrics) done(result string, p placement.Placement) {
	m.results.WithLabelValues(result).Inc()
	if p.State == placement.Ready && p.StartSeconds > 0 {
		m.start.WithLabelValues(string(p.Tier)).Observe(p.StartSeconds)
	}
}

func (m *metrics) leads(yes bool) {
	if yes {
		m.leader.Set(1)
	} else {
		m.leader.Set(0)
	}
}

// view tells what this coordinator sees of the fleet: how many nodes, by status, and how
// old the word of the node is that was heard least lately. Not a figure per node: a
// label for each of 10,000 nodes would cost more than the fleet.
type view struct{ c *Coordinator }

var (
	viewAgeDesc = prometheus.NewDesc("warmd_view_age_seconds", "Age of the oldest word of a living node in this coordinator's view.", nil, nil)
	nodesDesc   = prometheus.NewDesc("warmd_nodes", "Nodes in this coordinator's view, by status: alive, suspect (a call to it has just failed), left, failed.", []string{"status"}, nil)
)

func (v *view) Describe(ch chan<- *prometheus.Desc) { ch <- viewAgeDesc; ch <- nodesDesc }

func (v *view) Collect(ch chan<- prometheus.Metric) {
	oldest := 0.0
	nodes := map[string]int{"alive": 0, "suspect": 0, "left": 0, "failed": 0}
	for _, n := range v.c.world.Fleet().Nodes {
		nodes[n.Status]++
		if n.Alive {
			oldest = max(oldest, n.AgeSeconds)
		}
	}
	ch <- prometheus.MustNewConstMetric(viewAgeDesc, prometheus.GaugeValue, oldest)
	for status, n := range nodes {
		ch <- prometheus.MustNewConstMetric(nodesDesc, prometheus.GaugeValue, float64(n), status)
	}
}
