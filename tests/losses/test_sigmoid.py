"""The sigmoid loss against its formula, written out in float64 with loops over pairs and candidates."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_in_batch import GROUPS, PAIRS, formula, make
from test_ring import MESHES, large

from gtr_jax.errors import InputError
from gtr_jax.losses import sweeps
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.sigmoid import SigmoidLoss
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import Batch

SCALE, BIAS = 7.0, -3.0


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(sweeps, "BLOCK_ON_CPU", 3)


def of_pairs(loss, queries, passages, batch):
  """The loss, from the definition."""
  hashes = {name: getattr(batch, name).tolist() for name in (
      "query_hash", "passage_hash", "text_hash", "known_hash")}

  def same(name, a, b):
    return loss.mask_false_negatives and hashes[name][a[0]][a[1]] == hashes[name][b[0]][b[1]]

  def knows(query, passage):
    there = hashes["text_hash"][passage[0]][passage[1]]
    return loss.mask_false_negatives and there in hashes["known_hash"][query[0]][query[1]]

  def cost(similarity, is_pair):
    logit = SCALE * similarity + BIAS
    return math.log1p(math.exp(-logit if is_pair else logit))

  pairs = [at for at in itertools.product(range(GROUPS), range(PAIRS)) if batch.valid[at]]
  total = 0.0
  for a in pairs:
    total += cost(queries[a] @ passages[a], True)
    for b in pairs:
      if a != b and not any(same(f"{name}_hash", a, b) for name in ("query", "passage", "text")) and not knows(a, b):
        total += cost(queries[a] @ passages[b], False)
    for c in itertools.product(range(GROUPS), range(PAIRS, passages.shape[1])):
      if batch.negative_valid[c[0], c[1] - PAIRS] and not (
          same("passage_hash", a, c) or same("text_hash", a, c) or knows(a, c)):
        total += cost(queries[a] @ passages[c], False)
    for c in itertools.product(range(GROUPS), range(PAIRS, queries.shape[1])):
      if batch.negative_query_valid[c[0], c[1] - PAIRS] and not same("query_hash", a, c):
        total += cost(passages[a] @ queries[c], False)
  return total / len(pairs)


def params(dtype=jnp.float64):
  return {"logit_scale": jnp.asarray(math.log(SCALE), dtype), "logit_bias": jnp.asarray(BIAS, dtype)}


@pytest.mark.parametrize("data", [{}, {"valid": False}, {"negatives": 0}, {"negative_queries": 0}], ids=str)
@pytest.mark.parametrize("masks", [True, False])
def test_equals_the_formula(masks, data):
  loss = SigmoidLoss(mask_false_negatives=masks)
  queries, passages, batch = make(**data)
  with jax.enable_x64(True):
    value, metrics = loss(queries, passages, batch, params=params())
  np.testing.assert_allclose(value, of_pairs(loss, queries, passages, batch), rtol=1e-12)
  ranks = formula(InBatchLoss(mask_false_negatives=masks), queries, passages, batch)[1:]
  np.testing.assert_allclose([metrics["accuracy"], metrics["mrr"]], ranks, rtol=1e-12)
  assert metrics["loss"] == value


def test_gradient_against_finite_differences():
  queries, passages, batch = make(valid=False)
  with jax.enable_x64(True):
    point = (jnp.asarray(queries), jnp.asarray(passages), params())

    @jax.jit
    def f(q, p, own):
      return SigmoidLoss()(q, p, batch, params=own)[0]

    gradient = jax.grad(f, (0, 1, 2))(*point)
    for seed in range(3):
      direction = jax.tree.map(lambda x, at=seed: jax.random.normal(jax.random.key(at), x.shape, x.dtype), point)
      ahead, behind = (f(*jax.tree.map(lambda x, d, h=h: x + h * d, point, direction)) for h in (1e-6, -1e-6))
      slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
      np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-7)
    for name, step in (("logit_scale", 1e-6), ("logit_bias", 1e-6)):
      ahead, behind = (f(*point[:2], {**point[2], name: point[2][name] + h}) for h in (step, -step))
      np.testing.assert_allclose(gradient[2][name], (ahead - behind) / (2 * step), rtol=1e-7)


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_gives_the_same(mesh):
  queries, passages, batch = large()

  def f(queries, passages, own, batch):
    return SigmoidLoss()(queries, passages, batch, params=own)

  with jax.enable_x64(True):
    step = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))
    batch = Batch(*jax.tree.map(jnp.asarray, tuple(batch)))
    expected = jax.device_get(step(queries, passages, params(), batch))
    mesh = partitioning.make_mesh(*MESHES[mesh])
    with jax.set_mesh(mesh):
      divided = jax.device_put((queries, passages, batch), partitioning.batch_sharding(mesh))
      found = jax.device_get(step(*divided[:2], params(), divided[2]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)


def test_its_own_parameters():
  own = SigmoidLoss().init_params(8)
  assert math.exp(own["logit_scale"]) == pytest.approx(10) and own["logit_bias"] == -10
  with pytest.raises(InputError, match="logit_scale is missing and logit_bias is missing"):
    SigmoidLoss()(*make())
