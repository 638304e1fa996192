"""An OTLP/HTTP collector that keeps spans. It decodes the few protobuf fields it needs, so that it needs no package."""

import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector:
    """`endpoint` is for OTEL_EXPORTER_OTLP_TRACES_ENDPOINT; `spans` grows as batches arrive."""

    def __init__(self):
        self.spans, self.news = [], threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                collector.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body):
        with self.news:
            for resource_spans in fields(body).get(1, ()):  # field numbers: opentelemetry/proto/trace/v1/trace.proto
                r = fields(resource_spans)
                resource = attributes(fields(r[1][0]).get(1, ())) if 1 in r else {}
                for scope_spans in r.get(2, ()):
                    for raw in fields(scope_spans).get(2, ()):
                        self.spans.append(span(fields(raw), resource))
            self.news.notify_all()

    def wait_for(self, names, timeout=60):
        """Waits until every name has arrived; returns those that did not."""
        with self.news:
            self.news.wait_for(lambda: set(names) <= {s["name"] for s in self.spans}, timeout)
            return set(names) - {s["name"] for s in self.spans}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def span(s, resource):
    start, end = s[7][0], s[8][0]
    return {
        "name": s[5][0].decode(),
        "trace_id": s[1][0].hex(),
        "span_id": s[2][0].hex(),
        "parent": s[4][0].hex() if 4 in s else "",
        "start": start,
        "dur_s": round((end - start) / 1e9, 4),
        "attributes": attributes(s.get(9, ())),
        "resource": resource,
        "received": time.time_ns(),
    }


def attributes(raw):
    found = {}
    for pair in raw:
        p = fields(pair)
        value = fields(p[2][0]) if 2 in p else {}
        found[p[1][0].decode()] = next((v[0].decode() if isinstance(v[0], bytes) else v[0] for v in value.values()), None)
    return found


def fields(raw):
    """One protobuf message as {field number: [values]}; nested messages stay bytes."""
    found, at = {}, 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(raw, at)
        elif kind == 1:
            value, at = struct.unpack_from("<Q", raw, at)[0], at + 8
        elif kind == 5:
            value, at = struct.unpack_from("<I", raw, at)[0], at + 4
        else:
            size, at = _varint(raw, at)
            value, at = raw[at : at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(raw, at):
    value = shift = 0
    while True:
        b = raw[at]
        at, value, shift = at + 1, value | (b & 127) << shift, shift + 7
        if b < 128:
            return value, at
