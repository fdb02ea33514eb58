"""The contrastive loss over the whole global batch in memory linear in the batch: in blocks, streaming, over the mesh.

Letters: G groups, Q pairs in the global batch, N hard negatives, M negative queries, D embedding. Of the logits, one
device holds R blocks of rows and sees the C blocks of columns of one device at a time; a block is B examples.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from gtr_jax.errors import InputError
from gtr_jax.losses.blocks import MaskInputs, candidates, cut, from_blocks, in_blocks
from gtr_jax.losses.in_batch import InBatchLoss, dots
from gtr_jax.losses.own_negatives import own_negatives
from gtr_jax.losses.rounds import (
  Ring,
  before_the_loop,
  of_all,
  on_mesh,
  one_after_the_other,
  put,
  shards_of_mesh,
  take,
  total,
)
from gtr_jax.parallel.partitioning import BATCH_AXES, platform, slices_of_shards

# Largest B. On CPU a block of logits should stay in the cache: of 512, 1024 and 2048, 1024 is the fastest. On GPU and
# TPU it should be large enough to hide the launch of its dozen kernels; 4096 x 4096 logits in float32 are 64 MiB.
BLOCK, BLOCK_ON_CPU = 4096, 1024


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
    shards = shards_of_mesh()
    if len(queries) % shards:
      raise InputError(f"RingLoss: {len(queries)} groups cannot be divided over {shards} data shards (data x fsdp): "
                       "make the number of groups a multiple of them, or change the mesh")
    number = jnp.arange(batch.valid.size, dtype=jnp.uint32).reshape(*batch.valid.shape, 1)
    mask_inputs = MaskInputs(*map(jnp.asarray, (
        number, batch.valid, batch.negative_valid, batch.negative_query_valid, batch.query_hash, batch.passage_hash,
        batch.text_hash, batch.known_hash)))
    block = BLOCK_ON_CPU if platform() == "cpu" else BLOCK
    if self.slices and len(self.slices) != shards:
      raise InputError(f"RingLoss.slices is of {len(self.slices)} data shards, and the mesh has {shards}: let "
                       "`on_mesh` set it")
    *sums, number_valid = _sums((self, margin, limit, block), queries, passages, mask_inputs, scale)
    return tuple(x / jnp.maximum(number_valid, 1) for x in sums)


class _Seen(NamedTuple):
  """What is known of each row, or column, from the blocks so far: `[R, B]`.

  `top` is the largest logit, `exp_sum` the sum of exp(logit - top). For label smoothing, `total` is the sum of the
  logits and `number` how many they are. For the rank of a row, `own` is its own logit, without margin, and `ahead` how
  many of the others are not below it.
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
  return result, (*inputs, saved)


def _backward(static, residuals, cotangents):
  grouped, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  local = on_mesh(functools.partial(_local_backward, static), (grouped, grouped, grouped, whole, grouped, whole),
                   (grouped, grouped, whole))
  d_queries, d_passages, d_scale = local(*residuals, cotangents[0])
  return d_queries, d_passages, None, d_scale


_sums.defvjp(_forward, _backward)


def _local_forward(static, queries, passages, mask_inputs, scale):
  """One device's part of `_forward`: the sums over all devices, and what the gradient needs of the part."""
  loss, margin, limit, block = static
  parts = cut(loss, block, queries, passages, mask_inputs)
  dtype = scale.dtype
  zeros = jnp.zeros_like(parts.pairs[0].facts.valid, dtype)
  sums = _Seen(zeros + jnp.finfo(dtype).min, zeros, *((zeros, zeros) if loss.label_smoothing else ()))
  if limit is not None:
    q, p = (side.x.astype(dtype) for side in parts.pairs)
    sums = sums._replace(limit=scale * (jnp.sum(q * p, -1) + limit))
  ring = Ring(loss.slices)
  rows, columns = _sweep(ring, *parts.pairs, scale, sums._replace(own=zeros, ahead=zeros),
                         sums if loss.bidirectional else None, diagonal=True)
  if parts.passages:
    rows, _ = _sweep(ring, *parts.passages, scale, rows)
  if columns is not None:
    rows, columns = one_after_the_other(rows, columns)
    columns = _at_home(ring, columns)._replace(limit=sums.limit)
  if parts.queries:
    columns, _ = _sweep(ring, *parts.queries, scale, columns)

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


