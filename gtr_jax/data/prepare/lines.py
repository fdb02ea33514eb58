"""Lines of raw files, plain or compressed, with their places; parts of them for the workers.

What is wrong with a line is counted as broken and the line is skipped; what is wrong with a file is an InputError.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import zstandard
from etils import epath

from gtr_jax.data.prepare.source import Counts, Part
from gtr_jax.errors import InputError

PART_BYTES = 64 << 20
_BUFFER = 1 << 20
_ZSTD_INPUT = 16 << 10  # Little at a time: what comes out of it lies in memory.
_LONGEST_LINE = 256 << 20
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".7z")
_ENCODINGS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
              codecs.BOM_UTF16_BE: "UTF-16"}  # In this order: one begins as another does.
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh91AY&SY": ".bz2", b"\xfd7zXZ\0": ".xz",
          b"7z\xbc\xaf\x27\x1c": ".7z", b"PK\3\4": ".zip"}
_ARRAY = re.compile(rb"\s*\[\s*([\[{]|$)")


class Progress:
  """How far this process has read; the engine looks at it while a source reads."""

  def __init__(self):
    self.lines = 0
    self.last_ended = True  # Whether the last line read ended with a line end.
    self.on_bytes = lambda n: None  # Called with the number of bytes read of a file, before decompression.


progress = Progress()


def line_parts(paths: Iterable[str | os.PathLike], part_bytes: int = PART_BYTES, kind: str = "") -> list[Part]:
  """Plain files in byte ranges of about `part_bytes`, compressed ones whole. Raises InputError where one is missing."""
  parts = []
  for path in map(os.fspath, paths):
    size = size_of(path)
    step = size if is_compressed(path) else part_bytes
    starts = range(0, size, step) if size else [0]
    parts += [Part(path, start, start + step if start + step < size else None, kind) for start in starts]
  return parts


def is_compressed(path: str) -> bool:
  """By its name."""
  return path.endswith(_COMPRESSED)


def size_of(path: str) -> int:
  """In bytes. Raises InputError where there is no such file."""
  path = epath.Path(path)
  if not path.exists():
    raise InputError(f"{path}: no such file; correct the path")
  if path.is_dir():
    raise InputError(f"{path}: a folder, where a file was expected; name the files in it")
  if "://" not in os.fspath(path) and not os.path.isfile(path):
    raise InputError(f"{path}: a pipe or a device, which can be read only once; write it to a file first")
  return path.stat().length


@contextlib.contextmanager
def open_file(path: str, start: int = 0) -> Iterator[BinaryIO]:
  """The decompressed bytes of a file, with progress; from byte `start`, if it is plain.

  Raises:
    InputError: it is empty, in another encoding, or compressed without saying so; or, while it is read, the archive is
      cut off or damaged.
  """
  with epath.Path(path).open("rb") as raw:
    if start:
      raw.seek(start)
    counted = io.BufferedReader(_Counted(raw), _BUFFER)
    if path.endswith(".gz"):
      whole = gzip.GzipFile(fileobj=counted)
    elif path.endswith(".bz2"):
      whole = bz2.BZ2File(counted)
    elif path.endswith(".xz"):
      whole = lzma.LZMAFile(counted)  # noqa: SIM115
    elif path.endswith(".zst"):
      whole = io.BufferedReader(_Zstandard(counted), _BUFFER)
    else:
      whole = counted
    try:
      whole = io.BufferedReader(whole, _BUFFER) if path.endswith((".gz", ".bz2", ".xz")) else whole
      if not start:
        _check_begin(path, whole.peek(16))
      yield whole
    except EOFError as e:
      raise InputError(f"{path}: the archive is cut off ({e}); fetch it again") from e
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as e:
      raise InputError(f"{path}: the archive is damaged ({e}); fetch it again") from e
    except OSError as e:
      if e.errno is not None or not path.endswith(".bz2"):
        raise
      raise InputError(f"{path}: the archive is damaged ({e}); fetch it again") from e


def _check_begin(path, begin):
  if not begin:
    raise InputError(f"{path}: is empty; fetch it again, or leave it out")
  for mark, name in _ENCODINGS.items():
    if begin.startswith(mark):
      raise InputError(f"{path}: {name}; convert it to UTF-8: iconv -f {name} -t UTF-8")
  for mark, ending in _MAGIC.items():
    if begin.startswith(mark) and not path.endswith(ending):
      does = "rename it" if ending in _COMPRESSED else "unpack it"
      raise InputError(f"{path}: holds a {ending} archive, which its name does not say; {does}")


def not_utf8(line: bytes) -> str:
  """What is wrong with the encoding of a line; empty: nothing."""
  try:
    line.decode()
  except UnicodeDecodeError as e:
    return f"not UTF-8 ({e.reason}); convert the file, of Latin-1: iconv -f LATIN1 -t UTF-8"
  return ""


def what_is_wrong(e: Exception) -> str:
  """In words, what a record of another form has raised."""
  if isinstance(e, KeyError):
    return f"no field {e.args[0]!r}"
  return "a value of another type" if isinstance(e, TypeError | AttributeError) else str(e)


def read_lines(part: Part) -> Iterator[tuple[str, bytes]]:
  """Yields (place, line without its end) of the lines that begin in the part.

  A place is `path:line number`, and `path, byte N` in a byte range that does not begin the file.

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
      progress.last_ended = line.endswith(b"\n")
      place = f"{part.path}, byte {position}" if part.start else f"{part.path}:{number}"
      position += len(line)
      if number == 1 and not part.start:
        line = line.removeprefix(codecs.BOM_UTF8)
      yield place, line.rstrip(b"\r\n")


