"""The contrastive loss over the whole global batch in memory linear in the batch: in blocks, streaming, over the mesh.

Letters: G groups, Q pairs in the global batch, N hard negatives, M negative queries, D embedding; R blocks of B
examples.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from gtr_jax.losses.blocks import cut, in_blocks, of_texts
from gtr_jax.losses.in_batch import InBatchLoss, dots
from gtr_jax.losses.own_negatives import own_negatives
from gtr_jax.losses.rounds import Ring, after, on_mesh, shards_of_mesh, total
from gtr_jax.losses.sweeps import gradient_sweep, prepared, scaled_dots, sweep, with_ahead
from gtr_jax.losses.teacher import guide_of, guided_limit
from gtr_jax.parallel.partitioning import BATCH_AXES, slices_of_shards


@dataclass(frozen=True)
class RingLoss(InBatchLoss):
  """`InBatchLoss` with the same options, value, gradient and metrics, in memory linear in the batch.

  The devices that divide the batch form a ring. Each keeps its queries; the candidates travel, and after as many hops
  as there are devices they are at home again. At each hop a device computes its part of the logits block by block, and
  of a block keeps the running maximum and sum of each row (Milakov and Gimelshein 2018, arXiv 1805.02867) and, since
  both directions have the same dot products, of each column. The gradient computes each block once more, as in
  FlashAttention (Dao et al. 2022, arXiv 2205.14135). That makes 4 products of the size of the logits, where the dense
  loss has 6.

  Over several TPU slices the ring is one of rings: candidates go round inside a slice, and then to the next one, where
  they go round again. What crosses the network between slices, once a round instead of at every hop, is on its way for
  as long as the round takes.

  Only vectors travel: forward the candidates, backward they and their gradient, one hop behind, so that a hop's
  exchanges wait for none of its products. What masks are made of is a few words for each example, which all devices get
  at once; the columns' sums are exchanged once, behind the last hop.

  Memory of each device: a few times its own embeddings, and a few blocks of logits. Use it wherever the logits of
  `InBatchLoss` do not fit, or are slow.

  The mesh is that of `jax.set_mesh`; without one the ring is a single device. Along the axis `model`, along which
  embeddings are replicated, all devices compute the same.

  Attributes:
    slices: of each data shard the number of the slice that it is on; () where all are on one. `on_mesh` sets it.

  Raises:
    InputError: as `InBatchLoss`; and when the groups of the batch cannot be divided over the mesh.
  """

  slices: tuple[int, ...] = ()

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "RingLoss":
    """The same loss, for the slices of this mesh."""
    return dataclasses.replace(self, slices=slices_of_shards(mesh))

  def _compute(self, queries, passages, batch, scale, train):
    dtype = jnp.promote_types(jnp.promote_types(queries.dtype, passages.dtype), jnp.float32)
    scale = jnp.asarray(scale).astype(dtype)
    margin, limit = (self.margin, self.false_negative_margin) if train else (0.0, None)
    if self.own_negatives_only:
      return own_negatives(self, queries, passages, batch, scale, margin, limit)
    mask_inputs, block = prepared(self, queries, batch)
    static = _Static(self, margin, limit, block, queries.shape[-1], limit is not None and self.guided)
    if static.guided:  # The teacher's vectors travel with the embeddings.
      queries, passages = (jnp.concatenate([x.astype(dtype), guide.astype(dtype)], axis=-1)
                           for x, guide in zip((queries, passages), guide_of(self, batch), strict=True))
    *sums, number_valid = _sums(static, queries, passages, mask_inputs, scale)
    return tuple(x / jnp.maximum(number_valid, 1) for x in sums)


class _Static(NamedTuple):
  """What decides the program: `margin` and `limit` as they apply, the largest B, and D without the teacher's part."""

  loss: RingLoss
  margin: float
  limit: float | None
  block: int
  dim: int
  guided: bool

  def logits_of(self, scale: jax.Array) -> Callable:
    """Of embeddings; if guided, with the teacher's cosines beside them."""
    of_embeddings = scaled_dots(scale)
    if not self.guided:
      return of_embeddings
    return lambda row, column: (of_embeddings(row[:, :self.dim], column[:, :self.dim]),
                                dots(row[:, self.dim:], column[:, self.dim:]))


