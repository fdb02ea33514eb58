"""The sharded state, and the training and validation steps."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tiny_training import PAIRS, tiny_batch, tiny_loss, tiny_model

from gtr_jax.errors import InputError
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning
from gtr_jax.training import optimizers
from gtr_jax.training.state import TrainState, create_state, state_initializer
from gtr_jax.training.step import compile_step, make_eval_step, make_train_step


def mesh_of(devices, **axes):
  return partitioning.make_mesh(devices=jax.devices()[:devices], **axes)


def train(mesh, steps, optimizer=None, loss=None, dropout_rate=0.0):
  """State after some steps on the same global batches, and the metrics of each."""
  model, loss = tiny_model(dropout_rate=dropout_rate), loss or tiny_loss()
  optimizer = optimizer or optimizers.adamw(1e-2)
  state, shardings = create_state(model, loss, optimizer, mesh, seed=0)
  step = compile_step(make_train_step(model, loss, optimizer, seed=1), shardings)
  history = []
  with jax.set_mesh(mesh):
    for number in range(steps):
      batch = partitioning.global_batch(mesh, tiny_batch(number % 3, partitioning.num_groups(mesh)))
      state, metrics = step(state, batch)
      history.append(jax.device_get(metrics))
  return state, history


@pytest.fixture(scope="module")
def on_one():
  return train(mesh_of(1), 40, dropout_rate=0.1)


@pytest.fixture(scope="module")
def on_eight():
  return train(mesh_of(8, data=2, fsdp=2, model=2), 3, dropout_rate=0.1)


def test_loss_falls(on_one):
  state, history = on_one
  losses = [metrics["loss"] for metrics in history]
  assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])
  assert np.mean(losses[-3:]) < 0.8 * 2 * np.log(PAIRS)  # twice the entropy of guessing
  assert history[-1]["mrr"] > history[0]["mrr"]
  assert int(state.step) == 40


def test_one_and_eight_devices_agree(on_one, on_eight):
  """Also with dropout: the masks depend on the seed and the step, not on the mesh."""
  for one, eight in zip(on_one[1], on_eight[1], strict=False):
    for name in one:
      np.testing.assert_allclose(eight[name], one[name], rtol=2e-4, err_msg=name)


def test_metrics(on_one):
  metrics = on_one[1][0]
  batch = tiny_batch(0, 1)
  assert metrics["pairs"] == PAIRS
  assert metrics["tokens"] == np.sum(batch.queries.tokens > 0) + np.sum(batch.passages.tokens > 0)
  assert metrics["token_slots"] == batch.queries.tokens.size + batch.passages.tokens.size
  assert metrics["tokens"] < metrics["token_slots"]
  assert metrics["learning_rate"] == np.float32(1e-2)


def test_step_is_the_plain_update():
  """One step by hand: gradient of the loss, optimizer, sum. The old state's memory is given away."""
  model, loss, optimizer = tiny_model(), tiny_loss(learned_temperature=True), optimizers.adamw(1e-2)
  mesh = mesh_of(1)
  state, shardings = create_state(model, loss, optimizer, mesh, seed=0)
  params = jax.tree.map(lambda x: np.array(x), state.params)
  batch = tiny_batch(0, 1)

  def loss_fn(params):
    queries = model.encode(params, batch.queries, PAIRS, tower="query")
    passages = model.encode(params, batch.passages, PAIRS, tower="passage")
    return loss(queries, passages, batch, params={"logit_scale": params["logit_scale"]})[0]

  @jax.jit
  def by_hand(params):
    gradient = jax.grad(loss_fn)(params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return gradient, optax.apply_updates(params, updates)

  gradient, expected = by_hand(params)
  with jax.set_mesh(mesh):
    new, metrics = compile_step(make_train_step(model, loss, optimizer, seed=0), shardings)(
        state, partitioning.global_batch(mesh, batch))

  def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))

  np.testing.assert_allclose(metrics["grad_norm"], norm(gradient), rtol=1e-5)
  np.testing.assert_allclose(metrics["param_norm"], norm(expected), rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.params, expected)
  assert new.params["logit_scale"] != params["logit_scale"]  # the learned temperature moves
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_dropout_follows_seed_and_step():
  """Masks differ between seeds and between steps, and the same seed and step give the same bits."""
  model, loss, optimizer, mesh = tiny_model(dropout_rate=0.3), tiny_loss(), optimizers.adamw(0.0), mesh_of(1)
  state, _ = create_state(model, loss, optimizer, mesh, seed=0)
  batch = tiny_batch(0, 1)

  @jax.jit
  def loss_of(seed, number):
    train_step = make_train_step(model, loss, optimizer, seed)
    return train_step(state.replace(step=number), batch)[1]["loss"]

  losses = {(seed, number): float(loss_of(seed, number)) for seed in (0, 1) for number in (0, 1)}
  assert len(set(losses.values())) == 4
  assert losses[1, 1] == float(loss_of(1, 1))


