"""Worker processes: each does one task after the other; all end when their parent does, however it ends."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple, cast

from gtr_jax.errors import InputError
from gtr_jax.io import failures
from gtr_jax.io.lines import progress
from gtr_jax.prepare.interface import RetryableError

_REPORT_SECONDS = 0.2


class Task(NamedTuple):
  number: int
  place: str  # For messages: what is worked on.


class TaskError(InputError):
  """What a task died of, in one line; `traceback` has the whole."""

  def __init__(self, line: str, whole: str):
    super().__init__(line, whole)
    self.traceback = whole

  def __str__(self):
    return self.args[0]


def run(function: Callable[[Task], Any], tasks: Sequence[Task], workers: int,
        on_bytes: Callable[[int], None]) -> Generator[Task]:
  """Calls function(task) for each, and yields those that are done. With one worker they are done in this process.

  Args:
    function: can be pickled. Calls `lines.progress.on_bytes`.
    tasks: in the order in which they are begun.
    workers: how many processes at most.
    on_bytes: called, in this process, with what the tasks tell of.

  Raises:
    InputError: a task raised it, or anything else (a `TaskError`); a `RetryableError` where the system refused
      something, or its process was killed.
  """
  if min(workers, len(tasks)) <= 1:
    progress.on_bytes = on_bytes
    for task in tasks:
      _do(function, task)
      yield task
    return
  waiting, processes = iter(tasks), []
  busy: dict[connection.Connection, Task] = {}
  try:
    for task in itertools.islice(waiting, workers):
      ours, theirs = multiprocessing.Pipe()
      process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, function), daemon=True)
      with _without_interrupts(), _without_main():  # ctrl-C is for the parent.
        process.start()
      processes.append(process)
      theirs.close()
      _send(ours, task)
      busy[ours] = task
    while busy:
      for ours in cast(list[connection.Connection], connection.wait(list(busy))):
        try:
          kind, value = ours.recv()
        except (EOFError, ConnectionResetError) as e:
          raise RetryableError(f"the worker at {busy[ours].place} was killed (is memory short?); run the same command "
                               "again, with fewer --workers, and it goes on") from e
        if kind == "bytes":
          on_bytes(value)
        elif kind == "error":
          raise value
        else:
          yield busy.pop(ours)
          for task in waiting:
            _send(ours, task)
            busy[ours] = task
            break
  finally:
    for process in processes:
      process.kill()  # What they had not finished has no name yet.
    for process in processes:
      process.join()


def _send(pipe, task):
  with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # It was killed: reading from it says so.
    pipe.send(task)


def _do(function, task):
  try:
    function(task)
  except InputError:
    raise
  except Exception as e:
    if refused := failures.reason(e):  # By a disk, say: another time it may do.
      raise RetryableError(f"{refused}, and it goes on") from e
    frame = traceback.extract_tb(e.__traceback__)[-1]
    line = f"{task.place}: {type(e).__name__}: {e} ({os.path.basename(frame.filename)}:{frame.lineno})"
    raise TaskError(line.replace("\n", " "), traceback.format_exc()) from e


@contextlib.contextmanager
def _without_interrupts():
  resource_tracker.ensure_running()  # Started with the first worker, it would let interrupts through again.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main():
  """A worker imports what it is to do, and not the user's script, which would run once more in each of them.

  It finds gtr_jax where this process has found it, also where a folder of that name is in the current one.
  """
  main = sys.modules["__main__"]
  hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
  main.__dict__.pop("__file__", None)
  main.__spec__ = None
  sys.path.insert(0, str(Path(__file__).parents[2]))
  try:
    yield
  finally:
    sys.path.pop(0)
    vars(main).update(hidden)


def _work(pipe, function):
  threading.Thread(target=_end_with_parent, daemon=True).start()
  told, held = time.monotonic(), 0

  def on_bytes(n):
    nonlocal told, held
    held += n
    if time.monotonic() - told > _REPORT_SECONDS:
      pipe.send(("bytes", held))
      told, held = time.monotonic(), 0

  progress.on_bytes = on_bytes
  while True:
    try:
      task = pipe.recv()
    except EOFError:
      return
    try:
      _do(function, task)
      message: tuple[str, InputError | None] = "done", None
    except InputError as e:
      message = "error", e
    pipe.send(("bytes", held))
    held = 0
    pipe.send(message)


def _end_with_parent():
  if parent := multiprocessing.parent_process():
    parent.join()
  os._exit(1)
