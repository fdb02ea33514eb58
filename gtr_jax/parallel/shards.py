"""What a device exchanges with the others while it computes its part: within `partitioning.over_shards`.

Elsewhere, where arrays are whole, each of these functions is the same without an exchange.

A parameter that data shards share is made each one's own before it is used (`own_gradients`): then each has a gradient
in the parameter's dtype, and these are summed once, at the end, and not wherever it is used, in the activations' dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gtr_jax.parallel.partitioning import BATCH_AXES, RULES


def within() -> bool:
  """Whether each device computes its own part here."""
  return bool(jax.sharding.get_abstract_mesh().manual_axes)


def size(axis: str) -> int:
  """Number of devices along a mesh axis, where each computes its own part; else 1."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.shape[axis] if axis in mesh.manual_axes else 1


def is_divided(name: str, axis: str) -> bool:
  """Whether an array's axis of this logical name is divided here, along a mesh axis."""
  return within() and RULES[name] == axis


def number() -> int | jax.Array:
  """Of this data shard."""
  return lax.axis_index(BATCH_AXES) if within() else 0


def own_gradients(params: Any, specs: Any) -> Any:
  """The same parameters, each data shard's own: their gradients are summed over the shards here, and not before.

  Args:
    params: a tree of arrays.
    specs: how the mesh divides them.
  """
  return jax.tree.map(lambda x, spec: varying(x, *_shared(spec)), params, specs)


def total(gradients: Any, specs: Any) -> Any:
  """Sums over the data shards, of what each has for itself.

  Args:
    gradients: of the result of `own_gradients`.
    specs: as there.
  """
  return jax.tree.map(lambda x, spec: lax.psum(x, _shared(spec)) if _shared(spec) else x, gradients, specs)


def _shared(spec):
  """Axes of the batch along which all devices have the same of such a parameter."""
  manual = jax.sharding.get_abstract_mesh().manual_axes
  return tuple(axis for axis in BATCH_AXES if axis in manual and axis not in spec)


def varying(x: jax.Array, *axes: str) -> jax.Array:
  """What all devices have alike along these axes, as each one's own: its gradient is summed over them, here."""
  return lax.pcast(x, axes, to="varying") if within() and axes else x


def alike(*inputs: jax.Array) -> list[jax.Array]:
  """Each as one that differs from device to device wherever any of them does."""
  differ = [jax.typeof(x).mat.varying for x in inputs]
  missing = [tuple(sorted(frozenset().union(*differ) - axes)) for axes in differ]
  return [lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(inputs, missing, strict=True)]


def summed(x: jax.Array, axis: str) -> jax.Array:
  """Sum over the devices along a mesh axis."""
  return lax.psum(x, axis) if within() else x  # Of a single device too: that they are the same is part of the type.


def gathered(param: jax.Array, names: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
  """A parameter in this dtype, whole along `fsdp`; what travels has this dtype, and of gradients the parameter's.

  Args:
    param: the device's part.
    names: logical names of its axes.
    dtype: of the result.
  """
  divided = [i for i, name in enumerate(names) if name is not None and RULES[name] == "fsdp"]
  if size("fsdp") == 1 or not divided:
    return param.astype(dtype)
  return _gathered(jnp.dtype(dtype), param.dtype, divided[0], param)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(dtype, param_dtype, axis, param):
  del param_dtype
  return lax.all_gather(param.astype(dtype), "fsdp", axis=axis, tiled=True)


def _gradient(dtype, param_dtype, axis, _, gradient):
  del dtype
  return lax.psum_scatter(gradient.astype(param_dtype), "fsdp", scatter_dimension=axis, tiled=True),


_gathered.defvjp(lambda *args: (_gathered(*args), None), _gradient)


def own_part(x: jax.Array, axis: int) -> jax.Array:
  """The part of `x` that this device has along `model`."""
  parts = size("model")
  if parts == 1:
    return x
  length = x.shape[axis] // parts
  return lax.dynamic_slice_in_dim(x, lax.axis_index("model") * length, length, axis)


def look_up(table_VxE: jax.Array, indices_GxN: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Rows of a table that is divided over `model` (V) and `fsdp` (E), `[G, N, E]`, in this dtype.

  The indices of all go to all along `fsdp`, each looks up its columns, and these come back: so neither the table nor
  its gradient is ever whole. The gradients of a row, thousands for a frequent one, are summed in the table's dtype.
  """
  divided, model = size("fsdp") > 1, size("model") > 1
  if divided:
    indices_GxN = lax.all_gather(indices_GxN, "fsdp", tiled=True)
  if model:
    indices_GxN = indices_GxN - lax.axis_index("model") * len(table_VxE)
  rows = jnp.take(table_VxE, indices_GxN, axis=0, mode="clip" if model else None).astype(dtype)
  if model:  # All but one of them are 0.
    rows = jnp.where(((indices_GxN >= 0) & (indices_GxN < len(table_VxE)))[..., None], rows, 0)
  rows = summed(rows, "model")
  return lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=2, tiled=True) if divided else rows
