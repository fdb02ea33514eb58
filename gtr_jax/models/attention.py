"""T5's attention: with a bias of the head and the distance, within each text of a row, without scaling of the logits.

Letters: G groups, R rows, L length, Q query and K key positions, H heads, D head_dim, B buckets.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gtr_jax.models import attention_by_text, attention_kernel
from gtr_jax.models.dropout import kept
from gtr_jax.parallel import shards
from gtr_jax.parallel.partitioning import device_kind, platform

# Of the attention weights of the rows that are worked on at once, in float32: on a CPU they should stay in the cache.
_CPU_ATTENTION_BYTES, _ATTENTION_BYTES = 2**21, 2**30


def relative_position_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
  """T5's bidirectional bucket of `key position - query position` (arXiv 1910.10683, section 2.1).

  Half of the buckets are for keys after the query. The first half of each half is one distance each; the rest, from
  `exact` on, grow by equal factors up to `max_distance`: `exact + floor(log(d / exact) / log(max / exact) * steps)`.
  Counted in integers, because rounding shows: bfloat16 is wrong at distances 45 and 90, and a device's own logarithm
  may fall below the exact steps at 16, 32 and 64.
  """
  half = num_buckets // 2
  exact = half // 2
  steps = half - exact
  size = abs(distance)
  if size >= exact:
    # log(d / exact) / log(max / exact) >= k / steps, without the logarithms.
    size = exact + sum(size**steps * exact**k >= max_distance**k * exact**steps for k in range(1, steps))
  return size + half * (distance > 0)


class Pattern(NamedTuple):
  """Which positions of rows of one length meet, and with what bias; all layers share it.

  Attributes:
    bias: of `position_bias`.
    segment_ids: int32 `[G, R, L]`.
    runs: of the kernel, where that computes attention.
    texts: where it is computed text by text.
  """

  bias: jax.Array
  segment_ids: jax.Array
  runs: attention_kernel.Runs | None = None
  texts: attention_by_text.Texts | None = None


def pattern(table_HxB: jax.Array, segment_ids_GxRxL: jax.Array, max_distance: int, way: str) -> Pattern:
  """What `attention` takes, of T5's table of heads and buckets; `way` is one of `way_of`."""
  length = segment_ids_GxRxL.shape[2]
  rows = segment_ids_GxRxL.reshape(-1, length)
  if way == "kernel":
    block = attention_kernel.block_of(device_kind())
    bias = position_bias(table_HxB, length, max_distance, block)
    return Pattern(bias, segment_ids_GxRxL, runs=attention_kernel.runs_of(rows, block))
  texts = attention_by_text.texts_of(rows) if way == "by text" else None
  return Pattern(position_bias(table_HxB, length, max_distance), segment_ids_GxRxL, texts=texts)


def way_of(attention: str, length: int, heads: int, head_dim: int) -> str:
  """How rows of this length, with so many heads on a device, are computed: "reference", "kernel" or "by text".

  Under the mesh of `jax.set_mesh`; `attention` is that of `T5Config`.
  """
  if attention == "kernel":
    return "reference" if kernel_refuses(length, heads, head_dim) else "kernel"
  # What is exported for other devices too is computed without a mesh.
  by_text = shards.within() and platform() == "cpu" and length >= attention_by_text.SHORTEST
  return "by text" if attention == "auto" and by_text else "reference"


def kernel_refuses(length: int, heads: int, head_dim: int) -> str:
  """Why rows of this length, with so many heads on a device, are for the reference; empty: they are for the kernel.

  Under the mesh of `jax.set_mesh`.
  """
  if platform() != "tpu" and not attention_kernel.INTERPRET:
    return "it is for TPUs"
  return attention_kernel.refuses(device_kind(), length, heads, head_dim)


def position_bias(table_HxB: jax.Array, length: int, max_distance: int, block: int = 0) -> jax.Array:
  """What `attention` adds to the logits of rows of a length: `[H, Q, K]`, or the blocks of it that the kernel takes."""
  if block:
    distances: Iterable[int] = attention_kernel.distances(attention_kernel.farthest(length, max_distance, block), block)
  else:  # 0, 1, .., L - 1, then -L, .., -1.
    distances = (*range(length), *range(-length, 0))
  buckets = [relative_position_bucket(distance, table_HxB.shape[1], max_distance) for distance in distances]
  of_distance_HxS = jnp.take(table_HxB, jnp.array(buckets), axis=1)
  if block:
    return attention_kernel.bias_tiles(of_distance_HxS, block)
  return attention_kernel.along_diagonals(of_distance_HxS)


