"""The training pairs that get negatives: of files in all the forms that `gtr-jax prepare pairs` reads, of what it has
prepared, and of a collection's judgements.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from gtr_jax.collections.corpus import full_text
from gtr_jax.errors import InputError
from gtr_jax.io import data_root, jsonl, tables
from gtr_jax.io.lines import Part
from gtr_jax.io.paths import absolute, location
from gtr_jax.prepare import manifests, records
from gtr_jax.prepare.sources.field_names import nowhere
from gtr_jax.prepare.sources.pair_fields import PASSAGE_IDS, QUERY_IDS, Meaning, texts_of
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl, is_of_set
from gtr_jax.prepare.vectors import unpacked
from gtr_jax.text.same_text import hash_key, text_key

# Names of lists beside several passages, or beside negatives, that have an entry for each: pos_ids, negative_titles.
_OF_PASSAGES = re.compile(r"(pos|positives?|passages?)_\w+")
_OF_NEGATIVES = re.compile(r"(hard_)?(neg|negatives?)_\w+")
_WRITTEN = ("negatives", "negative_ids", "scores", "mined")  # By `mine`, whatever was there.


class Fields(NamedTuple):
  """Names that the user gives, or none.

  Attributes:
    query: fields that make the query; several are joined with a space.
    passage: likewise. The two go together.
    query_id: field of the query's id.
    passage_id: field of the passage's id.
    answers: field of the strings that answer the query.
    ignored: fields that mean nothing.
  """

  query: tuple[str, ...] = ()
  passage: tuple[str, ...] = ()
  query_id: str = ""
  passage_id: str = ""
  answers: str = ""
  ignored: tuple[str, ...] = ()


_FOUND = Fields()  # By their names.


class Pair(NamedTuple):
  """A training pair.

  Attributes:
    record: what is written of it beside its negatives.
    query: its text.
    passage: its text.
    query_id: "" where it has none.
    passage_id: "" where it has none.
    answers: strings that answer the query.
    others: keys of passages that are no negatives either, of whose texts nothing else is known.
    is_negative: it is none: the passage does not answer the query.
    is_known: it is none either, as where a judgement is too low: but the passage is no negative of the query.
    bare: the passage without its title, where it has one.
  """

  record: dict[str, Any]
  query: str
  passage: str
  query_id: str = ""
  passage_id: str = ""
  answers: tuple[str, ...] = ()
  others: tuple[int, ...] = ()
  is_negative: bool = False
  is_known: bool = False
  bare: str = ""

  @property
  def query_keys(self) -> tuple[int, ...]:
    """What queries share whose passages are no negatives of each other: their text and their id."""
    return (text_key(self.query), id_key(self.query_id)) if self.query_id else (text_key(self.query),)

  @property
  def wordings(self) -> tuple[tuple[int, int], ...]:
    """(text, id) of what the pair's id is of: its query, and of a set, whose texts are all queries, its passage."""
    texts = (self.query,) if self.document_id == self.passage_id else (self.query, self.passage)
    return tuple((text_key(text), id_key(self.query_id)) for text in texts if self.query_id)

  @property
  def document_id(self) -> str:
    """The passage's id, by which it is found; "" where that only marks a set."""
    return "" if is_of_set(self.query_id, self.passage_id) else self.passage_id

  @property
  def passage_key(self) -> int:
    """What makes two passages one: their id, else their text."""
    return id_key(self.document_id) if self.document_id else text_key(self.passage)

  @property
  def passage_keys(self) -> set[int]:
    """What is no negative where the passage answers the query: its id, and its text with and without its title."""
    return {self.passage_key, *map(text_key, filter(None, (self.passage, self.bare)))}


def id_key(identifier: str) -> int:
  """64 bits of a hash, unlike those of any text."""
  return hash_key(f"id {identifier}")


