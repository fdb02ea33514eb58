"""The sigmoid loss: every pair of texts by itself belongs together or not. In blocks, round the mesh.

Letters: G groups, Q pairs in the global batch, N hard negatives, M negative queries, D embedding; R blocks of B
examples.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gtr_jax.losses.blocks import cut, of_texts
from gtr_jax.losses.in_batch import NO_PARAMS
from gtr_jax.losses.own_params import check_own_params
from gtr_jax.losses.rounds import Ring, after, on_mesh, total
from gtr_jax.losses.sweeps import gradient_sweep, prepared, scaled_dots, sweep, with_ahead
from gtr_jax.parallel.partitioning import BATCH_AXES, slices_of_shards
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Range


@dataclass(frozen=True)
class SigmoidLoss:
  """Binary cross entropy of every query with every passage (SigLIP: Zhai et al. 2023, arXiv 2303.15343, equation 1).

  With t = 1 / temperature and b the bias, both learned,

    loss = -1/Q ( sum over pairs i of log sigmoid(t cos(q_i, p_i) + b)
                  + sum over i and c in C_i of log sigmoid(-t cos(q_i, c) - b) )

  where C_i are the other positives and all hard negatives, less those that `InBatchLoss` masks as false negatives; and
  of the negative queries, each with all positives, likewise. No logit is compared with another one, so that a query may
  have several right passages, and small batches do nearly as well as large ones (the paper's, of images and texts).

  Memory is linear in the batch, and candidates travel, as in `RingLoss`.

  Attributes:
    temperature: initial value; `logit_scale` is log(1 / temperature).
    bias: initial value of `logit_bias`: that nearly all are no pairs is then known from the start.
    mask_false_negatives: mask as `InBatchLoss`.
    slices: as of `RingLoss`.
  """

  temperature: Annotated[float, Range(above=0, why="SigLIP: 0.1")] = 0.1
  bias: float = -10.0
  mask_false_negatives: bool = True
  slices: tuple[int, ...] = ()

  def __post_init__(self):
    check_fields(self)

  @property
  def bidirectional(self) -> bool:
    """Negative queries count."""
    return True

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "SigmoidLoss":
    """The same loss, for the slices of this mesh."""
    return dataclasses.replace(self, slices=slices_of_shards(mesh))

  def init_params(self, dim: int) -> dict[str, jax.Array]:
    """`logit_scale` and `logit_bias`, float32 scalars."""
    del dim
    return {"logit_scale": jnp.asarray(-math.log(self.temperature), jnp.float32),
            "logit_bias": jnp.asarray(self.bias, jnp.float32)}

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Any, *,
               params: Mapping[str, jax.Array] = NO_PARAMS,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `InBatchLoss`."""
    del train
    check_own_params(self, params, ("logit_scale", "logit_bias"))
    dtype = jnp.promote_types(jnp.promote_types(queries.dtype, passages.dtype), jnp.float32)
    scale, bias = jnp.exp(params["logit_scale"].astype(dtype)), params["logit_bias"].astype(dtype)
    mask_inputs, block = prepared(self, queries, batch)
    *sums, number_valid = _sums((self, block), queries, passages, mask_inputs, scale, bias)
    loss, accuracy, mrr = (x / jnp.maximum(number_valid, 1) for x in sums)
    return loss, {"loss": loss, "accuracy": accuracy, "mrr": mrr}


class _Seen(NamedTuple):
  """Of each row, `[R, B]`: its loss, and the derivative of that by the bias, from the blocks so far; its own logit, and
  how many of the others are not below it."""

  loss: jax.Array
  slope: jax.Array
  own: jax.Array | None = None
  ahead: jax.Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(static, queries, passages, mask_inputs, scale, bias):
  """Loss, whether the own positive is first, its reciprocal rank, and 1, each summed over all valid pairs."""
  return _forward(static, queries, passages, mask_inputs, scale, bias)[0]


def _forward(static, *inputs):
  grouped, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  local = on_mesh(functools.partial(_local_forward, static), (grouped, grouped, grouped, whole, whole),
                  (whole, (grouped, whole)))
  result, saved = local(*inputs)
  return result, (*inputs, after(jnp.sum(result), saved))


def _backward(static, residuals, cotangents):
  grouped, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  queries, passages, *others = residuals
  queries, passages = after(cotangents[0], (queries, passages))  # One loss after the other.
  local = on_mesh(functools.partial(_local_backward, static),
                  (grouped, grouped, grouped, whole, whole, (grouped, whole), whole), (grouped, grouped, whole, whole))
  d_queries, d_passages, d_scale, d_bias = local(queries, passages, *others, cotangents[0])
  return d_queries, d_passages, None, d_scale, d_bias


_sums.defvjp(_forward, _backward)


def _local_forward(static, queries, passages, mask_inputs, scale, bias):
  """One device's part: the sums over all devices; the own logits, and the derivative by the bias."""
  loss, block = static
  parts = cut(loss, block, queries, passages, mask_inputs)

  def add(sums, logits, axis):
    sums = with_ahead(sums, logits, axis)
    return sums._replace(loss=sums.loss + jnp.sum(jax.nn.softplus(logits + bias), axis),
                         slope=sums.slope + jnp.sum(jax.nn.sigmoid(logits + bias), axis))

  ring, logits_of = Ring(loss.slices), scaled_dots(scale)
  zeros = jnp.zeros_like(parts.pairs[0].facts.valid, scale.dtype)
  rows, _ = sweep(ring, *parts.pairs, logits_of, add, _Seen(zeros, zeros, zeros, zeros), diagonal=True)
  if parts.passages:
    rows, _ = sweep(ring, *parts.passages, logits_of, add, rows)
  if parts.queries:
    nothing = after(rows, _Seen(zeros, zeros))
    more, _ = sweep(ring, *parts.queries, logits_of, add, nothing)
    rows = rows._replace(loss=rows.loss + more.loss, slope=rows.slope + more.slope)
  valid = mask_inputs.valid.reshape(-1)
  rows = jax.tree.map(lambda x: x.reshape(-1)[:valid.size], rows)
  first = (rows.ahead == 0).astype(scale.dtype)
  results = jnp.stack([rows.loss + jax.nn.softplus(-rows.own - bias), first, 1 / (1 + rows.ahead),
                       jnp.ones_like(first), rows.slope - jax.nn.sigmoid(-rows.own - bias)])
  *sums, slope = total(jnp.where(valid, results, 0))
  return jnp.stack(sums), (rows.own, slope)


def _local_backward(static, queries, passages, mask_inputs, scale, bias, saved, cotangent):
  """One device's part of the gradients with respect to queries, passages, scale and bias."""
  loss, block = static
  own, slope = saved
  parts = cut(loss, block, queries, passages, mask_inputs)
  dtype = scale.dtype

  def d_logits(logits, weights, axis):
    del weights, axis
    return jax.nn.sigmoid(logits + bias)

  def swept(part, d_rows):
    rows, columns = part
    return gradient_sweep(ring, rows, columns, logits_of, d_logits, d_rows, None)

  ring, logits_of, d_negatives, d_negative_queries = Ring(loss.slices), scaled_dots(scale), None, None
  nothing = jnp.zeros_like(parts.pairs[0].x, dtype)
  d_rows, d_columns = swept(parts.pairs, nothing)
  if parts.passages:
    d_rows, d_negatives = swept(parts.passages, d_rows)
  d_own = jnp.where(mask_inputs.valid.reshape(-1), -jax.nn.sigmoid(-own - bias), 0)
  # Each logit is scale times a dot product, so the gradient of the scale is that of the rows times them.
  d_scale = jnp.sum(d_rows * parts.pairs[0].x.astype(dtype)) + jnp.sum(d_own * own / scale)
  if parts.queries:
    nothing = after(d_rows, nothing)
    d_positives, d_negative_queries = swept(parts.queries, nothing)
    d_scale += jnp.sum(d_positives * parts.queries[0].x.astype(dtype))
    d_columns += d_positives
  d_scale = total(d_scale[None])

  d_own, factor = d_own.reshape(mask_inputs.valid.shape), cotangent * scale
  return (of_texts(queries, d_rows, d_own, passages, d_negative_queries, factor),
          of_texts(passages, d_columns, d_own, queries, d_negatives, factor), d_scale * cotangent, slope * cotangent)
