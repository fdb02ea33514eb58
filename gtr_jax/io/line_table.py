"""Lines of a file by their numbers, from where each begins, without the file in memory."""

import codecs
import os
import shutil
import tempfile
import threading
import weakref
from typing import Any

from etils import epath

from gtr_jax.io.failures import naming
from gtr_jax.io.paths import is_remote

_REQUESTS = 100  # to a bucket, of some 50 ms each
_COPY_BYTES = 1 << 24


class LineTable:
  """Some lines of a file that is not compressed, in a bucket or on a local disk. Threads may share it.

  Args:
    path: the file. On a local disk it is opened once, so that another one under its name makes no difference; from a
      bucket it is copied to this machine, to where temporary files lie, when more than a hundred lines were asked for.
    starts: `[lines + 1]` of int64, where each line begins, and a place behind the last; an array, also one that is
      mapped into memory. Lines that are not of the table may stand between.
  """

  def __init__(self, path: epath.PathLike, starts: Any):
    self._path = epath.Path(path)
    self._starts = memoryview(starts)  # Quicker to ask than an array of numpy.
    self._file: int | None = None
    self._requests, self._lock = 0, threading.Lock()
    if not is_remote(path):
      self._hold(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, number: int) -> bytes:
    """As `lines.read_lines` gives it. Raises ValueError where the file is shorter than it was."""
    start, stop = self._starts[number], self._starts[number + 1]
    if self._file is None:
      with self._lock:
        self._requests += 1
        if self._requests > _REQUESTS and self._file is None:
          self._copy()
    if self._file is not None:
      data = os.pread(self._file, stop - start, start)
    else:
      with self._path.open("rb") as f:
        f.seek(start)
        data = f.read(stop - start)
    if len(data) < stop - start:
      raise ValueError("the file is shorter than it was")
    line = data.partition(b"\n")[0].rstrip(b"\r")
    return line if start else line.removeprefix(codecs.BOM_UTF8)

  def _hold(self, file: int) -> None:
    weakref.finalize(self, os.close, file)
    self._file = file

  def _copy(self) -> None:
    with naming(folder := tempfile.gettempdir(), hidden=folder), tempfile.TemporaryFile() as copy:
      with self._path.open("rb") as f:
        shutil.copyfileobj(f, copy, _COPY_BYTES)
      copy.flush()
      self._hold(os.dup(copy.fileno()))
