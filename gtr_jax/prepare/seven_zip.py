"""Lines of a file in a .7z archive, as they are unpacked: nothing is written, memory does not grow with the file."""

import codecs
import contextlib
import errno
import os
import threading
from collections.abc import Iterator

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import failures, lines
from gtr_jax.prepare.interface import RetryableError

_PROGRESS = 1 << 16  # Bytes of the archive.


def read_lines(path: str, name: str) -> Iterator[tuple[str, bytes]]:
  """Yields (place, line without its end) of the file `name` of an archive, wherever it lies in it.

  py7zr hands out what it unpacks only by writing it, so a thread unpacks into a pipe, which holds 64 kB.

  Raises:
    InputError: py7zr is not installed, there is no such file in the archive, or it is cut off or damaged.
  """
  try:
    import py7zr  # noqa: F401
  except ModuleNotFoundError as e:
    raise InputError(f"{path}: reading .7z needs py7zr: pip install 'gtr_jax[7z]'; or unpack it (7z x) and give "
                     f"{name}, which is then read on all cores") from e
  out, into = os.pipe()
  unpacking = _Unpacking(path, name, into)
  unpacking.start()
  with open(out, "rb") as f:
    for number, line in enumerate(f, 1):
      unpacking.advance(len(line))
      yield f"{path}/{name}:{number}", (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip(b"\r\n")
  unpacking.join()
  if isinstance(unpacking.failure, InputError):
    raise unpacking.failure
  if unpacking.failure is not None:
    code = getattr(unpacking.failure, "errno", None)
    if code not in (None, errno.EINVAL):  # The disk refused something: the archive may be whole.
      raise RetryableError(failures.reason(unpacking.failure, path)) from unpacking.failure
    raise InputError(f"{path}: the archive is cut off or damaged ({type(unpacking.failure).__name__}: "
                     f"{unpacking.failure}); fetch it again") from unpacking.failure


class _Unpacking(threading.Thread):
  """Writes a file of an archive to a pipe. `failure`: what ended it early."""

  def __init__(self, path: str, name: str, pipe: int):
    super().__init__(daemon=True)
    self._path, self._name, self._pipe = path, name, pipe
    self._ratio = self._due = 0.0  # Bytes of the archive for one of the file; those to be told of.
    self.failure: BaseException | None = None

  def advance(self, num_bytes: int) -> None:
    """Counts a line. How far the archive has been read is taken from how much of the file has been unpacked."""
    lines.progress.lines += 1
    self._due += num_bytes * self._ratio
    if self._due >= _PROGRESS:
      lines.progress.on_bytes(_PROGRESS)
      self._due -= _PROGRESS

  def run(self):
    import py7zr

    with contextlib.suppress(BrokenPipeError), open(self._pipe, "wb") as pipe:
      try:
        with epath.Path(self._path).open("rb") as raw, py7zr.SevenZipFile(raw) as archive:
          files = archive.list()
          found = [f for f in files if os.path.basename(f.filename) == self._name]
          if not found:
            raise InputError(f"{self._path}: no {self._name} in it, only {', '.join(f.filename for f in files[:8])}")
          self._ratio = lines.size_of(self._path) / max(1, found[0].uncompressed)
          archive.extract(targets=[found[0].filename], factory=_pipes(pipe))
      except BaseException as e:  # Also what py7zr does not wrap: lzma.LZMAError, EOFError, its own errors.
        self.failure = e


def _pipes(pipe):
  """What py7zr asks for a place to write each file to."""
  from py7zr import io

  class Pipe(io.Py7zIO):

    def write(self, s):
      return pipe.write(s)

    def read(self, size=None):
      return b""

    def seek(self, offset, whence=0):
      return 0

    def flush(self):
      pass

    def size(self):
      return 0

  class Pipes(io.WriterFactory):

    def create(self, filename):
      return Pipe()

  return Pipes()
