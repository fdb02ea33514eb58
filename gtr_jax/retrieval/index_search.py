"""Search by an approximate index of a store, and what it finds of what an exact search does.

The index says which rows may be the best; their scores are computed anew, by the query and the store's vectors in
float32, and these decide the order. Ties go to the lower row, as in `search.py`.

Shapes: Q queries, D embedding size, C candidates.
"""

import time
from typing import Any

import numpy as np

from gtr_jax.io.bars import Bar
from gtr_jax.retrieval.approximate import Engine
from gtr_jax.retrieval.index_file import read_index
from gtr_jax.retrieval.search import RESCORE, Searcher, Searches
from gtr_jax.retrieval.store import Store, spread_rows

DEPTHS = (10, 100)
SAMPLE = 200         # queries that are measured
_ALONE = 10          # of them, each by itself
_ROUNDING = 1e-6     # of the largest score
_MAX_QUERIES = 256
_MAX_VECTORS = 32_768  # read from the store at once


class IndexSearcher:
  """Searches a store by one of its indices.

  Args:
    store: of the vectors that the index is of.
    engine: the index.
    factor: look at so many times the documents that are asked for.
  """

  def __init__(self, store: Store, engine: Engine, factor: int = RESCORE):
    self._store, self._engine, self._factor = store, engine, factor

  def search(self, queries_QxD: np.ndarray, k: int,
             progress: bool = False) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As `Searcher.search`, but for documents that the index does not lead to.

    Returns:
      Of each query scores float32 and rows int64, k or, where the index leads to no more, fewer.
    """
    queries_QxD = np.ascontiguousarray(queries_QxD, np.float32)
    size = max(1, min(_MAX_QUERIES, _MAX_VECTORS // max(k * self._factor, 1)))
    scores: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    with Bar(len(queries_QxD), "searching", " queries", shown=progress, leave=False) as bar:
      for start in range(0, len(queries_QxD), size):
        part_QxD = queries_QxD[start:start + size]
        found_QxC = self._engine.search(part_QxD, k, self._factor)
        read, place_QxC = np.unique(found_QxC, return_inverse=True)
        vectors = self._store.take(np.maximum(read, 0))
        for query_D, found_C, place_C in zip(part_QxD, found_QxC, place_QxC.reshape(found_QxC.shape), strict=True):
          by_row = np.argsort(found_C)[(found_C < 0).sum():]
          # Each by itself, so that equal vectors have equal scores; and no -0, which is no less than 0.
          of_query = (vectors[place_C[by_row]] * query_D).sum(axis=1) + np.float32(0)
          best = np.argsort(-of_query, kind="stable")[:k]
          scores.append(of_query[best])
          rows.append(found_C[by_row][best])
        bar.update(len(part_QxD))
    return scores, rows


def open_index(store: Store, name: str | None = None, factor: int = RESCORE) -> IndexSearcher:
  """Of the index of this name, or of the only one. Raises InputError, as `read_index`."""
  return IndexSearcher(store, read_index(store, name)[1], factor)


def own_queries(store: Store) -> np.ndarray:
  """Vectors float32 `[Q, D]` of documents, spread over the store, to search it with."""
  return store.take(spread_rows(store.shape[0], SAMPLE))


def measure(exact: Searcher, index: IndexSearcher, queries_QxD: np.ndarray) -> dict[str, Any]:
  """What the index finds of what an exact search does, and how long both take.

  Returns:
    "queries", how many; "recall@10" and "recall@100", the mean share of the documents that the exact search ranks so
    high that the index does too, or others of the same score; "ms", of both the milliseconds of a query, of all at once
    and of one by itself.
  """
  most = max(DEPTHS)
  expected, found = exact.search(queries_QxD, most)[0], index.search(queries_QxD, most)[0]
  shares = {k: [_share(a[:k], b[:k]) for a, b in zip(expected, found, strict=True)] for k in DEPTHS}
  recall = {f"recall@{k}": round(float(np.mean(of_queries)), 4) for k, of_queries in shares.items()}
  return {"queries": len(queries_QxD), **recall, "ms": {
      "exact": _milliseconds(exact, queries_QxD), "index": _milliseconds(index, queries_QxD)}}


def _share(expected: np.ndarray, found: np.ndarray) -> float:
  """Of the best scores those that were found; both were summed in float32, in other orders."""
  return float((found >= expected[-1] - _ROUNDING * np.abs(expected).max()).sum() / len(expected))


def _milliseconds(searcher: Searches, queries_QxD: np.ndarray) -> dict[str, float]:
  """Of a query, after one search that reads and compiles."""
  alone = queries_QxD[:_ALONE]
  searcher.search(alone[:1], max(DEPTHS))
  times = [time.monotonic()]
  for parts in ([queries_QxD], [alone[i:i + 1] for i in range(len(alone))]):
    for part in parts:
      searcher.search(part, max(DEPTHS))
    times.append(time.monotonic())
  return {"all at once": round(1000 * (times[1] - times[0]) / len(queries_QxD), 3),
          "alone": round(1000 * (times[2] - times[1]) / len(alone), 3)}
