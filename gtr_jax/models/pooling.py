"""From token vectors to text vectors, whether a row holds one text or several.

Everything is mapped over the leading group axis, so a text never meets another data shard and, with groups divided
over the mesh, no collective is compiled. All arithmetic is in float32 or better.

Letters: G groups, R rows, L length, E embed, T texts of a group.
"""

import jax
import jax.numpy as jnp


def segment_mean(hidden_GxRxLxE: jax.Array, segment_ids_GxRxL: jax.Array, num_texts: int) -> jax.Array:
  """Mean over the tokens of each text, `[G, T, E]`; zero, with zero gradient, for a text without tokens.

  Args:
    hidden_GxRxLxE: token vectors.
    segment_ids_GxRxL: 0 on padding, `1 + t` on the tokens of text `t` of its group; ids above `num_texts` are dropped.
    num_texts: T, static.
  """
  def of_group(hidden_RxLxE, ids_RxL):
    ids = ids_RxL.reshape(-1)
    hidden = hidden_RxLxE.reshape(ids.size, -1)
    sums = jax.ops.segment_sum(hidden, ids, num_segments=num_texts + 1)[1:]
    counts = jax.ops.segment_sum(jnp.ones_like(ids), ids, num_segments=num_texts + 1)[1:]
    return sums / jnp.maximum(counts, 1).astype(sums.dtype)[:, None]

  return jax.vmap(of_group)(_at_least_float32(hidden_GxRxLxE), segment_ids_GxRxL)


def segment_first(hidden_GxRxLxE: jax.Array, segment_ids_GxRxL: jax.Array, num_texts: int) -> jax.Array:
  """The first token's vector of each text, `[G, T, E]`; zero, with zero gradient, for a text without tokens."""
  def of_group(hidden_RxLxE, ids_RxL):
    ids = ids_RxL.reshape(-1)
    hidden = hidden_RxLxE.reshape(ids.size, -1)
    position = jax.ops.segment_min(jnp.arange(ids.size), ids, num_segments=num_texts + 1)[1:]
    found = position < ids.size  # segment_min of nothing is the largest integer
    return jnp.where(found[:, None], hidden[jnp.where(found, position, 0)], 0)

  return jax.vmap(of_group)(_at_least_float32(hidden_GxRxLxE), segment_ids_GxRxL)


POOLINGS = {"mean": segment_mean, "first": segment_first}


def l2_normalize(x: jax.Array) -> jax.Array:
  """`x / |x|` over the last axis; zero, with zero gradient, where `|x|` is below 1e-12."""
  x = _at_least_float32(x)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  zero = square <= 1e-24  # False for NaN, which must not come out as a zero vector.
  # The inner where keeps 0 / 0 out of the gradient.
  return jnp.where(zero, 0, x / jnp.sqrt(jnp.where(zero, 1, square)))


def _at_least_float32(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
