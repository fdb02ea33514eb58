"""A step has one program for each shape of its batch. The usual shapes are compiled before the first step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gtr_jax.io.bars import Bar
from gtr_jax.parallel import processes
from gtr_jax.parallel.partitioning import batch_sharding
from gtr_jax.parallel.progress import COMPILATION, doing
from gtr_jax.text.batch import Batch

Shape = tuple[tuple[int, ...], ...]


def shape_of(batch: Batch) -> Shape:
  """Of all its arrays."""
  return tuple(x.shape for x in jax.tree.leaves(batch))


def in_words(batch: Batch) -> str:
  """Such as "queries 24 x 64, passages 40 x 288": rows and their length, before them groups and microbatches."""
  def of(texts):
    groups, *others = texts.tokens.shape
    return " x ".join(map(str, others if groups == 1 else (groups, *others)))

  return f"queries {of(batch.queries)}, passages {of(batch.passages)}"


class Programs:
  """Calls a function under jit, or the program that was compiled of it for the shape of the batch.

  Several processes compile and then wait for each other: devices that meet for the first time wait 30 seconds only
  (gloo), and compilations take as long as each machine is busy.

  Args:
    function: of a state or of parameters, and a batch.
  """

  def __init__(self, function: jax.stages.Wrapped):
    self._function = function
    self._compiled: dict[Shape, jax.stages.Compiled] = {}

  def __call__(self, first: Any, batch: Batch) -> Any:
    if jax.process_count() > 1 and not self.has(batch):
      self.compile(first, batch)
      processes.wait_for_all()
    return self._compiled.get(shape_of(batch), self._function)(first, batch)

  def has(self, batch: Batch) -> bool:
    """Whether the program for this shape was compiled before."""
    return shape_of(batch) in self._compiled

  def compile(self, first: Any, batch: Batch) -> None:
    """Compiles the program for these shapes, under `jax.set_mesh`; nothing runs."""
    self._compiled[shape_of(batch)] = self._function.lower(first, batch).compile()


class Wanted(NamedTuple):
  """A program to compile: what it is called, of what, and for which arguments."""

  what: str
  programs: Programs
  first: Any
  batch: Batch


def compile_ahead(mesh: Mesh, wanted: Sequence[Wanted]) -> None:
  """Compiles them, one after the other, in one process that has all groups of the batches."""
  with (jax.set_mesh(mesh), doing(COMPILATION),
        Bar(len(wanted), "compiling", " programs", leave=False) as bar):
    for number, (what, programs, first, batch) in enumerate(wanted, 1):
      bar.now(f"{number} of {len(wanted)} ({what}: {in_words(batch)})")
      sharding = batch_sharding(mesh)
      programs.compile(first, jax.tree.map(
          lambda x, sharding=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch))


def known(step: Callable, batch: Batch) -> bool:
  """Whether a step need not compile for this batch, as far as it can say."""
  return isinstance(step, Programs) and step.has(batch)
