"""The log: a line of JSON for each request and event, on stderr, by a thread: whoever reads it may be slow."""

import contextlib
import logging
import logging.handlers
import queue
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import orjson

_LOG = logging.getLogger("gtr_jax.serving")


def event(name: str, level: int = logging.INFO, failure: BaseException | None = None, **fields: Any) -> None:
  """Logs something that has happened; `failure` with where it came from."""
  _LOG.log(level, name, extra={"fields": fields}, exc_info=failure)


@contextlib.contextmanager
def log_to(stream: TextIO | None = None) -> Iterator[None]:
  """Writes what is logged to a stream, default stderr, until the block ends; of uvicorn what it warns of."""
  lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
  writer = logging.handlers.QueueListener(lines, logging.StreamHandler(stream or sys.stderr))
  writer.start()
  handler = logging.handlers.QueueHandler(lines)
  handler.setFormatter(_JsonLines())
  for name, level in ((_LOG.name, logging.INFO), ("uvicorn.error", logging.WARNING)):
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
  try:
    yield
  finally:
    writer.stop()  # Writes what is left.


class _JsonLines(logging.Formatter):
  """Times are in UTC."""

  def format(self, record: logging.LogRecord) -> str:
    """A line."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields = getattr(record, "fields", {})
    of_error = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
    return orjson.dumps({"time": f"{moment}.{record.msecs:03.0f}Z", "level": record.levelname.lower(),
                         "event": record.getMessage(), **fields, **of_error}).decode()
