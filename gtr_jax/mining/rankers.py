"""What is mined from: the passages, and BM25 or a model that ranks them for the queries.

Letters: Q queries, D embedding size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gtr_jax.collections.corpus import Documents, full_text
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import Model
from gtr_jax.retrieval.bm25 import BM25Index
from gtr_jax.retrieval.search import Searcher
from gtr_jax.retrieval.store import Store

POSITIVES_DEPTH = 1000  # BM25 looks for the positive among so many


class Query(NamedTuple):
  """A query and one passage that answers it; `passage_id` is its id among the passages, if it is there."""

  text: str
  passage: str
  passage_id: str | None


class Ranked(NamedTuple):
  """For one query: rows of passages best first, their scores, and the positive's (NaN: not known)."""

  rows: np.ndarray
  scores: np.ndarray
  positive_score: float


class Ranker(Protocol):
  """Passages by row, and their ranking."""

  def rank(self, queries: Sequence[Query], k: int, score_positives: bool) -> Iterator[Ranked]:
    """The best `k` (or more) passages for each query, in the order of the queries."""

  def passage(self, row: int) -> tuple[str, str, str]:
    """(id, title, text) of a row."""

  def passages(self, ids: Sequence[str]) -> dict[str, str]:
    """id -> title + space + text of those that are there."""


class Bm25Ranker:
  """BM25 over documents. A positive that it does not rank among the first 1,000 has no score."""

  def __init__(self, documents: Documents, progress: bool = True):
    self._documents = documents
    self._index = BM25Index(documents.full_texts(), progress=progress)

  def rank(self, queries: Sequence[Query], k: int, score_positives: bool) -> Iterator[Ranked]:
    different = list(dict.fromkeys(query.text for query in queries))
    found = dict(zip(different, self._index.search(different, max(k, POSITIVES_DEPTH) if score_positives else k),
                     strict=True))
    rows = _rows(self._documents.ids, {query.passage_id for query in queries}) if score_positives else {}
    for query in queries:
      row = -1 if query.passage_id is None else rows.get(query.passage_id, -1)
      positive = np.flatnonzero(found[query.text][0] == row)
      score = found[query.text][1][positive[0]] if len(positive) else np.nan
      yield Ranked(*found[query.text], float(score))

  def passage(self, row: int) -> tuple[str, str, str]:
    ids, titles, texts = self._documents
    return ids[row], titles[row], texts[row]

  def passages(self, ids: Sequence[str]) -> dict[str, str]:
    return {doc_id: full_text(*self.passage(row)[1:]) for doc_id, row in _rows(self._documents.ids, set(ids)).items()}


class ModelRanker:
  """A model's exact search in a store. Texts and embeddings of the passages stay on disk."""

  def __init__(self, model: Model, store: Store, query_length: int | None = None, document_length: int | None = None,
               progress: bool = True):
    store.check_model(model.weights_hash)
    self._model, self._store, self._progress = model, store, progress
    self._lengths = {"query": query_length, "passage": document_length}  # None: the model's own.
    self._searcher = Searcher(store, model.mesh)

  def rank(self, queries: Sequence[Query], k: int, score_positives: bool) -> Iterator[Ranked]:
    place = {text: i for i, text in enumerate(dict.fromkeys(query.text for query in queries))}
    queries_QxD = self._embed(list(place), "query")
    scores, rows = self._searcher.search(queries_QxD, k, self._progress)
    positive_of = self._positives(queries) if score_positives else None
    for query in queries:
      i = place[query.text]
      yield Ranked(rows[i], scores[i], float(queries_QxD[i] @ positive_of(query)) if positive_of else np.nan)

  def _embed(self, texts: list[str], tower: str) -> np.ndarray:
    return embed(self._model, texts, tower, self._lengths[tower], progress=self._progress)

  def _positives(self, queries: Sequence[Query]) -> Callable[[Query], np.ndarray]:
    """Query -> the embedding of its passage: from the store where that is there, else of its text."""
    stored = {doc_id: np.array(self._store[row:row + 1][0])  # In the order in which they lie on disk.
              for doc_id, row in _rows(self._store.ids, {query.passage_id for query in queries}).items()}
    texts = list(dict.fromkeys(query.passage for query in queries if query.passage_id not in stored))
    embedded = dict(zip(texts, self._embed(texts, "passage") if texts else [], strict=True))
    return lambda query: stored[query.passage_id] if query.passage_id in stored else embedded[query.passage]

  def passage(self, row: int) -> tuple[str, str, str]:
    return self._store.document(row)

  def passages(self, ids: Sequence[str]) -> dict[str, str]:
    return {doc_id: full_text(*self.passage(row)[1:]) for doc_id, row in _rows(self._store.ids, set(ids)).items()}


def _rows(all_ids: Sequence[str], wanted: set[str | None]) -> dict[str, int]:
  """Where in `all_ids` those are that are wanted."""
  return {doc_id: row for row, doc_id in enumerate(all_ids) if doc_id in wanted}
