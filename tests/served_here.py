"""A server in a thread of the test, and a client of Python's own."""

import asyncio
import contextlib
import http.client
import json
import threading
import time

import uvicorn

from gtr_jax.serving.app import application
from gtr_jax.serving.server import Protocol, listen


@contextlib.contextmanager
def served_here(service, reload=None, port=0, **of_uvicorn):
  """Serves until the block ends, at any port that is free, or this one; gives the port."""
  listening = listen("127.0.0.1", port)
  timeout_s, own = service.limits.timeout_s, {}
  if timeout_s < Protocol.headers_s:
    own["headers_s"] = timeout_s
  config = uvicorn.Config(application(service, reload), http=type("Of", (Protocol,), {"patience": timeout_s, **own}),
                          lifespan="off", log_config=None, access_log=False, server_header=False, ws="none",
                          **of_uvicorn)
  server = uvicorn.Server(config)
  server.capture_signals = contextlib.nullcontext
  thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
  thread.start()
  while not server.started:
    assert thread.is_alive()
    time.sleep(0.005)
  try:
    yield listening.getsockname()[1]
  finally:
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def ask(port, method, path, body=None, **headers):
  """(status, headers, what the answer's JSON says, or its bytes)."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  try:
    if body is not None and not isinstance(body, bytes):
      body = json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    content = response.read()
    if "json" in response.headers.get("Content-Type", ""):
      content = json.loads(content)
    return response.status, response.headers, content
  finally:
    connection.close()
