"""Steps that are not finite and may be skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_loop
from tiny_training import tiny_batch, tiny_loss, tiny_model

from gtr_jax.errors import TrainingError
from gtr_jax.parallel import partitioning
from gtr_jax.training import loop, optimizers
from gtr_jax.training.loop import Periods
from gtr_jax.training.state import create_state
from gtr_jax.training.step import make_train_step


def bad_at(*steps):
  good = test_loop.make_step()

  def train_step(state, batch):
    new, metrics = good(state, batch)
    bad = int(state.step) + 1 in steps
    return (new.replace(params=state.params), {**metrics, "loss": jnp.float32(jnp.nan)}) if bad else (new, metrics)

  return train_step


@pytest.fixture
def run(tmp_path, monkeypatch):
  """`test_loop.run`, that may skip two in a row."""
  fit = loop.fit
  monkeypatch.setattr(test_loop, "fit", lambda *args, **kwargs: fit(*args, skip_non_finite=2, **kwargs))
  return lambda *args, **kwargs: test_loop.run(tmp_path, *args, **kwargs)


def test_a_few_are_gone_past(run, tmp_path, capfd):
  result = run(Periods(9, log=3), train_step=bad_at(2, 3, 5, 6))
  assert int(result.state.step) == 9 and np.isfinite(result.state.params["w"])
  said = capfd.readouterr().err
  assert "step 3 is not finite (loss nan" in said and "it is skipped, 2 of at most 2 in a row" in said
  assert "train.jsonl:3.0, " in said  # Its examples.
  lines = test_loop.lines(tmp_path)
  assert [line["step"] for line in lines] == [3, 6, 9]
  assert all(np.isfinite(list(line.values())).all() for line in lines)


def test_a_period_without_any(run, tmp_path):
  run(Periods(4, log=1), train_step=bad_at(2))
  assert ["train/loss" in line for line in test_loop.lines(tmp_path)] == [True, False, True, True]


def test_too_many_in_a_row(run):
  with pytest.raises(TrainingError, match="step 5 is not finite .*no checkpoint has been saved"):
    run(Periods(9), train_step=bad_at(3, 4, 5))


def test_too_many_in_a_row_of_several_starts(run):
  run(Periods(4), train_step=bad_at(3, 4, 5))
  with pytest.raises(TrainingError, match="step 5 is not finite .*last good checkpoint is .*4;"):
    run(Periods(9), train_step=bad_at(3, 4, 5))


@pytest.mark.parametrize("skips", [True, False])
def test_a_step_leaves_everything_as_it_was(skips):
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  model, optimizer = tiny_model(), optimizers.adamw(1e-2)
  state, _ = create_state(model, tiny_loss(learned_temperature=True), optimizer, mesh, 0)
  state = state.replace(params={**state.params, "logit_scale": jnp.float32(np.log(10))})
  step = jax.jit(make_train_step(model, tiny_loss(learned_temperature=True), optimizer, 0, skips))
  with jax.set_mesh(mesh):
    good, metrics = step(state, tiny_batch(0, 1))
    bad, of_bad = step(good.replace(params={**good.params, "logit_scale": jnp.float32(1000)}), tiny_batch(1, 1))
  assert np.isfinite(metrics["loss"]) and not np.isfinite(of_bad["loss"])
  same = jax.tree.map(lambda a, b: bool((a == b).all()), (good.params, good.opt_state), (bad.params, bad.opt_state))
  del same[0]["logit_scale"]
  assert all(jax.tree.leaves(same)) == skips and int(bad.step) == 2
  assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), state.params, good.params)))
