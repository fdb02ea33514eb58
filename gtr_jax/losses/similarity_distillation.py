"""A student that finds in a batch what a teacher finds there.

Letters: G groups, Q pairs in the global batch, D student's width, T teacher's width. R blocks of B rows, C of columns.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gtr_jax.losses.blocks import from_blocks, in_blocks, side
from gtr_jax.losses.in_batch import NO_PARAMS, dots
from gtr_jax.losses.own_params import check_own_params
from gtr_jax.losses.rounds import Ring, after, on_mesh, total
from gtr_jax.losses.sweeps import block_size, gradient_sweep, sweep
from gtr_jax.losses.teacher import OfTeacher, vectors_of
from gtr_jax.models.pooling import l2_normalize
from gtr_jax.parallel.partitioning import BATCH_AXES, slices_of_shards
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive, Range


@dataclass(frozen=True)
class SimilarityDistillationLoss:
  """KL divergence of the student's softmax over all passages of the batch from the teacher's, for each query.

  With q, p the student's embeddings, u, v the teacher's vectors of the same texts, and c any positive or hard negative
  of the global batch of which there is a vector,

    T_i(c) = softmax over c of cos(u_i, v_c) / teacher_temperature
    S_i(c) = softmax over c of q_i . p_c / temperature
    loss   = mean_i sum_c T_i(c) (log T_i(c) - log S_i(c))

  (in-batch distillation from a bi-encoder: Lin et al. 2020, arXiv 2010.11386, equation 5; this is what
  sentence-transformers' DistillKLDivLoss is over lists of given scores). With `bidirectional`, likewise from each
  positive to all queries. No mask is needed: the teacher says which passages are alike. Take it where the student's
  vectors may lie elsewhere than the teacher's, or are shorter (inside `MatryoshkaLoss` too), and as a loss beside
  `EmbeddingDistillationLoss`, which says nothing of order; large batches help.

  Memory is linear in the batch: candidates travel round the devices with the teacher's vectors, as in `RingLoss`.

  Attributes:
    teacher_dim: width of the teacher's vectors; None: that of the student's.
    temperature: divides the student's dot products.
    teacher_temperature: divides the teacher's cosines; lower is sharper.
    bidirectional: add the backward direction.
    slices: as of `RingLoss`.
  """

  teacher_dim: Positive | None = None
  temperature: Annotated[float, Range(above=0, why="0.05")] = 0.05
  teacher_temperature: Annotated[float, Range(above=0, why="0.05")] = 0.05
  bidirectional: bool = True
  slices: tuple[int, ...] = ()

  needs_candidates = False

  def __post_init__(self):
    check_fields(self)

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "SimilarityDistillationLoss":
    """The same loss, for the slices of this mesh."""
    return dataclasses.replace(self, slices=slices_of_shards(mesh))

  def of_teacher(self, dim: int) -> OfTeacher:
    """Vectors."""
    return OfTeacher(vectors=self.teacher_dim or dim)

  def init_params(self, dim: int) -> dict[str, jax.Array]:
    """None."""
    del dim
    return {}

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Any, *,
               params: Mapping[str, jax.Array] = NO_PARAMS,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `InBatchLoss`, of a batch with a teacher's vectors.

    Returns:
      The loss, and as metrics "loss", and "agreement": of the queries, the share whose nearest passage is the
      teacher's.
    """
    del train
    check_own_params(self, params, ())
    block = block_size(self, queries)
    vectors = [l2_normalize(x) for x in vectors_of(self, batch)]
    dtype = functools.reduce(jnp.promote_types, [x.dtype for x in (queries, passages, *vectors)])
    of_sides = []
    for x, of_teacher, rest in ((queries, vectors[0], batch.negative_query_valid),
                                (passages, vectors[1], batch.negative_valid)):
      there = jnp.concatenate([jnp.asarray(batch.valid), jnp.asarray(rest)], axis=1) & jnp.any(of_teacher != 0, axis=-1)
      there = after(x, there)
      of_sides.append((jnp.concatenate([x.astype(dtype), of_teacher.astype(dtype)], axis=-1), there))
    (q, valid_q), (p, valid_p) = of_sides
    pairs = batch.valid.shape[1]
    static = _Static(self.slices, queries.shape[-1], 1 / self.temperature, 1 / self.teacher_temperature, block)
    sums = _sums(static, q[:, :pairs], valid_q[:, :pairs], p, valid_p)
    loss, agreement = (x / jnp.maximum(sums[2], 1) for x in sums[:2])
    if self.bidirectional:
      p, q = after(loss, (p, q))
      back = _sums(static, p[:, :pairs], valid_p[:, :pairs], q, valid_q)
      loss += back[0] / jnp.maximum(back[2], 1)
    return loss, {"loss": loss, "agreement": agreement}


class _Static(NamedTuple):
  """What decides the program; both scales are 1 / temperature."""

  slices: tuple[int, ...]
  dim: int
  scale: float
  teacher_scale: float
  block: int


class _Seen(NamedTuple):
  """What is known of each row from the blocks so far, `[R, B]`.

  The largest logit and the sum of exp(logit - largest), of the student's s and of the teacher's t; the sum of
  exp(t - largest t) (t - s); and the student's logit at the largest t.
  """

  top: jax.Array
  exp_sum: jax.Array
  teacher_top: jax.Array
  teacher_sum: jax.Array
  cross: jax.Array
  at_top: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(static, rows, row_valid, columns, column_valid):
  """Of all valid rows: divergences, whether student and teacher have one nearest column, and 1, each summed."""
  return _forward(static, rows, row_valid, columns, column_valid)[0]


def _forward(static, *inputs):
  grouped, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  local = on_mesh(functools.partial(_local_forward, static), (grouped,) * 4, (whole, grouped))
  result, saved = local(*inputs)
  return result, (*inputs, after(result, saved))


def _backward(static, residuals, cotangents):
  grouped, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  residuals, cotangent = after(cotangents[0], residuals), cotangents[0]
  local = on_mesh(functools.partial(_local_backward, static), (*(grouped,) * 5, whole), (grouped, grouped))
  d_rows, d_columns = local(*residuals, cotangent)
  return d_rows, None, d_columns, None


_sums.defvjp(_forward, _backward)


def _sides(static, rows, row_valid, columns, column_valid):
  return (side(rows, row_valid, (), (), (), static.block), side(columns, column_valid, (), (), (), static.block))


def _logits_of(static):
  def logits_of(row, column):
    return (dots(row[:, :static.dim], column[:, :static.dim]) * static.scale,
            dots(row[:, static.dim:], column[:, static.dim:]) * static.teacher_scale)
  return logits_of


def _local_forward(static, rows, row_valid, columns, column_valid):
  """One device's part: the sums over all devices; and of each row log sum exp of both kinds of logits."""
  row_side, column_side = _sides(static, rows, row_valid, columns, column_valid)
  zeros = jnp.zeros_like(row_side.facts.valid, rows.dtype)
  least = zeros + jnp.finfo(rows.dtype).min
  seen, _ = sweep(Ring(static.slices), row_side, column_side, _logits_of(static), _add,
                  _Seen(least, zeros, least, zeros, zeros, least))
  seen = jax.tree.map(lambda x: x.reshape(-1)[:row_valid.size], seen)
  valid = row_valid.reshape(-1) & (seen.teacher_sum > 0)
  sums = jnp.where(valid, seen.exp_sum, 1), jnp.where(valid, seen.teacher_sum, 1)
  log_sum, teacher_log_sum = seen.top + jnp.log(sums[0]), seen.teacher_top + jnp.log(sums[1])
  divergence = seen.cross / sums[1] - teacher_log_sum + log_sum
  results = jnp.stack([divergence, (seen.at_top >= seen.top).astype(rows.dtype), jnp.ones_like(divergence)])
  return tuple(total(jnp.where(valid, results, 0))), (log_sum, teacher_log_sum)


def _add(seen, logits, axis):
  s, t = logits
  here = jnp.isfinite(t)
  top, teacher_top = (jnp.maximum(old, jnp.max(x, axis)) for old, x in ((seen.top, s), (seen.teacher_top, t)))
  kept, teacher_kept = jnp.exp(seen.top - top), jnp.exp(seen.teacher_top - teacher_top)
  weights = jnp.exp(t - jnp.expand_dims(teacher_top, axis))
  best = jnp.max(jnp.where(t == jnp.expand_dims(teacher_top, axis), s, -jnp.inf), axis)
  return _Seen(
      top, seen.exp_sum * kept + jnp.sum(jnp.exp(s - jnp.expand_dims(top, axis)), axis), teacher_top,
      seen.teacher_sum * teacher_kept + jnp.sum(weights, axis),
      seen.cross * teacher_kept + jnp.sum(weights * jnp.where(here, t - s, 0), axis),
      jnp.maximum(best, jnp.where(teacher_top > seen.teacher_top, -jnp.inf, seen.at_top)))


def _local_backward(static, rows, row_valid, columns, column_valid, saved, cotangent):
  """One device's part of the gradients with respect to rows and columns; nothing of the teacher's part."""
  row_side, column_side = _sides(static, rows, row_valid, columns, column_valid)
  shape = row_side.facts.valid.shape
  weights = (*(in_blocks(x, shape) for x in saved), in_blocks(row_valid.reshape(-1).astype(rows.dtype), shape))

  def d_logits(logits, weights, axis):
    log_sum, teacher_log_sum, valid = (jnp.expand_dims(x, axis) for x in weights)
    return valid * (jnp.exp(logits[0] - log_sum) - jnp.exp(logits[1] - teacher_log_sum))

  d_rows, d_columns = gradient_sweep(Ring(static.slices), row_side, column_side, _logits_of(static), d_logits,
                                     jnp.zeros_like(row_side.x), weights)
  of_student = (jnp.arange(rows.shape[-1]) < static.dim).astype(rows.dtype) * cotangent * static.scale
  return from_blocks(d_rows, rows) * of_student[None, None], from_blocks(d_columns, columns) * of_student[None, None]