def _sweep(ring, rows, columns, scale, row_sums, column_sums=None, diagonal=False):
  """Takes the columns once round the ring, past the rows of each device.

  Without `column_sums` only the rows are summed. With `diagonal`, column i is the own one of row i at the first hop;
  its block is the first of each row block, as those ahead of the own logit can be counted only when it is known.

  Returns:
    The rows' sums, and what this device adds to the columns' sums at each hop, `[devices, C, B]`; or None.
  """
  all_facts = of_all(columns.facts)
  all_limits = None if column_sums is None else of_all(column_sums.limit)

  def hop(carry, number):
    x, row_sums = carry
    next_x, (facts, limit) = ring.pass_on(x), take((all_facts, all_limits), ring.source(number))
    of_columns = None if column_sums is None else column_sums._replace(limit=limit)

    def row_block(r, carry):
      row_sums, column_sums = carry
      row_x, row_facts = take(rows, r)

      def block(step, carry):
        row_sum, column_sums = carry
        c = (r + step) % len(x)
        logits = dots(row_x, take(x, c)) * scale
        if diagonal:
          own = jnp.where((number == 0) & (step == 0), jnp.diagonal(logits), row_sum.own)
          row_sum = row_sum._replace(own=own)
        # Without the barrier the mask is computed again for each of the sums.
        logits = lax.optimization_barrier(jnp.where(candidates(row_facts, take(facts, c)), logits, -jnp.inf))
        row_sum = _add(row_sum, logits, 1)
        if column_sums is not None:
          column_sums = put(column_sums, c, _add(take(column_sums, c), logits, 0))
        return row_sum, column_sums

      row_sum, column_sums = lax.fori_loop(0, len(x), block, (take(row_sums, r), column_sums))
      return put(row_sums, r, row_sum), column_sums

    row_sums, of_hop = lax.fori_loop(0, len(rows.x), row_block, (row_sums, of_columns))
    return (next_x, row_sums), None if of_hop is None else of_hop._replace(limit=None)

  def a_round(carry, numbers):
    x, row_sums = carry
    x, next_x = before_the_loop(x, ring.to_next_slice(x))
    (_, row_sums), of_hops = lax.scan(hop, (x, row_sums), numbers)
    return (next_x, row_sums), of_hops

  (_, row_sums), of_hops = ring.rounds(a_round, (columns.x, row_sums))
  return row_sums, of_hops


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
  if sums.ahead is not None:
    # Counted in floating point: XLA sums integers over rows many times more slowly on CPU.
    ahead = (logits >= jnp.expand_dims(sums.own, axis)).astype(logits.dtype)
    sums = sums._replace(ahead=sums.ahead + jnp.sum(ahead, axis))
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
  """Those above the limits are no candidates."""
  return logits if limit is None else jnp.where(logits <= jnp.expand_dims(limit, axis), logits, -jnp.inf)