class _Seen(NamedTuple):
  """What is known of each row, or column, from the blocks so far: `[R, B]`.

  `top` is the largest logit, `exp_sum` the sum of exp(logit - top). For label smoothing, `total` is the sum of the
  logits and `number` how many they are. For the rank of a row, `own` is its own logit, without margin, and `ahead` how
  many of the others are not below it. Logits above `limit`, where there is one, or those whose cosine by the teacher is
  above it, are no candidates, but may be ahead.
  """

  top: jax.Array
  exp_sum: jax.Array
  total: jax.Array | None = None
  number: jax.Array | None = None
  own: jax.Array | None = None
  ahead: jax.Array | None = None
  limit: jax.Array | None = None


class _Weights(NamedTuple):
  """What turns a logit of a row, or column, into its gradient: exp(logit - top) * weight - share; above the limit it is
  none. `[R, B]`."""

  top: jax.Array
  weight: jax.Array
  share: jax.Array | None
  limit: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(static, queries, passages, mask_inputs, scale):
  """Cross entropy, whether the own positive is first, its reciprocal rank, and 1, each summed over all valid pairs."""
  return _forward(static, queries, passages, mask_inputs, scale)[0]


def _forward(static, *inputs):
  grouped, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  local = on_mesh(functools.partial(_local_forward, static), (grouped, grouped, grouped, whole), (whole, grouped))
  result, saved = local(*inputs)
  return result, (*inputs, after(result, saved))


def _backward(static, residuals, cotangents):
  grouped, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  queries, passages, *others = residuals
  queries, passages = after(cotangents[0], (queries, passages))  # One loss after the other.
  local = on_mesh(functools.partial(_local_backward, static), (grouped, grouped, grouped, whole, grouped, whole),
                   (grouped, grouped, whole))
  d_queries, d_passages, d_scale = local(queries, passages, *others, cotangents[0])
  return d_queries, d_passages, None, d_scale


_sums.defvjp(_forward, _backward)


def _local_forward(static, queries, passages, mask_inputs, scale):
  """One device's part of `_forward`: the sums over all devices, and what the gradient needs of the part."""
  loss, margin, limit, block, dim, guided = static
  parts = cut(loss, block, queries, passages, mask_inputs)
  dtype = scale.dtype
  zeros = jnp.zeros_like(parts.pairs[0].facts.valid, dtype)
  sums = _Seen(zeros + jnp.finfo(dtype).min, zeros, *((zeros, zeros) if loss.label_smoothing else ()))
  if limit is not None:
    q, p = (side.x.astype(dtype) for side in parts.pairs)
    sums = sums._replace(limit=scale * (jnp.sum(q * p, -1) + limit) if not guided else guided_limit(
        jnp.sum(q[..., dim:] * p[..., dim:], -1), (q[..., dim:], p[..., dim:]), limit))
  ring, logits_of = Ring(loss.slices), static.logits_of(scale)
  rows, columns = sweep(ring, *parts.pairs, logits_of, _add, sums._replace(own=zeros, ahead=zeros),
                         sums if loss.bidirectional else None, diagonal=True)
  if parts.passages:
    rows, _ = sweep(ring, *parts.passages, logits_of, _add, rows)
  if columns is not None:
    columns = _at_home(ring, after(rows, columns))._replace(limit=sums.limit)
  if parts.queries:
    columns, _ = sweep(ring, *parts.queries, logits_of, _add, columns)

  valid = mask_inputs.valid.reshape(-1)
  rows, columns = jax.tree.map(lambda x: x.reshape(-1)[:valid.size], (rows, columns))
  own = rows.own - scale * margin

  def with_own(sums):
    top = jnp.maximum(sums.top, own)
    sums = sums._replace(top=top, exp_sum=sums.exp_sum * jnp.exp(sums.top - top) + jnp.exp(own - top))
    return sums._replace(total=sums.total + own, number=sums.number + 1) if loss.label_smoothing else sums

  def cross_entropy(sums):
    target = own
    if loss.label_smoothing:
      target = (1 - loss.label_smoothing) * own + loss.label_smoothing * sums.total / sums.number
    return jnp.log(sums.exp_sum) + (sums.top - target)

  directions = [with_own(sums) for sums in (rows, columns) if sums is not None]
  first = (rows.ahead == 0).astype(dtype)
  results = jnp.stack([sum(map(cross_entropy, directions)), first, 1 / (1 + rows.ahead), jnp.ones_like(first)])
  return tuple(total(jnp.where(valid, results, 0))), (own, directions)


