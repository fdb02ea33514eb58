"""What a loss asks of a teacher, for the data to read it and for a batch to carry it (`text.batch.Taught`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gtr_jax.errors import InputError
from gtr_jax.models.pooling import l2_normalize


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


def guide_of(loss: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
  """`vectors_of` of length 1, and 0 where there is none."""
  queries, passages = (l2_normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32))) for x in vectors_of(loss, batch))
  return queries, passages


def guided_limit(own: jax.Array, guide: tuple[jax.Array, jax.Array], margin: float) -> jax.Array:
  """Above which cosine of the teacher's a candidate of a pair is masked.

  Args:
    own: the teacher's cosines of the pairs.
    guide: its vectors of their queries and positives, `[..., T]`.
    margin: above the own one.

  Returns:
    As `own`; infinite where a vector of the pair is missing, and never below 0, what is said of a candidate without.
  """
  known = jnp.any(guide[0] != 0, axis=-1) & jnp.any(guide[1] != 0, axis=-1)
  return jnp.where(known, jnp.maximum(own + margin, 0), jnp.inf)


def scores_of(loss: Any, batch: Any) -> jax.Array:
  """Those of the passages, float32 `[groups, passages]`, NaN where there is none."""
  if batch.teacher.scores is None:
    raise _without(loss, "scores")
  return jnp.asarray(batch.teacher.scores)


def _without(loss, what):
  return InputError(f"{type(loss).__name__} needs a teacher's {what}, and the batch has none: train with gtr-jax on "
                    "prepared pairs that have them (gtr-jax teach)")
