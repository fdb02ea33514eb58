"""Passages by id from a table too big for memory: MS MARCO's collection.tsv, DPR's psgs_w100.tsv, BEIR's corpus.jsonl.

The index is made once, in one pass over the file, and lies in the cache: where each line begins, and, unless the ids
are consecutive numbers, a sorted array of hashes of the ids. It is mapped into memory, as is no text: a table of 21
million passages takes 170 MB of address space, and another 250 MB where its ids are not numbers.
"""

import array
import csv
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gtr_jax.collections.corpus import FIELDS, Document, document_of, full_text
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root, jsonl, lines, tables
from gtr_jax.io.bars import Bar
from gtr_jax.io.json_file import read_json
from gtr_jax.io.line_table import LineTable
from gtr_jax.io.lines import Part
from gtr_jax.io.paths import location
from gtr_jax.prepare.interface import ALWAYS_MAY_BE_BROKEN, KEPT_PLACES

_FORMAT = 1  # Part of the key: raise it when the index changes.
_MAX_BROKEN = 0.001
COLUMNS = ("id,text", "id,text,title", "id,title,text")


def titled(title: str | None, text: str) -> str:
  """The whole text of a passage. A title of "-" is none: RocketQA and Tevatron write it so."""
  title = (title or "").strip()
  return full_text("" if title == "-" else title, text.strip())


def passage_text(value: Any) -> Any:
  """The text of a passage, which may be an object with a title; what is neither is itself."""
  if isinstance(value, dict) and isinstance(value.get("text"), str):
    title = value.get("title")
    return titled(title if isinstance(title, str) else None, value["text"])
  return value


class PassageTable:
  """Random access by id. Use `open_table`, which makes the index.

  Attributes:
    path: the file that was named.
    broken: number of lines that are not of the table's form, and that it therefore lacks.
    broken_places: the first of them, with what is wrong.
  """

  def __init__(self, path: str, folder: Path):
    meta = read_json(folder / "meta.json", dict, f"remove {folder}, and run it again")
    self.path, self.broken, self.broken_places = path, meta["broken"], meta["broken_places"]
    self._parse, self._first = _parser(meta["columns"]), meta["first"]
    self._lines = LineTable(folder / "text" if meta["unpacked"] else path,
                            np.load(folder / "starts.npy", mmap_mode="r"))
    if self._first is None:
      self._hashes = np.load(folder / "hashes.npy", mmap_mode="r")
      self._rows = np.load(folder / "rows.npy", mmap_mode="r")

  def __len__(self) -> int:
    return len(self._lines)

  def __contains__(self, passage_id: str) -> bool:
    return self.get(passage_id) is not None if self._first is None else self._number(passage_id) is not None

  def get(self, passage_id: str) -> Document | None:
    """The passage, or None where the table has no such id."""
    if self._first is not None:
      row = self._number(passage_id)
      return None if row is None else self._read(row)
    wanted = np.uint64(_hash(passage_id))
    i = int(np.searchsorted(self._hashes, wanted))
    while i < len(self._hashes) and self._hashes[i] == wanted:
      if (row := self._read(int(self._rows[i]))).id == passage_id:
        return row
      i += 1
    return None

  def _number(self, passage_id):
    """The row of an id, where ids are consecutive numbers."""
    if not (passage_id.isascii() and passage_id.isdigit()) or passage_id[0] == "0" < passage_id[1:]:
      return None
    row = int(passage_id) - self._first
    return row if 0 <= row < len(self) else None

  def _read(self, row):
    try:
      return self._parse(self._lines[row])
    except ValueError as e:
      raise InputError(f"{self.path}: changed while it was in use; start again") from e


def cache_folder() -> str:
  """Where indexes are kept: `cache` in the data root, which must be on this machine."""
  if "://" in (folder := os.fspath(data_root.data_dir() / "cache")):
    raise InputError(f"{folder}: passages are looked up on a local disk; set GTR_DATA_DIR to a local folder")
  return folder


def open_table(path: str, cache: str, columns: str = "") -> PassageTable:
  """The passages of a file, which is indexed if it was not yet.

  Args:
    path: JSONL with `_id`, `title` and `text`, or TSV; also .gz, .zst, .bz2 or .xz, or tables, which are unpacked into
      the cache.
    cache: the folder in which indexes are kept, by the file's path, size and time.
    columns: of a TSV, one of `COLUMNS`. Empty: told by a header (DPR's `id text title`), or id and text where there are
      two. Where text comes before the title, fields are quoted as CSV quotes them, as DPR writes its file.

  Raises:
    InputError: no such file, a form that is none of these, more than 0.1 % (and 9) broken lines, or an id twice.
  """
  if path.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
    raise InputError(f"{path}: an archive of files; unpack it first (tar -xf, unzip) and name the file in it")
  path = os.fspath(location(path))
  files = tables.files(path)
  size, when = sum(map(lines.size_of, files)), max(os.stat(file).st_mtime_ns for file in files)
  key = json.dumps([_FORMAT, os.path.abspath(path), size, when, columns])
  folder = Path(location(cache)) / f"passages-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
  if not (folder / "meta.json").exists():
    shutil.rmtree(folder, ignore_errors=True)  # Of ours, and of no use without its meta.json.
    with atomic.new_folder(folder, same=lambda: (folder / "meta.json").exists()) as new:
      _index(path, size, columns, Path(new))
  return _opened(path, folder)


