"""Pairs and tokens a second are of all the time but evaluations, saves and compilations."""

import pytest
import test_loop
from tiny_training import PAIRS, TinyBatches

from gtr_jax.training import loop
from gtr_jax.training.loop import Periods
from gtr_jax.training.metrics import PeriodMeans


class SlowBatches(TinyBatches):
  """Each takes a second to read."""

  def __init__(self, clock):
    super().__init__()
    self._clock = clock

  def __iter__(self):
    for item in super().__iter__():
      self._clock[0] += 1
      yield item


def test_steps_that_end_at_once():
  """Of two the first waited for both: one line of metrics for each step says what many take."""
  means, rates = PeriodMeans(), []
  for step in range(64):
    means.add(test_loop.metrics_of(50), 2.0 * (step % 2))
    rates.append(means.scalars().get("pairs_per_second"))
    means.clear()
  assert rates[0] is None and rates[1] == 8 and rates[-20:] == [8.0] * 20


@pytest.mark.parametrize("evaluate", [0, 1, 2, 3])
def test_a_second_a_step(tmp_path, monkeypatch, evaluate):
  clock = [0.0]

  def evaluation():
    clock[0] += 1000

  monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
  test_loop.run(tmp_path, Periods(48, log=16, evaluate=evaluate, checkpoint=5), batches=SlowBatches(clock),
                evaluators=[test_loop.Evaluation(*range(48), hook=evaluation)])
  found = [line["train/pairs_per_second"] for line in test_loop.lines(tmp_path, False) if "train/loss" in line]
  seconds = [16 * PAIRS / each for each in found]
  assert 47 <= sum(seconds) <= 48  # The very first may be read before all that.
  assert all(15 <= each <= 17 for each in seconds)
