"""Rankings that are there already, as TREC runs: of earlier evaluations, or of other programs."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from gtr_jax.collections.protocol import Task
from gtr_jax.errors import InputError
from gtr_jax.evaluation.results_file import DEPTH
from gtr_jax.io.paths import location
from gtr_jax.retrieval.runs import Run, best_k, read_run


@dataclasses.dataclass(frozen=True)
class GivenRun:
  """A run, and its file."""

  path: epath.Path
  run: Run

  def check(self, tasks: Sequence[Task]) -> None:
    """Raises InputError unless there is one collection, and the run is of its queries and documents.

    Queries that the run does not have count as 0, as in trec_eval: of a query for which nothing is found there is no
    line.
    """
    if len(tasks) != 1:
      raise InputError(f"--run: a run is of one collection, and {len(tasks)} are given; evaluate each alone")
    collection = tasks[0].collection
    if not self.run.keys() & set(collection.query_ids):
      raise InputError(f"{self.path}: none of its {len(self.run):,} queries is one of {collection.name}'s; give a run "
                       "of this collection")
    known = set(collection.documents.ids)
    for query_id, ranking in self.run.items():
      if unknown := [doc_id for doc_id in ranking.doc_ids if doc_id not in known]:
        raise InputError(f"{self.path}: ranks document {unknown[0]!r:.80} for query {query_id!r:.80}, which "
                         f"{collection.name} does not have; give a run of this collection")

  def of(self, task: Task) -> Run:
    """The rankings of the task's queries, as deep as those of other systems."""
    return {query_id: best_k(query_id, *self.run[query_id], DEPTH, task.protocol.exclude_own_id)
            for query_id in task.collection.query_ids if query_id in self.run}


def read_given_run(path: epath.PathLike) -> GivenRun:
  """Reads a run. Raises InputError where it is none."""
  path = location(path)
  run = read_run(path)
  if not run:
    raise InputError(f"{path}: no rankings; give a TREC run (query Q0 document rank score system, a line each)")
  return GivenRun(path, run)
