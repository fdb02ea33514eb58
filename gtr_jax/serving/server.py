"""One server: models and stores from disk, uvicorn, signals."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gtr_jax.errors import InputError
from gtr_jax.serving.app import application
from gtr_jax.serving.log import event
from gtr_jax.serving.model import settle
from gtr_jax.serving.problems import Problem
from gtr_jax.serving.service import Served, Service
from gtr_jax.serving.tracing import traced

_HEADERS_S = 30.0       # seconds that the headers of a request may take
_HEADERS_BYTES = 64 << 10
_BACKLOG = 2048         # connections that wait to be taken
_DRAIN_LOOKS_S = 0.05
_KEEP_ALIVE_S = 75      # more than that of balancers, which would else send to a connection that is being closed


class Server:
  """Runs until a signal ends it: SIGTERM and SIGINT let requests be answered first, SIGHUP takes all from disk anew.

  Args:
    service: the limits and keys.
    load: models and stores, all compiled; called in a thread. Raises InputError.
  """

  def __init__(self, service: Service, load: Callable[[], Served]):
    self._service, self._load = service, load
    self._reloading: asyncio.Task[None] | None = None
    self._again = False  # Something has changed since a reload began.
    self._old: asyncio.Future[None] | None = None  # What was served before, until it has ended.
    self._failed: BaseException | None = None

  def run(self, listening: socket.socket, cors_origins: Sequence[str] = (), with_spans: bool = False) -> None:
    """Answers what comes to a socket.

    Args:
      listening: the socket, which is closed at the end.
      cors_origins: whose pages may ask.
      with_spans: send spans to a collector of OpenTelemetry.

    Raises:
      InputError: nothing can be served.
    """
    app: Any = application(self._service, self._reload)
    if with_spans:
      app = traced(app)
    if cors_origins:
      app = CORSMiddleware(app, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"])
    _allow_many_connections()
    config = uvicorn.Config(
        app, http=type("Protocol", (Protocol,), {"patience": self._service.limits.timeout_s}), lifespan="off",
        log_config=None, access_log=False, proxy_headers=False, server_header=False, ws="none", backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=1)  # After `_drain`.
    self._server = uvicorn.Server(config)
    self._server.capture_signals = contextlib.nullcontext  # type: ignore  # Signals are ours, below.
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
      runner.run(self._run(listening))
    if self._failed is not None:
      raise self._failed

  async def _run(self, listening):
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
      loop.add_signal_handler(number, self._end)
    background = set()
    loop.add_signal_handler(signal.SIGHUP, lambda: background.add(loop.create_task(self._reload_by_signal())))
    first = loop.create_task(self._begin())
    await self._server.serve(sockets=[listening])
    first.cancel()
    event("ended")

  def _end(self):
    event("ending", requests=self._service.active)
    if self._service.draining:  # Told twice.
      self._server.should_exit = self._server.force_exit = True
    else:
      self._service.draining = True
      self._draining = asyncio.ensure_future(self._drain())

  async def _drain(self):
    """New requests are refused, /health says why, and those that are under way are answered."""
    until = time.monotonic() + self._service.limits.drain_s
    while self._service.active and time.monotonic() < until:
      await asyncio.sleep(_DRAIN_LOOKS_S)
    self._server.should_exit = True

  async def _begin(self):
    try:
      self._service.served = await self._loaded()
    except BaseException as e:
      self._failed = e
      self._server.should_exit = True

  async def _loaded(self):
    began, loop = time.monotonic(), asyncio.get_running_loop()
    future = loop.create_future()

    def in_thread():
      found: Served | BaseException
      try:
        found = self._load()
      except BaseException as e:
        found = e
      loop.call_soon_threadsafe(settle, future, found)

    threading.Thread(target=in_thread, name="load", daemon=True).start()  # One that ends with the process.
    served = await future
    event("ready", seconds=round(time.monotonic() - began, 1), models=list(served.models), stores=list(served.stores))
    return served

  async def _reload(self) -> None:
    """Takes all from disk anew, and lets the old one end when its requests are answered.

    It goes on when nobody waits for it any more.

    Raises:
      Problem: it cannot be taken, or another reload is under way.
    """
    if self._reloading is not None and not self._reloading.done():
      raise Problem(409, "a reload is going on already; send it again when that is done", "reloading")
    self._reloading = asyncio.ensure_future(self._reloaded())
    self._reloading.add_done_callback(lambda task: task.cancelled() or task.exception())  # Somebody has looked at it.
    await asyncio.shield(self._reloading)

  async def _reloaded(self):
    if self._old is not None:
      await self._old
    old = self._service.ready()
    try:
      self._service.served = await self._loaded()
    except Exception as e:
      event("not reloaded", logging.ERROR, error=str(e))
      raise Problem(500, "what is on disk cannot be taken; the server's log says why, and it goes on with what it has",
                    "not_reloaded") from e
    # The request that asked for this may be answered by the old one.
    self._old = asyncio.ensure_future(old.end())

  async def _reload_by_signal(self):
    self._again = True  # Also when a reload is under way, which may have read what was there before.
    while self._again:
      if self._reloading is not None:
        await asyncio.wait([self._reloading])
      if self._again:
        self._again = False
        with contextlib.suppress(Problem):  # The log has it.
          await self._reload()


class Protocol(HttpToolsProtocol):
  """Ends connections of clients that send headers too slowly, or too many, or do not take what they asked for.

  Attributes:
    headers_s: seconds that headers may take.
    patience: seconds that nothing of an answer may be taken.
  """

  headers_s, patience = _HEADERS_S, 60.0

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._timer: asyncio.TimerHandle | None = None
    self._of_headers = 0

  def connection_made(self, transport: Any) -> None:
    super().connection_made(transport)
    self._limit(self.headers_s)

  def connection_lost(self, exc: Exception | None) -> None:
    self._no_limit()
    super().connection_lost(exc)

  def data_received(self, data: bytes) -> None:
    if self._in_headers:
      self._of_headers += len(data)
    super().data_received(data)
    if self._of_headers > _HEADERS_BYTES:
      self.transport.abort()

  def on_message_begin(self) -> None:
    super().on_message_begin()
    self._limit(self.headers_s)

  def on_headers_complete(self) -> None:
    self._no_limit()
    self._of_headers = 0
    super().on_headers_complete()

  def pause_writing(self) -> None:
    self._limit(self.patience)
    super().pause_writing()

  def resume_writing(self) -> None:
    self._no_limit()
    super().resume_writing()

  @property
  def _in_headers(self):
    return self._timer is not None and not self.flow.write_paused

  def _limit(self, seconds):
    self._no_limit()
    self._timer = self.loop.call_later(seconds, self.transport.abort)

  def _no_limit(self):
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens. Raises InputError where it cannot."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  listening = socket.socket(family)
  listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listening.bind((host, port))
    listening.listen(_BACKLOG)  # Who comes before the server has started waits.
  except (OSError, OverflowError) as e:
    listening.close()
    raise InputError(f"--host {host} --port {port}: cannot listen there ({e}); choose another port, or end what "
                     "listens there") from e
  listening.set_inheritable(True)
  return listening


def _allow_many_connections() -> None:
  """A file for each: as many as the system allows."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != hard:
    with contextlib.suppress(OSError, ValueError):
      resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
