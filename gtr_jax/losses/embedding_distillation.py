"""A student that gives a teacher's vectors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gtr_jax.errors import InputError
from gtr_jax.losses.in_batch import NO_PARAMS
from gtr_jax.losses.own_params import check_own_params
from gtr_jax.losses.teacher import OfTeacher, vectors_of
from gtr_jax.models.pooling import l2_normalize
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive

_MAP = "teacher_map"


@dataclass(frozen=True)
class EmbeddingDistillationLoss:
  """How far the student's embedding of each text is from the teacher's vector of it.

    loss = mean over all texts x of 1 - cos(e(x), t(x))

  or, where the widths differ, of 1 - cos(e(x) W, t(x)) with a learned map W `[D, T]`, which encoding does not need
  (EmbedDistill: Kim et al. 2023, arXiv 2301.12005, section 4.1; its distance is the squared one, which of vectors of
  length 1 is twice this). Texts are queries, passages and hard negatives, each counts the same; those of which the
  teacher has said nothing do not count.

  Nothing is compared with anything else in the batch: it needs no large batches, no negatives and no pairs that are
  right, and a text's own vector says more of it than one bit of another text. Take it to make a small model of a good
  one. Without a map the student's vectors can be searched beside the teacher's. Memory: nothing but the vectors.

  Attributes:
    teacher_dim: width of the teacher's vectors; None: that of the student's, and no map. Another width of the student
      itself is `DualEncoder.projection_dim`.
  """

  teacher_dim: Positive | None = None

  needs_candidates = False

  def __post_init__(self):
    check_fields(self)

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "EmbeddingDistillationLoss":
    """The same loss."""
    del mesh
    return self

  def of_teacher(self, dim: int) -> OfTeacher:
    """Vectors."""
    return OfTeacher(vectors=self.teacher_dim or dim)

  def init_params(self, dim: int) -> dict[str, jax.Array]:
    """`teacher_map` `[dim, teacher_dim]`, float32, of entries with variance 1 / dim; the same in every run."""
    if self.teacher_dim in (None, dim):
      return {}
    return {_MAP: jax.random.normal(jax.random.key(0), (dim, self.teacher_dim)) / math.sqrt(dim)}

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Any, *,
               params: Mapping[str, jax.Array] = NO_PARAMS,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `InBatchLoss`, of a batch with a teacher's vectors.

    Returns:
      The loss, and as metrics "loss", and the mean cosines "query_cosine" and "passage_cosine".
    """
    del train
    of_queries, of_passages = vectors_of(self, batch)
    width, of_teacher = queries.shape[-1], of_queries.shape[-1]
    if width != of_teacher and of_teacher != self.teacher_dim:
      raise InputError(f"EmbeddingDistillationLoss: embeddings are {width} wide and the teacher's vectors "
                       f"{of_teacher}: set teacher_dim = {of_teacher}; or, inside a MatryoshkaLoss, where a cut "
                       "vector of the teacher's is none of a smaller teacher, distil scores, or add it by "
                       "WeightedSumLoss")
    check_own_params(self, params, () if width == of_teacher else (_MAP,))
    if width != of_teacher and (of_map := params[_MAP].shape[0]) != width:
      raise InputError(f"EmbeddingDistillationLoss: embeddings are {width} wide, and the map to the teacher's vectors "
                       f"is of vectors of {of_map}: it is not for a MatryoshkaLoss, whose vectors are cut; distil "
                       "scores there, or add it by WeightedSumLoss")
    sums, counts = zip(_cosines(queries, of_queries, (batch.valid, batch.negative_query_valid), params.get(_MAP)),
                       _cosines(passages, of_passages, (batch.valid, batch.negative_valid), params.get(_MAP)),
                       strict=True)
    loss = 1 - sum(sums) / jnp.maximum(sum(counts), 1)
    of_sides = [cosines / jnp.maximum(count, 1) for cosines, count in zip(sums, counts, strict=True)]
    return loss, {"loss": loss, "query_cosine": of_sides[0], "passage_cosine": of_sides[1]}


def _cosines(embeddings, vectors, valid, mapping):
  """Their sum, and how many there are."""
  dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
  x, vectors = embeddings.astype(dtype), vectors.astype(dtype)
  if mapping is not None:
    x = jnp.einsum("gnd,dt->gnt", x, mapping.astype(dtype), precision=jax.lax.Precision.HIGHEST)
  there = jnp.concatenate([jnp.asarray(of) for of in valid], axis=1) & jnp.any(vectors != 0, axis=-1)
  cosine = jnp.sum(l2_normalize(x) * l2_normalize(vectors), axis=-1)
  return jnp.sum(jnp.where(there, cosine, 0)), jnp.sum(there.astype(dtype))
