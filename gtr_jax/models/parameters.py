"""What a model consists of: as abstract arrays, and as text."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.lora import is_factor
from gtr_jax.parallel.partitioning import state_shardings


def abstract_parameters(encoder: DualEncoder, mesh: jax.sharding.Mesh) -> Any:
  """Shapes, dtypes and shardings of an encoder's parameters, unboxed: what a checkpoint is read onto."""
  boxed = jax.eval_shape(encoder.init, jax.random.key(0))
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                      nn.meta.unbox(boxed), state_shardings(mesh, boxed))


def trained(encoder: DualEncoder, params: Any) -> Any:
  """The part of a tree of parameters that training changes: with `lora` the factors, and what is no encoder's."""
  if encoder.lora is None:
    return params
  own = encoder.specs().keys()
  return chosen(params, lambda name: is_factor(name) or name.partition("/")[0] not in own)


def chosen(params: Any, wanted: Callable[[str], bool]) -> dict[str, Any]:
  """The part of a tree whose paths, such as "encoder/encoder_norm/scale", are wanted."""
  flat = traverse_util.flatten_dict(dict(params), sep="/")
  return traverse_util.unflatten_dict({name: leaf for name, leaf in flat.items() if wanted(name)}, sep="/")


def overlaid(params: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters, with the leaves of `part` in the places that they have there."""
  return {name: leaf if name not in part else overlaid(leaf, part[name]) if isinstance(leaf, Mapping) else part[name]
          for name, leaf in params.items()}


def parameter_table(params: Any) -> str:
  """One line for each parameter (name, shape, dtype, logical axes where it is boxed), then the totals.

  Args:
    params: a parameter tree, abstract or not, whose leaves may be boxed as `nn.LogicallyPartitioned`.
  """
  def is_box(x):
    return isinstance(x, nn.LogicallyPartitioned)

  rows, total = [], 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box):
    value, axes = (leaf.value, leaf.names) if is_box(leaf) else (leaf, ())
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    rows.append((name, f"[{', '.join(map(str, value.shape))}]", str(value.dtype), ", ".join(map(str, axes))))
    total += value.size
  widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
  lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
           for row in rows]
  return "\n".join([*lines, f"{len(rows)} arrays, {total:,} parameters"]) + "\n"
