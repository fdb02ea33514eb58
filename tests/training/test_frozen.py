"""Parameters that are left as they are: against optax's own way, on every mesh, through checkpoints, in averages."""

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from tiny_training import TinyBatches, tiny_loss, tiny_model

from gtr_jax.checkpoints.checkpointer import Checkpointer, restore_params
from gtr_jax.errors import InputError
from gtr_jax.models.parameters import abstract_parameters
from gtr_jax.parallel import partitioning
from gtr_jax.training import optimizers
from gtr_jax.training.loop import Periods, fit, resume
from gtr_jax.training.state import create_state
from gtr_jax.training.step import compile_step, make_train_step

PATHS = ("token_embedder/.*", "encoder/layers_0/attention/(query|key)/kernel")
FROZEN = {"token_embedder/embedding", "encoder/layers_0/attention/query/kernel",
          "encoder/layers_0/attention/key/kernel"}
OPTIMIZERS = {
    "adafactor": optimizers.adafactor(1e-2, min_dim_size_to_factor=4, weight_decay=0.01, clip_norm=0.1),
    "adamw": optimizers.adamw(1e-2, weight_decay=0.01, clip_norm=0.1)}


def flat(tree):
  return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def train(optimizer, mesh, folder, steps, model=None):
  """A run in `folder`, begun or gone on with until so many steps: the states before and after."""
  model, loss = model or tiny_model(), tiny_loss(learned_temperature=True)
  state, shardings = create_state(model, loss, optimizer, mesh, 0)
  checkpointer, batches = Checkpointer(folder / "checkpoints"), TinyBatches(partitioning.num_groups(mesh))
  state, progress = resume(checkpointer, state, shardings, batches, [])
  before = jax.device_get(state)
  step = compile_step(make_train_step(model, loss, optimizer, 0), shardings)
  after = fit(state, step, batches, checkpointer, periods=Periods(steps), mesh=mesh, progress=progress).state
  checkpointer.close()
  return before, after, shardings


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_optax_s_own_way(name):
  """The others get what `optax.partition` gives them, whose frozen ones are set to zero."""
  rng = np.random.default_rng(0)

  def tree(scale):
    return {"a": {"kernel": scale * rng.standard_normal((8, 6), np.float32), "scale": np.ones(6, np.float32)},
            "b": {"kernel": scale * rng.standard_normal((6, 4), np.float32)}}

  params, inner = tree(1.0), OPTIMIZERS[name]
  ours = optimizers.frozen(inner, ["a/k.*"])
  theirs = optax.partition({True: optax.GradientTransformation(inner.init, inner.update), False: optax.set_to_zero()},
                           {"a": {"kernel": False, "scale": True}, "b": {"kernel": True}})
  found = expected = params
  states = ours.init(params), theirs.init(params)
  assert {leaf.shape for leaf in jax.tree.leaves(states[0])} & {(8, 6), (8,)} == set()
  for step in range(4):
    gradient = tree(10.0 ** -step)
    (updates, state), (wanted, of_optax) = ours.update(gradient, states[0], found), theirs.update(
        gradient, states[1], expected)
    states, found, expected = (state, of_optax), optax.apply_updates(found, updates), optax.apply_updates(
        expected, wanted)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  np.testing.assert_array_equal(found["a"]["kernel"], params["a"]["kernel"])
  assert (found["b"]["kernel"] != params["b"]["kernel"]).all()
  assert ours.learning_rate is inner.learning_rate


