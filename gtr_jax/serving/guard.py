"""What every request goes through: who may, how much at once, how long, what is logged; as ASGI middleware.

A request's body is read here, whole and within limits, before anything else happens, so that a client that sends slowly
holds nothing but its bytes. While it is answered the client is watched, and work for one that has gone is given up.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Set
from typing import Any

import orjson

from gtr_jax.serving.log import event
from gtr_jax.serving.problems import OPENAI, TEI, Problem, failed
from gtr_jax.serving.requests import SIDE_OF_PREFIX
from gtr_jax.serving.service import Service

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_OPEN = {"/", "/health", "/openapi.json"}  # GET of these needs no key, ..
_ALWAYS = {*_OPEN, "/metrics"}             # .. and of these no place among the requests.
_TEI_ROUTES = {("POST", f"{side}{path}") for side in SIDE_OF_PREFIX for path in ("", "/", "/embed")} | {
    ("GET", "/info")}
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_RELOAD = "/admin/reload"
_BODIES_AT_ONCE = 32  # of the largest size
_WRITTEN_AT_ONCE = 64 << 10  # bytes
_LINGER_S, _LINGER_BYTES = 2.0, 256 << 20  # of a body that was refused


class Guard:
  """Stands before an application.

  Args:
    app: that answers.
    service: whose limits and keys these are.
    paths: that the application knows, by which requests are counted.
  """

  def __init__(self, app: App, service: Service, paths: Set[str]):
    self._app, self._service, self._paths = app, service, paths
    self._keys = [hashlib.sha256(key).digest() for key in service.keys]
    self._bytes = 0  # of bodies that are being read or answered

  async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
    """Answers a request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    scope.setdefault("state", {})["noted"] = {}
    request = _Request(scope, receive, send)
    scope["state"]["request_id"] = request.id
    held = contextlib.ExitStack()
    try:
      await self._answer(request, scope, receive, held)
    except Problem as e:
      scope["state"]["noted"]["error"] = e.kind
      await request.refuse(e)
    except asyncio.CancelledError:  # The server was told twice to end, or its time is over.
      scope["state"]["noted"]["error"] = "ended"
      await request.refuse(Problem(503, "the server has ended; send it again", "ended", retry_after=1))
    except Exception as e:
      scope["state"]["noted"]["error"] = "internal"
      event("error", logging.ERROR, e, request_id=request.id, error=type(e).__name__)
      await request.refuse(failed(request.id))
    finally:
      held.close()
      self._record(request, scope)

  def _record(self, request, scope):
    """A request that is over, in the metrics and in the log."""
    metrics, noted = self._service.metrics, scope["state"]["noted"]
    route = scope["path"] if scope["path"] in self._paths else "other"
    seconds, error = time.monotonic() - request.began, noted.get("error")
    if scope["path"] == "/health":
      return  # Whoever balances asks every second.
    metrics.requests.labels(route).inc()
    metrics.duration.labels(route).observe(seconds)
    if error is None:
      metrics.succeeded.labels(route).inc()
    else:
      metrics.failed.labels(route, error).inc()
    event("request", request_id=request.id, method=scope["method"], route=route, status=request.status,
          ms=round(1000 * seconds, 1), **noted)

  async def _answer(self, request, scope, receive, held):
    service = self._service
    limits, deadline = service.limits, request.began + service.limits.timeout_s
    reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
    if not (reads and scope["path"] in _OPEN):
      self._check_key(scope)
    if reads and scope["path"] in _ALWAYS:
      await self._app(scope, receive, request.send)
      return
    if service.draining:
      raise Problem(503, "the server is ending; send it again, to another one", "draining", retry_after=1)
    body = await self._body(scope, receive, deadline, held)
    if service.active >= limits.concurrent:
      raise Problem(429, f"the server is overloaded: it answers {limits.concurrent} requests at once; try again later",
                    "overloaded", retry_after=1)
    service.active += 1
    held.callback(self._leave)
    scope["state"]["served"] = service.served
    if service.served is not None:
      held.enter_context(service.served.used())
    # A reload compiles, and may take minutes.
    await self._watched(request, scope, body, receive, math.inf if scope["path"] == _RELOAD else deadline)

  def _leave(self):
    self._service.active -= 1

  def _check_key(self, scope):
    if not self._keys:
      return
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, key = given.partition(b" ")
    digest = hashlib.sha256(key.strip()).digest()
    # All of them, so that the time says nothing of where it differs.
    known = [hmac.compare_digest(digest, other) for other in self._keys]
    if kind.lower() != b"bearer" or not any(known):
      raise Problem(401, "give an API key of this server: Authorization: Bearer KEY", "invalid_api_key")

  async def _body(self, scope, receive, deadline, held):
    """All of it."""
    most = self._service.limits.body_bytes
    too_large = Problem(413, f"the body is larger than {most:,} bytes; send fewer texts at once", "body_too_large")
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if length.isdigit() and int(length) > most:
      raise too_large
    body = bytearray()
    held.callback(lambda: self._count(-len(body)))
    more = True
    while more:
      try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
          message = await receive()
      except TimeoutError:
        raise Problem(408, "the body has not come in time", "timeout") from None
      if message["type"] == "http.disconnect":
        raise _Gone()
      body += message.get("body", b"")
      self._count(len(message.get("body", b"")))
      more = message.get("more_body", False)
      if len(body) > most:
        self._count(-len(body))
        body.clear()  # Its client is listened to for a moment more.
        raise too_large
      if self._bytes > _BODIES_AT_ONCE * most:
        raise Problem(429, "the server is overloaded: too many large requests at once; try again later", "overloaded",
                      retry_after=1)
    return bytes(body)

  def _count(self, number):
    self._bytes += number

  async def _watched(self, request, scope, body, receive, deadline):
    """Lets the application answer, until the client has gone or time is over."""
    sent = False

    async def replay():
      nonlocal sent
      if not sent:
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}
      await asyncio.Event().wait()  # What comes of the client is heard here, below.
      return None

    async def gone():
      while (await receive())["type"] != "http.disconnect":
        pass

    answer = asyncio.ensure_future(self._app(scope, replay, request.send))
    watch = asyncio.ensure_future(gone())
    try:
      left = None if deadline == math.inf else max(deadline - time.monotonic(), 0)
      await asyncio.wait({answer, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
      if answer.done():
        await answer
      elif watch.done():
        raise _Gone()
      else:
        raise Problem(503, "the answer was not there in time; try again later, or send fewer texts at once", "timeout",
                      retry_after=1)
    finally:
      for task in (answer, watch):
        task.cancel()
      await asyncio.gather(answer, watch, return_exceptions=True)


class _Gone(Problem):
  """The client has; nobody hears the answer."""

  def __init__(self):
    super().__init__(499, "the client has gone", "client_gone")


class _Request:
  """What is known of a request, and what was sent of its answer.

  Attributes:
    id: the client's X-Request-Id, or a new one; every answer has it.
    began: when its headers were there.
    status: of the answer; 499 where the client had gone.
  """

  def __init__(self, scope: Message, receive: Any, send: Any):
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    self.began, self.status = time.monotonic(), 0
    self._form = TEI if (scope["method"], scope["path"]) in _TEI_ROUTES else OPENAI
    self._receive, self._send = receive, send

  async def send(self, message: Message) -> None:
    """Sends a part of the answer; large ones piece by piece, as fast as the client reads."""
    if message["type"] == "http.response.start":
      self.status = message["status"]
      message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
    body = message.get("body", b"")
    for start in range(0, max(len(body) - _WRITTEN_AT_ONCE, 0), _WRITTEN_AT_ONCE):
      await self._send({"type": "http.response.body", "body": body[start:start + _WRITTEN_AT_ONCE],
                        "more_body": True})
      message = {**message, "body": body[start + _WRITTEN_AT_ONCE:]}
    await self._send(message)

  async def refuse(self, problem: Problem) -> None:
    """Answers with a problem, if nothing was answered yet and somebody listens."""
    if self.status or isinstance(problem, _Gone):
      self.status = self.status or problem.status
      return
    body = orjson.dumps(problem.body(self._form))
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers()}
    closes = problem.status in (408, 413)  # Nobody wants the rest of the body.
    headers |= {"connection": "close"} if closes else {}
    await self.send({"type": "http.response.start", "status": problem.status_in(self._form),
                     "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()]})
    await self.send({"type": "http.response.body", "body": body, "more_body": closes})
    if closes:
      await self._linger()
      await self.send({"type": "http.response.body", "body": b""})

  async def _linger(self):
    """Reads on for a moment: to those who send all before they listen a closed connection would say nothing."""
    read = 0
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_LINGER_S):
        while read < _LINGER_BYTES:
          message = await self._receive()
          if not message.get("more_body", False):  # All of it, or the client has gone.
            return
          read += len(message.get("body", b""))
