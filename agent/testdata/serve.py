"""The smallest server of the OpenAI completions route: the engine of tests.

Usage: serve.py PORT MODEL NAME [MODE]
MODE: ok (default), crash (die while starting), hang (never listen), slow=SECONDS
"""
import http.server
import json
import sys
import time

port, name = int(sys.argv[1]), sys.argv[3]
mode = sys.argv[4] if len(sys.argv) > 4 else "ok"
if "crash" in name or mode == "crash":
    print("RuntimeError: this engine crashes on purpose", file=sys.stderr, flush=True)
    sys.exit(3)
if "hang" in name or mode == "hang":
    print("still loading, for ever", flush=True)
    time.sleep(3600)
if "slow" in name:
    time.sleep(2)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ok = body.get("model") == name
        answer = {"choices": [{"text": "b"}]} if ok else {"error": "no such model"}
        raw = json.dumps(answer).encode()
        self.send_response(200 if ok else 404)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


print("serving", name, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
