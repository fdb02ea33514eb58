"""Where the time of a run goes, over all the processes that it has had one after the other."""

import time
from collections.abc import Mapping
from typing import Any

from gtr_jax.parallel import progress

STEPS, STARTING = "steps", "starting"
_KINDS = {progress.STEP: STEPS, progress.COMPILATION: "compiling", progress.READING: "waiting_for_data",
          progress.SAVE: "saving", progress.EVALUATION: "evaluating", progress.ENCODING: "evaluating",
          progress.SEARCH: "evaluating"}  # All else is starting.


class Goodput:
  """The seconds of a run by what this process was at, and those of the processes before it that checkpoints know of.

  "starting" is what comes before the first step of each process, and the time from the last checkpoint of the one
  before until it began: steps that were lost, and the wait for machines; but not where that one was at its end, or was
  stopped by hand.

  Args:
    began: `progress.seconds()` when the run began in this process.
    saved: what `to_json` returned for the checkpoint that training goes on from.
  """

  def __init__(self, began: Mapping[str | None, float], saved: Mapping[str, Any] | None = None):
    self._began, self._before = began, dict.fromkeys((*_KINDS.values(), STARTING), 0.0)
    if saved:
      here = sum(progress.seconds().values()) - sum(began.values())
      self._before |= saved["seconds"]
      if saved["at"] is not None:
        self._before[STARTING] += max(time.time() - here - saved["at"], 0.0)

  def seconds(self) -> dict[str, float]:
    """Of each kind, until now."""
    found = dict(self._before)
    for what, seconds in progress.seconds().items():
      found[_KINDS.get(what or "", STARTING)] += seconds - self._began.get(what, 0.0)
    return found

  def shares(self) -> dict[str, float]:
    """Of all the time; they add up to 1. That of "steps" is the goodput."""
    found = self.seconds()
    return {kind: seconds / sum(found.values()) for kind, seconds in found.items()}

  def to_json(self, ends: bool = False) -> dict[str, Any]:
    """All of it, for a checkpoint: of a process that goes on, or is meant to end with it."""
    return {"seconds": self.seconds(), "at": None if ends else time.time()}
