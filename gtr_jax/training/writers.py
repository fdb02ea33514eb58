"""Where metrics are written to: a file of JSON lines, TensorBoard; and in a thread, for whoever must not wait."""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import atomic, jsonl, lines
from gtr_jax.io.paths import is_remote, location


class Writer(Protocol):
  """Takes metrics."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """A row, which others may see after `flush` alone."""

  def flush(self) -> None:
    """Returns when all that was written is where it belongs."""

  def close(self) -> None:
    """Flushes, and ends it."""


class JsonlWriter:
  """Appends one JSON object a line to a file: `{"step": ..., name: value, ...}`.

  Args:
    path: the file. What it holds of steps after `step` is dropped (and a last line that was cut off), so that a run
      that resumes leaves the file that an undisturbed one would have written.
    step: the step that training starts from.
  """

  def __init__(self, path: epath.PathLike, step: int):
    self._path = location(path)
    kept = [line for at, line in _read_lines(self._path) if at <= step]
    atomic.write_parts(self._path, kept)
    # An object cannot grow: in a bucket it is written anew, of these lines.
    self._lines = kept if is_remote(path) else None
    self._file = open(self._path, "ab") if self._lines is None else None  # noqa: SIM115

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """A line; on a disk it can be read at once."""
    line = json.dumps({"step": step, **scalars}).encode() + b"\n"
    if self._lines is not None:
      self._lines.append(line)
    if self._file is not None:
      self._file.write(line)
      self._file.flush()

  def flush(self) -> None:
    """All lines can be read, also in a bucket."""
    if self._lines is not None:
      atomic.write_parts(self._path, self._lines)

  def close(self) -> None:
    """Closes the file."""
    self.flush()
    if self._file is not None:
      self._file.close()


class TensorboardWriter:
  """Scalars for TensorBoard."""

  def __init__(self, directory: epath.Path):
    from clu import metric_writers  # It imports TensorFlow.
    self._writer = metric_writers.SummaryWriter(str(directory))
    self.write, self.flush, self.close = self._writer.write_scalars, self._writer.flush, self._writer.close


class InBackground:
  """Gives metrics to writers in a thread, so that no step waits for a disk or a bucket.

  What goes wrong there is raised by a later call.

  Args:
    writers: of this process, which it flushes when they have got all that waits, and closes.
  """

  def __init__(self, writers: Sequence[Writer]):
    self._writers, self._rows = writers, deque[tuple[int, Mapping[str, float]]]()
    self._pool, self._begun = ThreadPoolExecutor(1, "metrics"), deque[Future]()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Returns at once."""
    while self._begun and self._begun[0].done():
      self._begun.popleft().result()
    self._rows.append((step, dict(scalars)))
    self._begun.append(self._pool.submit(self._write_all))

  def flush(self) -> None:
    """Waits."""
    while self._begun:
      self._begun.popleft().result()

  def close(self) -> None:
    """Waits, and closes them all."""
    try:
      self.flush()
    finally:
      self._pool.shutdown()
      for writer in self._writers:
        writer.close()

  def _write_all(self) -> None:
    """All that waits by now: where one flush takes longer than some steps, there is one for several rows."""
    rows = [self._rows.popleft() for _ in range(len(self._rows))]
    for writer in self._writers if rows else ():
      for row in rows:
        writer.write(*row)
      writer.flush()


def _read_lines(path: epath.Path) -> Iterator[tuple[float, bytes]]:
  """(step, line) of those that are complete. Raises InputError for one that is, and is no JSON object with a step."""
  if not path.exists() or not path.stat().length:
    return
  for place, line, _, ended in lines.read_lines(lines.Part(os.fspath(path))):
    if not ended:
      return  # The process was killed while it wrote.
    try:
      yield _step_of(jsonl.parse(line)), line + b"\n"
    except (ValueError, KeyError, TypeError) as e:
      raise InputError(f"{place}: not a line of metrics; remove it, or take another MODEL_DIR") from e


def _step_of(record: Any) -> float:
  step = record["step"]
  if isinstance(step, bool) or not isinstance(step, int | float):
    raise TypeError
  return step
