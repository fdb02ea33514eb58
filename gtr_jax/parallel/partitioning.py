"""How arrays lie on the devices: the mesh, the rules from logical axes to mesh axes, and shardings made from them.

A mesh has three axes. `data` and `fsdp` both divide the batch; `fsdp` also divides the parameters, which are gathered
layer by layer; `model` divides heads and MLP columns (tensor parallelism). Code names what an axis *means* ("embed",
"mlp", "group"), and `RULES` alone says where that goes.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gtr_jax.errors import InputError
from gtr_jax.values.ranges import Positive, Says

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "vocab": "model",
    "embed": "fsdp",
    "mlp": "model",
    "joined_kv": "model",
    "heads": "model",
    "relpos_buckets": None,
    "affinity": None,
    # activations
    "group": BATCH_AXES,
    "data_group": "data",  # where `fsdp` divides another axis
    "row": None,
    "text": None,
    "length": None,
    "activation_embed": None,
    "activation_mlp": "model",
    "activation_heads": "model",
    "head_dim": None,
}


_AxisSize = Annotated[Literal[-1] | Positive, Says("a positive whole number, or -1 (the rest)")]


def make_mesh(data: _AxisSize = -1, fsdp: _AxisSize = 1, model: _AxisSize = 1, devices: Any = None) -> Mesh:
  """A mesh with the axes `AXES`.

  Args:
    data: devices along `data`; -1 takes what the other two leave. At most one of the three may be -1.
    fsdp: devices along `fsdp`.
    model: devices along `model`.
    devices: default: all devices of all processes.

  Raises:
    InputError: the devices cannot be divided that way.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, fsdp, model]
  asked = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
  if any(type(size) is not int or size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise InputError(f"mesh {asked}: give each axis a positive number, and at most one of them -1 (the rest)")
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % fixed == 0:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if math.prod(sizes) != len(devices):
    raise InputError(f"mesh {asked} does not fit {len(devices)} device{'s' * (len(devices) > 1)}: make the product of "
                     f"the axes {len(devices)}, or set one axis to -1")
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def num_groups(mesh: Mesh | AbstractMesh) -> int:
  """Number of data shards: the length of the leading axis of every batch."""
  return _axes_size(mesh, BATCH_AXES)


def local_groups(mesh: Mesh) -> int:
  """Number of groups that this process has to feed."""
  groups = batch_sharding(mesh).addressable_devices_indices_map((num_groups(mesh),))
  return len({index[0].start or 0 for index in groups.values() if index is not None})


def logical_spec(names: tuple[str | None, ...]) -> PartitionSpec:
  """The mesh axes of an array whose axes have these logical names (None: not divided)."""
  return PartitionSpec(*(None if name is None else RULES[name] for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Holds `x` to the sharding of these logical axes under the mesh of `jax.set_mesh`; without a mesh, `x` itself.

  Without such constraints the compiler may silently replicate activations under fsdp.

  Raises:
    InputError: an axis of `x` cannot be divided over the mesh.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = PartitionSpec(*(_without(axes, mesh.manual_axes) for axes in logical_spec(names)))
  _check_divides(mesh, x.shape, names, spec, "the batch or the model")
  return jax.lax.with_sharding_constraint(x, spec)


def each_data_shard(f: Callable, *specs: PartitionSpec) -> Callable:
  """`f` as each shard along `data` computes it from its own part, summed over the shards at the end.

  Left to the compiler, a sum that a loop builds up is summed over the devices in every iteration. `fsdp` is left to it.
  Where the mesh has `model` too, everything is, and `f` comes back as it is: XLA (of jaxlib 0.10) aborts.

  Args:
    f: of parameters and of divided arguments; returns a tree of sums over the groups of the batch.
    specs: how `data` divides each argument after the parameters.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape["data"] == 1 or mesh.shape["model"] != 1:
    return f

  def summed(params, *args):
    # They are the same in all shards; said to differ, their gradients are not added up before the end.
    params = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), params)
    return jax.lax.psum(f(params, *args), "data")

  return jax.shard_map(summed, in_specs=(PartitionSpec(), *specs), out_specs=PartitionSpec(), axis_names={"data"})


def own_part(draw: Callable, shape: tuple[int, ...]) -> jax.Array:
  """`draw(shape)` of random numbers; within `each_data_shard`, the shard's part of those that all of them would get."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not mesh.manual_axes:
    return draw(shape)
  whole = draw((mesh.shape["data"] * shape[0], *shape[1:]))
  return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index("data") * shape[0], shape[0])


def state_shardings(mesh: Mesh, tree: Any) -> Any:
  """Shardings for a tree of abstract arrays, of which those boxed as `nn.LogicallyPartitioned` are divided by `RULES`.

  What has no box is replicated.

  Args:
    mesh: from `make_mesh`.
    tree: for instance `jax.eval_shape(model.init, key)`, or a whole train state.

  Returns:
    A tree of `NamedSharding` with the structure of `nn.meta.unbox(tree)`.

  Raises:
    InputError: an array cannot be divided over the mesh.
  """
  def sharding(path, leaf):
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    spec = logical_spec(leaf.names)
    _check_divides(mesh, leaf.value.shape, leaf.names, spec, jax.tree_util.keystr(path, simple=True, separator="/"))
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading group axis over `data` and `fsdp`, everything else whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def global_batch(mesh: Mesh, host_batch: Any) -> Any:
  """Arrays of this process's groups, `[local groups, ...]` -> global arrays `[groups, ...]` on the devices.

  Raises:
    InputError: the leading axis is not this process's number of groups.
  """
  sharding, groups, local = batch_sharding(mesh), num_groups(mesh), local_groups(mesh)

  def to_device(x):
    if x.ndim == 0 or x.shape[0] != local:
      raise InputError(f"a batch array of shape {x.shape} cannot be divided over {local} data shards (mesh "
                       f"{dict(mesh.shape)}): make its first axis {local} groups, or change the mesh")
    return jax.make_array_from_process_local_data(sharding, x, (groups, *x.shape[1:]))

  return jax.tree.map(to_device, host_batch)


def place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """An array that every process holds in full, on the devices: each gets its part."""
  return jax.make_array_from_callback(value.shape, sharding, lambda index: np.ascontiguousarray(value[index]))


def _without(axes: str | tuple[str, ...] | None, manual: Any) -> str | tuple[str, ...] | None:
  if isinstance(axes, tuple):
    return tuple(axis for axis in axes if axis not in manual)
  return None if axes in manual else axes


def _axes_size(mesh: Any, axes: str | tuple[str, ...] | None) -> int:
  axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[axis] for axis in axes)


def _check_divides(mesh: Any, shape: tuple[int, ...], names: tuple[str | None, ...], spec: PartitionSpec,
                   what: str) -> None:
  for size, name, axes in zip(shape, names, spec, strict=True):
    parts = _axes_size(mesh, axes)
    if size % parts:
      raise InputError(f"{what}: axis '{name}' of length {size} (shape {tuple(shape)}) cannot be divided over {parts} "
                       f"devices along mesh axis {axes!r}: change the mesh or the size")
