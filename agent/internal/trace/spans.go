package trace

import (
	"encoding/hex"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"warmd/placement"
)

// spansOf makes OpenTelemetry's form of a trace: one span for the whole start, a
// child of the caller's if there is one, and under it the phases with the ids that
// they have here. A start that failed has its root to say so.
func spansOf(t placement.Trace) *tracepb.ResourceSpans {
	trace := unhexed(t.TraceID)
	end := t.Total
	for _, p := range t.Phases {
		if t.Total == 0 {
			end = max(end, p.Start+p.Duration) // failed: as far as is known
		}
	}
	root := &tracepb.Span{
		TraceId: trace, SpanId: unhexed(t.Root), ParentSpanId: unhexed(t.Parent), Name: "start " + t.Model, Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: nanos(t.Begin, 0), EndTimeUnixNano: nanos(t.Begin, end),
		Attributes: attributes("warmd.placement", t.Placement, "warmd.tier", string(t.Tier), "warmd.runtime", t.Runtime, "warmd.device", t.Device, "warmd.model", t.Model),
	}
	if t.Failed != "" {
		root.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: t.Failed}
	}
	spans := []*tracepb.Span{root}
	for _, p := range t.Phases {
		spans = append(spans, &tracepb.Span{
			TraceId: trace, SpanId: unhexed(p.SpanID), ParentSpanId: unhexed(p.Parent), Name: p.Name, Kind: tracepb.Span_SPAN_KIND_INTERNAL,
			StartTimeUnixNano: nanos(t.Begin, p.Start), EndTimeUnixNano: nanos(t.Begin, p.Start+p.Duration),
			Attributes: attributes("warmd.proc", p.Proc),
		})
	}
	return &tracepb.ResourceSpans{
		Resource:   &resource.Resource{Attributes: attributes("service.name", "warmd", "service.instance.id", t.Node, "host.name", t.Node)},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &common.InstrumentationScope{Name: "warmd"}, Spans: spans}},
	}
}

func nanos(begin time.Time, seconds float64) uint64 {
	return uint64(begin.Add(time.Duration(seconds * float64(time.Second))).UnixNano())
}

func attributes(pairs ...string) (out []*common.KeyValue) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			out = append(out, &common.KeyValue{Key: pairs[i], Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: pairs[i+1]}}})
		}
	}
	return out
}

// unhexed is nothing for what is no id.
func unhexed(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil
	}
	return b
}
