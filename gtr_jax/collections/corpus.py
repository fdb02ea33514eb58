"""Corpora: JSON lines (BEIR's corpus.jsonl), TSV (MS MARCO's collection.tsv), plain or compressed, or tables."""

import array
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import jsonl, lines, tables
from gtr_jax.io.line_table import LineTable
from gtr_jax.io.paths import is_remote, location

FIELDS = ("_id", "title", "text")
"""Of an object or a row: what is read."""

_WHITE_SPACE = re.compile(r"[ \t-\r]")  # What parts the columns of a run; published ids may hold other kinds.


class Document(NamedTuple):
  """A document, as it was read."""

  id: str
  title: str
  text: str


class Documents(NamedTuple):
  """A corpus: three sequences of the same length. Titles and texts may lie on disk until they are asked for."""

  ids: Sequence[str]
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


def full_text(title: str | None, text: str) -> str:
  """Title, space, text, as BEIR joins them; no leading space where there is no title."""
  return f"{title or ''} {text}".strip()


def document_of(line: bytes, no_text: str | None = "") -> Document:
  """The document of a line: a JSON object, or id and text with a tab between them.

  Args:
    line: in UTF-8.
    no_text: stands for the text of an object that has none; None: it must have one.

  Raises:
    ValueError: in words.
  """
  if not _is_json(line):
    if wrong := lines.not_utf8(line):
      raise ValueError(wrong)
    doc_id, *texts = line.decode().split("\t")
    if len(texts) != 1 or not texts[0].strip():
      raise ValueError(f"{1 + len(texts)} columns, or no text: expected a JSON object, or id and text with a tab "
                       "between them")
    return Document(doc_id.strip(), "", texts[0])
  record = jsonl.parse(line)
  if not isinstance(record, dict):
    raise ValueError(f"{jsonl.kind_of(record)} of JSON, not an object; each line must be one JSON object")
  if record.get("_id") is None:
    raise ValueError(jsonl.missing(record, "_id"))
  if not (doc_id := jsonl.id_of(record, "_id")):
    raise ValueError(f'"_id" is {record["_id"]!r}; an id may be neither empty nor contain white space')
  return Document(doc_id, jsonl.text_of(record, "title", ""),
                  jsonl.text_of(record, "text", no_text))


def check_id(value: str) -> None:
  """Raises ValueError for an id that is empty or has white space: a TREC run could not hold it."""
  if not value or _WHITE_SPACE.search(value):
    raise ValueError(f'"_id" is {value!r}; an id may be neither empty nor contain white space')


def _is_json(line: bytes) -> bool:
  """Whether a line is meant as JSON: no id begins so."""
  return line.lstrip()[:1] in (b"{", b"[")


class _OnDisk:
  """The documents of a plain file on a local disk, read when asked for: only where lines begin is in memory."""

  def __init__(self, path: epath.Path, starts: array.array):
    self._path, self._lines = path, LineTable(path, starts)
    self._last = (-1, Document("", "", ""))  # A title is asked for, then the text of the same line.

  def column(self, name: str) -> Sequence[str]:
    return View(len(self._lines), lambda row: getattr(self._document(row), name))

  def _document(self, row: int) -> Document:
    last = self._last  # Another thread may replace it.
    if last[0] != row:
      try:
        last = self._last = (row, document_of(self._lines[row]))
      except ValueError as e:
        raise InputError(f"{self._path}: changed while it was in use; start again") from e
    return last[1]


class Corpus(NamedTuple):
  """A whole corpus, read and checked.

  Attributes:
    documents: in file order. Of a plain file on a local disk only the ids are in memory.
    words: int32, how many words title and text of each document have.
    lines: id -> its place in the file.
  """

  documents: Documents
  words: np.ndarray
  lines: dict[str, int]


def read_corpus(path: epath.PathLike, *, allow_empty: bool = False,
                each: Callable[[Document], object] = lambda document: None) -> Corpus:
  """Reads and checks a corpus.

  Args:
    path: of the file, or of a folder of tables.
    allow_empty: keep documents with neither title nor text, for published collections that have some (Cranfield: two);
      otherwise they are an error.
    each: called with each document.

  Raises:
    InputError: names file and line at the first document that is wrong.
  """
  path = location(path)
  on_disk = tables.has_lines(path) and not is_remote(path) and not lines.is_compressed(path)
  ids: list[str] = []
  titles: list[str] = []
  texts: list[str] = []
  seen: dict[str, int] = {}
  words, starts = array.array("i"), array.array("q")
  rest = tables.read_lines(lines.Part(os.fspath(path)), FIELDS)
  position = 0
  for number, line in enumerate(rest, 1):
    start, position = position, line.stop
    if not line.data.strip():
      continue
    try:
      document = document_of(line.data)
      check_id(document.id)
    except ValueError as e:
      raise broken(path, line, rest, e) from e
    place, (doc_id, title, text) = line.place, document
    if doc_id in seen:
      raise InputError(f"{place}: duplicate _id {doc_id!r}, first at line {seen[doc_id]}; ids must be unique")
    if not allow_empty and not title.strip() and not text.strip():
      raise InputError(f"{place}: document {doc_id!r} has neither title nor text; remove it, or keep it with "
                       "--allow_empty_documents")
    seen[doc_id] = number
    each(document)
    ids.append(doc_id)
    words.append(len(title.split()) + len(text.split()))
    starts.append(start)
    if not on_disk:
      titles.append(title)
      texts.append(text)
  if not ids:
    raise InputError(f"{path}: no documents")
  documents = Documents(ids, titles, texts)
  if on_disk:
    starts.append(position)
    there = _OnDisk(path, starts)
    documents = Documents(ids, there.column("title"), there.column("text"))
  return Corpus(documents, np.asarray(words, np.int32), seen)


def broken(path: epath.PathLike, line: lines.Line, rest: Iterable[lines.Line], error: ValueError) -> InputError:
  """What to say of a line of a corpus or of queries. Raises InputError where the whole file is wrong."""
  lines.check_rest(path, rest)
  if jsonl.is_array(line):
    return jsonl.an_array(line)
  cut_off = not line.ended and "not JSON (" in str(error)
  advice = jsonl.other_form(line) or (
      "the file is cut off (no line end); fetch it again" if cut_off else "correct or remove the line")
  return InputError(f"{line.place}: {error}; {advice}")