def text_lines(part: Part, counts: Counts) -> Iterator[tuple[str, str]]:
  """`read_lines`, decoded; what is not UTF-8 is broken. Empty lines are skipped."""
  for place, line in read_lines(part):
    if wrong := not_utf8(line):
      counts.broken(place, wrong)
    elif line:
      yield place, line.decode()


def json_lines(part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
  """(place, value) of the lines of JSON; what is not JSON is broken. Empty lines are skipped.

  Raises InputError also where the file is one array of objects or lists, or ends in the middle of a value.
  """
  first, broken = not part.start, ""
  for place, line in read_lines(part):
    broken = ""
    if not line or line.isspace():
      continue
    if first and _ARRAY.match(line):
      raise InputError(f"{part.path}: a JSON array, where one JSON value a line is expected; convert it: jq -c '.[]'")
    first = False
    try:
      value = json.loads(line)
    except ValueError as e:
      broken = not_utf8(line) or f"not JSON ({e})"
      counts.broken(place, broken)
    except RecursionError:
      counts.broken(place, "not JSON (nested too deeply)")
    else:
      yield place, value
  if broken and not progress.last_ended:
    raise InputError(f"{place}: {broken}, and no line end: the file is cut off; fetch it again, or remove the line")


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


class _Zstandard(io.RawIOBase):
  """What the frames of a zstandard file hold. Unlike the library's own reader it tells an end from a cut."""

  def __init__(self, file):
    self._file = file
    self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)  # Dumps are made with --long=31.
    self._frame, self._input, self._output = None, b"", memoryview(b"")

  def readable(self):
    return True

  def readinto(self, buffer):
    while not self._output:
      self._input = self._input or self._file.read(_ZSTD_INPUT)
      if not self._input:
        if self._frame is not None:
          raise EOFError("it ends in the middle of a frame")
        return 0
      self._frame = self._frame or self._decompressor.decompressobj()
      self._output = memoryview(self._frame.decompress(self._input))
      self._input = b""
      if self._frame.eof:
        self._input, self._frame = self._frame.unused_data, None
    n = min(len(buffer), len(self._output))
    buffer[:n] = self._output[:n]
    self._output = self._output[n:]
    return n
