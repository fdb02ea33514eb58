"""Devices that need not be here: described, so that their own compilers compile for them."""

import importlib.util
import math
import os
from typing import Any, NamedTuple

from gtr_jax.errors import InputError

# Else libtpu waits for the metadata server of a cloud machine, asks which TPU it is on, and serves one process alone.
_TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
                    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


class TpuSlices(NamedTuple):
  """What libtpu calls a slice, such as "v5e:8x8", and how many of them there are."""

  name: str
  number: int = 1

  def __str__(self):
    return self.name if self.number == 1 else f"{self.number} slices of {self.name}"


def has_tpu_compiler() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def tpu_slices(topology: tuple[str, int], devices: int, number: int = 1) -> TpuSlices:
  """Slices that have this many chips together, axes as equal as they can be.

  Args:
    topology: `chips.Chip.topology`.
    devices: in all slices.
    number: of slices.

  Raises:
    InputError: a slice's number of chips is no power of two.
  """
  name, axes = topology
  exponent = int(math.log2(max(devices // number, 1)))
  if 2**exponent * number != devices:
    raise InputError(f"--described_devices {devices}: slices of {name} have a power of two of chips")
  sizes = [2 ** (exponent // axes + (i >= axes - exponent % axes)) for i in range(axes)]
  return TpuSlices(f"{name}:{'x'.join(map(str, sizes))}", number)


def tpu_devices(slices: TpuSlices) -> list[Any]:
  """Their chips, for libtpu to compile for. v4 has two cores to a chip, which act as one."""
  for name, value in _TPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies
  options: dict[str, Any] = {"chip_config_name": "megacore"} if slices.name.startswith("v4:") else {}
  if slices.number > 1:
    options["num_slices"] = slices.number
  return list(topologies.get_topology_desc(slices.name, platform="tpu", **options).devices)