def read_pairs(path: epath.PathLike, fields: Fields = _FOUND) -> Iterator[Pair]:
  """Yields the pairs of a file or a folder of tables, those that are none too.

  Args:
    path: JSON lines or tables, as `io.tables` reads.
    fields: which are what, where their names do not say it.

  Raises:
    InputError: a line is malformed, or its query or passage is empty; or there is none, or none has the ids asked for.
  """
  # Of fields that the user names, those that are written anew are not asked about: whatever they hold, it is replaced.
  ignored = (*fields.ignored, fields.answers, *(_WRITTEN if fields.query else _WRITTEN[1:2]))
  rows = PairsJsonl((os.fspath(path),), fields.query, fields.passage, ignore=ignored)
  number, without = 0, set(filter(None, (fields.query_id, fields.passage_id)))
  not_ignored = {*fields.ignored}
  for number, (place, row) in enumerate(_values(path), start=1):  # noqa: B007  (read below)
    try:
      yield from _with_queries_of_sets(_pairs_of(rows, row, fields))
    except ValueError as e:
      said = str(e).replace("(--query, --passage)", "(--query_field, --passage_field)").replace(
          "name it (--negatives), or ", "")
      if number == 1 and "of no kind that is known" in said:
        said += "; name those of the query and the passage (--query_field, --passage_field)"
      raise InputError(f"{place}: {said}; correct or remove the line") from e
    without -= set(row) if isinstance(row, dict) else set()
    not_ignored = nowhere(not_ignored, fields.ignored, [(place, row)])
  if not number:
    raise InputError(f"{path}: no pairs")
  if without:
    raise InputError(f"{path}: no pair has a {min(without)!r}; name the field of their ids, or leave it out")
  if not_ignored:
    raise InputError(f"{path}: no line has a field {min(not_ignored)!r} (--ignore); correct the name, or leave it out")


def _values(path):
  for file in tables.files(path):
    for part in tables.parts(file) if tables.kind(file) else [Part(file)]:
      yield from tables.read_values(part)


def _pairs_of(rows: PairsJsonl, row: Any, fields: Fields) -> Iterator[Pair]:
  kind, meant = rows.kind_of(row), rows.pairs_of(row)
  if not isinstance(kind, Meaning):
    kind = Meaning((kind,), (kind,))
  query_field = passage_field = ""
  rest: dict[str, Any] = {}
  if isinstance(row, dict):
    query_field = _id_field(row, fields.query_id, QUERY_IDS, fields.ignored)
    passage_field = _id_field(row, fields.passage_id, PASSAGE_IDS, fields.ignored)
    read = {*kind.fields, *_WRITTEN, "query", "positive", query_field, passage_field}
    read -= set(kind.vectors[:1 if kind.several else 2])  # Of the negatives that are replaced there is no use.
    rest = {name: value for name, value in row.items() if name not in read}
    if kind.negatives:  # What goes with those that are replaced is of nothing.
      rest = {name: value for name, value in rest.items()
              if not (isinstance(value, list) and _OF_NEGATIVES.fullmatch(name))}
  of_each = {name: value for name, value in rest.items() if kind.several and isinstance(value, list)
             and len(value) == len(meant) and _OF_PASSAGES.fullmatch(name)}
  answers = _answers(row, fields.answers)
  ids = [None] * len(meant)
  if passage_field and meant and sum(not pair.is_negative for pair in meant) <= 1:
    ids[0] = row[passage_field]
  elif passage_field and isinstance(row[passage_field], list) and len(row[passage_field]) == len(meant):
    ids = row[passage_field]
  for number, (pair, passage_id) in enumerate(zip(meant, ids, strict=True)):
    query, passage = _text(rows, pair.query, kind.query), _text(rows, pair.passage, kind.passage)
    record: dict[str, Any] = {}
    if not query_field and pair.query_id:
      record[QUERY_IDS[0]] = pair.query_id
    elif query_field:
      record[query_field if query_field in QUERY_IDS else QUERY_IDS[0]] = row[query_field]
    record["query"] = query
    if passage_id is None and pair.passage_id:  # Of a list, or within the passage, or the mark of a set.
      passage_id = pair.passage_id
    if passage_id is not None or passage_field and len(meant) == 1:
      record[passage_field if passage_field in PASSAGE_IDS else PASSAGE_IDS[0]] = passage_id
    record["positive"] = passage
    record |= rest | {name: value[number] for name, value in of_each.items()}
    if kind.several and pair.vectors and pair.vectors[1]:
      record["positive_vector"] = unpacked(pair.vectors[1]).tolist()
    yield Pair(record, query, passage,
               jsonl.id_of(row, query_field) if query_field else pair.query_id,
               jsonl.id_of({passage_field: passage_id}, passage_field),
               answers, is_negative=pair.is_negative, bare=_without_title(rows, pair.passage, passage, kind, row))


def _with_queries_of_sets(pairs: Iterable[Pair]) -> Iterator[Pair]:
  """And before each pair of a set its query, which is one of the texts that are no negatives there."""
  for pair in pairs:
    if pair.passage_id and not pair.document_id:
      yield Pair({}, pair.query, pair.query, pair.query_id, pair.passage_id, is_known=True)
    yield pair


