"""Documents and the JSONL files they come in. Every error names file and line."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.errors import InputError

_WHITE_SPACE = re.compile(r"[ \t-\r]")  # What parts the columns of a run; published ids may hold other kinds.


class Documents(NamedTuple):
  """A corpus: three sequences of the same length. Titles and texts may lie on disk until they are asked for."""

  ids: list[str]
  titles: Sequence[str]
  texts: Sequence[str]

  def full_texts(self) -> Sequence[str]:
    """What is encoded and indexed: title + space + text; each put together when asked for."""
    return View(len(self.ids), lambda row: full_text(self.titles[row], self.texts[row]))

  def reordered(self, order: np.ndarray) -> "Documents":
    """Its documents `order[0]`, `order[1]`, …; no text is read."""
    return Documents([self.ids[row] for row in order.tolist()], *(
        View(len(order), lambda row, column=column: column[order[row]]) for column in (self.titles, self.texts)))


class View(Sequence):
  """A sequence whose items are made when asked for."""

  def __init__(self, length: int, item: Any):
    self._length, self._item = length, item

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, key):
    rows = range(self._length)[key]
    return [self._item(row) for row in rows] if isinstance(rows, range) else self._item(rows)


class Lines:
  """The objects of a JSONL file on a local disk, read when asked for: only where lines begin is in memory.

  Args:
    path: the file, read and checked before.
    starts: int64 [objects + 1], the first byte of each object's line, and the end of the last.
  """

  def __init__(self, path: epath.PathLike, starts: np.ndarray):
    self._path, self._starts, self._file = path, starts, open(path, "rb")  # noqa: SIM115
    self._last = (-1, {})  # A title is asked for, then the text of the same line.

  def column(self, name: str) -> Sequence[str]:
    """A field of all objects, "" where there is none."""
    return View(len(self._starts) - 1, lambda row: self._record(row).get(name) or "")

  def _record(self, row: int) -> dict[str, Any]:
    last = self._last  # Another thread may replace it.
    if last[0] != row:
      start, stop = int(self._starts[row]), int(self._starts[row + 1])
      try:
        record = json.loads(os.pread(self._file.fileno(), stop - start, start).decode("utf-8-sig"))
        last = self._last = (row, dict(record))
      except ValueError as e:
        raise InputError(f"{self._path}: changed while it was in use; start again") from e
    return last[1]


def full_text(title: str, text: str) -> str:
  """BEIR's convention; no leading space where the title is empty."""
  return f"{title} {text}".strip()


def read_jsonl(path: epath.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, object) for each line of a JSONL file, gzipped if its name ends in .gz; blank lines are skipped.

  `place` is "path:line", for error messages. Raises InputError where a line is not a JSON object in UTF-8.
  """
  return ((place, record) for place, record, _ in read_lines(path))


def read_lines(path: epath.PathLike) -> Iterator[tuple[str, dict[str, Any], int]]:
  """As `read_jsonl`, with the byte (of the unpacked file) behind each line."""
  path = epath.Path(path)
  if not path.exists():
    raise InputError(f"{path}: no such file")
  number = end = 0
  with path.open("rb") as raw:
    stream = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
    try:
      for number, line in enumerate(stream, start=1):  # noqa: B007  (read in the handler below)
        end += len(line)
        if not line.strip():
          continue
        place = f"{path}:{number}"
        try:
          record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as e:
          raise InputError(f"{place}: not UTF-8 ({e.reason}); convert the file to UTF-8") from e
        except json.JSONDecodeError as e:
          raise InputError(f"{place}: not JSON ({e.msg} at column {e.colno}); each line must be one JSON object") from e
        if not isinstance(record, dict):
          raise InputError(f"{place}: a JSON {type(record).__name__}, not an object; each line must be one JSON object")
        yield place, record, end
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
      raise InputError(f"{path}:{number + 1}: the gzip stream is damaged or cut off ({e}); fetch the file again") from e


def string_field(place: str, record: dict[str, Any], name: str, default: str | None = None) -> str:
  """`record[name]`, which must be a string; absent or null gives `default`, or an error if that is None."""
  value = record.get(name, default)
  if value is None:
    value = default
  if value is None:
    raise InputError(f'{place}: no "{name}"; every line needs one')
  if not isinstance(value, str):
    raise InputError(f'{place}: "{name}" is {json.dumps(value)[:40]}, not a string')
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise InputError(f'{place}: "{name}" is not valid Unicode ({e.reason}); correct or remove the line') from e
  return value


def id_field(place: str, record: dict[str, Any], seen: dict[str, int]) -> str:
  """The record's `_id`: a new, non-empty string without white space (a TREC run could not hold it).

  `seen` maps the ids read so far to their lines and is added to.
  """
  value = string_field(place, record, "_id")
  if not value or _WHITE_SPACE.search(value):
    raise InputError(f'{place}: "_id" is {value!r}; an id may be neither empty nor contain white space')
  if value in seen:
    raise InputError(f"{place}: duplicate _id {value!r}, first at line {seen[value]}; ids must be unique")
  seen[value] = int(place.rpartition(":")[2])
  return value
