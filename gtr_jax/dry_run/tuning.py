"""What of a step may be chosen without changing it: how many pairs are encoded at once, and what is computed again."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gtr_jax.dry_run.predicted import Predicted

REMATS = ("none", "dots", "mlp", "layer")  # of T5Config


class Planned(Protocol):
  """What is asked of a `step_plan.Plan`."""

  total_bytes: int
  out_of_memory: str
  predicted: Predicted | None
  at_peak: float


class Choice(NamedTuple):
  """One that was compiled. Bytes are of one device, what of its memory the step needs."""

  remat: str
  microbatch: int
  bytes: float
  fits: bool
  seconds: float | None
  mfu: float


def choices(plan_of: Callable[[str, int], Planned], memory: float, batch: int, groups: int,
            say: Callable[[Choice], None]) -> list[Choice]:
  """Compiles, for each kind of `remat`, the largest microbatch that fits; a smaller one is hardly ever faster.

  Args:
    plan_of: the plan of a `remat` and a microbatch, which is the whole batch where nothing is cached.
    memory: of a device.
    batch: pairs.
    groups: data shards, that a microbatch is divided over.
    say: gets each as it is known.

  Returns:
    All that were compiled.
  """
  found = []
  for remat in REMATS:
    microbatch = batch
    while True:
      plan = plan_of(remat, microbatch)
      fits = not plan.out_of_memory and plan.total_bytes <= memory
      seconds = plan.predicted.expected if plan.predicted and fits else None
      mfu = plan.at_peak / seconds if seconds else 0.0
      found.append(Choice(remat, microbatch, plan.total_bytes, fits, seconds, mfu))
      say(found[-1])
      if fits or microbatch == groups:
        break
      # As much smaller as its bytes say, if they shrink with it.
      smaller = [size for size in range(microbatch - groups, 0, -groups) if batch % size == 0]
      if not smaller:
        break
      microbatch = next((size for size in smaller if size * plan.total_bytes <= 1.5 * microbatch * memory), smaller[-1])
  return found


def fastest(of: list[Choice]) -> Choice | None:
  """Of those that fit; None where none does."""
  return min((choice for choice in of if choice.seconds is not None), key=lambda choice: choice.seconds or 0.0,
             default=None)
