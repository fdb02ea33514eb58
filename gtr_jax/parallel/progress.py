"""What this process does, and which one of several stands still though it is alive.

Stopped, in front of a hung file system or a dead device, a process leaves the others in a collective that never ends.
So each says what its main thread is at (`doing`), a thread sends it to process 0, and there `Watch` looks for the one
that is behind. All processes run the same program and say the same things in the same order: the one that has said the
least is the one that the others wait for, and only its time counts.
"""

import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from gtr_jax.errors import InputError

STEP, READING, COMPILATION = "a training step", "reading a batch", "a compilation"
SAVE, RESTORE = "a save", "reading a checkpoint"
EVALUATION, ENCODING, SEARCH = "an evaluation", "encoding", "a search"
# Seconds between two things that a process says. Whatever has no limit here may take as long as it likes: before the
# first step files are made and read. What is no training step may compile first, which takes XXL many minutes.
LIMITS = {STEP: 600, READING: 1800, COMPILATION: 3600, SAVE: 1800, RESTORE: 1800, EVALUATION: 3600, ENCODING: 3600,
          SEARCH: 3600}
SILENT_SECONDS = 120  # without a word: loading a gigabyte of libraries over a network holds up all threads of Python
BEAT_SECONDS = 2      # between two words
PATIENCE = "GTR_PATIENCE"  # environment variable: a factor of all limits


class Stamp(NamedTuple):
  """How often this process has said what it does, and what that is: of which step, where it is of one."""

  number: int = 0
  what: str | None = None
  step: int | None = None


_now = Stamp()
_since = time.perf_counter()  # it is at that
_seconds: dict[str | None, float] = {}  # by what it was at before
_at_place: Callable[[], None] | None = None


class doing:  # Not Doing: it reads as a function.
  """Says what the main thread does from now on; as a context, it is what it was before at the end.

  Costs as much as a few assignments. All processes must say the same in the same order, so not within `is_first()`.

  Args:
    what: one of the above, or None for what has no limit.
    step: of training.
  """

  __slots__ = ("_before",)

  def __init__(self, what: str | None, step: int | None = None):
    self._before = _now
    _say(what, step)
    if _at_place is not None:
      _at_place()

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    _say(self._before.what, self._before.step)


def _say(what, step):
  global _now, _since
  now = time.perf_counter()
  _seconds[_now.what] = _seconds.get(_now.what, 0.0) + now - _since
  _since, _now = now, Stamp(_now.number + 1, what, step)


def at_places(function: Callable[[], None] | None) -> None:
  """Has this called after whatever the main thread says, but for the end of a context; None: nothing any more."""
  global _at_place
  _at_place = function


def current() -> Stamp:
  """What this process has said last."""
  return _now


def seconds() -> dict[str | None, float]:
  """How long the main thread has been at each thing so far; the sum is the time since this was imported."""
  return _seconds | {_now.what: _seconds.get(_now.what, 0.0) + time.perf_counter() - _since}


def patience() -> float:
  """The factor of all limits. Raises InputError."""
  text = os.environ.get(PATIENCE) or "1"
  try:
    factor = float(text)
  except ValueError:
    factor = math.nan
  if not 0 < factor < math.inf:
    raise InputError(f"{PATIENCE}={text}: give a factor of how long a process may stand still, such as 2")
  return factor


class Stuck(NamedTuple):
  """Processes that stand still: which, why, and whether they hear what they are told."""

  indices: tuple[int, ...]
  reason: str
  hears: bool


class _Seen(NamedTuple):
  stamp: Stamp | None
  since: float  # has it said this
  heard: float  # it was the last time


class Watch:
  """What one process knows of others: is told what they say and how time passes, and tells who stands still.

  Time is what this process has seen pass: where it was itself stopped, or a laptop slept, nobody else is to blame.

  Args:
    names: of the processes, by index.
    factor: of all limits.
  """

  def __init__(self, names: dict[int, str], factor: float = 1.0):
    self._names, self._factor, self._clock = names, factor, 0.0
    self._seen = {index: _Seen(None, 0.0, 0.0) for index in names}

  def hear(self, index: int, stamp: Stamp) -> None:
    """A process says what it does."""
    seen = self._seen[index]
    self._seen[index] = _Seen(stamp, seen.since if seen.stamp == stamp else self._clock, self._clock)

  def passed(self, seconds: float) -> Stuck | None:
    """So much time has passed: who stands still?"""
    self._clock += min(seconds, 5 * BEAT_SECONDS)
    return self._silent() or self._behind()

  def _silent(self) -> Stuck | None:
    limit = SILENT_SECONDS * self._factor
    silent = tuple(index for index, seen in self._seen.items() if self._clock - seen.heard > limit)
    return Stuck(silent, f"{self._are(silent)} stuck: nothing was heard for {limit:.0f} seconds, so stopped, or the "
                 "machine hangs; end what is left there", hears=False) if silent else None

  def _behind(self) -> Stuck | None:
    """Of those that say what they do: where process 0 alone is listened to, it is not said."""
    said = {index: (seen.stamp, seen.since) for index, seen in self._seen.items() if seen.stamp is not None}
    if len(said) < len(self._seen):
      return None
    last = min(stamp.number for stamp, _ in said.values())
    behind = {index: of for index, of in said.items() if of[0].number == last}
    stamp, since = next(iter(behind.values()))[0], max(since for _, since in behind.values())
    limit = LIMITS.get(stamp.what or "", math.inf) * self._factor
    if self._clock - since <= limit:
      return None
    of_step = "" if stamp.step is None else f" (step {stamp.step})"
    alike = "" if len(behind) < len(self._seen) else ", all alike"
    return Stuck(tuple(behind), f"{self._are(tuple(behind))} stuck in {stamp.what}{of_step} for {limit:.0f} "
                 f"seconds{alike}: a file system that hangs, or a dead device? ({PATIENCE}=2 waits twice as long)",
                 hears=True)

  def _are(self, indices: tuple[int, ...]) -> str:
    shown = ", ".join(self._names[index] for index in indices[:4])
    return shown + (f" and {len(indices) - 4} more" if len(indices) > 4 else "") + (" is" if len(indices) == 1 else
                                                                                    " are")
