"""Progress on stderr, for all: bars on a terminal; in a pipe or a file, a line every ten seconds and a last one."""

import sys
import time
from typing import Self

from tqdm import tqdm

SECONDS = 10.0  # between two lines in a pipe
_LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"
_LINE_WITHOUT_SPEED = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {elapsed} so far{postfix}"
_LINE_OF_UNKNOWN_TOTAL = "{desc}: {n_fmt}, {elapsed} so far, {rate_fmt}{postfix}"
_shown = True


def show(shown: bool) -> None:
  """Whether this process shows any progress from now on."""
  global _shown
  _shown = shown


def shown() -> bool:
  """Whether it does."""
  return _shown


def note(text: str) -> None:
  """`say`, where progress is shown: for what tells how far something is, and is no warning."""
  if _shown:
    say(text)


def say(text: str) -> None:
  """Writes a line to stderr: above the bars, where there are any."""
  tqdm.write(text, file=sys.stderr)


class Bar:
  """How far something is.

  Args:
    total: how many there are; None: nobody knows.
    what: is being done, such as "encoding queries".
    unit: what is counted, such as " texts"; "B" for bytes, which are shown as MB and GB.
    done: how many were done before.
    shown: False: it is not, whatever `show` says.
    leave: whether the bar stays when it is closed; in a pipe, whether there is a last line in any case.
    delay: seconds on a terminal until it appears.
  """

  def __init__(self, total: int | None, what: str, unit: str, *, done: int = 0, shown: bool = True, leave: bool = True,
               delay: float = 0.0):
    self.n, self.total = done, total
    shown = shown and _shown
    self._what, self._unit, self._before, self._leave = what, unit, done, leave
    self._note, self._start, self._last = "", time.monotonic(), time.monotonic()
    self._uncounted = 0.0
    self._written = 0  # what the last line said
    self._lines = shown and not sys.stderr.isatty()
    self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, unit_scale=unit == "B", leave=leave, delay=delay,
                     file=sys.stderr, dynamic_ncols=True, mininterval=0.2) if shown and not self._lines else None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def update(self, number: int = 1, note: str | None = None) -> None:
    """So many more are done; `note` stands behind the figures from now on."""
    self.n += number
    if note is not None:
      self._note = note
    if self._bar is not None:
      if note is not None:
        self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(number)
    elif self._lines and time.monotonic() - self._last >= SECONDS:
      self._write()

  def skip(self, number: int) -> None:
    """So many were done before: they do not count for the speed."""
    self._before += number
    self.n += number
    if self._bar is not None and number:
      self._bar.initial += number
      self._bar.update(number)
      self._bar.unpause()

  def uncounted(self, seconds: float) -> None:
    """So long it has been at what does not come again, and says nothing of how long the rest takes."""
    self._uncounted += seconds
    if self._bar is not None:
      self._bar.unpause()

  def now(self, note: str) -> None:
    """Shows at once what is being done that does not count."""
    if self._bar is not None:
      self._bar.set_postfix_str(note)
    elif self._lines:
      print(f"{self._what}: {note}", file=sys.stderr, flush=True)

  def close(self) -> None:
    """The last line, or what a terminal keeps of the bar."""
    if self._bar is not None:
      self._bar.close()
    elif self._lines and (self._leave or self._written) and self._written != self.n:
      self._write()
    self._lines = False

  def _write(self):
    self._last, self._written = time.monotonic(), self.n
    seconds, done = self._last - self._start, self.n - self._before
    counted = seconds - self._uncounted
    unit = self._unit if done >= counted else self._unit.strip()  # 2.00 texts/s, 2.00s/texts
    line = _LINE_OF_UNKNOWN_TOTAL if not self.total else _LINE if done else _LINE_WITHOUT_SPEED
    print(tqdm.format_meter(self.n, self.total, seconds, prefix=self._what, unit=unit, unit_scale=unit == "B",
                            rate=done / counted if counted > 0 else None, postfix=self._note or None,
                            bar_format=line), file=sys.stderr, flush=True)
