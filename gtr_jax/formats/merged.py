"""The kernels of a model that was trained with LoRA (`models.lora`), with its factors merged into them: W + s A B.

The sum is made in float64, in one order whatever the mesh and the machine, and rounded once: so it has the same bits,
and the same hash, wherever it is made.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from gtr_jax.formats.model_on_disk import Array
from gtr_jax.models.lora import Lora, is_factor

_BLOCK = 2**18  # numbers of a kernel that are computed together


def merged_kernel(kernel: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
  """`kernel + scale * a @ b`, in the kernel's dtype; or a part of it, of rows of `a` and columns of `b`."""
  out = np.empty_like(kernel)
  a, b = a.astype(np.float64), scale * b.astype(np.float64)
  step = max(1, _BLOCK // kernel.shape[1])
  for begin in range(0, len(kernel), step):
    rows = slice(begin, begin + step)
    delta = np.zeros(kernel[rows].shape)
    for of_a, of_b in zip(a[rows].T, b, strict=True):  # By no matrix product, whose order of sums is the machine's.
      delta += of_a[:, None] * of_b
    out[rows] = kernel[rows] + delta
  return out


def merged_arrays(arrays: Mapping[str, Array], lora: Lora | None) -> dict[str, Array]:
  """A model's arrays without factors, each kernel merged with its own when it is read."""
  if lora is None:
    return dict(arrays)
  scale, found = lora.scale, {}

  def read(kernel, a, b):
    return lambda: merged_kernel(kernel.read(), a.read(), b.read(), scale)

  for name, array in arrays.items():
    a, b = (arrays.get(name.removesuffix("kernel") + factor) for factor in ("lora_a", "lora_b"))
    if not is_factor(name):
      found[name] = array if a is None or b is None else Array(array.shape, array.dtype, read(array, a, b))
  return found


def merged_params(params: Any, lora: Lora | None) -> Any:
  """Of parameters on a mesh, each device's part by itself, as the factors lie along the kernel."""
  if lora is None:
    return params
  found = traverse_util.flatten_dict(dict(params), sep="/")

  def merged(name, kernel):
    of_device = [{shard.device: np.asarray(shard.data) for shard in array.addressable_shards} for array in (
        kernel, *(found[name.removesuffix("kernel") + factor] for factor in ("lora_a", "lora_b")))]
    parts = [jax.device_put(merged_kernel(part, of_device[1][device], of_device[2][device], lora.scale), device)
             for device, part in of_device[0].items()]
    return jax.make_array_from_single_device_arrays(kernel.shape, kernel.sharding, parts)

  return traverse_util.unflatten_dict({
      name: merged(name, leaf) if name.removesuffix("kernel") + "lora_a" in found and name.endswith("/kernel") else leaf
      for name, leaf in found.items() if not is_factor(name)}, sep="/")
