"""What is mined from: the passages, and BM25 or a model that ranks them for the queries.

Letters: Q queries, P pairs, K ranks, D embedding size.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gtr_jax.collections.corpus import Documents
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import Model
from gtr_jax.mining.on_disk import IdRows
from gtr_jax.mining.rankings import KeptRankings, Rankings
from gtr_jax.retrieval.bm25 import BM25Index
from gtr_jax.retrieval.search import Searcher
from gtr_jax.retrieval.store import Store

POSITIVES_DEPTH = 1000  # BM25 looks for the positive among so many
_EMBEDDED_AT_ONCE = 8192  # passages that are not in the store


class Query(NamedTuple):
  """A query and one passage that answers it; `passage_id` is its id among the passages, if it is there. Of one that is
  there the text is not needed."""

  text: str
  passage: str
  passage_id: str | None


class Ranked(NamedTuple):
  """For one query: rows of passages best first, their scores, and the positive's (NaN: not known)."""

  rows: np.ndarray
  scores: np.ndarray
  positive_score: float


class Ranker(Protocol):
  """Passages by row, and their ranking.

  Attributes:
    pairs_at_once: so many are best given to `rank`.
  """

  pairs_at_once: int

  def rank(self, queries: Sequence[Query], k: int, score_positives: bool) -> Iterator[Ranked]:
    """The best `k` (or more) passages for each query, in the order of the queries."""

  def passage(self, row: int) -> tuple[str, str, str]:
    """(id, title, text) of a row."""

  def row_of(self, passage_id: str) -> int | None:
    """The row of an id, None where there is none."""


class Bm25Ranker:
  """BM25 over documents. Where positives are scored, one that is not among the first 1,000 has no score."""

  pairs_at_once = 4096  # Each has its own search.

  def __init__(self, documents: Documents, progress: bool = True):
    self._documents = documents
    self._index = BM25Index(documents.full_texts(), progress=progress)
    self._rows = IdRows(documents.ids)

  def rank(self, queries: Sequence[Query], k: int, score_positives: bool) -> Iterator[Ranked]:
    different = list(dict.fromkeys(query.text for query in queries))
    found = dict(zip(different, self._index.search(different, max(k, POSITIVES_DEPTH) if score_positives else k),
                     strict=True))
    for query in queries:
      rows, scores = found[query.text]
      row = self._rows.get(query.passage_id)
      positive = np.flatnonzero(rows == (-1 if row is None else row))
      yield Ranked(rows, scores, float(scores[positive[0]]) if len(positive) else np.nan)

  def passage(self, row: int) -> tuple[str, str, str]:
    ids, titles, texts = self._documents
    return ids[row], titles[row], texts[row]

  def row_of(self, passage_id: str) -> int | None:
    return self._rows.get(passage_id)


class ModelRanker:
  """A model's exact search in a store. Texts and embeddings of the passages stay on disk; rankings are kept there.

  A ranking that is kept is used where it has as many ranks, or more: then nothing is encoded or searched.
  """

  pairs_at_once = 1 << 17  # The search reads the whole corpus for each such block.

  def __init__(self, model: Model, store: Store, query_length: int | None = None, document_length: int | None = None,
               progress: bool = True):
    store.check_model(model)
    self._model, self._store, self._progress = model, store, progress
    self._lengths = {"query": query_length, "passage": document_length}  # None: the model's own.
    self._searcher: Searcher | None = None
    self._rows = IdRows(store.ids)
    self.kept = KeptRankings(store.path / "rankings")

  def rank(self, queries: Sequence[Query], k: int, score_positives: bool) -> Iterator[Ranked]:
    """The positives are always scored: they are asked for with the next filter."""
    place = {text: i for i, text in enumerate(dict.fromkeys(query.text for query in queries))}
    k = min(k, self._store.shape[0])
    found = self.kept.get(self._key(queries), k, lambda: self._search(queries, place, k))
    for query, positive_score in zip(queries, found.positive_scores.tolist(), strict=True):
      i = place[query.text]
      yield Ranked(found.rows[i], found.scores[i], positive_score)

  def _key(self, queries: Sequence[Query]) -> str:
    """A hash of all that decides a ranking, but for how many ranks it has."""
    digest = hashlib.sha256(repr((self._store.documents_hash, self._store.settings, self._lengths)).encode())
    for query in queries:
      for text in (query.text, query.passage_id or "", query.passage):
        data = text.encode(errors="surrogatepass")
        digest.update(b"%d " % len(data) + data)
    return digest.hexdigest()[:32]

  def _search(self, queries: Sequence[Query], place: dict[str, int], k: int) -> Rankings:
    if self._searcher is None:
      self._searcher = Searcher(self._store, self._model.mesh)
    queries_QxD = self._embed(list(place), "query")
    scores_QxK, rows_QxK = self._searcher.search(queries_QxD, k, self._progress)
    return Rankings(rows_QxK, scores_QxK, self._positive_scores(queries, queries_QxD, place))

  def _embed(self, texts: list[str], tower: str) -> np.ndarray:
    return embed(self._model, texts, tower, self._lengths[tower], progress=self._progress)

  def _positive_scores(self, queries: Sequence[Query], queries_QxD: np.ndarray, place: dict[str, int]) -> np.ndarray:
    """float32 `[P]`, of each query's passage: from the store where that is there, else of its text."""
    scores = np.zeros(len(queries), np.float32)
    rows = [self._rows.get(query.passage_id) for query in queries]
    for row, i in sorted((row, i) for i, row in enumerate(rows) if row is not None):  # As they lie on disk.
      scores[i] = queries_QxD[place[queries[i].text]] @ self._store[row:row + 1][0]
    others = iter(sorted((queries[i].passage, i) for i, row in enumerate(rows) if row is None))
    while block := list(itertools.islice(others, _EMBEDDED_AT_ONCE)):
      texts = list(dict.fromkeys(passage for passage, _ in block))
      embedded = dict(zip(texts, self._embed(texts, "passage"), strict=True))
      for passage, i in block:
        scores[i] = queries_QxD[place[queries[i].text]] @ embedded[passage]
    return scores

  def passage(self, row: int) -> tuple[str, str, str]:
    return self._store.document(row)

  def row_of(self, passage_id: str) -> int | None:
    return self._rows.get(passage_id)
