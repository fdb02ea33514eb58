"""Published figures of accelerators, each with its source, and the shortest time that a step can take on them."""

from dataclasses import dataclass

from gtr_jax.dry_run.hlo import Collective, Work
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


# Google gives the interconnect of v5e, v5p and v6e in both directions together; half of it is one way. For v4 it gives
# the all-reduce bandwidth of a pod, 1.1 PB/s of 4,096 chips, which for v5e and v6e is their one-way figure exactly.
_GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
_BOOK = ("https://github.com/jax-ml/scaling-book, gpus.md (SXM; 450 GB/s NVLink one way, 400 GB/s a node of 8 beyond); "
         "float32: NVIDIA's data sheets of H100 and H200")
CHIPS = {
    "v4": Chip(275e12, 275e12 / 6, 32 * 2**30, 1200e9, 1.1e15 / 4096, 4096, _GOOGLE + "v4", topology=("v4", 3)),
    "v5e": Chip(197e12, 197e12 / 6, 16e9, 819e9, 200e9, 256, _GOOGLE + "v5e", topology=("v5e", 2)),
    "v5p": Chip(459e12, 459e12 / 6, 95e9, 2765e9, 600e9, 8960, _GOOGLE + "v5p", 50e9 / 8, ("v5p", 3)),
    "v6e": Chip(918e12, 918e12 / 6, 32e9, 1638e9, 400e9, 256, _GOOGLE + "v6e", topology=("v6e", 2)),
    "h100": Chip(990e12, 67e12, 80e9, 3350e9, 450e9, 8, _BOOK, 50e9),
    "h200": Chip(990e12, 67e12, 141e9, 4800e9, 450e9, 8, _BOOK, 50e9),
}


@dataclass(frozen=True)
class Floor:
  """The least seconds of a step; it cannot be shorter than the longest of them."""

  compute: float
  memory: float
  interconnect: float | None

  @property
  def seconds(self) -> float:
    return max(self.compute, self.memory, self.interconnect or 0.0)


def find(name: str) -> Chip:
  """The chip of this name. Raises InputError where there is none."""
  if name not in CHIPS:
    raise InputError(f"--chip {name}: there is none of that name; use one of {', '.join(CHIPS)}")
  return CHIPS[name]


def floor(chip: Chip, work: Work, state_bytes: float) -> Floor:
  """The least time of one step on a chip.

  Args:
    chip: of `CHIPS`.
    work: of one device.
    state_bytes: of one device; read and written once.
  """
  interconnect = [_seconds(chip, collective) for collective in work.collectives]
  known = [seconds for seconds in interconnect if seconds is not None]
  compute = (work.flops - work.float32_flops) / chip.flops + work.float32_flops / chip.float32_flops
  return Floor(compute, (work.matmul_bytes + 2 * state_bytes) / chip.memory_bandwidth,
               sum(known) if len(known) == len(interconnect) else None)


def _seconds(chip: Chip, collective: Collective) -> float | None:
  if collective.span <= chip.domain:
    return collective.bytes / chip.interconnect
  return collective.bytes / chip.network if chip.network else None
