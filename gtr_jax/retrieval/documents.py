"""Documents and the JSONL files they come in. Every error names file and line."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from gtr_jax.errors import InputError

_WHITE_SPACE = re.compile(r"\s")


class Documents(NamedTuple):
  """A corpus: three lists of the same length."""

  ids: list[str]
  titles: list[str]
  texts: list[str]

  def full_texts(self) -> list[str]:
    """What is encoded and indexed: title + space + text."""
    return [full_text(title, text) for title, text in zip(self.titles, self.texts, strict=True)]


def full_text(title: str, text: str) -> str:
  """BEIR's convention; no leading space where the title is empty."""
  return f"{title} {text}".strip()


def read_jsonl(path: epath.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, object) for each line of a JSONL file, gzipped if its name ends in .gz; blank lines are skipped.

  `place` is "path:line", for error messages. Raises InputError where a line is not a JSON object in UTF-8.
  """
  path = epath.Path(path)
  if not path.exists():
    raise InputError(f"{path}: no such file")
  number = 0
  with path.open("rb") as raw:
    stream = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
    try:
      for number, line in enumerate(stream, start=1):  # noqa: B007  (read in the handler below)
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
        yield place, record
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


def id_field(place: str, record: dict[str, Any], seen: dict[str, str]) -> str:
  """The record's `_id`: a new, non-empty string without white space (a TREC run could not hold it).

  `seen` maps the ids read so far to their places and is added to.
  """
  value = string_field(place, record, "_id")
  if not value or _WHITE_SPACE.search(value):
    raise InputError(f'{place}: "_id" is {value!r}; an id may be neither empty nor contain white space')
  if value in seen:
    raise InputError(f"{place}: duplicate _id {value!r}, first at {seen[value]}; ids must be unique")
  seen[value] = place
  return value
