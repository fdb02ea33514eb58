"""Test collections as they lie on disk: a folder in BEIR layout, or with the files of MS MARCO's passage ranking.

    corpus.jsonl     queries.jsonl        qrels/SPLIT.tsv     (BEIR; each also compressed; or queries_SPLIT.jsonl)
    collection.tsv   queries.SPLIT.tsv    qrels.SPLIT.tsv     (MS MARCO; likewise)

or, in BEIR's, tables of the same columns: corpus.parquet, .arrow or .csv, or a folder `corpus` of them.
"""

import dataclasses
import hashlib
import re
from typing import NamedTuple

import numpy as np
from etils import epath

from gtr_jax.collections.corpus import Documents, read_corpus
from gtr_jax.collections.qrels import Qrels, read_qrels
from gtr_jax.collections.queries import read_queries
from gtr_jax.errors import InputError
from gtr_jax.io.paths import location

_ENDINGS = ("", ".gz", ".zst", ".bz2", ".xz")
_TABLES = (".parquet", ".arrow", ".feather", *(f".csv{ending}" for ending in _ENDINGS))
_LAYOUT = "give a folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/<split>.tsv)"


_SHARD = re.compile(r"-\d+-of-\d+$")


class Files(NamedTuple):
  """The files of a collection."""

  corpus: epath.Path
  queries: epath.Path
  qrels: epath.Path


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
  folder = location(folder)
  files = files_of(folder, split)
  hashed = hashlib.blake2b(digest_size=16)

  def add(document):
    doc_id, title, text = document
    hashed.update(f"{len(doc_id)} {len(title)} {len(text)} {doc_id}{title}{text}".encode())

  corpus = read_corpus(files.corpus, allow_empty=allow_empty_documents, each=add)
  query_ids, queries = read_queries(files.queries)
  qrels, unknown = read_qrels(files.qrels, set(query_ids), corpus.lines, allow_unknown)
  judged = [i for i, query_id in enumerate(query_ids) if query_id in qrels]
  query_ids, queries = [query_ids[i] for i in judged], [queries[i] for i in judged]
  hashed.update(repr((query_ids, queries, sorted((query_id, sorted(of.items())) for query_id, of in qrels.items())))
                .encode())
  return Collection(name or folder.resolve().name, split, corpus.documents, corpus.words, query_ids, queries, qrels,
                    hashed.hexdigest(), unknown)


def read_documents(folder: epath.PathLike, *, allow_empty_documents: bool = False) -> Documents:
  """The corpus of a collection; nothing else of the folder is read."""
  return read_corpus(corpus_file(folder), allow_empty=allow_empty_documents).documents


def files_of(folder: epath.PathLike, split: str) -> Files:
  """The files of a collection, of which nothing is read. Raises InputError where one is not there."""
  corpus, qrels = corpus_file(folder), qrels_file(folder, split)  # The latter names the splits that there are.
  return Files(corpus, queries_file(folder, split), qrels)


def corpus_file(folder: epath.PathLike) -> epath.Path:
  """Raises InputError where there is none."""
  folder = location(folder)
  if found := _find(folder, "corpus.jsonl") or _find(folder, "collection.tsv") or _table(folder, "corpus"):
    return found
  raise _missing(folder, "corpus.jsonl or collection.tsv")


def queries_file(folder: epath.PathLike, split: str) -> epath.Path:
  """Raises InputError where there is none. queries_SPLIT.jsonl, where it is there, has those of one split."""
  folder = location(folder)
  for name in (f"queries_{split}.jsonl", "queries.jsonl", f"queries.{split}.tsv"):
    if found := _find(folder, name):
      return found
  if found := _table(folder, "queries"):
    return found
  raise _missing(folder, f"queries.jsonl or queries.{split}.tsv")


def qrels_file(folder: epath.PathLike, split: str) -> epath.Path:
  """Raises InputError where there is none; names the splits that are there."""
  folder = location(folder)
  found = _find(folder, f"qrels/{split}.tsv") or _find(folder, f"qrels.{split}.tsv")
  if found := found or _table(folder, f"qrels/{split}"):
    return found
  if not folder.is_dir():
    raise _missing(folder, "")
  there = splits(folder)
  raise InputError(f"{folder / 'qrels' / split}.tsv: no such file; " + (f"splits here: {', '.join(there)}" if there else
                                                                       "a collection needs qrels/<split>.tsv"))


def splits(folder: epath.PathLike) -> list[str]:
  """The names of the judgements that a collection has."""
  folder = location(folder)
  names = {path.name.removeprefix("qrels.") for pattern in ("qrels/*.tsv*", "qrels.*.tsv*") for path in
           (folder.glob(pattern) if folder.exists() else ())}
  found = {name.partition(".tsv")[0] for name in names if name.partition(".tsv")[2] in _ENDINGS}
  for path in folder.glob("qrels/*") if folder.exists() else ():
    ending = next(filter(path.name.endswith, _TABLES), None)
    if ending or path.is_dir():
      found.add(_SHARD.sub("", path.name.removesuffix(ending or "")))
  return sorted(found)


def _find(folder: epath.Path, name: str) -> epath.Path | None:
  return next((path for ending in _ENDINGS if (path := folder / f"{name}{ending}").exists()), None)


def _table(folder: epath.Path, name: str) -> epath.Path | None:
  """A table, a folder of tables, or a pattern of the files that a table is parted into."""
  if found := next((path for ending in _TABLES if (path := folder / f"{name}{ending}").exists()), None):
    return found
  if (folder / name).is_dir():
    return folder / name
  pattern = f"{name}-*-of-*.parquet"
  return folder / pattern if folder.exists() and any(folder.glob(pattern)) else None


def _missing(folder: epath.Path, name: str) -> InputError:
  if not folder.exists():
    return InputError(f"{folder}: no such folder; {_LAYOUT}")
  if not folder.is_dir():
    return InputError(f"{folder}: a file, not a folder; {_LAYOUT}")
  there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
  names = ", ".join(there[:8]) or "no files"
  return InputError(f"{folder}: no {name}, plain or compressed; there are {names}; {_LAYOUT}")
