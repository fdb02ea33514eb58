"""The shortest time that a step can take on a chip."""

from dataclasses import dataclass

from gtr_jax.dry_run.hlo import Collective, Work
from gtr_jax.parallel.chips import Chip


@dataclass(frozen=True)
class Floor:
  """The least seconds of a step; it cannot be shorter than the longest of them."""

  compute: float
  memory: float
  interconnect: float | None

  @property
  def seconds(self) -> float:
    return max(self.compute, self.memory, self.interconnect or 0.0)


def floor(chip: Chip, work: Work, state_bytes: float) -> Floor:
  """The least time of one step on a chip.

  Args:
    chip: of `chips.CHIPS`.
    work: of one device.
    state_bytes: of one device; read and written once.
  """
  interconnect = [collective_seconds(chip, collective) for collective in work.collectives]
  known = [seconds for seconds in interconnect if seconds is not None]
  compute = (work.flops - work.float32_flops) / chip.flops + work.float32_flops / chip.float32_flops
  return Floor(compute, (work.matmul_bytes + 2 * state_bytes) / chip.memory_bandwidth,
               sum(known) if len(known) == len(interconnect) else None)


def collective_seconds(chip: Chip, collective: Collective) -> float | None:
  """Of all of a kind of collective, one after the other; None where a rate is not known."""
  if collective.between_slices:
    if not chip.network:
      return None
    return max(collective.bytes / chip.interconnect, collective.between_slices / chip.network)
  if collective.span <= chip.domain:
    return collective.bytes / chip.interconnect
  return collective.bytes / chip.network if chip.network else None
