"""Means between log points, throughput, and the JSONL file of metrics."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import atomic, jsonl, lines
from gtr_jax.io.paths import location

# Averaged over the steps between two log points; of the others, the last value counts.
_MEANS = ("loss", "accuracy", "mrr", "grad_norm")
_LAST = ("param_norm", "learning_rate")
_SUMS = ("pairs", "tokens", "token_slots")


class PeriodMeans:
  """Collects the metrics of the steps since the last log point.

  Args:
    saved: what `to_json` returned, to go on in the middle of a period.
  """

  def __init__(self, saved: Mapping[str, Any] | None = None):
    self._sums: dict[str, float]
    self._last: dict[str, float]
    self.clear()
    if saved:
      self._sums, self._last, self._seconds = dict(saved["sums"]), dict(saved["last"]), saved["seconds"]

  def clear(self) -> None:
    """Starts a new period."""
    self._sums, self._last, self._seconds = {}, {}, 0.0

  def add(self, metrics: Mapping[str, float], seconds: float | None) -> None:
    """Adds a step.

    Args:
      metrics: of `make_train_step`.
      seconds: how long it took; None leaves it out of the throughput (it was compiled, or nobody measured).
    """
    for name in (*_MEANS, *_SUMS):
      self._sums[name] = self._sums.get(name, 0.0) + metrics[name]
    self._sums["steps"] = self._sums.get("steps", 0) + 1
    self._last = {name: metrics[name] for name in _LAST}
    if seconds is not None:
      self._seconds += seconds
      for name in ("pairs", "tokens"):
        self._sums[f"timed_{name}"] = self._sums.get(f"timed_{name}", 0.0) + metrics[name]

  def scalars(self) -> dict[str, float]:
    """The period's summary: means, pairs and tokens per second, and `fill`, real tokens over token slots."""
    if not self._sums:
      return {}
    out = {name: self._sums[name] / self._sums["steps"] for name in _MEANS}
    out["fill"] = self._sums["tokens"] / self._sums["token_slots"]
    if self._seconds:
      out |= {f"{name}_per_second": self._sums[f"timed_{name}"] / self._seconds for name in ("pairs", "tokens")}
    return out | self._last

  def to_json(self) -> dict[str, Any]:
    """All of it, for a checkpoint between two log points."""
    return {"sums": self._sums, "last": self._last, "seconds": self._seconds}


class JsonlWriter:
  """Appends one JSON object a line to a file: `{"step": ..., name: value, ...}`.

  Args:
    path: the file. What it holds of steps after `step` is dropped (and a last line that was cut off), so that a run
      that resumes leaves the file that an undisturbed one would have written.
    step: the step that training starts from.
  """

  def __init__(self, path: epath.PathLike, step: int):
    path = location(path)
    atomic.write_parts(path, (line for at, line in _read_lines(path) if at <= step))
    self._file = path.open("a")

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes a line, readable at once."""
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


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
