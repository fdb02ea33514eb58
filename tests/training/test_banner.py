"""What a run says after its last step."""

import types

import pytest

from gtr_jax.training import banner


@pytest.mark.parametrize("step, gave_up, says", [
    (8, True, "8 steps, no longer because it got no better"), (20, True, "20 steps"), (20, False, "20 steps")])
def test_what_ended_it(step, gave_up, says):
  """A run that gives up at its last step has done all of them."""
  run = types.SimpleNamespace(model_dir="runs/a", train_steps=20, best_metric="x/nDCG@10")
  first, *_ = banner.closing(run, 4, 0.5, step, gave_up, None)
  assert first == f"done      {says}"
