"""What stands before every request, alone."""

import asyncio
import json

from gtr_jax.serving.guard import Guard
from gtr_jax.serving.limits import Limits
from gtr_jax.serving.service import Service


def test_what_is_under_way_when_the_server_ends_at_once():
  """As uvicorn ends it."""
  sent = []

  async def app(scope, receive, send):
    await asyncio.Event().wait()

  async def receive():
    if began:
      await asyncio.Event().wait()
    began.append(True)
    return {"type": "http.request", "body": b"{}", "more_body": False}

  async def send(message):
    sent.append(message)

  async def main():
    task = asyncio.ensure_future(Guard(app, Service(Limits()), set())(
        {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}, receive, send))
    while not began:
      await asyncio.sleep(0.01)
    task.cancel()
    await task

  began = []
  asyncio.run(main())
  assert sent[0]["status"] == 503 and json.loads(sent[1]["body"])["error"]["code"] == "ended"
