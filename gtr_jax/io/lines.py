"""Lines of files, plain or compressed, with their places: the one reader of them, here and in a bucket.

What is wrong with a file is an InputError. What is wrong with a line is one too, unless the caller counts such lines.
"""

import bz2
import codecs
import collections
import contextlib
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.io import diagnose
from gtr_jax.io.paths import location

PART_BYTES = 64 << 20
_BUFFER = 1 << 20
_INPUT = 16 << 10  # Little at a time: what comes out of it lies in memory.
_LONGEST_LINE = 256 << 20
_SPACE = re.compile(r"[ \t-\r]+")
_COMPRESSED = tuple(diagnose.ARCHIVES.values())

OnBroken = Callable[[str, str], None]
"""Called with the place of a broken line and what is wrong with it; the line is skipped."""


class Part(NamedTuple):
  """A file, or of a plain file of lines those that begin in bytes [start, stop)."""

  path: str
  start: int = 0
  stop: int | None = None  # None: to the end.
  kind: str = ""  # The reader's own, such as "submissions" and "comments".
  before: int | None = None  # How many lines begin before `start`, where that was counted.


def _zst():
  import zstandard  # Encoding and search read no such file.
  return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()  # Dumps of Reddit are made with --long=31.


def _errors() -> tuple[type[Exception], ...]:
  """Of what undoes a compression."""
  of_zst = (sys.modules["zstandard"].ZstdError,) if sys.modules.get("zstandard") else ()
  return (zlib.error, lzma.LZMAError, *of_zst)


_FRAMES: dict[str, Callable[[], Any]] = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor, ".zst": _zst}


class Line(NamedTuple):
  """A line without its end.

  Attributes:
    place: `path:line number`, and `path, byte N` in a part that does not begin the file, and knows no line numbers.
    data: the bytes; of the first line without a byte order mark.
    stop: the byte of the unpacked file behind the line and its end.
    ended: False where a last line has no line end: the file may be cut off.
  """

  place: str
  data: bytes
  stop: int
  ended: bool


class Progress:
  """How far this process has read; the engine of `prepare` looks at it while a source reads."""

  def __init__(self):
    self.lines = 0
    # Called with the number of bytes read of a file, before decompression.
    self.on_bytes: Callable[[int], object] = lambda n: None


progress = Progress()


@contextlib.contextmanager
def on_bytes(advance: Callable[[int], object]) -> Iterator[None]:
  """What is read inside advances this bar, and none outside."""
  outer, progress.on_bytes = progress.on_bytes, advance
  try:
    yield
  finally:
    progress.on_bytes = outer


def line_parts(paths: Iterable[str | os.PathLike], part_bytes: int = PART_BYTES, kind: str = "") -> list[Part]:
  """Plain files in byte ranges of about `part_bytes`, compressed ones whole. Raises InputError where one is missing."""
  parts = []
  for path in (os.fspath(location(path)) for path in paths):
    size = size_of(path)
    step = size if is_compressed(path) else part_bytes
    starts = range(0, size, step) if size else [0]
    parts += [Part(path, start, start + step if start + step < size else None, kind) for start in starts]
  return parts


def numbered_parts(paths: Iterable[str | os.PathLike]) -> list[Part]:
  """The same, and each part knows its line numbers, for which the files are read through."""
  parts = line_parts(paths, PART_BYTES)
  for number, part in enumerate(parts[1:], start=1):
    if part.start:
      before = parts[number - 1]
      with open_file(part.path, max(0, before.start - 1)) as f:
        # One begins behind each line end, the last of which may be just before the byte before `start`.
        begun = f.read(part.start - 1 - max(0, before.start - 1)).count(b"\n")
      parts[number] = part._replace(before=begun + (before.before or 0 if before.start else 1))
  return parts


def is_compressed(path: str | os.PathLike) -> bool:
  """By its name."""
  return os.fspath(path).endswith(_COMPRESSED)