def _local_backward(static, queries, passages, mask_inputs, scale, saved, cotangent):
  """One device's part of the gradients with respect to queries, passages and scale."""
  loss, *_, block = static
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
  ring, d_rows = Ring(loss.slices), jnp.zeros_like(parts.pairs[0].x, dtype)
  d_rows, d_columns = _gradient_sweep(ring, *parts.pairs, scale, d_rows, rows, *columns)
  if parts.passages:
    d_rows, d_negatives = _gradient_sweep(ring, *parts.passages, scale, d_rows, rows)
  # Each logit is scale times a dot product, so the gradient of the scale is that of the rows (or columns) times them.
  d_scale = jnp.sum(d_rows * parts.pairs[0].x.astype(dtype)) + jnp.sum(d_own * own / scale)
  if parts.queries:
    d_rows, d_columns = one_after_the_other(d_rows, d_columns)
    d_columns, d_negative_queries = _gradient_sweep(ring, *parts.queries, scale, d_columns, *columns)
    d_scale += jnp.sum(d_negative_queries * parts.queries[1].x.astype(dtype))
  # One sum over the devices, after the last loop: on CPU a collective beside a loop with others may block it for ever.
  d_scale = total(d_scale[None])

  pairs = mask_inputs.valid.shape[1]

  def whole(x, d_pairs, partner, d_negatives):
    """The gradient of `x`, from those of the blocks."""
    negatives = x[:, pairs:]
    d_pairs = from_blocks(d_pairs, x[:, :pairs]) + d_own.reshape(-1, pairs, 1) * partner[:, :pairs].astype(dtype)
    d_negatives = jnp.zeros_like(negatives, dtype) if d_negatives is None else from_blocks(d_negatives, negatives)
    return (jnp.concatenate([d_pairs, d_negatives], axis=1) * (cotangent * scale)).astype(x.dtype)

  return (whole(queries, d_rows, passages, d_negative_queries), whole(passages, d_columns, queries, d_negatives),
          d_scale * cotangent)


def _gradient_sweep(ring, rows, columns, scale, d_rows, row_weights, column_weights=None):
  """Adds to the gradient of the rows what their logits give, less the factor `scale`; and the gradient of the columns.

  The columns' gradient goes round the ring one hop behind them: while a device computes what it adds to that of one
  column, that of the one before is on its way; between slices, one round behind them. Products are written so that on
  CPU, where it matters most, no large operand has to be transposed: the columns' gradient is held as `[C, D, B]`.
  """
  dtype = d_rows.dtype
  product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
  all_facts, all_weights = of_all(columns.facts), of_all(column_weights)
  nothing = jnp.swapaxes(jnp.zeros_like(columns.x, dtype), 1, 2)

  def hop(carry, number):
    x, behind, d_rows = carry
    next_x, received = ring.pass_on((x, behind))
    facts, weights = take((all_facts, all_weights), ring.source(number))

    def row_block(r, carry):
      d_rows, d_columns = carry
      (row_x, row_facts), row_weight = take((rows, row_weights), r)
      row_DxB = lax.optimization_barrier(row_x.T.astype(dtype))

      def block(c, carry):
        d_row, d_columns = carry
        column_x, column_facts, column_weight = take((x, facts, weights), c)
        mask = candidates(row_facts, column_facts)
        logits = jnp.where(mask, dots(row_x, column_x) * scale, -jnp.inf)
        d_logits = _d_logits(logits, row_weight, 1)
        if column_weight is not None:
          d_logits += _d_logits(logits, column_weight, 0)
        d_row += product("rc,cd->rd", d_logits, column_x.astype(dtype))
        return d_row, put(d_columns, c, take(d_columns, c) + product("dr,rc->dc", row_DxB, d_logits))

      d_row, d_columns = lax.fori_loop(0, len(x), block, (take(d_rows, r), d_columns))
      return put(d_rows, r, d_row), d_columns

    d_rows, d_columns = lax.fori_loop(0, len(rows.x), row_block, (d_rows, nothing))
    return (next_x, received + d_columns, d_rows), None

  def a_round(carry, numbers):
    x, of_slices, d_rows = carry
    x, (next_x, received) = before_the_loop(x, ring.to_next_slice((x, of_slices)))
    (_, behind, d_rows), _ = lax.scan(hop, (x, nothing, d_rows), numbers)
    d_rows, behind = one_after_the_other(d_rows, behind)
    return (next_x, received + ring.pass_on(behind), d_rows), None

  (_, of_slices, d_rows), _ = ring.rounds(a_round, (columns.x, nothing, d_rows))
  return d_rows, jnp.swapaxes(ring.to_next_slice(of_slices), 1, 2)


def _d_logits(logits, weights, axis):
  logits = _within(logits, weights.limit, axis)
  top, weight, share = jax.tree.map(lambda x: jnp.expand_dims(x, axis), weights[:3])
  d_logits = jnp.exp(logits - top) * weight
  return d_logits if share is None else d_logits - jnp.where(logits > -jnp.inf, share, 0)
