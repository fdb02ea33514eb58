"""Pairs and tokens a second are of all the time but evaluations, saves and compilations."""

import pytest
import test_loop
from tiny_training import PAIRS, TinyBatches

from gtr_jax.training import loop
from gtr_jax.training.loop import Periods


class SlowBatches(TinyBatches):
  """Each takes a second to read."""

  def __init__(self, clock):
    super().__init__()
    self._clock = clock

  def __iter__(self):
    for item in super().__iter__():
      self._clock[0] += 1
      yield item


@pytest.mark.parametrize("evaluate", [0, 1, 2, 3])
def test_a_second_a_step(tmp_path, monkeypatch, evaluate):
  clock = [0.0]

  def evaluation():
    clock[0] += 1000

  monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
  test_loop.run(tmp_path, Periods(18, log=6, evaluate=evaluate, checkpoint=5), batches=SlowBatches(clock),
                evaluators=[test_loop.Evaluation(*range(18), hook=evaluation)])
  found = [line["train/pairs_per_second"] for line in test_loop.lines(tmp_path, False) if "train/loss" in line]
  seconds = [6 * PAIRS / each for each in found]
  assert 17 <= sum(seconds) <= 18  # The very first may be read before all that.
  assert all(5 <= each <= 7 for each in seconds)
