"""An engine for tests of fleets: real HTTP, the OpenAI routes, one token every --token-ms, and nothing to load.

Its log says what it served, so that a test can ask the engine itself, not only those who speak of it.
"""
import argparse
import http.server
import json
import os
import time

p = argparse.ArgumentParser()
p.add_argument("--host", default="127.0.0.1")
p.add_argument("--port", type=int, required=True)
p.add_argument("--model", required=True)
p.add_argument("--name", required=True)
p.add_argument("--token-ms", type=float, default=20)
p.add_argument("--start-ms", type=float, default=0)
opt = p.parse_args()


def say(*words):
    print("engine", opt.name, f"pid={os.getpid()}", *words, flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/health":
            return self.answer(200, {})
        if self.path == "/v1/models":
            return self.answer(200, {"object": "list", "data": [{"id": opt.name, "object": "model"}]})
        self.answer(404, {"error": "no such route"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in ("/v1/completions", "/v1/chat/completions"):
            return self.answer(404, {"error": "no such route"})
        if body.get("model") != opt.name:
            return self.answer(404, {"error": f"the model is {opt.name}"})
        tokens = body.get("max_tokens") or 16
        if not body.get("stream"):
            time.sleep(tokens * opt.token_ms / 1000)
            say("served", tokens)
            return self.answer(200, {"object": "text_completion", "choices": [{"index": 0, "text": " a" * tokens, "finish_reason": "length"}]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for i in range(tokens):
            time.sleep(opt.token_ms / 1000)
            last = "length" if i == tokens - 1 else None
            chunk = {"object": "text_completion", "choices": [{"index": 0, "text": " a", "finish_reason": last}]}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")
        say("served", tokens)

    def answer(self, status, value):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


time.sleep(opt.start_ms / 1000)
server = Server((opt.host, opt.port), Handler)
say(f"up {opt.host}:{opt.port}")
server.serve_forever()
