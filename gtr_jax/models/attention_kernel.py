"""T5's attention on TPUs in one kernel: nothing of size `[L, L]` reaches the memory of the device, and of packed rows
only the blocks are computed in which a text meets itself.

The kernel takes a row of one or two heads at a time and goes through its blocks of keys and queries with a running
maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135). Two things are T5's:

* The bias depends on the head and the distance alone, and from `max_distance` on not even on that. So the blocks of it
  that differ are few: with blocks of 128 and 128 distances five, which a head keeps in the fast memory for all rows.
  Their gradient is added up there as well, block by block and in one order, and folded into the buckets outside.
* A text is a run of equal segment ids, so a block of queries meets one run of blocks of keys, whose bounds come with
  the row. Nothing else is fetched or computed for it; the backward pass uses the same bounds the other way round.

All products are of keys by queries, `[K, Q]`: what belongs to a query then lies along the lanes, where it is.

Letters: N rows, L length, Q query and K key positions of a block, H heads, D head_dim, T blocks of the bias.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gtr_jax.parallel import shards

# Queries and keys of a block: the lanes of a register, and the rows of the matrix unit of v4 and v5. Where
# `benchmarks/attention.py` has found another to be faster on a chip, it stands here by what jax calls that.
_BLOCK, _BLOCK_OF = 128, dict[str, int]()
LONGEST = 8192  # Positions of a row: what queries, keys, values and their gradients need of the fast memory.
_LONGEST_OF = {"TPU v4": 1024}  # Where that is 16 MiB instead of 128.
_ENOUGH = 1024  # Positions of a row that keep the matrix unit busy while the next ones are fetched.
INTERPRET = False  # Run it on any device, for tests.
KEPT = "attention"  # The name of what T5Config.remat may keep: what the products of attention take and what comes out.
_LANES = 128
_FAST_MEMORY = 2**24  # Bytes that a kernel may take at least.
_LOWEST = -1e30  # A logit that is none; finite, so that no difference is NaN.


def block_of(device_kind: str) -> int:
  """Queries and keys of a block on such a device; a multiple of 128."""
  return _BLOCK_OF.get(device_kind, _BLOCK)


def farthest(length: int, max_distance: int, block: int) -> int:
  """So many blocks from a block of queries on, all blocks of the bias are equal, or there is none in rows of a length.

  `max_distance` is that from which on all positions have the same bias.
  """
  return min(-(-(max_distance + block - 1) // block), -(-length // block))


def distances(farthest: int, block: int) -> range:
  """Key position less query position in the blocks of the bias."""
  most = (farthest + 1) * block - 1
  return range(-most, most + 1)


def refuses(device_kind: str, length: int, heads: int, head_dim: int) -> str:
  """Why there is no kernel for rows of this length and this many heads on a TPU of this kind; empty where there is."""
  most = _LONGEST_OF.get(device_kind, LONGEST)
  if length > most:
    return f"rows of {length:,} tokens are longer than {most:,}"
  if head_dim % _LANES and (_LANES % head_dim or heads * head_dim % _LANES):
    return f"{heads} heads of {head_dim} on a device do not fill registers of {_LANES} numbers"
  return ""


def along_diagonals(numbers_Hx2L: jax.Array) -> jax.Array:
  """`[H, L, L]` with the number of `j - i` at `[i, j]`: of 0, 1, .., L - 1, then -L, .., -1."""
  length = numbers_Hx2L.shape[1] // 2
  # The flat sequence of repeats, read in rows of 2 L - 1, moves by one place to the right in each row.
  flat = jnp.tile(numbers_Hx2L, (1, length))[:, :length * (2 * length - 1)]
  return flat.reshape(-1, length, 2 * length - 1)[..., :length]


def bias_tiles(bias_of_distance_HxS: jax.Array, block: int) -> jax.Array:
  """The blocks of the bias, `[H, T, K, Q]`, from that of each of `distances`."""

  def tile(number):
    of_distance = bias_of_distance_HxS[:, number * block:(number + 2) * block - 1]  # In its middle key and query meet.
    return along_diagonals(jnp.concatenate([of_distance[:, block - 1::-1], jnp.zeros_like(of_distance[:, :1]),
                                            of_distance[:, :block - 1:-1]], axis=1))

  return jnp.stack([tile(number) for number in range(bias_of_distance_HxS.shape[1] // block)], axis=1)


class Runs(NamedTuple):
  """Rows as the kernel has them, some of them one behind the other and others padded, N of them.

  Attributes:
    numbers: int32 `[N, L]`, of each run of equal segment ids; no two in a row have the same.
    bounds: int32 `[N, 2, L / Q]`, of each block of queries the first block of keys that it meets, and the one behind
      the last.
  """

  numbers: jax.Array
  bounds: jax.Array


def runs_of(segment_ids_NxL: jax.Array, block: int) -> Runs:
  """The runs of rows in which what has one id is in one run."""
  at_once, more = _joined(len(segment_ids_NxL), segment_ids_NxL.shape[1], block)
  padded = jnp.pad(segment_ids_NxL, ((0, 0), (0, more)), constant_values=-1)
  numbers = jnp.cumsum(_begins(padded).reshape(-1)).astype(jnp.int32).reshape(len(padded) // at_once, -1)
  position = jax.lax.broadcasted_iota(jnp.int32, numbers.shape, 1)
  begins = _begins(numbers)
  ends = jnp.concatenate([begins[:, 1:], jnp.ones_like(begins[:, :1])], axis=1)
  first = jax.lax.cummax(jnp.where(begins, position, 0), axis=1)
  last = jax.lax.cummin(jnp.where(ends, position, numbers.shape[1]), axis=1, reverse=True)
  return Runs(numbers, jnp.stack([first[:, ::block] // block, last[:, block - 1::block] // block + 1], axis=1))


def _begins(ids):
  """Whether a run of equal numbers begins at a position of a row."""
  return jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)


def _joined(rows, length, block):
  """So many rows, one behind the other, are one row for the kernel; before that so many positions are added to each."""
  at_once = block // math.gcd(length, block)
  if rows % at_once:
    return 1, -length % block
  while rows % (2 * at_once) == 0 and 2 * at_once * length <= _ENOUGH:
    at_once *= 2
  return at_once, 0


class _Shape(NamedTuple):
  """What a kernel is compiled for."""

  heads: int  # In a block of lanes.
  head_dim: int
  longest: int  # Positions of a text, in whole blocks.
  precision: jax.lax.PrecisionLike
  interpret: bool
  block: int

  def part(self, number):
    """The positions of a block."""
    return pl.ds(pl.multiple_of(number * self.block, self.block), self.block)

  def lanes(self, head):
    return slice(head * self.head_dim, (head + 1) * self.head_dim)

  def product(self, a, b, contracted):
    return jax.lax.dot_general(a, b, ((contracted[:1], contracted[1:]), ((), ())), precision=self.precision,
                               preferred_element_type=jnp.float32)

  def logits(self, head, key, query, q, k_ref, bias_ref, of_query, segments_ref):
    """`[K, Q]` of a block of keys and one of queries, lowest where the texts differ."""
    logits = self.product(k_ref[0, self.part(key), self.lanes(head)], q, (1, 1))
    logits = logits + bias_ref[head, _tile(bias_ref, key, query)]
    of_key = jnp.broadcast_to(segments_ref[0, :, self.part(key)], logits.shape[::-1]).T
    return jnp.where(of_key == of_query, logits, _LOWEST)


def _tile(bias_ref, key, query):
  """The number of the bias of two blocks."""
  farthest = bias_ref.shape[1] // 2
  return jnp.clip(key - query, -farthest, farthest) + farthest


def _forward_kernel(bounds_ref, q_ref, k_ref, v_ref, bias_ref, segments_ref, out_ref, log_sum_ref, *, shape):
  row = pl.program_id(1)

  def of_queries(query, _):
    part = shape.part(query)
    of_query = segments_ref[0, :, part]
    for head in range(shape.heads):
      q = q_ref[0, part, shape.lanes(head)]

      def of_keys(key, running, head=head, q=q):
        highest, total, out = running
        logits = shape.logits(head, key, query, q, k_ref, bias_ref, of_query, segments_ref)
        higher = jnp.maximum(highest, logits.max(0, keepdims=True))
        weights, scale = jnp.exp(logits - higher), jnp.exp(highest - higher)
        v = v_ref[0, shape.part(key), shape.lanes(head)]
        return (higher, total * scale + weights.sum(0, keepdims=True),
                out * scale + shape.product(v, weights.astype(v.dtype), (0, 0)))

      highest, total, out = jax.lax.fori_loop(bounds_ref[row, 0, query], bounds_ref[row, 1, query], of_keys, (
          jnp.full((1, shape.block), _LOWEST, jnp.float32), jnp.zeros((1, shape.block), jnp.float32),
          jnp.zeros((shape.head_dim, shape.block), jnp.float32)))
      out_ref[0, part, shape.lanes(head)] = (out / total).T.astype(out_ref.dtype)
      log_sum_ref[0, head, :, part] = highest + jnp.log(total)
    return 0

  jax.lax.fori_loop(0, q_ref.shape[1] // shape.block, of_queries, 0)


def _backward_kernel(bounds_ref, q_ref, k_ref, v_ref, bias_ref, segments_ref, log_sum_ref, of_out_ref, delta_ref,
                     of_q_ref, of_k_ref, of_v_ref, of_bias_ref, sum_ref, *, shape):
  row = pl.program_id(1)

  @pl.when(row == 0)
  def _():
    of_bias_ref[...] = jnp.zeros_like(of_bias_ref)

  sum_ref[...] = jnp.zeros_like(sum_ref)

  def of_keys(key, _):
    part = shape.part(key)
    for head in range(shape.heads):
      lanes = shape.lanes(head)
      k, v = k_ref[0, part, lanes], v_ref[0, part, lanes]

      def of_queries(query, sums, head=head, lanes=lanes, k=k, v=v):
        of_k, of_v = sums
        there = shape.part(query)
        q, of_out = q_ref[0, there, lanes], of_out_ref[0, there, lanes]
        logits = shape.logits(head, key, query, q, k_ref, bias_ref, segments_ref[0, :, there], segments_ref)
        weights = jnp.exp(logits - log_sum_ref[0, head, :, there])
        of_weights = shape.product(v, of_out, (1, 1))
        of_logits = weights * (of_weights - delta_ref[0, head, :, there])
        of_bias_ref[head, _tile(bias_ref, key, query)] += of_logits
        of_logits = of_logits.astype(q.dtype)
        sum_ref[there, lanes] += shape.product(of_logits, k, (0, 0))
        return (of_k + shape.product(of_logits, q, (1, 0)),
                of_v + shape.product(weights.astype(of_out.dtype), of_out, (1, 0)))

      nothing = jnp.zeros((shape.block, shape.head_dim), jnp.float32)
      of_k, of_v = jax.lax.fori_loop(bounds_ref[row, 0, key], bounds_ref[row, 1, key], of_queries, (nothing, nothing))
      of_k_ref[0, part, lanes], of_v_ref[0, part, lanes] = of_k.astype(of_k_ref.dtype), of_v.astype(of_v_ref.dtype)
    return 0

  jax.lax.fori_loop(0, q_ref.shape[1] // shape.block, of_keys, 0)
  of_q_ref[0] = sum_ref[...].astype(of_q_ref.dtype)


def _call(kernel, name, shape, products, bounds, inputs, specs, outputs, out_specs, scratch=()):
  rows, lanes = bounds.shape[0], inputs[0].shape[-1] // (shape.heads * shape.head_dim)
  # Of each block one is worked on, and another one comes or goes meanwhile.
  blocks = sum(math.prod(spec.block_shape) * x.dtype.itemsize for spec, x in zip(
      specs + out_specs, [*inputs, *outputs], strict=True))
  # Of texts as long as they may be; what shorter ones leave out is not known when it is compiled.
  logits = rows * lanes * shape.heads * inputs[0].shape[1] * shape.longest
  cost = pl.CostEstimate(flops=2 * products * logits * shape.head_dim, transcendentals=logits,
                         bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)))
  outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=jax.typeof(inputs[0]).mat) for x in outputs]
  return pl.pallas_call(
      functools.partial(kernel, shape=shape), out_shape=outputs, name=name, interpret=shape.interpret,
      cost_estimate=cost,
      grid_spec=pltpu.PrefetchScalarGridSpec(num_scalar_prefetch=1, grid=(lanes, rows), in_specs=specs,
                                             out_specs=out_specs, scratch_shapes=scratch),
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"),
                                           vmem_limit_bytes=max(3 * blocks, _FAST_MEMORY)))(bounds, *inputs)


def _specs(shape, length, tiles):
  """Which block of an array the kernel gets: of tokens, of the bias, of runs, of numbers of the queries."""
  return (pl.BlockSpec((1, length, shape.heads * shape.head_dim), lambda lanes, row, _: (row, 0, lanes)),
          pl.BlockSpec((shape.heads, tiles, shape.block, shape.block), lambda lanes, row, _: (lanes, 0, 0, 0)),
          pl.BlockSpec((1, 1, length), lambda lanes, row, _: (row, 0, 0)),
          pl.BlockSpec((1, shape.heads, 1, length), lambda lanes, row, _: (row, lanes, 0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(shape, q, k, v, bias, runs):
  return _forward(shape, q, k, v, bias, runs)[0]


def _forward(shape, q, k, v, bias, runs):
  (rows, length, _), (heads, tiles) = q.shape, bias.shape[:2]
  of_tokens, of_bias, of_runs, of_numbers = _specs(shape, length, tiles)
  out, log_sum = _call(
      _forward_kernel, "attention", shape, 2, runs.bounds, (q, k, v, bias, runs.numbers[:, None]),
      [of_tokens, of_tokens, of_tokens, of_bias, of_runs],
      [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((rows, heads, 1, length), jnp.float32)],
      [of_tokens, of_numbers])
  out, log_sum = checkpoint_name((out, log_sum), KEPT)
  return out, (q, k, v, bias, runs, out, log_sum)


def _backward(shape, kept, of_out):
  q, k, v, bias, runs, out, log_sum = kept
  (rows, length, _), (heads, tiles) = q.shape, bias.shape[:2]
  delta = (out.astype(jnp.float32) * of_out.astype(jnp.float32)).reshape(rows, length, heads, -1).sum(-1)
  of_tokens, of_bias, of_runs, of_numbers = _specs(shape, length, tiles)
  gradients = _call(
      _backward_kernel, "attention_backward", shape, 5, runs.bounds,
      (q, k, v, bias, runs.numbers[:, None], log_sum, of_out, jnp.moveaxis(delta, 2, 1)[:, :, None]),
      [of_tokens, of_tokens, of_tokens, of_bias, of_runs, of_numbers, of_tokens, of_numbers],
      [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, bias)], [of_tokens, of_tokens, of_tokens, of_bias],
      [pltpu.VMEM((length, shape.heads * shape.head_dim), jnp.float32)])
  return *gradients, None


_attention.defvjp(_forward, _backward)


def attention(query_NxLxHxD: jax.Array, key_NxLxHxD: jax.Array, value_NxLxHxD: jax.Array, bias_HxTxKxQ: jax.Array,
              runs: Runs, *, precision: jax.lax.PrecisionLike = None, interpret: bool = False) -> jax.Array:
  """Softmax attention within equal segment ids, `[N, L, H, D]`, as `attention.attention`.

  Args:
    query_NxLxHxD: bfloat16 or float32.
    key_NxLxHxD: likewise.
    value_NxLxHxD: likewise.
    bias_HxTxKxQ: of `bias_tiles`, float32.
    runs: of the segment ids, in the same blocks.
    precision: of the products.
    interpret: run it on any device, for tests.
  """
  rows, length, heads, head_dim = query_NxLxHxD.shape
  block = bias_HxTxKxQ.shape[-1]
  at_once, more = _joined(rows, length, block)
  q, k, v = (jnp.pad(x.reshape(rows, length, -1), ((0, 0), (0, more), (0, 0))).reshape(
      rows // at_once, -1, heads * head_dim) for x in (query_NxLxHxD, key_NxLxHxD, value_NxLxHxD))
  shape = _Shape(max(1, _LANES // head_dim), head_dim, -(-length // block) * block, precision, interpret, block)
  q, k, v, bias, *runs_of_all = shards.alike(q, k, v, bias_HxTxKxQ, *runs)
  out = _attention(shape, q, k, v, bias, Runs(*runs_of_all))
  return out.reshape(rows, length + more, heads, head_dim)[:, :length]
