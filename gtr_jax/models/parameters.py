"""What a model consists of: as abstract arrays, and as text."""

from typing import Any

import jax
from flax import linen as nn

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.parallel.partitioning import state_shardings


def abstract_parameters(encoder: DualEncoder, mesh: jax.sharding.Mesh) -> Any:
  """Shapes, dtypes and shardings of an encoder's parameters, unboxed: what a checkpoint is read onto."""
  boxed = jax.eval_shape(encoder.init, jax.random.key(0))
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                      nn.meta.unbox(boxed), state_shardings(mesh, boxed))


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
