"""Measures equal their formulas and trec_eval, for which ties go to the higher document id."""

import math

import numpy as np
import pytest
import pytrec_eval

from gtr_jax.evaluation import measures
from gtr_jax.evaluation.measures import measure
from gtr_jax.retrieval.runs import Ranking, in_order


def test_formulas_by_hand():
  qrels = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"a": 1}}
  run = {"q1": Ranking(["c", "b", "x", "a"], np.float32([4, 3, 2, 1])), "not judged": Ranking(["a"], np.float32([1]))}
  dcg, ideal = 1 / math.log2(3) + 2 / math.log2(5), 2 + 1 / math.log2(3)
  expected = {"nDCG@10": dcg / ideal / 2, "MRR@10": 0.5 / 2, "Recall@100": 1 / 2,
              "Capped recall@100": 1 / 2, "MAP": (1 / 2 + 2 / 4) / 2 / 2}
  assert measure(run, qrels) == pytest.approx(expected)
  assert list(measure(run, qrels)) == ["nDCG@10", "MRR@10", "Recall@100", "Capped recall@100", "MAP"]


def test_cuts():
  ids = [f"{i:03}" for i in range(200)]
  run = {"q": Ranking(ids, -np.arange(200, dtype=np.float32))}
  assert measure(run, {"q": {"009": 1}})["MRR@10"] == pytest.approx(0.1)
  assert measure(run, {"q": {"010": 1}})["MRR@10"] == 0
  assert measure(run, {"q": {"010": 1}})["nDCG@10"] == 0
  assert measure(run, {"q": {"099": 1, "100": 1}})["Recall@100"] == 0.5
  assert measure(run, {"q": {"199": 1}})["MAP"] == pytest.approx(1 / 200)


def test_equals_trec_eval_on_runs_full_of_ties(monkeypatch):
  """pytrec_eval is trec_eval's own C code; it reads the scores and breaks the ties itself."""
  monkeypatch.setattr(measures, "_QUERIES_AT_ONCE", 7)
  rng = np.random.default_rng(0)
  ids = [str(i) for i in range(60)] + ["é", "z", "Z", "ab", "a"]
  run, qrels = {}, {}
  for q in range(40):
    found = rng.permutation(ids)[:30].tolist()
    run[f"q{q}"] = in_order(found, rng.integers(0, 4, 30) / np.float32(7))
    qrels[f"q{q}"] = {i: int(rng.integers(0, 3)) for i in rng.permutation(ids)[:15].tolist()}
    qrels[f"q{q}"][found[0]] = 1
  by_trec_eval = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recip_rank", "recall.100", "map"}).evaluate(
      {q: dict(zip(r.doc_ids, r.scores.tolist(), strict=True)) for q, r in run.items()})

  def mean(name):
    return np.mean([values[name] for values in by_trec_eval.values()])

  cut = {q: Ranking(r.doc_ids[:10], r.scores[:10]) for q, r in run.items()}
  by_trec_eval_at_10 = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(
      {q: dict(zip(r.doc_ids, r.scores.tolist(), strict=True)) for q, r in cut.items()})
  assert measure(run, qrels) == pytest.approx({
      "nDCG@10": mean("ndcg_cut_10"), "Recall@100": mean("recall_100"), "MAP": mean("map"),
      "Capped recall@100": mean("recall_100"),  # No query has more than 100 relevant documents.
      "MRR@10": np.mean([values["recip_rank"] for values in by_trec_eval_at_10.values()])}, abs=1e-7)


def test_capped_recall_can_reach_1_where_more_than_100_are_relevant():
  """hits / min(relevant, 100), by trec_eval: precision@100 where 100 or more are relevant, else recall@100."""
  rng = np.random.default_rng(1)
  ids = [f"{i:03}" for i in range(400)]
  run = {f"q{q}": Ranking(rng.permutation(ids)[:300].tolist(), -np.arange(300, dtype=np.float32)) for q in range(6)}
  run["perfect"] = Ranking(ids, -np.arange(400, dtype=np.float32))
  qrels = {f"q{q}": dict.fromkeys(rng.permutation(ids)[:number].tolist(), 1)
           for q, number in enumerate((1, 99, 100, 101, 250, 400))}
  qrels["q1"] |= dict.fromkeys(set(ids) - qrels["q1"].keys(), 0)  # Judged not relevant; -1 occurs in TREC-COVID.
  qrels["q4"] |= dict.fromkeys(set(ids) - qrels["q4"].keys(), -1)
  qrels["perfect"] = dict.fromkeys(ids[:300], 1)
  theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recall.100", "P.100"}).evaluate(
      {q: dict(zip(r.doc_ids, r.scores.tolist(), strict=True)) for q, r in run.items()})
  expected = np.mean([values["P_100" if sum(g > 0 for g in qrels[q].values()) >= 100 else "recall_100"]
                      for q, values in theirs.items()])
  found = measure(run, qrels)
  assert found["Capped recall@100"] == pytest.approx(expected, abs=1e-9)
  assert found["Recall@100"] < expected
  only = {"perfect": qrels["perfect"]}
  assert measure(run, only)["Capped recall@100"] == 1 and measure(run, only)["Recall@100"] == pytest.approx(1 / 3)