@pytest.fixture(scope="module", params=OPTIMIZERS)
def alone(request, tmp_path_factory):
  """Three steps on one device."""
  optimizer = optimizers.frozen(OPTIMIZERS[request.param], PATHS)
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  return optimizer, flat(train(optimizer, mesh, tmp_path_factory.mktemp("alone"), 3)[1].params)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_on_every_mesh(alone, shape, tmp_path):
  optimizer, expected = alone
  before, after, shardings = train(optimizer, partitioning.make_mesh(*shape), tmp_path, 3)
  state, found = flat(before.params), flat(after.params)
  for name, array in found.items():
    if name in FROZEN:
      np.testing.assert_array_equal(array, state[name])
    else:
      assert (array != state[name]).any(), name
      np.testing.assert_allclose(array, expected[name], rtol=0, atol=2e-4)
  names = {"/".join(str(getattr(key, "key", "")) for key in path) for path, _ in
           jax.tree_util.tree_leaves_with_path(after.opt_state)}
  assert names and not any(name.endswith(f"/{of}") for name in names for of in FROZEN)
  specs = traverse_util.flatten_dict(shardings.params, sep="/")
  moments = next(of for of in shardings.opt_state if hasattr(of, "v_row") or hasattr(of, "mu"))
  for name, sharding in traverse_util.flatten_dict(getattr(moments, "mu", {}), sep="/").items():
    assert sharding == specs[name]
  if hasattr(moments, "v_row"):  # The larger axis is gone, the other lies as in the parameter.
    name = "encoder/layers_0/mlp/wo/kernel"  # [32, 16]
    rows = traverse_util.flatten_dict(moments.v_row, sep="/")[name]
    assert [*rows.spec, None][:1] == [*specs[name].spec, None, None][1:2]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("average", [False, True])
def test_a_run_goes_on_exactly(tmp_path, name, average):
  optimizer, mesh = optimizers.frozen(OPTIMIZERS[name], PATHS), partitioning.make_mesh(1, 4, 2)
  if average:
    optimizer = optimizers.averaged(optimizer, 0.5)
  begun, whole, _ = train(optimizer, mesh, tmp_path / "whole", 4)
  train(optimizer, mesh, tmp_path / "parts", 2)
  parts = train(optimizer, mesh, tmp_path / "parts", 4)[1]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(parts), jax.device_get(whole))
  used = flat(restore_params(tmp_path / "parts", abstract_parameters(tiny_model(), mesh)))
  for path, array in used.items():
    np.testing.assert_array_equal(array, flat(whole.params_to_use)[path])
    assert (path in FROZEN) == (array == flat(begun.params)[path]).all(), path
  with pytest.raises(InputError, match="the checkpoint lacks opt_state/.*; take the model, loss and optimizer that"):
    train(OPTIMIZERS[name], mesh, tmp_path / "parts", 6)


@pytest.mark.parametrize("paths, text", [
    (["token_embeder/.*"], "'token_embeder/.*' matches no whole path of a parameter; near are token_embedder/.*, "),
    (["encoder/layer_0/.*"], "near are encoder/layers_0/.*"), (["9+"], "there is encoder/encoder_norm/scale, for "),
    (["embedding"], "it is a part of encoder/relpos_bias/rel_embedding, token_embedder/embedding: write .* before or"),
    (["encoder/.*", "layers_7"], "'layers_7' matches no whole path"), (["("], "'(' is no regular expression (missing"),
    ([".*"], "'.*' match all 13 parameters, so that nothing is left to train"), ("token", "paths is 'token': give"),
    ([3], "paths[0] is 3: give a string"), ([], "paths is empty: give")])
def test_wrong_paths(paths, text):
  with pytest.raises(InputError) as e:
    create_state(tiny_model(), tiny_loss(learned_temperature=True), optimizers.frozen(OPTIMIZERS["adamw"], paths),
                 partitioning.make_mesh(), 0)
  assert text in str(e.value) and "\n" not in str(e.value)


def test_all_but_the_loss_s_own_parameters():
  optimizer = optimizers.frozen(OPTIMIZERS["adamw"], ["(?!logit_scale).*"])
  state, _ = create_state(tiny_model(), tiny_loss(learned_temperature=True), optimizer, partitioning.make_mesh(), 0)
  assert [leaf.shape for leaf in jax.tree.leaves(state.opt_state)] == [()] * 4


def test_an_average_goes_around_it():
  optimizer = optimizers.frozen(optimizers.averaged(OPTIMIZERS["adamw"]), PATHS)
  with pytest.raises(InputError, match="make it the other way round: OPTIMIZER = @optimizers.averaged.., and"):
    create_state(tiny_model(), tiny_loss(), optimizer, partitioning.make_mesh(), 0)