_opened = functools.lru_cache(maxsize=8)(PassageTable)


def _index(path, size, columns, folder):
  """Writes starts.npy (and hashes.npy, rows.npy; text, if it is compressed) and, last, meta.json."""
  unpacked = lines.is_compressed(path) or not tables.has_lines(path)
  starts, hashes, first, broken, position = array.array("q"), None, None, 0, 0
  broken_places: list[str] = []
  with (open(folder / "text" if unpacked else os.devnull, "wb") as copy,
        Bar(size, f"index {os.path.basename(path)}", "B", leave=False, delay=1) as bar, lines.on_bytes(bar.update)):
    for number, read in enumerate(tables.read_lines(Part(path), FIELDS), 1):
      place, line, stop, ended = read
      if unpacked:
        copy.write(line + b"\n")
        stop = position + len(line) + 1
      start, position = position, stop
      if number == 1:
        columns, header = _form(path, line, columns)
        parse = _parser(columns)
        if header:
          continue
      try:
        row_id = parse(line).id
      except ValueError as e:
        if number == 1 and (advice := jsonl.other_form(read)):
          raise InputError(f"{place}: {e}; {advice}") from e
        if columns == "json" and line.strip() and not ended:
          raise InputError(f"{place}: {e}, and no line end: the file is cut off; fetch it again, or remove the line"
                           ) from e
        if line.strip():
          broken += 1
          broken_places += [f"{place}: {lines.not_utf8(line) or e}"][:KEPT_PLACES - len(broken_places)]
        continue
      if hashes is not None:
        hashes.append(_hash(row_id))
      elif not starts and row_id.isascii() and row_id.isdigit() and str(int(row_id)) == row_id:
        first = int(row_id)
      elif first is None or row_id != str(first + len(starts)):
        hashes = array.array("Q", [_hash(str((first or 0) + i)) for i in range(len(starts))])
        hashes.append(_hash(row_id))
        first = None
      starts.append(start)
  if broken > max(ALWAYS_MAY_BE_BROKEN, _MAX_BROKEN * len(starts)) or not starts:
    found = f"{broken:,} of {broken + len(starts):,} lines are broken, the first: {broken_places[0]}" if broken else (
        f"{path}: no passages in it")
    raise InputError(f"{found}; is this the passage file ({_named(columns or COLUMNS[0])})? Of passages no more than "
                     f"{_MAX_BROKEN:.1%} may be broken: mend them, or remove these lines")
  starts.append(position)
  np.save(folder / "starts.npy", np.frombuffer(starts, np.int64))
  in_order = None
  if hashes is not None:
    del starts
    of_rows = np.frombuffer(hashes, np.uint64)
    order = np.argsort(of_rows, kind="stable")
    np.save(folder / "rows.npy", order.astype(np.uint32))
    np.save(folder / "hashes.npy", in_order := of_rows[order])
    del hashes, of_rows
  atomic.write_json(folder / "meta.json", {
      "path": path, "columns": columns, "first": first, "unpacked": unpacked, "broken": broken,
      "broken_places": broken_places})
  if in_order is not None:
    _check_unique(PassageTable(path, folder), in_order, order)


def _check_unique(table, hashes, order):
  for i in np.flatnonzero(hashes[1:] == hashes[:-1]):
    one, other = (table._read(int(row)).id for row in order[i:i + 2])
    if one == other:
      raise InputError(f"{table.path}: the id {one!r} is there twice (passages {order[i] + 1:,} and "
                       f"{order[i + 1] + 1:,}); ids must be unique: remove one")


def _form(path: str, line: bytes, columns: str) -> tuple[str, bool]:
  """The table's columns ("json" for JSONL), and whether the first line is a header."""
  text = line.decode(errors="replace").rstrip("\r\n")
  if text.lstrip().startswith("{") and not columns:
    return "json", False
  fields = text.split("\t")
  if fields[0] in ("id", "pid") and (header := ",".join(["id", *fields[1:]])) in COLUMNS:
    return columns or header, True
  if not columns and len(fields) == 3:
    raise InputError(f"{path}: three columns and no header: which is the title? Say --passage_columns id,text,title "
                     "(DPR) or id,title,text (Tevatron)")
  columns = columns or "id,text"
  if columns not in COLUMNS:
    raise InputError(f"--passage_columns {columns}: give one of {' '.join(COLUMNS)}")
  return columns, False


def _named(columns):
  return "JSON lines with _id, title and text" if columns == "json" else f"columns {columns} with tabs between them"


def _parser(columns: str) -> Callable[[bytes], Document]:
  """What makes a `Document` of a line. It raises ValueError."""
  if columns == "json":
    return document_of
  names, quoted = columns.split(","), columns == "id,text,title"
  text_at, title_at = names.index("text"), names.index("title") if "title" in names else None

  def parse(line: bytes) -> Document:
    text = line.decode()
    fields = _unquoted(text) if quoted and '"' in text else text.split("\t")
    if len(fields) != len(names):
      raise ValueError(f"{len(fields)} columns, not {len(names)}")
    if not fields[0].strip():
      raise ValueError("no id")
    return Document(fields[0].strip(), "" if title_at is None else fields[title_at], fields[text_at])

  return parse


def _unquoted(line: str) -> list[str]:
  try:
    return next(csv.reader([line], delimiter="\t"))
  except csv.Error as e:  # A field of more than 128 KB.
    raise ValueError(str(e)) from e


def _hash(row_id: str) -> int:
  return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "little")