def size_of(path: str | os.PathLike) -> int:
  """In bytes. Raises InputError where there is no such file."""
  place = location(path)
  if not place.exists():
    raise InputError(f"{place}: no such file; correct the path")
  if place.is_dir():
    raise InputError(f"{place}: a folder, where a file was expected; name the files in it")
  if "://" not in os.fspath(place) and not os.path.isfile(place):
    raise InputError(f"{place}: a pipe or a device, which can be read only once; write it to a file first")
  return place.stat().length


@contextlib.contextmanager
def open_file(path: str | os.PathLike, start: int = 0, text: bool = True) -> "Iterator[io.BufferedReader[Any]]":
  """The decompressed bytes of a file, with progress; from byte `start`, if it is plain.

  Args:
    path: of the file, whose ending says how it is compressed.
    start: the first byte.
    text: whether what is no text in UTF-8 is refused.

  Raises:
    InputError: it is empty, no text, or compressed otherwise than its name says; or, while it is read, the archive is
      cut off or damaged.
  """
  place = location(path)
  name = os.fspath(place)
  with place.open("rb") as raw:
    if start:
      raw.seek(start)
    counted = io.BufferedReader(_Counted(raw), _BUFFER)
    if not start:
      _check_ending(name, counted.peek(diagnose.BYTES)[:diagnose.BYTES])
    whole: io.BufferedReader[Any]
    if name.endswith(".gz"):
      whole = io.BufferedReader(gzip.GzipFile(fileobj=counted), _BUFFER)
    elif ending := next((ending for ending in _FRAMES if name.endswith(ending)), ""):
      whole = io.BufferedReader(_Frames(counted, _FRAMES[ending]), _BUFFER)
    else:
      whole = counted
    try:
      if not start:
        _check_begin(name, whole.peek(diagnose.BYTES)[:diagnose.BYTES], text)
      yield whole
    except EOFError as e:
      raise InputError(f"{place}: the archive is cut off ({e}); fetch it again") from e
    except gzip.BadGzipFile as e:
      anew = "; or, where gzip -t finds it whole but for what follows, write it anew: zcat FILE | gzip"
      raise InputError(f"{place}: the archive is damaged ({e}); fetch it again"
                       + anew * ("Not a gzipped" in str(e))) from e
    except _errors() as e:
      raise InputError(f"{place}: the archive is damaged ({e}); fetch it again") from e
    except OSError as e:
      if e.errno is not None or not name.endswith(".bz2"):
        raise
      raise InputError(f"{place}: the archive is damaged ({e}); fetch it again") from e


def _check_ending(path, begin):
  """Raises InputError where a file is compressed otherwise than its name says, or not at all."""
  if not begin:
    raise InputError(f"{path}: is empty; fetch it again, or leave it out")
  said, found = next((ending for ending in _COMPRESSED if path.endswith(ending)), ""), diagnose.archive(begin)
  if found == ".7z":
    raise InputError(f"{path}: a .7z archive, which is read only as a dump of Stack Exchange; unpack it (7z x)")
  if found == said:
    return
  stem = path.removesuffix(said)
  if found:
    does = "rename it" if not said else f"rename it to {os.path.basename(stem)}{found}"
    raise InputError(f"{path}: holds a {found} archive, which its name does not say; {does}"
                     + (f" to {os.path.basename(path)}{found}" if not said else ""))
  if what := diagnose.not_text(begin, path):
    raise InputError(f"{path}: {what}")
  try:
    begin[:-3 if len(begin) == diagnose.BYTES else None].decode()
  except UnicodeDecodeError as e:
    raise InputError(f"{path}: the archive is damaged, or none: it does not begin as a {said} file does; fetch it "
                     "again") from e
  raise InputError(f"{path}: is plain text, not compressed as its name says; rename it to {os.path.basename(stem)}")


def _check_begin(path, begin, text):
  if not begin:
    raise InputError(f"{path}: is empty; fetch it again, or leave it out")
  if inner := diagnose.archive(begin):
    raise InputError(f"{path}: holds a {inner} archive, which its name does not say; unpack it once")
  if text and (what := diagnose.not_text(begin, path)):
    raise InputError(f"{path}: {what}")


