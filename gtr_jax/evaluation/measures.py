"""The measures of a run, by ir-measures: trec_eval's values; and BEIR's capped recall."""

import math
from collections.abc import Mapping

import ir_measures
from ir_measures import AP, RR, R, nDCG

from gtr_jax.collections.qrels import Qrels
from gtr_jax.retrieval.runs import Run

_BY_IR_MEASURES = {"nDCG@10": nDCG @ 10, "MRR@10": RR @ 10, "Recall@100": R @ 100, "MAP": AP}
CAPPED = "Capped recall@100"
MEASURES = ("nDCG@10", "MRR@10", "Recall@100", CAPPED, "MAP")
_QUERIES_AT_ONCE = 1000


def measure(run: Run, qrels: Qrels) -> dict[str, float]:
  """The means of `of_queries`: a value in [0, 1] for each name in `MEASURES`."""
  return means(of_queries(run, qrels))


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """measure -> mean over the queries."""
  return {name: math.fsum(of.values()) / len(of) for name, of in values.items()}


def of_queries(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
  """The values of all judged queries; a judged query that the run lacks counts as 0.

  Args:
    run: rankings in trec_eval's order (`gtr_jax.retrieval.runs`); queries without judgements are ignored. MAP and
      Recall see as deep as the run goes; 1,000 is trec_eval's custom. Capped recall (Thakur et al. 2021, arXiv
      2104.08663, for TREC-COVID) is hits / min(relevant, 100): where more than 100 documents are relevant, 1 can be
      reached.
    qrels: the judgements.

  Returns:
    For each name in `MEASURES`: query id -> value in [0, 1], in the order of the judgements.
  """
  names = {str(m): name for name, m in _BY_IR_MEASURES.items()}
  values = {name: dict.fromkeys(qrels, 0.0) for name in MEASURES}
  query_ids = list(qrels)
  for start in range(0, len(query_ids), _QUERIES_AT_ONCE):
    part = query_ids[start:start + _QUERIES_AT_ONCE]
    ranked = {query_id: run[query_id].doc_ids for query_id in part if query_id in run}
    last = {query_id: _last_judged(doc_ids, qrels[query_id]) for query_id, doc_ids in ranked.items()}
    # Ranks instead of scores, for ir-measures computes RR@10 by a tool that breaks ties the other way round. It also
    # sorts all that it is given, in Python, and gets no more than what makes a difference.
    for measures, depth in (([RR @ 10], 10), ([m for m in _BY_IR_MEASURES.values() if m != RR @ 10], None)):
      ranks = {query_id: {doc_id: float(-rank) for rank, doc_id in enumerate(doc_ids[:depth or last[query_id]])}
               for query_id, doc_ids in ranked.items()}
      for value in ir_measures.iter_calc(measures, {q: qrels[q] for q in part}, ranks):
        values[names[str(value.measure)]][value.query_id] = value.value
    for query_id in part:
      relevant = {doc_id for doc_id, grade in qrels[query_id].items() if grade > 0}
      if relevant and query_id in run:
        hits = len(relevant.intersection(run[query_id].doc_ids[:100]))
        values[CAPPED][query_id] = hits / min(len(relevant), 100)
  return values


def _last_judged(doc_ids: list[str], judged: Mapping[str, int]) -> int:
  """The rank of the last judged document, behind which nothing changes a measure; 1 at least: it is an answer."""
  return max((rank for rank, doc_id in enumerate(doc_ids, start=1) if doc_id in judged), default=1)
