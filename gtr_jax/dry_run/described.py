"""Devices that need not be here: described, so that their own compilers compile for them."""

import importlib.util
import math
import os
from typing import Any, NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.parallel.chips import Chip

# Else libtpu waits for the metadata server of a cloud machine, asks which TPU it is on, and serves one process alone.
_TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
                    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_HOST = 4  # Chips of a host, 2 x 2.
_CUBE = 64  # Chips of v4 and v5p, 4 x 4 x 4, that larger slices are made of.
_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# What XLA wants to know of a GPU. NVIDIA's "H100 Tensor Core GPU Architecture", table 3 (SXM5), and the CUDA
# programming guide's technical specifications of compute capability 9.0; an H200 differs in its memory alone.
_HOPPER = """\
platform_name: "CUDA"
device_description_str: "{kind}"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: {cuda} }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  device_memory_size: {memory:.0f}
  memory_bandwidth: {memory_bandwidth:.0f}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""


class Described(NamedTuple):
  """Devices, and what they are called."""

  devices: list[Any]
  name: str


class TpuSlices(NamedTuple):
  """What libtpu calls a slice, such as "v5e:8x8", and how many of them there are."""

  name: str
  number: int = 1

  def __str__(self):
    return self.name if self.number == 1 else f"{self.number} slices of {self.name}"


def has_compiler(chip: Chip) -> bool:
  """Whether the compiler for these chips is installed: libtpu, or jax's plugin for CUDA."""
  return any(map(importlib.util.find_spec, ["libtpu"] if chip.topology else _CUDA_PLUGINS))


def devices(chip: Chip, number: int, slices: int = 1) -> Described:
  """Chips for their own compiler to compile for; processes with 8 GPUs each, or as libtpu has it.

  Args:
    chip: whose compiler is installed.
    number: of chips, in all slices.
    slices: of TPUs, that they are in.

  Raises:
    InputError: there are no nodes or slices of so many chips.
  """
  if chip.topology:
    return _tpu_devices(tpu_slices(chip, number, slices))
  nodes, of_node = max(number // chip.domain, 1), min(number, chip.domain)
  if nodes * of_node != number:
    raise InputError(f"--described_devices {number}: nodes have {chip.domain} of these GPUs; give up to {chip.domain} "
                     f"of them, or {nodes * chip.domain} or {(nodes + 1) * chip.domain}")
  from jax.experimental import topologies
  plugin = next(filter(importlib.util.find_spec, _CUDA_PLUGINS))
  config = _HOPPER.format(kind=chip.kinds[0], cuda=plugin[len("jax_cuda"):][:2], memory=chip.memory,
                          memory_bandwidth=chip.memory_bandwidth)
  found = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x{nodes}x{of_node}").devices
  return Described(list(found), f"{number} x {chip.kinds[0]}")


def tpu_slices(chip: Chip, number: int, slices: int = 1) -> TpuSlices:
  """Slices that have this many chips together, axes as equal as they can be.

  Args:
    chip: a TPU.
    number: of chips, in all slices.
    slices: how many.

  Raises:
    InputError: there is no slice of so many chips.
  """
  name, axes = chip.topology or ("", 0)
  of_slice, rest = divmod(number, slices)
  given = f"--described_devices {number}" + f" --slices {slices}" * (slices > 1)
  if rest:
    raise InputError(f"{given}: slices have the same number of chips each; give a multiple of {slices}")
  if of_slice > chip.domain:
    least = -(-number // chip.domain)
    raise InputError(f"{given}: a slice of {name} has at most {chip.domain:,} chips; give --slices {least} or more")
  exponent = of_slice.bit_length() - 1
  if 2**exponent == of_slice:
    sizes = [2 ** (exponent // axes + (i >= axes - exponent % axes)) for i in range(axes)]
    if axes == 3:  # Google's own order, as of 2x2x1: given 1x2x2, libtpu ends the process.
      sizes.sort(key=lambda size: size == 1)
  elif axes == 3 and of_slice % _CUBE == 0:
    sizes = [4 * size for size in _three_factors(of_slice // _CUBE)]
  else:
    cubes = f", or a multiple of {_CUBE}" * (axes == 3)
    raise InputError(f"{given}: a slice of {name} has a power of two of chips{cubes}; give {slices * 2**exponent:,} or "
                     f"{slices * 2**(exponent + 1):,}")
  return TpuSlices(f"{name}:{'x'.join(map(str, sizes))}", slices)


def _three_factors(number: int) -> tuple[int, ...]:
  """The three whole numbers of this product that are nearest to each other, ascending."""
  divisors = [i for i in range(1, number + 1) if number % i == 0]
  return min(((a, b, number // (a * b)) for a in divisors for b in divisors
              if a <= b and number % (a * b) == 0 and b <= number // (a * b)), key=lambda sizes: sizes[2])


def _tpu_devices(slices):
  for name, value in _TPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies
  # v4 has two cores to a chip, which act as one.
  options: dict[str, Any] = {"chip_config_name": "megacore"} if slices.name.startswith("v4:") else {}
  if slices.number > 1:
    options["num_slices"] = slices.number
  sizes = [int(size) for size in slices.name.split(":")[1].split("x")]
  if math.prod(sizes) <= _HOST:
    options["chips_per_host_bounds"] = (*sizes, 1)[:3]
  return Described(list(topologies.get_topology_desc(slices.name, platform="tpu", **options).devices), str(slices))
