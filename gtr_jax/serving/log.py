"""The log: a line of JSON for each request and event, on stderr, by a thread: whoever reads it may be slow, or gone."""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson

_LOG = logging.getLogger("gtr_jax.serving")
_OTHERS = ("uvicorn.error", "opentelemetry")  # of which only what they warn of is written
_MOST_LINES = 10_000  # that wait; more are lost, and counted
_END_S = 1.0  # that the last lines have to be written in


def event(name: str, level: int = logging.INFO, failure: BaseException | None = None, **fields: Any) -> None:
  """Logs something that has happened; `failure` with where it came from."""
  _LOG.log(level, name, extra={"fields": fields}, exc_info=failure)


@contextlib.contextmanager
def log_to(file: int = 2) -> Iterator[None]:
  """Writes what is logged to a file descriptor, default that of stderr, until the block ends."""
  handler = _Handler()
  for name, level in ((_LOG.name, logging.INFO), *((other, logging.WARNING) for other in _OTHERS)):
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
  # Not by logging's own listener: what waits for a pipe that nobody reads would hold a lock, and the process's end.
  writer = threading.Thread(target=handler.write_to, args=(file,), name="log", daemon=True)
  writer.start()
  try:
    yield
  finally:
    handler.lines.put(None)
    writer.join(_END_S)


class _Handler(logging.Handler):
  """Makes lines, in UTC."""

  def __init__(self) -> None:
    super().__init__()
    self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    self._lost = 0

  def emit(self, record: logging.LogRecord) -> None:
    """Puts a line into the queue."""
    if self.lines.qsize() >= _MOST_LINES:
      self._lost += 1
      return
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    more: dict[str, Any] = {}
    if record.exc_info:
      more["traceback"] = logging.Formatter().formatException(record.exc_info)
    if self._lost:
      more["lines_lost"], self._lost = self._lost, 0
    self.lines.put(orjson.dumps({
        "time": f"{moment}.{record.msecs:03.0f}Z", "level": record.levelname.lower(), "event": record.getMessage(),
        **getattr(record, "fields", {}), **more}, option=orjson.OPT_APPEND_NEWLINE))

  def write_to(self, file: int) -> None:
    """Writes lines until one is None."""
    while (line := self.lines.get()) is not None:
      with contextlib.suppress(OSError):  # A full disk, nobody at the other end: requests are answered all the same.
        while line:
          line = line[os.write(file, line):]
