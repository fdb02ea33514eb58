"""Packed batches of several processes: the same number of rows in all."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gtr_jax.text.batch import Batch, with_rows


def same_row_counts(items: Iterable[Any], mesh: Mesh,
                    batch_of: Callable[[Any], Batch] = lambda item: item.batch) -> Iterator[tuple[Any, Batch]]:
  """Adds empty rows, so that the batch of every process has the rows that the fullest one needs.

  The processes agree on a batch while the step before it runs: nobody waits for more than that step.

  Args:
    items: the same number of them in every process.
    mesh: of all processes.
    batch_of: this process's part of an item's batch.

  Yields:
    (item, its batch), one item late.
  """
  if jax.process_count() == 1:
    yield from ((item, batch_of(item)) for item in items)
    return
  waiting: deque[tuple[Any, Batch, jax.Array]] = deque()

  def ready():
    item, batch, counts = waiting.popleft()
    return item, with_rows(batch, *np.asarray(counts).tolist())

  for item in items:
    batch = batch_of(item)
    waiting.append((item, batch, _largest(_of_all(batch, mesh), mesh)))
    if len(waiting) > 1:
      yield ready()
  while waiting:
    yield ready()


def _of_all(batch: Batch, mesh: Mesh) -> jax.Array:
  """Rows of queries and of passages, int32 `[devices, 2]`: those of the process of each device."""
  own = np.asarray([[texts.tokens.shape[-2] for texts in (batch.queries, batch.passages)]], np.int32)
  with_all = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  return jax.make_array_from_callback((mesh.size, 2), with_all, lambda index: own)


@functools.partial(jax.jit, static_argnames="mesh")
def _largest(counts: jax.Array, mesh: Mesh) -> jax.Array:
  """int32 `[2]`, the largest of each column, on every device."""
  return jax.lax.with_sharding_constraint(counts.max(axis=0), NamedSharding(mesh, PartitionSpec()))
