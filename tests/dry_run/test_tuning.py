"""Which microbatches and kinds of remat are compiled, and which is the fastest."""

from types import SimpleNamespace

import pytest

from gtr_jax.cli.main import main
from gtr_jax.dry_run import tuning

BYTES = {"none": 4.0, "dots": 2.0, "mlp": 1.0, "layer": 0.5}
SECONDS = {"none": 1.0, "dots": 1.1, "mlp": 1.2, "layer": 1.3}  # Of a pair.


def plan_of(remat, microbatch):
  """Memory that grows with the microbatch; gradient caching computes a third more."""
  seconds = SECONDS[remat] * (1 if microbatch == 64 else 4 / 3)
  total = 10 + BYTES[remat] * microbatch
  return SimpleNamespace(total_bytes=total, out_of_memory="" if total < 400 else "too much", at_peak=0.5,
                         predicted=None if total >= 400 else SimpleNamespace(expected=seconds))


def chosen(memory, groups=4):
  said = []
  found = tuning.choices(plan_of, memory, 64, groups, said.append)
  assert said == found
  return [(choice.remat, choice.microbatch, choice.fits) for choice in found], tuning.fastest(found)


def test_the_largest_that_fits_of_each():
  found, best = chosen(memory=150)
  assert found == [("none", 64, False), ("none", 32, True), ("dots", 64, True), ("mlp", 64, True),
                   ("layer", 64, True)]
  assert (best.remat, best.microbatch, best.seconds) == ("dots", 64, 1.1)


def test_those_that_cannot_fit_are_not_compiled():
  found, best = chosen(memory=40)
  assert found == [("none", 64, False), ("none", 8, False), ("none", 4, True), ("dots", 64, False), ("dots", 16, False),
                   ("dots", 8, True), ("mlp", 64, False), ("mlp", 32, False), ("mlp", 16, True), ("layer", 64, False),
                   ("layer", 32, True)]
  assert (best.remat, best.microbatch) == ("none", 4)


def test_microbatches_that_no_halving_gives():
  found = tuning.choices(lambda remat, microbatch: SimpleNamespace(
      total_bytes=microbatch, out_of_memory="", at_peak=1.0, predicted=SimpleNamespace(expected=1.0)), 250, 1000, 8,
      lambda choice: None)
  assert [(choice.microbatch, choice.fits) for choice in found] == len(tuning.REMATS) * [(1000, False), (200, True)]


def test_nothing_fits():
  found, best = chosen(memory=9, groups=32)
  assert found == [(remat, microbatch, False) for remat in tuning.REMATS for microbatch in (64, 32)] and best is None


@pytest.mark.parametrize("flags, message", [
    (["--tune"], "--tune belongs to --dry_run"), (["--dry_run", "--tune"], "--tune: say for which TPU, with --chip"),
    (["--dry_run", "--tune", "--chip", "h100"], "--tune: only the compiler of TPUs says how long a step takes")])
def test_flags(flags, message, capsys):
  assert main(["train", "--gin_file=models/t5_tiny.gin", "--gin_file=runs/pretrain.gin", *flags]) == 2
  assert message in capsys.readouterr().err