def test_an_optimizer_without_its_rate_is_refused():
  with pytest.raises(InputError, match="GradientTransformation.* without a learning_rate"):
    make_train_step(tiny_model(), tiny_loss(), optax.adam(1e-3), seed=0)


def test_eval_step_has_no_dropout_and_no_margin():
  model, plain = tiny_model(dropout_rate=0.5), tiny_loss()
  params = create_state(model, plain, optimizers.adamw(0.0), mesh_of(1), seed=0)[0].params
  batch = tiny_batch(0, 1)
  dropped = jax.jit(make_eval_step(model, tiny_loss(margin=0.3)))(params, batch)
  expected = jax.jit(make_eval_step(tiny_model(), plain))(params, batch)
  assert dropped["loss"] == expected["loss"]
  assert {"accuracy", "mrr", "pairs", "tokens"} <= dropped.keys()


@pytest.fixture(scope="module")
def wide_state():
  """A state that Adafactor factors, over fsdp and model."""
  mesh = mesh_of(8, data=2, fsdp=2, model=2)
  optimizer = optimizers.adafactor(1e-3, min_dim_size_to_factor=16)
  return mesh, create_state(tiny_model(emb_dim=32, projection_dim=16), tiny_loss(learned_temperature=True), optimizer,
                            mesh, seed=0)


def test_state_is_sharded(wide_state):
  _, (state, shardings) = wide_state
  params, moments = shardings.params["encoder"]["layers_0"], shardings.opt_state[0]
  assert params["mlp"]["wi"]["kernel"].spec == P("fsdp", "model")
  for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  assert isinstance(shardings, TrainState)
  # Of a kernel [embed, mlp] = [32, 32]: v_row is the mean over the second axis, v_col over the first.
  assert moments.v_row["encoder"]["layers_0"]["mlp"]["wi"]["kernel"].spec == P("fsdp")
  assert moments.v_col["encoder"]["layers_0"]["mlp"]["wi"]["kernel"].spec == P("model")
  # Of the embedding [vocab, embed] = [64, 32]: v_row is the mean over the longer first axis.
  assert moments.v_row["token_embedder"]["embedding"].spec == P("fsdp")
  assert moments.v_col["token_embedder"]["embedding"].spec == P("model")
  # Too narrow to factor: the full moment lies like its parameter.
  assert moments.v["encoder"]["relpos_bias"]["rel_embedding"].spec == P("model", None)


def test_no_device_holds_the_whole_state(wide_state):
  _, (state, _) = wide_state
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  for device in jax.devices():
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards
               if shard.device == device)
    assert held < 0.35 * total  # a quarter, and what is too small to divide


def test_state_is_never_whole_on_the_way():
  """The compiled initialisation takes less memory on each device than the state has in all, temporaries included."""
  mesh = mesh_of(8, fsdp=2, model=4)
  model = DualEncoder(T5Config(vocab_size=8192, emb_dim=256, num_heads=4, head_dim=32, mlp_dim=512, num_layers=1),
                      projection_dim=64)
  init, _ = state_initializer(model, tiny_loss(), optimizers.adamw(1e-3), mesh, seed=0)
  total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(init)))
  with jax.set_mesh(mesh):
    memory = init.lower().compile().memory_analysis()
  assert memory.output_size_in_bytes < 0.15 * total
  assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 0.35 * total


def test_adamw_moments_lie_like_their_parameters():
  mesh = mesh_of(8, data=2, fsdp=2, model=2)
  optimizer = optimizers.adamw(1e-3, weight_decay=0.1, clip_norm=1.0)
  _, shardings = state_initializer(tiny_model(), tiny_loss(), optimizer, mesh, seed=0)
  adam = next(part for part in shardings.opt_state if isinstance(part, optax.ScaleByAdamState))
  for moment in (adam.mu, adam.nu):
    assert jax.tree.map(lambda s: s.spec, moment) == jax.tree.map(lambda s: s.spec, shardings.params)


def test_same_seed_same_parameters_on_any_mesh(wide_state):
  _, (state, _) = wide_state
  model, loss = tiny_model(emb_dim=32, projection_dim=16), tiny_loss(learned_temperature=True)
  alone = create_state(model, loss, optimizers.adamw(1e-3), mesh_of(1), seed=0)[0]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(alone.params))
