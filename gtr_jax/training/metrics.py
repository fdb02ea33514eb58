"""Means between log points, and throughput."""

from collections import deque
from collections.abc import Mapping
from typing import Any

# Of these the last value counts, and of those the sum; of all others, such as the loss's, the mean over the steps
# between two log points.
_LAST = ("param_norm", "learning_rate")
_SUMS = ("pairs", "tokens", "token_slots")
# Of a loss's metrics, what a progress bar shows, and how it calls them.
_SHOWN = {"loss": "loss", "accuracy": "acc", "mrr": "mrr", "query_cosine": "query cos", "passage_cosine": "passage cos"}
# Throughput is of so many steps at least: two may end at once, of which the first waited for both.
_STEPS_OF_RATE = 16


class PeriodMeans:
  """Collects the metrics of the steps since the last log point.

  Args:
    saved: what `to_json` returned, to go on in the middle of a period.
  """

  def __init__(self, saved: Mapping[str, Any] | None = None):
    self._sums: dict[str, float]
    self._last: dict[str, float]
    # (seconds, pairs, tokens) of the last steps, of earlier periods too
    self._recent: deque[tuple[float, float, float]] = deque(maxlen=_STEPS_OF_RATE)
    self.clear()
    if saved:
      self._sums, self._last, self._seconds = dict(saved["sums"]), dict(saved["last"]), saved["seconds"]

  def clear(self) -> None:
    """Starts a new period."""
    self._sums, self._last, self._seconds = {}, {}, 0.0

  def add(self, metrics: Mapping[str, float], seconds: float) -> None:
    """Adds a step: metrics of `make_train_step`, and the time since the one before."""
    for name, value in metrics.items():
      if name not in _LAST:
        self._sums[name] = self._sums.get(name, 0.0) + value
    self._sums["steps"] = self._sums.get("steps", 0) + 1
    self._last = {name: metrics[name] for name in _LAST}
    self._seconds += seconds
    self._recent.append((seconds, metrics["pairs"], metrics["tokens"]))

  def scalars(self) -> dict[str, float]:
    """The period's summary: means, pairs and tokens per second, and `fill`, real tokens over token slots.

    The throughput of a short period is that of the last 16 steps.
    """
    if not self._sums:
      return {}
    out = {name: value / self._sums["steps"] for name, value in self._sums.items() if name not in (*_SUMS, "steps")}
    out["fill"] = self._sums["tokens"] / self._sums["token_slots"]
    seconds, pairs, tokens = self._seconds, self._sums["pairs"], self._sums["tokens"]
    if len(self._recent) > self._sums["steps"]:
      seconds, pairs, tokens = map(sum, zip(*self._recent, strict=True))
    if seconds:
      out |= {"pairs_per_second": pairs / seconds, "tokens_per_second": tokens / seconds}
    return out | self._last

  def to_json(self) -> dict[str, Any]:
    """All of it, for a checkpoint between two log points."""
    return {"sums": self._sums, "last": self._last, "seconds": self._seconds}


def shown(scalars: Mapping[str, float]) -> str:
  """Of `PeriodMeans.scalars`, for a progress bar."""
  if not scalars:  # All steps since the last line of metrics were skipped.
    return "no finite step"
  parts = [f"{short} {scalars[name]:.3f}" for name, short in _SHOWN.items() if name in scalars]
  if "pairs_per_second" in scalars:
    parts += [f"{scalars['pairs_per_second']:.0f} pairs/s", f"{scalars['tokens_per_second']:.0f} tokens/s"]
  if "mfu" in scalars:
    parts.append(f"MFU {scalars['mfu']:.0%}")
  return ", ".join([*parts, f"fill {scalars['fill']:.2f}"])
