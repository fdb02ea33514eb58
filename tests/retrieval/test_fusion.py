"""Fusion against its formulas, written out with loops in float64."""

import math

import numpy as np
import pytest

from gtr_jax.retrieval import fusion
from gtr_jax.retrieval.fusion import choose_weight, convex, prior_weight, rrf
from gtr_jax.retrieval.runs import Ranking, in_order


def random_run(seed, queries=40, documents=30, found=12, least=-0.5):
  rng = np.random.default_rng(seed)
  run = {}
  for query in range(queries):
    number = int(rng.integers(0, found + 1))
    ids = [f"d{i}" for i in rng.permutation(documents)[:number]]
    run[f"q{query}"] = in_order(ids, np.round(rng.uniform(max(least, 0.01) if least >= 0 else least, 3, number), 2))
  return run


DENSE, BM25 = random_run(0), random_run(1, least=0)
BM25.pop("q3")
DENSE.pop("q5")


def equal(run, expected, depth):
  """Whether rankings are those of query -> document -> score, the ids of equal float32 scores descending."""
  assert run.keys() == expected.keys()
  for query_id, scores in expected.items():
    scores = {doc_id: np.float32(score) for doc_id, score in scores.items()}
    ids = sorted(scores, key=lambda doc_id: (scores[doc_id], doc_id), reverse=True)[:depth]
    assert run[query_id].doc_ids == ids
    np.testing.assert_allclose(run[query_id].scores, [scores[doc_id] for doc_id in ids], rtol=1e-6)


@pytest.mark.parametrize("depth", [5, 1000])
def test_reciprocal_rank_fusion(depth):
  expected = {}
  for query_id in {**DENSE, **BM25}:
    sums = expected[query_id] = {}
    for run in (DENSE, BM25):
      for i, doc_id in enumerate(run[query_id].doc_ids[:depth] if query_id in run else []):
        sums[doc_id] = sums.get(doc_id, 0) + 1 / (60 + i + 1)
  equal(rrf(DENSE, BM25, depth), expected, depth)


@pytest.mark.parametrize("depth", [5, 1000])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_convex_combination(weight, depth):
  expected = {}
  for query_id in {**DENSE, **BM25}:
    sums = expected[query_id] = {}
    for run, share in ((DENSE, weight), (BM25, 1 - weight)):
      ranking = run.get(query_id, Ranking([], np.zeros(0)))
      scores = [float(score) for score in ranking.scores[:depth]]
      for doc_id, score in zip(ranking.doc_ids[:depth], scores, strict=True):
        least = 0.0 if run is BM25 else min(scores)
        normalised = (score - least) / (max(scores) - least) if max(scores) > least else 1.0
        sums[doc_id] = sums.get(doc_id, 0.0) + share * normalised
  equal(convex(DENSE, BM25, weight, depth), expected, depth)


def test_the_prior_weight():
  found, margins = [], []
  for query_id, ranking in BM25.items():
    if not ranking.doc_ids:
      continue
    dense = DENSE[query_id].doc_ids if query_id in DENSE else []
    found.append(1 / (1 + dense.index(ranking.doc_ids[0])) if ranking.doc_ids[0] in dense else 0.0)
    scores = [float(score) for score in ranking.scores]
    margins.append((scores[0] - scores[1]) / scores[0] if len(scores) > 1 else 1.0)
  d = sum(f * m for f, m in zip(found, margins, strict=True)) / sum(margins)
  b = min(sum(found) / len(found) / d, 1)
  assert prior_weight(DENSE, BM25) == pytest.approx(d**4 / (d**4 + b**4), rel=1e-5)
  assert 0 < prior_weight(DENSE, BM25) < 0.1  # Random rankings agree by chance.


def test_the_prior_weight_of_extremes():
  bm25 = {f"q{i}": in_order(["a", "b"], [2.0, 1.0]) for i in range(30)}
  assert prior_weight(bm25, bm25) == 0.5
  assert prior_weight({}, bm25) == prior_weight({"q1": in_order(["b"], [1.0])}, bm25) == 0
  tied = {f"q{i}": in_order(["a", "b"], [1.0, 1.0]) for i in range(30)}
  assert prior_weight(tied, tied) == 0.5
  few = dict(list(bm25.items())[:19]) | {f"none{i}": in_order([], []) for i in range(30)}
  assert prior_weight(few, few) == fusion.USUAL_WEIGHT


def test_a_weak_dense_retriever_has_less_weight_than_a_good_one():
  rng = np.random.default_rng(0)
  ids = [f"d{i}" for i in range(50)]
  bm25 = {f"q{i}": in_order(ids, 5 + rng.normal(size=50)) for i in range(200)}

  def noisy(noise):
    return {query_id: in_order(of.doc_ids, of.scores + noise * rng.normal(size=50)) for query_id, of in bm25.items()}

  weights = [prior_weight(noisy(noise), bm25) for noise in (0.01, 0.5, 2, 10)]
  assert weights == sorted(weights, reverse=True) and weights[0] > 0.4 and weights[-1] < 0.01


def test_the_weight_of_judged_queries_is_the_best_of_all():
  relevant = {query_id: {f"d{(7 * i) % 30}", f"d{(3 * i + 1) % 30}"} for i, query_id in enumerate({**DENSE, **BM25})}

  def value(run):
    """nDCG@10 without the ideal."""
    return sum(1 / math.log2(rank + 1) for query_id, ranking in run.items()
               for rank, doc_id in enumerate(ranking.doc_ids[:10], 1) if doc_id in relevant[query_id])

  weights = [i / 20 for i in range(21)]
  values = [value(convex(DENSE, BM25, weight)) for weight in weights]
  chosen = choose_weight(DENSE, BM25, value, 0.2)
  assert value(convex(DENSE, BM25, chosen)) == pytest.approx(max(values))
  assert any(chosen == pytest.approx(weight) for weight in weights)
  assert choose_weight(DENSE, BM25, lambda run: 1.0, 0.2) == pytest.approx(0.2)  # All alike.