def not_utf8(line: bytes) -> str:
  """What is wrong with the encoding of a line; empty: nothing."""
  try:
    line.decode()
  except UnicodeDecodeError as e:
    return f"not UTF-8 ({e.reason}); convert the file, of Latin-1: iconv -f LATIN1 -t UTF-8"
  return ""


def read_lines(part: Part) -> Iterator[Line]:
  """The lines that begin in the part, empty ones too.

  Raises:
    InputError: the archive is cut off or damaged, or this is no file of lines.
  """
  with open_file(part.path, max(0, part.start - 1)) as f:
    position = part.start
    if part.start:
      position += len(f.readline(_LONGEST_LINE)) - 1  # The rest of a line that began before: its end, at least.
    number, stop = 0, float("inf") if part.stop is None else part.stop
    while position < stop and (line := f.readline(_LONGEST_LINE)):
      if len(line) == _LONGEST_LINE:
        raise InputError(f"{part.path}: a line of more than {_LONGEST_LINE >> 20} MB; is it a file of lines?")
      number += 1
      progress.lines += 1
      place = f"{part.path}:{number + (part.before or 0)}"
      if part.start and part.before is None:
        place = f"{part.path}, byte {position}"
      position += len(line)
      data = line.rstrip(b"\r\n")
      if number == 1 and not part.start:
        data = data.removeprefix(codecs.BOM_UTF8)
      yield Line(place, data, position, line.endswith(b"\n"))


def check_rest(path: str | os.PathLike, rest: Iterable[object]) -> None:
  """Reads on behind a broken line of an archive: one that is damaged raises here, for no advice on a line would fit."""
  if is_compressed(path):
    collections.deque(rest, maxlen=0)


def read_text(part: Part, on_broken: OnBroken | None = None) -> Iterator[tuple[str, str]]:
  """(place, text) of the lines. Empty lines are skipped; what is not UTF-8 is broken."""
  rest = read_lines(part)
  for place, line, _, _ in rest:
    if wrong := not_utf8(line):
      if on_broken is None:
        check_rest(part.path, rest)
        raise InputError(f"{place}: {wrong}")
      on_broken(place, wrong)
    elif line:
      yield place, line.decode()


def columns(line: str) -> list[str]:
  """What stands between white space of ASCII, and only that: ids may hold other kinds."""
  return [column for column in _SPACE.split(line) if column]


class _Counted(io.RawIOBase):
  """The bytes of a file, with progress."""

  def __init__(self, file):
    self._file = file

  def readable(self):
    return True

  def readinto(self, buffer):
    data = self._file.read(len(buffer))
    buffer[:len(data)] = data
    progress.on_bytes(len(data))
    return len(data)


class _Frames(io.RawIOBase):
  """What the frames (streams) of a compressed file hold, one after another.

  Unlike the readers of the libraries it tells an end from a cut, and does not take a damaged frame for padding, to be
  left out with all that follows.
  """

  def __init__(self, file, new_decompressor):
    self._file, self._new = file, new_decompressor
    self._frame, self._input, self._output = None, b"", memoryview(b"")

  def readable(self):
    return True

  def readinto(self, buffer):
    while not self._output:
      self._input = self._input or self._file.read(_INPUT)
      if not self._input:
        if self._frame is not None:
          raise EOFError("it ends in the middle of a frame")
        return 0
      if self._frame is None:
        self._input = self._input.lstrip(b"\0")  # xz pads streams; no frame begins so.
        if not self._input:
          continue
        self._frame = self._new()
      self._output = memoryview(self._frame.decompress(self._input))
      self._input = b""
      if self._frame.eof:
        self._input, self._frame = self._frame.unused_data, None
    n = min(len(buffer), len(self._output))
    buffer[:n] = self._output[:n]
    self._output = self._output[n:]
    return n