def _at_home(ring, of_hops):
  """The sums of this device's columns, from what all have added to them."""
  if shards_of_mesh() > 1:
    hop_of_device = ring.hop_of_device()
    leaves, tree = jax.tree.flatten(of_hops)
    exchanged = lax.all_to_all(jnp.stack(leaves, 1)[hop_of_device], BATCH_AXES, 0, 0, tiled=True)
    of_hops = jax.tree.unflatten(tree, [exchanged[:, i] for i in range(len(leaves))])
  top = jnp.max(of_hops.top, 0)
  exp_sum = jnp.sum(of_hops.exp_sum * jnp.exp(of_hops.top - top[None]), 0)
  total, number = (None if x is None else jnp.sum(x, 0) for x in (of_hops.total, of_hops.number))
  return _Seen(top, exp_sum, total, number)


def _add(sums, logits, axis):
  """Adds a block of logits, masked with -inf, to the sums along `axis`."""
  sums = with_ahead(sums, jax.tree.leaves(logits)[0], axis)
  logits = _within(logits, sums.limit, axis)
  top = jnp.maximum(sums.top, jnp.max(logits, axis))
  exp_sum = sums.exp_sum * jnp.exp(sums.top - top) + jnp.sum(jnp.exp(logits - jnp.expand_dims(top, axis)), axis)
  sums = sums._replace(top=top, exp_sum=exp_sum)
  if sums.number is not None:
    mask = logits > -jnp.inf
    sums = sums._replace(total=sums.total + jnp.sum(logits, axis, where=mask),
                         number=sums.number + jnp.sum(mask.astype(logits.dtype), axis))
  return sums


def _within(logits, limit, axis):
  """Those above the limits are no candidates, by themselves or by the teacher."""
  logits, compared = logits if isinstance(logits, tuple) else (logits, logits)
  return logits if limit is None else jnp.where(compared <= jnp.expand_dims(limit, axis), logits, -jnp.inf)


def _local_backward(static, queries, passages, mask_inputs, scale, saved, cotangent):
  """One device's part of the gradients with respect to queries, passages and scale."""
  loss, block, dim = static.loss, static.block, static.dim
  own, directions = saved
  parts = cut(loss, block, queries, passages, mask_inputs)
  dtype, smoothing = scale.dtype, loss.label_smoothing
  valid = mask_inputs.valid.reshape(-1)

  def weights(sums):
    share = jnp.where(valid, smoothing / sums.number, 0) if smoothing else None
    return _Weights(sums.top, jnp.where(valid, 1 / sums.exp_sum, 0), share, sums.limit)

  def own_gradient(weights):
    softmax = jnp.exp(own - weights.top) * weights.weight
    return jnp.where(valid, softmax - (1 - smoothing) - (weights.share if smoothing else 0), 0)

  directions = [weights(sums) for sums in directions]
  d_own = sum(map(own_gradient, directions))
  rows, *columns = jax.tree.map(lambda x: in_blocks(x, parts.pairs[0].facts.valid.shape), directions)

  d_negatives = d_negative_queries = None
  ring, logits_of = Ring(loss.slices), static.logits_of(scale)
  d_rows = jnp.zeros_like(parts.pairs[0].x, dtype)
  d_rows, d_columns = gradient_sweep(ring, *parts.pairs, logits_of, _d_logits, d_rows, rows, *columns)
  if parts.passages:
    d_rows, d_negatives = gradient_sweep(ring, *parts.passages, logits_of, _d_logits, d_rows, rows)
  # Each logit is scale times a dot product, so the gradient of the scale is that of the rows (or columns) times them.
  d_scale = jnp.sum((d_rows * parts.pairs[0].x.astype(dtype))[..., :dim]) + jnp.sum(d_own * own / scale)
  if parts.queries:
    d_columns = after(d_rows, d_columns)
    d_columns, d_negative_queries = gradient_sweep(ring, *parts.queries, logits_of, _d_logits, d_columns, *columns)
    d_scale += jnp.sum((d_negative_queries * parts.queries[1].x.astype(dtype))[..., :dim])
  # One sum over the devices, after the last loop: on CPU a collective beside a loop with others may block it for ever.
  d_scale = total(d_scale[None])

  d_own, factor = d_own.reshape(mask_inputs.valid.shape), cotangent * scale
  return (of_texts(queries, d_rows, d_own, passages, d_negative_queries, factor),
          of_texts(passages, d_columns, d_own, queries, d_negatives, factor), d_scale * cotangent)


def _d_logits(logits, weights, axis):
  logits = _within(logits, weights.limit, axis)
  top, weight, share = jax.tree.map(lambda x: jnp.expand_dims(x, axis), weights[:3])
  d_logits = jnp.exp(logits - top) * weight
  return d_logits if share is None else d_logits - jnp.where(logits > -jnp.inf, share, 0)
