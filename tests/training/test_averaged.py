"""The average of the weights: its formula, and that it is what is evaluated and used."""

import jax
import numpy as np
import optax
import pytest
from tiny_training import TinyBatches, tiny_batch, tiny_loss, tiny_model

from gtr_jax.checkpoints.checkpointer import Checkpointer, restore_params
from gtr_jax.errors import InputError
from gtr_jax.models.parameters import abstract_parameters
from gtr_jax.parallel import partitioning
from gtr_jax.training import optimizers
from gtr_jax.training.loop import Periods, fit, resume
from gtr_jax.training.state import create_state
from gtr_jax.training.step import compile_step, make_train_step

MESH = partitioning.make_mesh(1, 4, 2)


def test_it_begins_from_the_parameters_that_a_run_starts_from():
  optimizer = optimizers.averaged(optimizers.adamw(1e-3))
  state, shardings = create_state(tiny_model(), tiny_loss(), optimizer, MESH, 0)
  other = jax.tree.map(lambda x: x + 1, state.params)
  state = state.beginning_from(other)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state.average, other)
  assert jax.tree.map(lambda x: x.sharding, state.opt_state.average) == shardings.opt_state.average
  step = compile_step(make_train_step(tiny_model(), tiny_loss(), optimizer, 0), shardings)
  with jax.set_mesh(MESH):
    step(state, partitioning.global_batch(MESH, tiny_batch(1, 4)))  # Nothing is donated twice.


def test_the_formula():
  optimizer, decay = optimizers.averaged(optimizers.adamw(0.1), 0.5), 0.5
  params = {"w": np.float32([1, -2])}
  state = optimizer.init(params)
  expected = params["w"].astype(float)
  for t in range(1, 20):
    updates, state = optimizer.update({"w": params["w"] * t}, state, params)
    params = optax.apply_updates(params, updates)
    share = min(decay, (1 + t) / (10 + t))
    expected = share * expected + (1 - share) * np.asarray(params["w"], float)
    np.testing.assert_allclose(state.average["w"], expected, rtol=1e-5)
  with pytest.raises(InputError, match="decay is 1"):
    optimizers.averaged(optimizers.adamw(0.1), 1.0)


@pytest.mark.parametrize("of", [optimizers.adafactor(1e-2, min_dim_size_to_factor=4), optimizers.adamw(1e-2)])
def test_it_is_evaluated_saved_and_used(tmp_path, of):
  model, loss, optimizer = tiny_model(), tiny_loss(learned_temperature=True), optimizers.averaged(of, 0.9)
  seen = []

  def evaluator(params):
    seen.append(jax.device_get(params))
    return {}

  evaluator.name, evaluator.content = "dev", "a hash"

  def run(steps):
    state, shardings = create_state(model, loss, optimizer, MESH, 0)
    assert jax.tree.leaves(shardings.opt_state.average) == jax.tree.leaves(shardings.params)  # Divided alike.
    checkpointer, batches = Checkpointer(tmp_path / "checkpoints"), TinyBatches(4)
    state, progress = resume(checkpointer, state, shardings, batches, [evaluator])
    step = compile_step(make_train_step(model, loss, optimizer, 0), shardings)
    result = fit(state, step, batches, checkpointer, periods=Periods(steps, evaluate=2), mesh=MESH,
                 evaluators=[evaluator], progress=progress)
    checkpointer.close()
    return result.state

  run(2)
  state = run(4)
  average, params = jax.device_get((state.opt_state.average, state.params))
  assert int(state.opt_state.made) == 4
  jax.tree.map(np.testing.assert_array_equal, seen[-1], average)
  assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), average, params)))
  used = restore_params(tmp_path / "checkpoints", abstract_parameters(model, MESH))
  assert "logit_scale" not in used
  del average["logit_scale"]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(used), average)
