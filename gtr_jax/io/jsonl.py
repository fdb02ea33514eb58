"""JSON lines, and what their fields hold: the one reader of them, strict or counting what is broken."""

import collections
import json
import os
import re
import shlex
import sys
from collections.abc import Generator, Iterator
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.diagnose import as_json_lines, name_of_lines
from gtr_jax.io.lines import Line, OnBroken, Part, check_rest, not_utf8, read_lines, size_of
from gtr_jax.io.paths import location

_ARRAY_BEGINS = re.compile(rb"\s*\[\s*([\[{]|$)")
_TABS = ', sep="\\t"'
_UNPACK = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_INEXACT = 2**53  # From here on, different whole numbers are the same float.
_VALUE_BEGINS = (b"{", b"[", b'"')
_TWICE = "an object that has"
_UNREADABLE = "not JSON that can be read"  # What is whole, and more than Python takes.
_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number",
          type(None): "null"}


def parse(data: bytes) -> Any:
  """The JSON value of a line or of a whole file, in UTF-8, with or without a byte order mark.

  Raises:
    ValueError: it is none, or an object has a name twice; the message says what is wrong, in words.
  """
  try:
    return _DECODER.decode(data.decode().removeprefix("\ufeff"))
  except UnicodeDecodeError as e:
    raise ValueError(not_utf8(data)) from e
  except json.JSONDecodeError as e:
    raise ValueError(f"not JSON ({e.msg.removesuffix(' at')} at column {e.colno})") from e
  except RecursionError as e:
    raise ValueError(f"{_UNREADABLE} (nested too deeply)") from e
  except _TwiceError:
    raise
  except ValueError as e:  # Python reads no longer whole numbers.
    raise ValueError(f"{_UNREADABLE} (a number of more than {sys.get_int_max_str_digits():,} digits; "
                     "write it as a text)") from e


class _TwiceError(ValueError):
  """An object has a name twice."""


def _without_copies(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    (name, _), = collections.Counter(name for name, _ in pairs).most_common(1)
    raise _TwiceError(f"{_TWICE} {json.dumps(name):.80} twice")
  return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_without_copies)  # Made once: to make one takes longer than a line.


def kind_of(value: Any) -> str:
  """What a JSON value is, in words."""
  return _NAMES.get(type(value), type(value).__name__)


def read_values(part: Part, on_broken: OnBroken | None = None) -> Generator[tuple[str, Any]]:
  """(place, value) of the lines of JSON. Empty lines are skipped.

  Args:
    part: of a file.
    on_broken: is told of lines that are not JSON; None: they are an InputError.

  Raises:
    InputError: also where the file is one array of objects or lists, or ends in the middle of a value.
  """
  return ((place, value) for place, value, _ in _values(part, on_broken))


def read_objects(file: epath.PathLike | Part) -> Iterator[tuple[str, dict[str, Any], int]]:
  """(place, object, the byte of the unpacked file behind its line) of a file that has one JSON object a line, or of a
  part of one.

  Raises:
    InputError: names file and line where one is not, or the file where it is not there or something else.
  """
  part = file if isinstance(file, Part) else Part(str(location(file)))
  size_of(part.path)
  for place, value, stop in _values(part, None):
    if not isinstance(value, dict):
      raise InputError(f"{place}: {kind_of(value)} of JSON, not an object; each line must be one JSON object")
    yield place, value, stop


def _values(part, on_broken):
  first, broken = not part.start, ""
  rest = read_lines(part)
  for line in rest:
    broken = ""
    if not line.data or line.data.isspace():
      continue
    if first and is_array(line):
      raise an_array(line)
    first = False
    try:
      value = parse(line.data)
    except ValueError as e:
      broken = str(e)
    if not broken:
      yield line.place, value, line.stop
      continue
    if on_broken is None:
      check_rest(part.path, rest)
    if advice := other_form(line, tabs=True):
      raise InputError(f"{line.place}: {broken}; {advice}")
    may_be_cut = line.data.lstrip().startswith(_VALUE_BEGINS) and not broken.startswith((_UNREADABLE, _TWICE))
    if may_be_cut and not line.ended:
      raise InputError(f"{line.place}: {broken}, and no line end: the file is cut off; fetch it again, or remove the "
                       "line")
    if on_broken is None:
      advice = "each line must be one JSON object: correct or remove the line"
      raise InputError(f"{line.place}: {broken}" + (f"; {advice}" if "UTF-8" not in broken else ""))
    on_broken(line.place, broken)


