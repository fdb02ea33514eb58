"""Means between log points, and throughput."""

from collections.abc import Mapping
from typing import Any

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

  def add(self, metrics: Mapping[str, float], seconds: float) -> None:
    """Adds a step: metrics of `make_train_step`, and the time since the one before."""
    for name in (*_MEANS, *_SUMS):
      self._sums[name] = self._sums.get(name, 0.0) + metrics[name]
    self._sums["steps"] = self._sums.get("steps", 0) + 1
    self._last = {name: metrics[name] for name in _LAST}
    self._seconds += seconds

  def scalars(self) -> dict[str, float]:
    """The period's summary: means, pairs and tokens per second, and `fill`, real tokens over token slots."""
    if not self._sums:
      return {}
    out = {name: self._sums[name] / self._sums["steps"] for name in _MEANS}
    out["fill"] = self._sums["tokens"] / self._sums["token_slots"]
    if self._seconds:
      out |= {f"{name}_per_second": self._sums[name] / self._seconds for name in ("pairs", "tokens")}
    return out | self._last

  def to_json(self) -> dict[str, Any]:
    """All of it, for a checkpoint between two log points."""
    return {"sums": self._sums, "last": self._last, "seconds": self._seconds}
