"""Rows of tables (Parquet, Arrow, CSV, TSV, folders of them) beside values of JSON lines: one way to read either.

A table becomes parts as a file of lines does, so that processes share it, and a row what JSON would hold in its place:
None, numbers, texts, lists and objects. Of Parquet and Arrow only the columns that are wanted are read.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import csv_rows, diagnose, jsonl, lines
from gtr_jax.io.lines import Line, OnBroken, Part
from gtr_jax.io.paths import is_remote, location
from gtr_jax.io.table_folders import BINARY, COMPRESSED, ENDINGS, check_shards, in_folder

PARQUET, ARROW, CSV, TSV = "parquet", "arrow", "csv", "tsv"
Wanted = Callable[[Sequence[str]], Collection[str]]
"""Which of the columns of these names are to be read; the others are None in each row."""

PART_BYTES = lines.PART_BYTES // 4  # Of what is compressed, about four times as much.
_ROWS = 1000  # In memory as Python's at once.
_MARKS = {b"PAR1": PARQUET, b"PARE": PARQUET, b"ARROW1": ARROW, b"\xff\xff\xff\xff": ARROW}
_FEATHER_1 = b"FEA1"
_NAMES = {PARQUET: "Parquet", ARROW: "Arrow"}
_FILE_BEGINS = 8  # Where the stream within an Arrow file does.
_WILD = frozenset("*?[")
_OF_LINES = (".json", ".txt")  # Endings of what may be lines of JSON, too.


def kind(path: str | os.PathLike) -> str:
  """Of a file: what table it is, by its name and first bytes; "" where it is none.

  Raises:
    InputError: there is no such file, or it is not what its name says.
  """
  place = location(path)
  lines.size_of(place)
  name = place.name.lower()
  plain = name.removesuffix(next(filter(name.endswith, COMPRESSED), ""))
  if plain.endswith((".csv", ".tsv")):
    return plain[-3:]
  with place.open("rb") as f:
    begin = f.read(diagnose.BYTES)
  found = next((kind for mark, kind in _MARKS.items() if begin.startswith(mark)), "")
  if name.endswith(BINARY) and not found:
    archive = diagnose.archive(begin)
    what = diagnose.stand_in(begin) or ("is empty; fetch it again" if not begin else f"holds a {archive} archive; "
                                        "unpack it" if archive else "no Parquet or Arrow file, as its name says; give "
                                        "it the ending of what it is (.jsonl, .csv), or write it anew")
    if begin.startswith(_FEATHER_1):
      what = "Feather of version 1, which is not read; write it anew with pyarrow.feather.write_feather"
    raise InputError(f"{place}: {what}")
  return found


def files(path: str | os.PathLike) -> list[str]:
  """What a path stands for: a file for itself; a pattern such as `train-*.parquet` for the files of such names; a
  folder for the tables and JSON lines in it, or where `datasets` wrote several splits into it, for those of `train`.

  Raises:
    InputError: a folder has none, or those of several splits, or of one that is not `train`.
  """
  place = location(path)
  text = os.fspath(place)
  if place.is_dir():
    return in_folder(place)
  if place.exists() or not is_pattern(text):
    return [text]
  first = next(number for number, piece in enumerate(place.parts) if not _WILD.isdisjoint(piece))
  base = epath.Path(*place.parts[:first]) if first else epath.Path(".")
  found = []
  with contextlib.suppress(ValueError, NotImplementedError):  # Of folders below folders: **.
    found = sorted(os.fspath(file) for file in base.glob("/".join(place.parts[first:])) if not file.is_dir())
  if not found:
    raise InputError(f"{text}: no such file, nor one of such a name; correct the path")
  check_shards(found, place.name)
  return found


def is_pattern(path: str) -> bool:
  """Whether it may stand for files of such names."""
  return not _WILD.isdisjoint(path)


def looks_like_a_file(path: str) -> bool:
  """By its name alone, whether it is there or not."""
  return "/" in path or path.lower().endswith((*ENDINGS, *_OF_LINES, *COMPRESSED))


def parts(path: str | os.PathLike) -> list[Part]:
  """Of all files that a path stands for, whether JSON lines or a table, which its parts' `kind` says.

  Parquet in row groups, Arrow in record batches, plain JSON lines in bytes; archives, CSV and TSV whole.

  Raises:
    InputError: a file is missing, damaged or encrypted, or has no rows or no columns.
  """
  found = [part for file in files(path) for part in _parts(file)]
  if not found:
    raise InputError(f"{path}: a table of no rows; leave it out, or write it anew")
  return found


def _parts(path):
  of = kind(path)
  if not of:
    return lines.line_parts([path])
  if of in (CSV, TSV):
    return [Part(path, 0, None, of)]
  with _opened(path, of) as f:
    starts = (_row_groups if of == PARQUET else _record_batches)(f)
  if not sum(rows for _, rows in starts):
    return []
  found, before = [Part(path, 0, None, of, 0)], 0
  for start, rows in starts:
    if start - found[-1].start >= PART_BYTES and before > (found[-1].before or 0):
      found[-1] = found[-1]._replace(stop=start)
      found.append(Part(path, start, None, of, before))
    before += rows
  return found


def number_of_rows(path: str | os.PathLike) -> int | None:
  """Of a file of Parquet or Arrow; None of another, whose lines nobody has counted."""
  of = kind(path)
  if of not in _NAMES:
    return None
  with _opened(path, of) as f:
    return sum(rows for _, rows in (_row_groups if of == PARQUET else _record_batches)(f))


def read_values(part: Part, on_broken: OnBroken | None = None, wanted: Wanted = lambda names: names) -> Generator[
    tuple[str, Any]]:
  """(place, value) of the lines of JSON or of the rows of a table, which are objects.

  Args:
    part: of `parts`.
    on_broken: is told of lines and rows that are broken; None: they are an InputError.
    wanted: the columns that are read, of a table; the others are None.

  Raises:
    InputError: also where a file is damaged.
  """
  if part.kind in (CSV, TSV):
    yield from csv_rows.read(part, "\t" if part.kind == TSV else "", on_broken)
  elif part.kind in (PARQUET, ARROW):
    yield from _rows(part, on_broken, wanted)
  else:
    yield from jsonl.read_values(part, on_broken)


def read_objects(path: str | os.PathLike, wanted: Wanted = lambda names: names) -> Iterator[
    tuple[str, dict[str, Any]]]:
  """(place, object) of all that a path stands for. Raises InputError at the first that is none."""
  for file in files(path):
    if kind(file):
      for part in _parts(file):
        yield from read_values(part, wanted=wanted)
    else:
      yield from ((place, value) for place, value, _ in jsonl.read_objects(file))


def has_lines(path: str | os.PathLike) -> bool:
  """Whether collections read lines of it, as they are: of JSON, or with tabs, which there have no names of columns."""
  return {kind(file) for file in files(path)} <= {"", TSV}


def read_lines(part: Part, names: Collection[str]) -> Iterator[Line]:
  """The lines of a part of a file that has some, or else of what its path stands for the rows, as lines of JSON; of
  these the columns of such names."""
  if part.start or part.stop is not None or has_lines(part.path):
    yield from lines.read_lines(part)
    return
  for number, (place, row) in enumerate(read_objects(part.path, lambda _: names), 1):
    yield Line(place, json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass"), number, True)


@contextlib.contextmanager
def _opened(path: str | os.PathLike, of: str) -> Iterator[Any]:
  """The file for pyarrow. What is wrong with it while it is read is an InputError."""
  import pyarrow
  try:
    if is_remote(path):
      with epath.Path(path).open("rb") as f:
        yield pyarrow.PythonFile(f)
    else:
      with pyarrow.memory_map(os.fspath(path)) as f:
        yield f
  except (pyarrow.ArrowException, OSError, EOFError) as e:
    if isinstance(e, MemoryError) or isinstance(e, OSError) and e.errno is not None:  # Not the file.
      raise
    reason = " ".join(str(e).split())
    if "crypt" in reason:
      raise InputError(f"{path}: encrypted Parquet, which is not read; write it without encryption") from e
    raise InputError(f"{path}: {_NAMES[of]} that cannot be read ({reason:.120}): cut off, damaged or of an unknown "
                     "form; fetch it again, or write it anew") from e


def _row_groups(f: Any) -> list[tuple[int, int]]:
  """(first byte, rows) of each."""
  from pyarrow import parquet
  metadata = parquet.ParquetFile(f).metadata
  found = []
  for number in range(metadata.num_row_groups):
    group = metadata.row_group(number)
    columns = [group.column(i) for i in range(group.num_columns)]
    offsets = [offset for column in columns for offset in (column.dictionary_page_offset, column.data_page_offset)
               if offset]
    found.append((min(offsets, default=0), group.num_rows))
  return found


def _record_batches(f: Any) -> list[tuple[int, int]]:
  """(first byte, rows) of each; of a file that can only be read whole, one of all."""
  from pyarrow import ipc
  schema, found, has_dictionaries = None, [], False  # The latter are for all batches behind.
  for at, message in _messages(f):
    if message.type == "schema":
      schema = ipc.read_schema(message)
    elif message.type != "record batch":
      has_dictionaries = True
    elif not has_dictionaries:
      found.append((at, ipc.read_record_batch(message, schema).num_rows))
  return [(0, sum(batch.num_rows for batch in _whole(f)))] if has_dictionaries else found


def _messages(f, start=0):
  """(first byte, message) of an Arrow stream, or of the one in an Arrow file, from that byte on."""
  from pyarrow import ipc
  f.seek(start)
  if not start and f.read(6) == b"ARROW1":
    start = _FILE_BEGINS
  f.seek(start)
  while True:
    at = f.tell()
    try:
      message = ipc.read_message(f)
    except EOFError:
      if f.tell() == at:
        raise EOFError("no mark of its end") from None
      return
    yield at, message


def _whole(f):
  from pyarrow import ipc
  f.seek(0)
  if f.read(6) == b"ARROW1":
    reader = ipc.open_file(f)
    yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
  else:
    f.seek(0)
    yield from ipc.open_stream(f)


def _rows(part, on_broken, wanted):
  number, left = part.before, (part.stop or lines.size_of(part.path)) - part.start
  with _opened(part.path, part.kind) as f:
    batches = (_of_parquet if part.kind == PARQUET else _of_arrow)(f, part, wanted)
    for names, chosen, batch, size in batches:
      for start in range(0, batch.num_rows, _ROWS):
        part_of_batch = batch.slice(start, _ROWS)
        wrong: dict[int, str] = {}
        columns = [_values(part_of_batch.column(name), name, wrong) if name in chosen else
                   [None] * part_of_batch.num_rows for name in names]
        for i, values in enumerate(zip(*columns, strict=True)):
          number += 1
          lines.progress.lines += 1
          place = f"{part.path}:row {number}"
          if i not in wrong:
            yield place, dict(zip(names, values, strict=True))
          elif on_broken is None:
            raise InputError(f"{place}: {wrong[i]}; correct or remove the row, or the column")
          else:
            on_broken(place, wrong[i])
      size = min(size, left)  # What is packed is larger in memory.
      left -= size
      lines.progress.on_bytes(size)


def _of_parquet(f, part, wanted):
  """(names of all columns, those wanted, batch, bytes of the file)."""
  from pyarrow import parquet
  starts = [start for start, _ in _row_groups(f)]
  file = parquet.ParquetFile(f, buffer_size=1 << 20, page_checksum_verification=True)
  names, chosen = _chosen(part.path, file.schema_arrow.names, wanted)
  groups = [i for i, start in enumerate(starts) if part.start <= start and (part.stop is None or start < part.stop)]
  rows = sum(file.metadata.row_group(i).num_rows for i in groups)
  size = (part.stop or lines.size_of(part.path)) - part.start
  # Columns whose values nobody asks for are not read; but one is, or there would be no rows.
  for batch in file.iter_batches(_ROWS, row_groups=groups, columns=chosen or names[:1], use_threads=False):
    yield names, chosen, batch, size * batch.num_rows // max(1, rows)


def _of_arrow(f, part, wanted):
  from pyarrow import ipc
  if part.stop is None and not part.start:  # Dictionaries and all.
    batches: Iterator[Any] = _whole(f)
  else:
    _, first = next(_messages(f))
    schema = ipc.read_schema(first)
    ours = itertools.takewhile(lambda found: part.stop is None or found[0] < part.stop, _messages(f, part.start))
    batches = (ipc.read_record_batch(message, schema) for _, message in ours if message.type == "record batch")
  for batch in batches:
    yield *_chosen(part.path, batch.schema.names, wanted), batch, batch.nbytes


def _chosen(path, names, wanted):
  if not names:
    raise InputError(f"{path}: a table of no columns; write it anew")
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise InputError(f"{path}: two columns of the name {twice!r}; rename one")
  ours = set(wanted(names))
  return names, [name for name in names if name in ours]


def _values(column, name, wrong):
  """Of a column, as JSON would hold them; None, and what is wrong by row, of those that are none."""
  from pyarrow import types
  if types.is_temporal(column.type):
    column = column.cast("string")
  try:
    return [jsonl.plain(value) for value in column.to_pylist()]
  except ValueError:
    found = []
    for row, value in enumerate(column):
      try:
        found.append(jsonl.plain(value.as_py()))
      except ValueError as e:
        found.append(None)
        wrong[row] = f"column {name!r}: {e}"
    return found
