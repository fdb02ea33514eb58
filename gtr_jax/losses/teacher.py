"""What a loss asks of a teacher, for the data to read it and for a batch to carry it (`text.batch.Teacher`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gtr_jax.errors import InputError


class OfTeacher(NamedTuple):
  """What is asked for.

  Attributes:
    vectors: how wide the vectors of queries and passages are; 0: none are needed.
    scores: whether scores of passages are needed.
  """

  vectors: int = 0
  scores: bool = False


NOTHING = OfTeacher()


def of_teacher(loss: Any, dim: int) -> OfTeacher:
  """What a loss over embeddings `[..., dim]` asks for; nothing where it does not say."""
  return loss.of_teacher(dim) if hasattr(loss, "of_teacher") else NOTHING


def vectors_of(loss: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
  """Those of the queries and of the passages of a `text.batch.Batch`, float32 `[groups, texts, T]`."""
  if batch.teacher.queries is None:
    raise _without(loss, "vectors")
  return jnp.asarray(batch.teacher.queries), jnp.asarray(batch.teacher.passages)


def scores_of(loss: Any, batch: Any) -> jax.Array:
  """Those of the passages, float32 `[groups, passages]`, NaN where there is none."""
  if batch.teacher.scores is None:
    raise _without(loss, "scores")
  return jnp.asarray(batch.teacher.scores)


def _without(loss, what):
  return InputError(f"{type(loss).__name__} needs a teacher's {what}, and the batch has none: train with gtr-jax on "
                    "prepared pairs that have them (gtr-jax teach)")