def attention(query_GxRxQxHxD: jax.Array, key_GxRxKxHxD: jax.Array, value_GxRxKxHxD: jax.Array, pattern: Pattern, *,
              dropout_rate: float = 0.0, dropout_key: jax.Array | None = None,
              precision: jax.lax.PrecisionLike = None) -> jax.Array:
  """Softmax attention within equal segment ids, `[G, R, Q, H, D]`. No scaling by 1 / sqrt(D), as in T5.

  Logits, bias and softmax are in float32 or better. Padding attends to padding, so no row of the softmax is empty;
  text by text it gets 0. It is computed by what the pattern was made for. The reference computes the `[H, Q, K]`
  weights of a row again in the backward pass instead of keeping them, a few rows at a time where that keeps them in the
  cache.
  """
  keep, segment_ids_GxRxL = None, pattern.segment_ids
  if dropout_key is not None and dropout_rate:
    # One mask for all query positions, as in T5.
    shape = *segment_ids_GxRxL.shape[:2], query_GxRxQxHxD.shape[3], 1, segment_ids_GxRxL.shape[2]
    keep = kept(dropout_key, dropout_rate, shape, of_model=2)
  if pattern.runs is None and pattern.texts is None:
    return _reference(query_GxRxQxHxD, key_GxRxKxHxD, value_GxRxKxHxD, pattern.bias, segment_ids_GxRxL, keep,
                      dropout_rate, precision)
  if keep is not None:  # The same mask for all queries leaves out values.
    value_GxRxKxHxD = jnp.where(jnp.moveaxis(keep, 4, 2), value_GxRxKxHxD / (1 - dropout_rate), 0)
  query, key, value = (x.reshape(-1, *x.shape[2:]) for x in (query_GxRxQxHxD, key_GxRxKxHxD, value_GxRxKxHxD))
  if pattern.runs is not None:
    out = attention_kernel.attention(query, key, value, pattern.bias, pattern.runs, precision=precision,
                                     interpret=attention_kernel.INTERPRET)
  elif pattern.texts is not None:
    out = attention_by_text.attention(query, key, value, pattern.bias, pattern.texts, precision=precision)
  return out.reshape(query_GxRxQxHxD.shape)


def _reference(query_GxRxQxHxD, key_GxRxKxHxD, value_GxRxKxHxD, bias_HxQxK, segment_ids_GxRxL, keep_GxRxHx1xK,
               dropout_rate, precision):
  dtype = query_GxRxQxHxD.dtype
  rows, length, heads = query_GxRxQxHxD.shape[1:4]

  def of_rows(query, key, value, segment_ids, keep):
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key, precision=precision,
                        preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    logits = logits + bias_HxQxK.astype(logits.dtype).reshape((1,) * (logits.ndim - 3) + bias_HxQxK.shape)
    same_text = segment_ids[..., None, :, None] == segment_ids[..., None, None, :]
    weights = jax.nn.softmax(jnp.where(same_text, logits, jnp.finfo(logits.dtype).min), axis=-1)
    if keep is not None:
      weights = jnp.where(keep, weights / (1 - dropout_rate), 0)
    return jnp.einsum("...hqk,...khd->...qhd", weights.astype(dtype), value, precision=precision)

  inputs = (query_GxRxQxHxD, key_GxRxKxHxD, value_GxRxKxHxD, segment_ids_GxRxL, keep_GxRxHx1xK)
  bytes_of_row = 4 * heads * length**2

  def at_most(weights_bytes, *inputs):
    at_once = max(1, weights_bytes // bytes_of_row)
    if rows <= at_once:
      return jax.checkpoint(of_rows)(*inputs)
    inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs)
    out = jax.lax.map(lambda row: jax.checkpoint(of_rows)(*row), inputs, batch_size=at_once)
    return jnp.moveaxis(out, 0, 1)

  on_cpu, elsewhere = (functools.partial(at_most, limit) for limit in (_CPU_ATTENTION_BYTES, _ATTENTION_BYTES))
  if rows * bytes_of_row <= _CPU_ATTENTION_BYTES:
    return elsewhere(*inputs)
  if shards.within():
    return (on_cpu if platform() == "cpu" else elsewhere)(*inputs)
  return jax.lax.platform_dependent(*inputs, cpu=on_cpu, default=elsewhere)  # It may be exported for several.
