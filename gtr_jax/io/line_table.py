"""Lines of a file by their numbers, from where each begins, without the file in memory."""

import codecs
import os
import weakref
from typing import Any

from etils import epath

from gtr_jax.io.paths import is_remote


class LineTable:
  """Some lines of a file that is not compressed, in a bucket or on a local disk. Threads may share it.

  Args:
    path: the file. On a local disk it is opened once, so that another one under its name makes no difference.
    starts: `[lines + 1]` of int64, where each line begins, and a place behind the last; an array, also one that is
      mapped into memory. Lines that are not of the table may stand between.
  """

  def __init__(self, path: epath.PathLike, starts: Any):
    self._path = epath.Path(path)
    self._starts = memoryview(starts)  # Quicker to ask than an array of numpy.
    self._file = None
    if not is_remote(path):
      self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
      weakref.finalize(self, os.close, self._file)

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, number: int) -> bytes:
    """As `lines.read_lines` gives it. Raises ValueError where the file is shorter than it was."""
    start, stop = self._starts[number], self._starts[number + 1]
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
