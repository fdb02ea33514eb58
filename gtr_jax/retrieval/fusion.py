"""Two rankings of the same queries fused into one: that of a dense retriever, and that of BM25.

By ranks (reciprocal rank fusion) or by scores (a convex combination). What one of the rankings does not have gets
nothing from it, as the last that it has. The weight of a convex combination is chosen on judged queries that are not
those of the test (`choose_weight`), or follows from how far the two agree, where nothing is judged (`prior_weight`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gtr_jax.retrieval.runs import Ranking, Run, in_order

RRF_K = 60
"""Of the paper."""
DEPTH = 1000
"""Documents of each ranking that are fused."""
FEWEST = 20
"""Queries by which a weight is chosen, or the agreement of two retrievers is known."""
USUAL_WEIGHT = 0.2
"""That of the dense retriever where nothing is known of it: enough to help, and too little to do much harm."""
_EXPONENT = 4
_GRID = np.linspace(0, 1, 21)


def rrf(dense: Run, bm25: Run, depth: int = DEPTH) -> Run:
  """Reciprocal rank fusion: the sum of 1 / (60 + rank) over the rankings that have a document.

  Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
  methods".

  Args:
    dense, bm25: in trec_eval's order; a query that one of them lacks has nothing there.
    depth: documents of each that count, and of the result.
  """
  fused = {}
  for query_id in dict.fromkeys([*dense, *bm25]):
    sums: dict[str, float] = {}
    for run in (dense, bm25):
      for rank, doc_id in enumerate(_ranking(run, query_id).doc_ids[:depth], 1):
        sums[doc_id] = sums.get(doc_id, 0.0) + 1 / (RRF_K + rank)
    fused[query_id] = _first(list(sums), np.asarray(list(sums.values())), depth)
  return fused


def convex(dense: Run, bm25: Run, weight: float, depth: int = DEPTH) -> Run:
  """A convex combination: weight * dense score + (1 - weight) * BM25 score, each normalised query by query.

  Bruch, Gai and Ingber 2023, "An analysis of fusion functions for hybrid retrieval" (arXiv 2210.11934): (score - least)
  / (largest - least). The least of BM25 is the least that there can be, 0. That of a dense score would be far below
  all that is ever ranked; it is that of the ranking's last document.

  Args:
    dense, bm25: as of `rrf`; scores of BM25 are above 0.
    weight: in [0, 1].
    depth: likewise.
  """
  return {pair.query_id: _first(pair.doc_ids, pair.combined(weight), depth) for pair in _pairs(dense, bm25, depth)}


def prior_weight(dense: Run, bm25: Run) -> float:
  """The weight of the dense retriever where no query is judged: d^4 / (d^4 + b^4).

  What BM25 ranks first stands for a judgement where it is far ahead of what comes second: d, how well the dense
  retriever does by these, is the mean of 1 / (its rank for that document), each query weighted by BM25's margin, (first
  - second score) / first. Over all queries alike it finds less, m, for BM25 is not always right: b = m / d, at most 1,
  tells how well BM25 does. The exponent is of measurements (docs/hybrid.md): it leaves a retriever little that agrees
  with BM25 only half of the time.

  Args:
    dense, bm25: in trec_eval's order, of queries like those that are asked; `USUAL_WEIGHT` where BM25 finds something
      for fewer than `FEWEST` of them.
  """
  found, margins = [], []
  for query_id, (doc_ids, scores) in bm25.items():
    if doc_ids:
      ranked = _ranking(dense, query_id).doc_ids[:DEPTH]
      found.append(1 / (ranked.index(doc_ids[0]) + 1) if doc_ids[0] in ranked else 0.0)
      margins.append(1 - float(scores[1]) / float(scores[0]) if len(doc_ids) > 1 else 1.0)
  if len(found) < FEWEST:
    return USUAL_WEIGHT
  by_all = float(np.mean(found))
  of_dense = float(np.average(found, weights=margins)) if any(margins) else by_all
  if not of_dense:
    return 0.0
  of_bm25 = min(by_all / of_dense, 1.0)
  return of_dense**_EXPONENT / (of_dense**_EXPONENT + of_bm25**_EXPONENT)


def choose_weight(dense: Run, bm25: Run, value: Callable[[Run], float], prior: float) -> float:
  """The weight, in steps of 0.05, that is best on judged queries; of equally good ones the one nearest to `prior`.

  Args:
    dense, bm25: as of `convex`.
    value: of a run of their queries, ten documents of each: the larger the better.
    prior: as of `prior_weight`.
  """
  pairs = list(_pairs(dense, bm25, DEPTH))
  values = {float(weight): value({pair.query_id: _first(pair.doc_ids, pair.combined(weight), 10) for pair in pairs})
            for weight in _GRID}
  best = max(values.values())
  return min((weight for weight in values if values[weight] == best), key=lambda weight: abs(weight - prior))


class _Pair(NamedTuple):
  """The documents that either ranking of a query has, and their normalised scores, 0 where one does not have it."""

  query_id: str
  doc_ids: list[str]
  dense: np.ndarray
  bm25: np.ndarray

  def combined(self, weight: float) -> np.ndarray:
    """float64 [documents]."""
    return weight * self.dense + (1 - weight) * self.bm25


def _pairs(dense: Run, bm25: Run, depth: int) -> Iterator[_Pair]:
  for query_id in dict.fromkeys([*dense, *bm25]):
    rankings = _ranking(dense, query_id), _ranking(bm25, query_id)
    at = {doc_id: i for i, doc_id in enumerate(dict.fromkeys(
        doc_id for ranking in rankings for doc_id in ranking.doc_ids[:depth]))}
    scores = np.zeros((2, len(at)))
    for of, ranking, least in zip(scores, rankings, (None, 0.0), strict=True):
      of[[at[doc_id] for doc_id in ranking.doc_ids[:depth]]] = _normalised(ranking.scores[:depth], least)
    yield _Pair(query_id, list(at), *scores)


def _ranking(run: Mapping[str, Ranking], query_id: str) -> Ranking:
  return run.get(query_id) or Ranking([], np.zeros(0, np.float32))


def _normalised(scores: np.ndarray, least: float | None) -> np.ndarray:
  """float64 in [0, 1], the first 1; where none is above the least, all are 1."""
  scores = np.asarray(scores, np.float64)
  if not len(scores):
    return scores
  least = scores[-1] if least is None else least
  return (scores - least) / (scores[0] - least) if scores[0] > least else np.ones(len(scores))


def _first(doc_ids: list[str], scores: np.ndarray, depth: int) -> Ranking:
  if len(doc_ids) > depth:  # All that tie at the cut, in float32, stay in for now.
    scores = np.asarray(scores, np.float32)
    kept = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    doc_ids, scores = [doc_ids[i] for i in kept.tolist()], scores[kept]
  ranking = in_order(doc_ids, scores)
  return Ranking(ranking.doc_ids[:depth], ranking.scores[:depth])
