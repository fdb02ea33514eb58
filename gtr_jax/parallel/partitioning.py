"""How arrays lie on the devices: the mesh, the rules from logical axes to mesh axes, and shardings made from them.

A mesh has three axes. `data` and `fsdp` both divide the batch; `fsdp` also divides the parameters, which are gathered
layer by layer; `model` divides heads and MLP columns (tensor parallelism). Code names what an axis *means* ("embed",
"mlp"), and `RULES` alone says where that goes. What one device computes, and what it exchanges with the others, is
written out (`over_shards`, `shards.py`).
"""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gtr_jax.errors import InputError
from gtr_jax.values.ranges import Positive, Says

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "vocab": "model",
    "embed": "fsdp",
    "mlp": "model",
    "joined_kv": "model",
    "heads": "model",
    "relpos_buckets": None,
    "affinity": None,
    "lora_rank": None,
}


_AxisSize = Annotated[Literal[-1] | Positive, Says("a positive whole number, or -1 (the rest)")]


def make_mesh(data: _AxisSize = -1, fsdp: _AxisSize = 1, model: _AxisSize = 1, devices: Any = None,
              across_slices: Literal["data", "fsdp", "model"] = "data") -> Mesh:
  """A mesh with the axes `AXES`, on TPUs with neighbours along an axis near each other in the torus.

  Args:
    data: devices along `data`; -1 takes what the other two leave. At most one of the three may be -1.
    fsdp: devices along `fsdp`.
    model: devices along `model`.
    devices: default: all devices of all processes.
    across_slices: of several TPU slices, the axis along which they follow one another: what is exchanged along it
      crosses the data-centre network between them, and along the other axes nothing does.

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
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  else:
    between = [slices if name == across_slices else 1 for name in AXES]
    if sizes[AXES.index(across_slices)] % slices:
      raise InputError(f"mesh {asked} does not fit {slices} slices of {len(devices) // slices} devices: the axis "
                       f"{across_slices!r} crosses them (make_mesh.across_slices), so make it a multiple of {slices}")
    within = [size // by for size, by in zip(sizes, between, strict=True)]
    placed = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def num_groups(mesh: Mesh | AbstractMesh) -> int:
  """Number of data shards: the length of the leading axis of every batch."""
  return _axes_size(mesh, BATCH_AXES)


def own_groups(mesh: Mesh) -> tuple[int, ...]:
  """Numbers of the groups that this process has to feed, ascending: wherever the mesh has put its devices.

  Processes whose devices share groups, because the axis `model` spans processes, feed the same ones.

  Raises:
    InputError: a process shares some of its groups with another one, and others not.
  """
  return _parts(mesh)[jax.process_index()]


def part_of_batch(mesh: Mesh) -> tuple[int, int]:
  """(number of this process's part of a batch, number of parts): those that feed the same groups have one part.

  Raises:
    InputError: as `own_groups`.
  """
  parts = _parts(mesh)
  different = sorted(set(parts.values()))
  return different.index(parts[jax.process_index()]), len(different)


@functools.lru_cache(maxsize=8)  # It is asked at every batch, and looks at all devices.
def _parts(mesh):
  """The groups of each process."""
  fed = defaultdict(set)
  placed: dict[Any, Any] = dict(batch_sharding(mesh).devices_indices_map((num_groups(mesh),)))
  for device, index in placed.items():
    fed[device.process_index].add(index[0].start or 0)
  parts = {process: tuple(sorted(of_process)) for process, of_process in fed.items()}
  different = set(parts.values())
  if len(set(map(len, different))) > 1 or sum(map(len, different)) != num_groups(mesh):
    devices = Counter(device.process_index for device in mesh.devices.flat)
    if len(set(devices.values())) > 1:
      raise InputError("the processes have different numbers of devices: " + ", ".join(
          f"process {i} has {count}" for i, count in sorted(devices.items())) + "; give each the same number")
    raise InputError(f"mesh {dict(mesh.shape)}: its {num_groups(mesh)} data shards overlap in some of "
                     f"{jax.process_count()} processes; make the model axis divide the devices of a process, or be a "
                     "multiple of them")
  return parts


def slices_of_shards(mesh: Mesh) -> tuple[int, ...]:
  """Of each data shard the number of the TPU slice that it is on; () where all are on one, or each on several."""
  numbers = np.vectorize(lambda device: getattr(device, "slice_index", 0), otypes=[int])(mesh.devices)
  shards = numbers.reshape(num_groups(mesh), -1)
  if len(np.unique(shards)) == 1 or (shards != shards[:, :1]).any():
    return ()
  return tuple(shards[:, 0].tolist())


def platform() -> str:
  """What is computed on under the mesh of `jax.set_mesh`, which may be of described devices: "cpu", "gpu" or "tpu"."""
  return _device().platform


def device_kind() -> str:
  """What jax calls the devices of that mesh, such as "TPU v4"."""
  return _device().device_kind


def _device():
  return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None) or jax.devices()[0]


def logical_spec(names: tuple[str | None, ...]) -> PartitionSpec:
  """The mesh axes of a parameter whose axes have these logical names (None: not divided)."""
  return PartitionSpec(*(None if name is None else RULES[name] for name in names))


def over_shards(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """`f` as each device computes it, from its own parts of the arguments, under the mesh of `jax.set_mesh`.

  Without a mesh, and within such a function, it is `f` itself, of arrays that are whole or the device's own already.

  Args:
    f: the functions of `shards.py` say what it exchanges with the other devices.
    in_specs: how the mesh divides the arguments, as of `jax.shard_map`.
    out_specs: how it divides the results.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return f if mesh.empty or mesh.manual_axes else jax.shard_map(f, in_specs=in_specs, out_specs=out_specs)


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
  sharding, groups, local = batch_sharding(mesh), num_groups(mesh), len(own_groups(mesh))

  def to_device(x):
    if x.ndim == 0 or x.shape[0] != local:
      raise InputError(f"a batch array of shape {x.shape} cannot be divided over {local} data shards (mesh "
                       f"{dict(mesh.shape)}): make its first axis {local} groups, or change the mesh")
    return jax.make_array_from_process_local_data(sharding, x, (groups, *x.shape[1:]))

  return jax.tree.map(to_device, host_batch)


def place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """An array that every process holds in full, on the devices: each gets its part."""
  return jax.make_array_from_callback(value.shape, sharding, lambda index: np.ascontiguousarray(value[index]))


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
