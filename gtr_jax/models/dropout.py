"""Dropout as T5 has it: one mask for all positions of a row, the same on any mesh.

Letters: G groups, R rows, L length.
"""

import jax
import jax.numpy as jnp

from gtr_jax.parallel import shards


def dropout(x: jax.Array, rate: float, key: jax.Array | None, of_model: int | None = None) -> jax.Array:
  """Inverted dropout with one mask for all positions (axis -2), as in T5; `x` itself where `key` is None.

  Args:
    x: `[G, R, L, ...]`.
    rate: share that is dropped.
    key: of the mask, which does not depend on the mesh.
    of_model: the axis that `model` divides, if it divides any.
  """
  if key is None or rate == 0:
    return x
  return jnp.where(kept(key, rate, (*x.shape[:-2], 1, x.shape[-1]), of_model), x / (1 - rate), 0)


def kept(key: jax.Array, rate: float, shape: tuple[int, ...], of_model: int | None) -> jax.Array:
  """A mask `[G, R, ...]`, each row's drawn from its number in the whole batch: no device draws what another needs."""
  groups, rows, *of_row = shape
  number = shards.number() * groups * rows + jnp.arange(groups * rows)
  if of_model is not None:
    of_row[of_model - 2] *= shards.size("model")
  keep = jax.vmap(lambda number: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, of_row))(number)
  keep = keep.reshape(groups, rows, *of_row)
  return keep if of_model is None else shards.own_part(keep, of_model)
