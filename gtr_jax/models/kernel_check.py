"""How far what the attention kernel computes may be from what the reference computes, on the chip that it runs on."""

from typing import Any

import jax
import jax.numpy as jnp

_MOST = {"bfloat16": 0.05, "float32": 1e-3}  # Of the reference's length.


def difference(by_kernel: Any, by_reference: Any) -> jax.Array:
  """The length of the difference of two trees of arrays, of that of the second."""
  return _length(jax.tree.map(jnp.subtract, by_kernel, by_reference)) / _length(by_reference)


def refusal(of: str, difference: float, dtype: str, device: jax.Device) -> str:
  """What is wrong where "embeddings of the first batch" or the like differ by more than roundings; else empty."""
  if difference <= _MOST[dtype]:
    return ""
  return (f"on {device.device_kind} the attention kernel's {of} differ by {difference:.2g} from those of the reference "
          f"({_MOST[dtype]:g} would be rounding); report this, please, and take the reference")


def _length(tree):
  return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))
