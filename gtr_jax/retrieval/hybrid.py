"""Search by a store's embeddings and by its BM25 index, fused: one ranking."""

import bisect
from collections.abc import Sequence

import numpy as np

from gtr_jax.parallel import processes
from gtr_jax.retrieval.bm25_file import bm25_of
from gtr_jax.retrieval.fusion import DEPTH, convex, prior_weight
from gtr_jax.retrieval.runs import Ranking, Run
from gtr_jax.retrieval.search import Searches, search_run
from gtr_jax.retrieval.store import Store


class Hybrid:
  """Searches a store both ways. All processes take part; process 0 has the index, which it builds where there is none.

  Args:
    searcher: over the store's embeddings.
    store: of documents with texts.
    weight: of the embeddings, as of `convex`; None: as `prior_weight` says of the queries of a call.
    progress: show progress bars on stderr, and say there what is built.

  Raises:
    InputError: as `bm25_of`.
  """

  def __init__(self, searcher: Searches, store: Store, weight: float | None = None, progress: bool = True):
    self._searcher, self._store, self._weight, self._progress = searcher, store, weight, progress
    self._index = bm25_of(store, progress) if processes.is_first() else None

  def search(self, query_ids: Sequence[str], texts: Sequence[str], queries_QxD: np.ndarray, k: int,
             rows: range | None = None, weight: float | None = None) -> tuple[Run, float]:
    """Ranks the best k documents for each query.

    Args:
      query_ids, texts, queries_QxD: of each query.
      k: documents per query, of those that either search ranks among its first 1,000 (or k, where that is more).
      rows: consecutive ones of the store, which are searched alone; default: all.
      weight: of the embeddings, instead of that of all calls.

    Returns:
      The rankings, and the weight of the embeddings; the same in all processes.
    """
    ids, depth = self._store.ids, max(k, DEPTH)
    dense = search_run(self._searcher, ids, list(query_ids), queries_QxD, depth, progress=False, rows=rows)

    def fused():
      assert self._index is not None
      found = self._index.search(texts, depth, rows)
      bm25 = {query_id: Ranking([ids[row] for row in of_query.tolist()], scores)
              for query_id, (of_query, scores) in zip(query_ids, found, strict=True)}
      given = self._weight if weight is None else weight
      chosen = prior_weight(dense, bm25) if given is None else given
      run = convex(dense, bm25, chosen, depth)
      return [chosen, [[doc_ids[:k], scores[:k].tolist()] for doc_ids, scores in run.values()]]

    chosen, rankings = processes.from_first(fused)
    return {query_id: Ranking(doc_ids, np.asarray(scores, np.float32))
            for query_id, (doc_ids, scores) in zip(dense, rankings, strict=True)}, chosen

  def row(self, doc_id: str) -> int:
    """The row of a document in the store, whose ids descend."""
    ids = self._store.ids
    return len(ids) - 1 - bisect.bisect_left(range(len(ids)), doc_id, key=lambda i: ids[len(ids) - 1 - i])