def _without_title(rows: PairsJsonl, value: Any, passage: str, kind: Meaning, row: Any) -> str:
  """A passage without what its line calls a title, "" where that is nothing else."""
  if isinstance(value, dict):
    text = rows.text_of(value["text"])
  elif kind.passage[0] == "title" and len(kind.passage) > 1 and isinstance(row["title"], str):
    text = passage.removeprefix(row["title"].strip()).strip()
  else:
    return ""
  return text if text != passage else ""


def with_documents(pairs: Iterable[Pair], document: Callable[[str], tuple[str, str] | None]) -> Iterator[Pair]:
  """Yields the pairs, and behind each whose passage a corpus has otherwise, by its id, that as known.

  Args:
    pairs: with ids of passages.
    document: gives (title, text) of an id, None where there is none.
  """
  for pair in pairs:
    yield pair
    if pair.document_id and not pair.is_negative and (found := document(pair.document_id)) is not None:
      title, text = found
      if (whole := full_text(title, text)) and (whole != pair.passage or title):
        yield pair._replace(record={}, passage=whole, is_known=True, bare=text if title else "")


def _text(rows: PairsJsonl, value: Any, names: Sequence[str]) -> str:
  """Of a query or passage in fields of such names. Raises ValueError, in words."""
  name = " + ".join(names)
  if value is None:
    raise ValueError(f'"{name}" is null; every line needs one')
  text = rows.text_of(value)
  if not text:
    raise ValueError(f'"{name}" is empty')
  return text


def _id_field(row: Mapping[str, Any], given: str, names: Sequence[str], ignored: Collection[str]) -> str:
  if given:
    return given if given in row else ""
  return next((name for name in names if name in row and name not in ignored), "")


def _answers(row: Any, name: str) -> tuple[str, ...]:
  value = row.get(name) if name and isinstance(row, dict) else [] if not name else None
  if isinstance(value, str):
    value = texts_of(row, name)
  if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
    raise ValueError(f'"{name}" is {json.dumps(value)[:40]}; give a string or a list of strings, [] for none')
  return tuple(value)


def prepared_folder(path: epath.PathLike) -> epath.Path | None:
  """The folder that `gtr-jax prepare` wrote, by its path or its name; None where it is none, or a file has the name."""
  places = [absolute(path)] + ([] if location(path).exists() else [data_root.resolve(path)])
  return next((place for place in places if (place / "manifest.json").exists()), None)


def prepared_pairs(folder: epath.PathLike) -> Iterator[Pair]:
  """Yields the pairs to train on of a folder that `gtr-jax prepare` wrote, in their order.

  Raises:
    InputError: the folder is of another version, or something in it is missing or damaged.
  """
  place = absolute(folder)  # A relative one would be looked for in the data root.
  for record in manifests.records_of(os.fspath(place), "train"):
    yield from _with_queries_of_sets([_prepared(records.example_in(record))])


def _prepared(example):
  ids = {"query_id": example.query_id} if example.query_id else {}
  passage_ids = {"passage_id": example.passage_id} if example.passage_id else {}
  vectors = {name: unpacked(vector).tolist() for name, vector in zip(
      ("query_vector", "positive_vector"), example.vectors, strict=False) if vector}
  return Pair({**ids, "query": example.query, **passage_ids, "positive": example.passage, **vectors}, example.query,
              example.passage, example.query_id, example.passage_id,
              others=tuple(int(key) % 2**64 for key in example.positives))  # `records.key_of` writes them signed.


def judged_pairs(query_ids: Sequence[str], queries: Sequence[str], qrels: Mapping[str, Mapping[str, int]],
                 document: Callable[[str], tuple[str, str] | None], min_grade: int = 1) -> Iterator[Pair]:
  """Yields a pair of each query and each document that is judged relevant to it.

  A document judged relevant, but below `min_grade`, is known: neither a pair's passage nor a negative of the query.

  Args:
    query_ids: in their order.
    queries: their texts.
    qrels: grades by query and document id.
    document: gives (title, text) of a document by its id, None where it is not there.
    min_grade: of a pair's passage, from 1.
  """
  for query_id, query in zip(query_ids, queries, strict=True):
    grades = qrels.get(query_id, {})
    for doc_id, grade in grades.items():
      if grade > 0 and (found := document(doc_id)) is not None:
        title, text = found
        passage = full_text(title, text)
        record = {"query_id": query_id, "query": query, "passage_id": doc_id, "positive": passage}
        yield Pair(record, query, passage, query_id, doc_id, is_known=grade < min_grade, bare=text if title else "")
