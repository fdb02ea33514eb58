"""Stopping on a signal, all processes of a run at the same place.

A place is something that main threads say (`progress.doing`): all say the same in the same order. When one process gets
a signal it tells process 0, which asks all how far they are. From its answer on, nobody passes another place until
process 0 says how far the furthest is; all go there, and stop at the next one. So nothing is begun after a signal that
not one of them had begun before, and while there is none, nothing is asked.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from gtr_jax.parallel import processes, progress


class Stopped(BaseException):
  """Raised out of what is given up on a signal."""


class Stop:
  """Notes SIGTERM and ctrl-C while it is a context; a second ctrl-C raises KeyboardInterrupt as usual.

  For the main thread, in all processes, which begin it together.

  Args:
    said: what the user is told.

  Attributes:
    received: the signal that this process got, or None.
  """

  def __init__(self, said: str):
    self.received: signal.Signals | None = None
    self._said, self._gives_up = said, False
    self._group = processes.joined_group()

  def __enter__(self) -> "Stop":
    if self._group is not None:
      self._group.allow_stop()
    self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
    progress.at_places(self._at_place)
    return self

  def __exit__(self, *exc_info: Any) -> None:
    progress.at_places(None)
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def asked(self) -> bool:
    """Whether to stop here, at the place that was said last: the same in all processes."""
    if self._group is None:
      return self.received is not None
    self._group.wait_while_held()  # Since that place a context may have ended, which is said without waiting.
    return self._group.stops_after < progress.current().number

  @contextlib.contextmanager
  def given_up(self) -> Iterator[None]:
    """What is said in the block raises `Stopped` where it is a place to stop at."""
    self._gives_up = True
    try:
      yield
    finally:
      self._gives_up = False

  def _at_place(self) -> None:
    if self._group is not None:
      self._group.wait_while_held()
    if self._gives_up and self.asked():
      raise Stopped

  def _note(self, number, frame):
    del frame
    self.received = signal.Signals(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self._group is not None:
      self._group.stop()
    # Not print: the signal may have come in the middle of another one.
    os.write(2, f"\n{self.received.name}: {self._said} (ctrl-C aborts)\n".encode())
