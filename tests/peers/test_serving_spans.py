"""Spans reach a collector of OpenTelemetry."""

import asyncio
import http.server
import threading

import pytest

pytest.importorskip("opentelemetry.instrumentation.asgi")

from gtr_jax.serving.app import application
from gtr_jax.serving.limits import Limits
from gtr_jax.serving.service import Service
from gtr_jax.serving.tracing import traced


def test_a_request_is_a_span_at_the_collector(monkeypatch):
  bodies, there = [], threading.Event()

  class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
      self.send_response(200)
      self.end_headers()
      there.set()

    def log_message(self, *args):
      pass

  collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
  threading.Thread(target=collector.serve_forever, daemon=True).start()
  monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
  monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
  monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
  app = traced(application(Service(Limits()), None))
  sent = []

  async def receive():
    if not sent:
      return {"type": "http.request", "body": b"", "more_body": False}
    return {"type": "http.disconnect"}

  async def send(message):
    sent.append(message)

  asyncio.run(app({"type": "http", "method": "GET", "path": "/v1/models", "raw_path": b"/v1/models", "headers": [],
                   "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "",
                   "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}, receive, send))
  assert sent[0]["status"] == 503  # It has no model yet.
  assert there.wait(20)
  collector.shutdown()
  path, body = bodies[0]
  assert path == "/v1/traces"
  for part in (b"gtr_jax", b"/v1/models", b"service.name"):
    assert part in body