def other_form(line: Line, tabs: bool = False) -> str:
  """What to do about a file whose first line this is, and no JSON: of what forms that tell themselves it may be.

  Args:
    line: the first one.
    tabs: whether a table with tabs between its columns is another form, too: not for who reads those.
  """
  text = line.data.strip()
  if not line.place.endswith(":1"):  # A later line of that kind is only broken.
    return ""
  if b"\r" in text:
    return "its lines end with a carriage return alone, as on old Macs: tr '\\r' '\\n' < FILE"
  if text.startswith(b"{") and text.endswith((b"{", b"[", b",", b":")) and line.ended:
    return "if this is JSON over several lines, write one object a line: jq -c . FILE (or '.data[]', where they are)"
  return "" if text.startswith((b"{", b"[")) else _table(line.place.removesuffix(":1"), text, tabs)


def _table(path: str, first: bytes, with_tabs: bool) -> str:
  """What to do about a file whose first line is no JSON, if it may be a table: by that line, and by its name."""
  name = path.removesuffix(next(filter(path.endswith, _UNPACK), ""))
  sure = name.lower().endswith((".csv", ".tsv"))
  tabs = b"\t" in first or name.lower().endswith(".tsv")
  commas = b"," in first and not name.endswith(".txt")  # They stand in any text.
  if tabs and not with_tabs or not (sure or tabs or commas):
    return ""
  begin = ("this is {}: " if sure else "if this is {}, ").format("TSV" if tabs else "CSV")
  return (f"{begin}{as_json_lines(path, 'read_csv', _TABS * tabs)} (with header=None where no line of "
          "names comes first)")


def is_array(line: Line) -> bool:
  """Whether a file whose first line this is is one array of objects or lists, and not values line by line."""
  if not _ARRAY_BEGINS.match(line.data):
    return False
  try:
    parse(line.data)
  except ValueError as e:
    return not str(e).startswith(_UNREADABLE)
  return True


def an_array(line: Line) -> InputError:
  """What to say of it."""
  path = line.place.rpartition(":")[0]
  program = _UNPACK.get(os.path.splitext(path)[1])
  quoted, new = shlex.quote(path), shlex.quote(name_of_lines(path))
  command = f"{program} -dc {quoted} | jq -c '.[]'" if program else f"jq -c '.[]' {quoted}"
  return InputError(f"{line.place}: a JSON array; write one object a line: {command} > {new}")


def plain(value: Any) -> Any:
  """What JSON would hold in the place of a value of a table: bytes are texts, NaN is null, a date is its text.

  Raises:
    ValueError: bytes are no text.
  """
  if value is None or isinstance(value, str | int):
    return value
  if isinstance(value, float):
    return None if value != value else value
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as e:
      raise ValueError(f"{len(value):,} bytes that are no text in UTF-8") from e
  if isinstance(value, dict):
    return {key: plain(of_key) for key, of_key in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  return str(value)  # Dates and decimals.


def identifier(value: Any) -> str:
  """An id as text; "" for null and blank texts, which are no ids. Of a table, 1 and 1.0 are one id, "1" is the same.

  Raises:
    ValueError: it is none: true, a list, 1.5, NaN, ….
  """
  if value is None:
    return ""
  if isinstance(value, str):
    return value if value.strip() else ""
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if isinstance(value, float) and value.is_integer():
    if abs(value) >= _INEXACT:
      raise ValueError(f"{value!r} is no id: such numbers are not exact with a point; write it as a text")
    return str(int(value))
  raise ValueError(f"{json.dumps(value)[:40]} is no id")


def id_of(record: dict[str, Any], name: str) -> str:
  """`identifier` of a field, "" where there is none. Raises ValueError, in words."""
  value = record.get(name)
  try:
    return _unicode(identifier(value))
  except ValueError as e:
    raise ValueError(f'"{name}": {e}; give a text or a whole number') from e


def text_of(record: dict[str, Any], name: str, default: str | None = None) -> str:
  """A field that must be a text; absent or null gives `default`, or an error if that is None.

  Raises:
    ValueError: in words.
  """
  value = record.get(name)
  if value is None:
    value = default
  if value is None:
    raise ValueError(missing(record, name))
  if not isinstance(value, str):
    raise ValueError(f'"{name}" is {json.dumps(value)[:40]}, not a string')
  try:
    return _unicode(value)
  except ValueError as e:
    raise ValueError(f'"{name}" is {e}') from e


def missing(record: dict[str, Any], name: str) -> str:
  """What to say of a field that is not there, or null."""
  if name in record:
    return f'"{name}" is null; every line needs one'
  return f'no "{name}", only {", ".join(map(repr, record)) or "an empty object"}; every line needs one'


def _unicode(text: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(f"not valid Unicode ({e.reason})") from e
  return text
