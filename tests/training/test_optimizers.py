"""Optimizers against the papers' formulas in float64 numpy, schedules against points computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gtr_jax.training import optimizers

SHAPES = {"kernel": (24, 16), "wide": (16, 40), "square": (16, 16), "narrow": (4, 40), "vector": (20,), "scalar": ()}


def random_tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {name: scale * rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def run(optimizer, params, gradients):
  """Parameters after every update."""
  params = jax.tree.map(jnp.asarray, params)
  state = optimizer.init(params)
  history = []
  for gradient in gradients:
    updates, state = jax.jit(optimizer.update)(gradient, state, params)
    params = optax.apply_updates(params, updates)
    history.append(jax.tree.map(np.asarray, params))
  return history


def assert_close(params, expected, before, tolerance):
  """Compares updates, not parameters, which hide a wrong update behind their size."""
  for name in expected:
    update, wanted = params[name] - before[name], expected[name] - before[name]
    assert np.linalg.norm(wanted) > 0
    rounding = 3e-7 * np.linalg.norm(before[name])  # of float32 parameters, to which the updates are added
    assert np.linalg.norm(update - wanted) < tolerance * np.linalg.norm(wanted) + rounding, name


def rms(x):
  return np.sqrt(np.mean(np.square(x)))


def adafactor_paper(params, gradients, rates, min_dim, weight_decay=0.0):
  """Algorithms 4 and 5 of arXiv 1804.04235: row and column sums, update clipping at 1, relative step size."""
  x = {name: value.astype(np.float64) for name, value in params.items()}
  rows, columns, full = {}, {}, {}
  for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    beta2 = 1 - t ** -0.8
    for name, g in gradient.items():
      square = np.square(g.astype(np.float64)) + 1e-30
      if g.ndim == 2 and min(g.shape) >= min_dim:
        rows[name] = beta2 * rows.get(name, 0) + (1 - beta2) * square.sum(1)
        columns[name] = beta2 * columns.get(name, 0) + (1 - beta2) * square.sum(0)
        second = np.outer(rows[name], columns[name]) / rows[name].sum()
      else:
        second = full[name] = beta2 * full.get(name, 0) + (1 - beta2) * square
      u = g / np.sqrt(second)
      u = u / max(1.0, rms(u) / 1.0)
      x[name] = x[name] * (1 - weight_decay) - rate * max(1e-3, rms(x[name])) * u
  return x


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adafactor_is_the_papers(weight_decay):
  params = random_tree(0) | {"vector": 1e-5 * random_tree(0)["vector"]}  # below the least scale of 1e-3
  gradients = [random_tree(i, scale=10.0 ** -i) for i in range(1, 6)]
  rates = [0.02, 0.01, 0.03, 0.01, 0.02]
  optimizer = optimizers.adafactor(lambda step: jnp.asarray(rates)[step], min_dim_size_to_factor=16,
                                   weight_decay=weight_decay)
  history = run(optimizer, params, gradients)
  assert optimizer.init(params)[0].v_row["kernel"].shape == (16,)  # factored at all
  assert optimizer.init(params)[0].v["narrow"].shape == SHAPES["narrow"]
  for count, after in enumerate(history, 1):
    expected = adafactor_paper(params, gradients[:count], rates[:count], 16, weight_decay)
    assert_close(after, expected, params, 1e-5)


def test_adafactor_factors_from_128_on():
  optimizer = optimizers.adafactor(1e-3)
  state = jax.eval_shape(optimizer.init, {"a": jnp.zeros((128, 300)), "b": jnp.zeros((127, 300))})
  assert (state[0].v_row["a"].shape, state[0].v_col["a"].shape, state[0].v["a"].shape) == ((128,), (300,), (1,))
  assert state[0].v["b"].shape == (127, 300)


def test_adamw_is_the_papers():
  params, gradients = random_tree(0), [random_tree(i) for i in range(1, 6)]
  rate, b1, b2, eps, decay = 0.01, 0.8, 0.95, 1e-6, 0.1
  history = run(optimizers.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=decay), params, gradients)
  x = {name: value.astype(np.float64) for name, value in params.items()}
  m = dict.fromkeys(x, 0.0)
  v = dict.fromkeys(x, 0.0)
  for t, (gradient, after) in enumerate(zip(gradients, history, strict=True), 1):
    for name, g in gradient.items():
      m[name] = b1 * m[name] + (1 - b1) * g
      v[name] = b2 * v[name] + (1 - b2) * np.square(g.astype(np.float64))
      step = m[name] / (1 - b1 ** t) / (np.sqrt(v[name] / (1 - b2 ** t)) + eps)
      x[name] = x[name] - rate * (step + decay * x[name])
    assert_close(after, x, params, 1e-5)


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.adafactor])
def test_weight_decay_spares_norms_and_biases(make):
  params = {"encoder": {"encoder_norm": {"scale": jnp.ones(4)}, "relpos_bias": {"rel_embedding": jnp.ones((2, 4))},
                        "mlp": {"wi": {"kernel": jnp.ones((4, 4))}}},
            "token_embedder": {"embedding": jnp.ones((8, 4))}, "logit_scale": jnp.ones(())}
  zero = jax.tree.map(jnp.zeros_like, params)
  after = run(make(1.0, weight_decay=0.5), params, [zero])[0]
  assert np.all(after["encoder"]["mlp"]["wi"]["kernel"] == 0.5)
  assert np.all(after["token_embedder"]["embedding"] == 0.5)
  for spared in (after["encoder"]["encoder_norm"]["scale"], after["encoder"]["relpos_bias"]["rel_embedding"],
                 after["logit_scale"]):
    assert np.all(spared == 1.0)


def test_clip_norm_scales_the_whole_gradient():
  params, gradient = random_tree(0), random_tree(1, scale=100.0)
  norm = np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in gradient.values()))
  small = {name: (g * 2.0 / norm).astype(np.float32) for name, g in gradient.items()}
  # eps is large here, or Adam would undo any scaling of its gradient.
  clipped = run(optimizers.adamw(0.1, eps=1.0, clip_norm=2.0), params, [gradient])[0]
  by_hand = run(optimizers.adamw(0.1, eps=1.0), params, [small])[0]
  assert_close(clipped, by_hand, params, 1e-5)
  untouched = run(optimizers.adamw(0.1, eps=1.0, clip_norm=3.0), params, [small])[0]
  assert_close(untouched, by_hand, params, 1e-6)


def test_linear_decay_by_hand():
  schedule = optimizers.linear_decay(0.5, warmup_steps=10, total_steps=110)
  points = {0: 1e-8, 1: 0.05, 5: 0.25, 10: 0.5, 11: 0.495, 60: 0.25, 109: 0.005, 110: 1e-8, 1000: 1e-8}
  for step, rate in points.items():
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-12)


def test_linear_decay_is_t5xs():
  peak, warmup, total, offset = 1e-3, 100, 20_000, 1_000_000
  schedule = jax.jit(optimizers.linear_decay(peak, warmup, total, offset))
  for step in (0, offset, offset + 1, offset + 99, offset + 100, offset + 101, offset + 7_000, offset + 19_999,
               offset + total, offset + 2 * total):
    n = max(0, step - offset)
    t5x = max(peak * min(n / warmup, 1.0 + 1 / (total - warmup) * (warmup - n)), 1e-8)
    np.testing.assert_allclose(schedule(jnp.int32(step)), t5x, rtol=2e-4)


def test_no_warmup_starts_at_the_peak():
  schedule = optimizers.linear_decay(0.5, warmup_steps=0, total_steps=100)
  np.testing.assert_allclose([schedule(0), schedule(50)], [0.5, 0.25], rtol=1e-6)


def test_first_update_uses_step_zero():
  """optax's count and the step of the state are the same number, so the logged rate is the one that was used."""
  params = {"w": jnp.ones(3)}
  rates = [0.0, 1.0]
  history = run(optimizers.adamw(lambda step: jnp.asarray(rates)[step], eps=1e-8), params, [params, params])
  assert np.all(history[0]["w"] == 1.0) and np.all(history[1]["w"] < 0.1)
