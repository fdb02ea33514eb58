"""Test collections in BEIR layout: corpus.jsonl, queries.jsonl (each also as .gz) and qrels/<split>.tsv."""

import array
import dataclasses
import hashlib
import os
from collections.abc import Container
from typing import Any

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.retrieval.documents import Documents, Lines, id_field, read_jsonl, read_lines, string_field

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> grade."""


@dataclasses.dataclass(frozen=True)
class Collection:
  """A corpus, the queries that have judgements in one split, and these judgements.

  Attributes:
    name: the folder's name, or what the caller calls it.
    split: which judgements.
    documents: the corpus in file order. Of a plain file on a local disk only the ids are in memory.
    words: int32, how many words title and text of each document have.
    query_ids: in file order.
    queries: their texts.
    qrels: grades by query and document id; grades of 0 and below are judged not relevant.
    hash: of all of these, the same however the files are written.
    unknown: judgements of documents that are not in the corpus.
  """

  name: str
  split: str
  documents: Documents
  words: np.ndarray
  query_ids: list[str]
  queries: list[str]
  qrels: Qrels
  hash: str
  unknown: int = 0


def read_collection(folder: epath.PathLike, split: str = "test", *, allow_empty_documents: bool = False,
                    name: str | None = None, allow_unknown: float = 0.0) -> Collection:
  """Reads and checks a whole collection. Raises InputError with file and line at the first thing that is wrong.

  Args:
    folder: the collection.
    split: which judgements.
    allow_empty_documents: keep documents with neither title nor text.
    name: instead of the folder's.
    allow_unknown: this share of the judgements may be of documents that are not in the corpus, as in collections that
      everyone has to put together from what is still there (Signal-1M). They count as not found.
  """
  folder = epath.Path(folder)
  hashed = hashlib.blake2b(digest_size=16)
  documents, words, lines = _read_documents(folder, allow_empty_documents, hashed)
  query_ids, queries = read_queries(_jsonl_file(folder, "queries"))
  qrels, unknown = _read_qrels(_qrels_file(folder, split), set(query_ids), lines, allow_unknown)
  judged = [i for i, query_id in enumerate(query_ids) if query_id in qrels]
  query_ids, queries = [query_ids[i] for i in judged], [queries[i] for i in judged]
  hashed.update(repr((query_ids, queries, sorted((query_id, sorted(of.items())) for query_id, of in qrels.items())))
                .encode())
  return Collection(name or folder.resolve().name, split, documents, words, query_ids, queries, qrels,
                    hashed.hexdigest(), unknown)


def check_files(folder: epath.PathLike, split: str) -> None:
  """Raises InputError where a file of a collection is not there; nothing is read."""
  folder = epath.Path(folder)
  for name in ("corpus", "queries"):
    _jsonl_file(folder, name)
  _qrels_file(folder, split)


def read_corpus(folder: epath.PathLike, *, allow_empty_documents: bool = False) -> Documents:
  """The corpus of a collection; nothing else of the folder is read.

  Args:
    folder: the collection.
    allow_empty_documents: keep documents with neither title nor text, for published collections that have some
      (Cranfield: two); otherwise they are an error.
  """
  return _read_documents(epath.Path(folder), allow_empty_documents)[0]


def _read_documents(folder: epath.Path, allow_empty: bool,
                    hashed: Any = None) -> tuple[Documents, np.ndarray, dict[str, int]]:
  """(documents, words of each, id -> line). Adds the documents to `hashed`, while they are read."""
  path = _jsonl_file(folder, "corpus")
  on_disk = "://" not in os.fspath(path) and not path.name.endswith(".gz")
  documents, lines = Documents([], [], []), {}
  words, ends = array.array("i"), array.array("q", [0])
  for place, record, end in read_lines(path):
    documents.ids.append(id_field(place, record, lines))
    title, text = string_field(place, record, "title", ""), string_field(place, record, "text", "")
    if not allow_empty and not title.strip() and not text.strip():
      raise InputError(f"{place}: document {documents.ids[-1]!r} has neither title nor text; remove it, or keep it "
                       "with --allow_empty_documents")
    if hashed is not None:
      hashed.update(f"{len(documents.ids[-1])} {len(title)} {len(text)} {documents.ids[-1]}{title}{text}".encode())
    words.append(len(title.split()) + len(text.split()))
    ends.append(end)
    if not on_disk:
      documents.titles.append(title)
      documents.texts.append(text)
  if not documents.ids:
    raise InputError(f"{path}: no documents")
  if on_disk:
    there = Lines(path, np.asarray(ends, np.int64))
    documents = Documents(documents.ids, there.column("title"), there.column("text"))
  return documents, np.asarray(words, np.int32), lines


def read_queries(path: epath.PathLike) -> tuple[list[str], list[str]]:
  """(ids, texts) of a queries file: JSONL with `_id` and `text`."""
  ids, texts, seen = [], [], {}
  for place, record in read_jsonl(path):
    ids.append(id_field(place, record, seen))
    texts.append(string_field(place, record, "text"))
    if not texts[-1].strip():
      raise InputError(f"{place}: query {ids[-1]!r} is empty; remove it, and its judgements")
  if not ids:
    raise InputError(f"{path}: no queries")
  return ids, texts


def _read_qrels(path: epath.Path, query_ids: Container[str], doc_ids: Container[str],
                allow_unknown: float) -> tuple[Qrels, int]:
  """Judgements: tab-separated query-id, corpus-id, score under a header line of these names; and how many of them are
  of documents that are not in the corpus.
  """
  qrels: Qrels = {}
  unknown, unknown_queries = [], []
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    place = f"{path}:{number}"
    try:
      fields = line.decode("utf-8-sig").split("\t")
    except UnicodeDecodeError as e:
      raise InputError(f"{place}: not UTF-8 ({e.reason}); convert the file to UTF-8") from e
    if not line.strip() or (number == 1 and fields[0] == "query-id"):
      continue
    if len(fields) != 3:
      raise InputError(f"{place}: {len(fields)} tab-separated columns; write query-id, corpus-id and score with a "
                       "tab between them")
    query_id, doc_id, grade = (field.strip() for field in fields)
    try:
      grade = int(grade)
    except ValueError as e:
      header = "; if this is the header, write query-id, corpus-id and score" if number == 1 else ""
      raise InputError(f"{place}: the grade {grade!r} is not an integer; write 0, 1, 2, ...{header}") from e
    if query_id not in query_ids:
      unknown_queries.append(f"{place}: unknown query {query_id!r}; it is not in the queries file")
    if doc_id not in doc_ids:
      unknown.append(f"{place}: unknown document {doc_id!r}; it is not in the corpus")
    if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
      raise InputError(f"{place}: query {query_id!r}, document {doc_id!r} was judged {qrels[query_id][doc_id]} above "
                       f"and {grade} here; keep one")
  if not qrels:
    raise InputError(f"{path}: no judgements")
  if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
    raise InputError(f"{path}: no document is judged relevant, every grade is 0 or below; nothing could be measured")
  judgements = sum(map(len, qrels.values()))
  for wrong, allowed in ((unknown_queries, 0), (unknown, allow_unknown * judgements)):
    if len(wrong) > judgements / 2:
      raise InputError(f"{wrong[0]}, as for {len(wrong):,} of {judgements:,} judgements; give those of this collection")
    if len(wrong) > allowed:
      others = f" and {len(wrong) - 1:,} more like it" if len(wrong) > 1 else ""
      raise InputError(f"{wrong[0]}: remove the line{others}, or add what is missing")
  return qrels, len(unknown)


def _qrels_file(folder: epath.Path, split: str) -> epath.Path:
  path = folder / "qrels" / f"{split}.tsv"
  if not path.exists():
    there = sorted(p.name.removesuffix(".tsv") for p in path.parent.glob("*.tsv")) if path.parent.exists() else []
    raise InputError(f"{path}: no such file; " + (f"splits here: {', '.join(there)}" if there else
                                                  "a collection needs qrels/<split>.tsv"))
  return path


def _jsonl_file(folder: epath.Path, name: str) -> epath.Path:
  """The file `name`.jsonl or `name`.jsonl.gz of a folder."""
  for candidate in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
    if candidate.exists():
      return candidate
  raise InputError(f"{folder}: no {name}.jsonl or {name}.jsonl.gz; give a folder in BEIR layout (corpus.jsonl, "
                   "queries.jsonl, qrels/<split>.tsv)" if folder.exists() else f"{folder}: no such folder")
