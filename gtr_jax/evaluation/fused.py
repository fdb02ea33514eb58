"""Systems fused with BM25, as rows of the same table; and the queries by which the weights of a fusion are chosen."""

import dataclasses
from collections.abc import Collection as Container
from collections.abc import Sequence

from etils import epath

from gtr_jax.collections.collection import files_of, splits
from gtr_jax.collections.protocol import UNKNOWN_JUDGEMENTS, Task
from gtr_jax.collections.qrels import read_qrels
from gtr_jax.collections.queries import read_queries
from gtr_jax.errors import InputError
from gtr_jax.evaluation.measures import means, of_queries
from gtr_jax.evaluation.results_file import Weight
from gtr_jax.evaluation.sample import sample
from gtr_jax.retrieval.fusion import FEWEST, choose_weight, convex, prior_weight, rrf
from gtr_jax.retrieval.runs import Run
from gtr_jax.text.same_text import folded

BM25 = "BM25"
FUSIONS = ("rrf", "convex")
_VALIDATION = ("dev", "train")  # The first that a collection has; models are trained on the latter.
_MOST = 1000  # Validation queries.


def names(system: str, methods: Sequence[str]) -> list[str]:
  """What the fusions of a system with BM25 are called."""
  return [f"{system} + {BM25} ({method})" for method in methods]


def check(methods: Sequence[str], systems: Container[str]) -> None:
  """Raises InputError unless there are such fusions, and BM25 and another system."""
  for method in methods:
    if method not in FUSIONS:
      raise InputError(f"fusion {method!r}: give one of {', '.join(FUSIONS)}")
  if methods and (BM25 not in systems or len(systems) < 2):
    raise InputError(f"--fuse needs BM25 and another system, and there {'is' if len(systems) == 1 else 'are'} "
                     f"{', '.join(systems) or 'none'}; give --bm25 (or --run BM25=FILE), and --model, --embeddings or "
                     "--run")


def validation_task(folder: epath.PathLike, task: Task) -> Task | None:
  """Judged queries of a collection that are not those of its test, at most 1,000; None where it has fewer than 20.

  Those of qrels/dev, else of qrels/train. A query whose id or text one of the test has is left out.

  Raises:
    InputError: the split cannot be read.
  """
  there = splits(folder)
  split = next((of for of in _VALIDATION if of in there and of != task.protocol.split), None)
  if split is None:
    return None
  files, collection = files_of(folder, split), task.collection
  query_ids, queries = read_queries(files.queries)
  qrels, _ = read_qrels(files.qrels, set(query_ids), set(collection.documents.ids),
                        UNKNOWN_JUDGEMENTS if task.beir else 0.0)
  tested, texts = set(collection.query_ids), {folded(query) for query in collection.queries}
  judged = [i for i, query_id in enumerate(query_ids) if query_id not in tested and folded(queries[i]) not in texts
            and any(grade > 0 for grade in qrels.get(query_id, {}).values())]
  taken = [judged[i] for i in sample([query_ids[i] for i in judged], _MOST)]
  if len(taken) < FEWEST:
    return None
  return task._replace(collection=dataclasses.replace(
      collection, split=split, query_ids=[query_ids[i] for i in taken], queries=[queries[i] for i in taken],
      qrels={query_ids[i]: qrels[query_ids[i]] for i in taken}))


def of_known_queries(task: Task, known: Container[str]) -> Task | None:
  """The task with those queries alone that are known; None where they are fewer than 20."""
  collection = task.collection
  kept = [i for i, query_id in enumerate(collection.query_ids) if query_id in known]
  if len(kept) < FEWEST:
    return None
  query_ids = [collection.query_ids[i] for i in kept]
  return task._replace(collection=dataclasses.replace(
      collection, query_ids=query_ids, queries=[collection.queries[i] for i in kept],
      qrels={query_id: collection.qrels[query_id] for query_id in query_ids}))


def with_validation(task: Task, validation: Task | None) -> Task:
  """A task with the queries of both, so that all are ranked at once."""
  if validation is None:
    return task
  parts = task.collection, validation.collection
  return task._replace(collection=dataclasses.replace(
      task.collection, query_ids=[query_id for part in parts for query_id in part.query_ids],
      queries=[query for part in parts for query in part.queries]))


def of_task(run: Run, task: Task) -> Run:
  """The rankings of the task's queries."""
  return {query_id: run[query_id] for query_id in task.collection.query_ids if query_id in run}


def fuse(method: str, dense: Run, bm25: Run, task: Task, validation: Task | None) -> tuple[Run, Weight | None]:
  """Fuses the rankings of the task's queries.

  Args:
    method: one of `FUSIONS`.
    dense, bm25: of the queries of both tasks.
    task: whose rankings are fused; its judgements are not looked at.
    validation: the queries by whose judgements the weight of a convex combination is chosen.

  Returns:
    The rankings, and of a convex combination its weight.
  """
  of_dense, of_bm25 = of_task(dense, task), of_task(bm25, task)
  if method == "rrf":
    return rrf(of_dense, of_bm25), None
  if validation is None:
    weight: Weight = {"weight": prior_weight(of_dense, of_bm25), "by": "agreement",
                      "queries": len(task.collection.query_ids)}
  else:
    judged, qrels = (of_task(dense, validation), of_task(bm25, validation)), validation.collection.qrels
    chosen = choose_weight(*judged, lambda run: means({"": of_queries(run, qrels)["nDCG@10"]})[""],
                           prior_weight(*judged))
    weight = {"weight": chosen, "by": validation.collection.split, "queries": len(qrels)}
  return convex(of_dense, of_bm25, weight["weight"]), {**weight, "weight": round(weight["weight"], 4)}
