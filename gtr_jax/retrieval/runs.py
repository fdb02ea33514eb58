"""Rankings, and the TREC run files that hold them."""

import os
from typing import NamedTuple

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import lines
from gtr_jax.io.atomic import replacing
from gtr_jax.io.paths import location


class Ranking(NamedTuple):
  """The documents found for one query, best first: score descending, equal scores by document id descending.

  That is the order in which trec_eval reads a run (ids as byte strings; Python compares str in the same order).
  """

  doc_ids: list[str]
  scores: np.ndarray  # float32 [documents]


Run = dict[str, Ranking]
"""query id -> ranking."""


def in_order(doc_ids: list[str], scores: np.ndarray) -> Ranking:
  """Sorts into trec_eval's order."""
  scores = np.asarray(scores, np.float32)
  by_id = np.asarray(sorted(range(len(doc_ids)), key=doc_ids.__getitem__, reverse=True), np.int64)
  order = by_id[np.argsort(-scores[by_id], kind="stable")]
  return Ranking([doc_ids[i] for i in order], scores[order])


def best_k(query_id: str, doc_ids: list[str], scores: np.ndarray, k: int, exclude_own_id: bool) -> Ranking:
  """The first k of an ordered ranking; `exclude_own_id` first drops the document whose id is the query's own.

  BEIR asks for that where the queries are documents of the corpus (ArguAna, Quora); rank k + 1 documents to keep k.
  """
  if exclude_own_id and query_id in doc_ids:
    own = doc_ids.index(query_id)
    doc_ids, scores = doc_ids[:own] + doc_ids[own + 1:], np.delete(scores, own)
  return Ranking(doc_ids[:k], scores[:k])


def write_run(path: epath.PathLike, run: Run, system: str) -> None:
  """Writes "query Q0 document rank score system" lines; the file appears under its name only when whole.

  A score is written as the shortest decimal of its float32's exact value as a double: reading it back gives the same
  float32, and two scores are equal in the file if and only if they are equal.
  """
  system = "_".join(system.split()) or "run"
  with replacing(path, "w") as f:
    for query_id, ranking in run.items():
      scores = map(repr, np.asarray(ranking.scores, np.float32).tolist())
      f.write("".join([f"{query_id} Q0 {doc_id} {rank} {score} {system}\n" for rank, (doc_id, score) in
                       enumerate(zip(ranking.doc_ids, scores, strict=True), start=1)]))


def read_run(path: epath.PathLike) -> Run:
  """Reads a TREC run and puts each ranking into trec_eval's order, whatever the file's order and ranks say."""
  lines.size_of(path)
  found: dict[str, dict[str, float]] = {}
  for place, line in lines.read_text(lines.Part(os.fspath(location(path)))):
    if not (fields := lines.columns(line)):
      continue
    if len(fields) != 6:
      raise InputError(f"{place}: {len(fields)} columns instead of the 6 of a TREC run: query Q0 document rank "
                       "score system")
    query_id, _, doc_id, _, written, _ = fields
    try:
      score = float(written)
    except ValueError as e:
      raise InputError(f"{place}: the score {written!r} is not a number") from e
    if not np.isfinite(score):
      raise InputError(f"{place}: the score is {score}; scores must be finite")
    scores = found.setdefault(query_id, {})
    if doc_id in scores:
      raise InputError(f"{place}: document {doc_id!r} occurs twice for query {query_id!r}")
    scores[doc_id] = score
  return {query_id: in_order(list(scores), np.asarray(list(scores.values()))) for query_id, scores in found.items()}
