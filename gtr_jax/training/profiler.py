"""Traces of training steps for TensorBoard's profiler, or xprof: what the devices and the host do, and when."""

import os
import signal
from typing import Any

import jax
from etils import epath

from gtr_jax.io import bars

FOLDER = "profile"


class Profiler:
  """Traces some steps: those that were asked for, and the next ones whenever this process gets SIGUSR1.

  A context, for the main thread. Each process traces its own devices, into one folder for all.

  Args:
    folder: of the run; traces are written to `folder`/profile. None: nothing is traced.
    first: step to begin with, where it comes; None: none unless a signal asks.
    steps: how many at once.
  """

  def __init__(self, folder: epath.Path | None, first: int | None = None, steps: int = 3):
    self._folder, self._first, self._steps = folder, first, steps
    self._is_asked = False
    self._last: int | None = None  # Step of the trace that is being made.
    self._before: Any = None

  def __enter__(self) -> "Profiler":
    if self._folder is not None:
      self._before = signal.signal(signal.SIGUSR1, self._note)
    return self

  def __exit__(self, *exc_info: Any) -> None:
    if self._folder is not None:
      signal.signal(signal.SIGUSR1, self._before)
    self._stop()

  def before(self, step: int) -> None:
    """A step is about to be given to the devices."""
    if self._folder is not None and self._last is None and (self._is_asked or step == self._first):
      self._is_asked, self._last = False, step + self._steps - 1
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # Its calls would slow all threads, and bury what has a name here.
      jax.profiler.start_trace(os.fspath(self._folder / FOLDER), profiler_options=options)

  def after(self, step: int) -> None:
    """The devices are done with a step."""
    if self._last is not None and step >= self._last:
      self._stop()

  def _stop(self):
    if self._last is None:
      return
    last, self._last = self._last, None
    jax.profiler.stop_trace()
    if jax.process_index() == 0:
      bars.say(f"traced steps until {last}: tensorboard --logdir {self._folder}, its tab Profile "
               "(pip install xprof)")

  def _note(self, number, frame):
    del number, frame
    self._is_asked = True
    os.write(2, b"\nSIGUSR1: the next steps are traced\n")
