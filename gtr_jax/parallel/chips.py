"""Published figures of accelerators, each with its source."""

from dataclasses import dataclass
from typing import Any

from gtr_jax.errors import InputError


@dataclass(frozen=True)
class Chip:
  """One accelerator. All figures are of one chip, in bytes and seconds.

  Attributes:
    flops: dense bfloat16, a second.
    float32_flops: of products in float32, a second: a TPU makes one of six in bfloat16, a GPU without tensor cores.
    memory: capacity of its HBM.
    memory_bandwidth: of its HBM.
    interconnect: what a chip can send to others of its domain, one way.
    domain: how many chips that connects; of a mesh, that many consecutive devices.
    network: what a chip can send beyond; None where no source was read.
    topology: TPUs: what libtpu calls them, and the number of axes of their torus.
    kinds: what jax calls such a device.
    clock: TPUs: cycles a second.
    matrix_unit: TPUs: rows and columns of a matrix unit.
    cores: TPUs: each with a vector unit.
    source: where the figures stand.
  """

  flops: float
  float32_flops: float
  memory: float
  memory_bandwidth: float
  interconnect: float
  domain: int
  source: str
  network: float | None = None
  topology: tuple[str, int] | None = None
  kinds: tuple[str, ...] = ()
  clock: float = 0.0
  matrix_unit: int = 0
  cores: int = 1

  @property
  def vector_operations(self) -> float:
    """A second, of a TPU: four at once on each of 8 x 128 lanes."""
    return self.cores * 4 * 8 * 128 * self.clock

  def flops_in(self, dtype: str) -> float:
    """Products a second, in "bfloat16" or "float32"."""
    return self.flops if dtype == "bfloat16" else self.float32_flops


# Google gives the interconnect of v5e, v5p and v6e in both directions together; half of it is one way. For v4 it gives
# the all-reduce bandwidth of a pod, 1.1 PB/s of 4,096 chips, which for v5e and v6e is their one-way figure exactly.
_GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
# A TPU's clock is its FLOPs a second by those of a cycle: 2 x 128 x 128 of each of 8 matrix units (v4, v5p) or 4 (v5e),
# and 2 x 256 x 256 of 4 (v6e). Its cores and their vector units: https://github.com/jax-ml/scaling-book, tpus.md.
_BOOK = ("https://github.com/jax-ml/scaling-book, gpus.md (SXM; 450 GB/s NVLink one way, 400 GB/s a node of 8 beyond); "
         "float32: NVIDIA's data sheets of H100 and H200")
CHIPS = {
    "v4": Chip(275e12, 275e12 / 6, 32 * 2**30, 1200e9, 1.1e15 / 4096, 4096, _GOOGLE + "v4", topology=("v4", 3),
               kinds=("TPU v4",), clock=1.05e9, matrix_unit=128, cores=2),
    "v5e": Chip(197e12, 197e12 / 6, 16e9, 819e9, 200e9, 256, _GOOGLE + "v5e", topology=("v5e", 2),
                kinds=("TPU v5 lite", "TPU v5e"), clock=1.5e9, matrix_unit=128),
    "v5p": Chip(459e12, 459e12 / 6, 95e9, 2765e9, 600e9, 8960, _GOOGLE + "v5p", 50e9 / 8, ("v5p", 3),
                kinds=("TPU v5", "TPU v5p"), clock=1.75e9, matrix_unit=128, cores=2),
    "v6e": Chip(918e12, 918e12 / 6, 32e9, 1638e9, 400e9, 256, _GOOGLE + "v6e", topology=("v6e", 2),
                kinds=("TPU v6 lite", "TPU v6e"), clock=1.75e9, matrix_unit=256),
    "h100": Chip(990e12, 67e12, 80e9, 3350e9, 450e9, 8, _BOOK, 50e9, kinds=("NVIDIA H100", "NVIDIA H100 80GB HBM3")),
    "h200": Chip(990e12, 67e12, 141e9, 4800e9, 450e9, 8, _BOOK, 50e9, kinds=("NVIDIA H200",)),
}


def find(name: str) -> Chip:
  """The chip of this name. Raises InputError where there is none."""
  if name not in CHIPS:
    raise InputError(f"--chip {name}: there is none of that name; use one of {', '.join(CHIPS)}")
  return CHIPS[name]


def of_device(device: Any) -> Chip | None:
  """The chip that a jax device is; None where its figures are not known, as of an H100 that is no SXM."""
  return next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)
