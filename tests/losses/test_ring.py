"""The ring loss is the dense one: value, metrics and gradient, in every option, on every mesh, in linear memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_in_batch import OPTIONS, make

from gtr_jax.errors import InputError
from gtr_jax.losses import sweeps
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.ring import RingLoss
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import Batch, Taught, split_hash

MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2), "tensor": (4, 1, 2)}


def large(groups=8, pairs=5, negatives=7, negative_queries=3, dim=6, seed=0, ids=30):
  """A batch that no block size divides, with false negatives and fill everywhere."""
  rng = np.random.default_rng(seed)

  def unit(*shape):
    x = rng.normal(size=(*shape, dim))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  def hashes(extra):
    return split_hash(rng.integers(0, ids, (groups, pairs + extra)))

  batch = Batch(None, None, valid=rng.random((groups, pairs)) < 0.9,
                negative_valid=rng.random((groups, negatives)) < 0.8,
                negative_owner=rng.integers(0, pairs, (groups, negatives)).astype(np.int32),
                negative_query_valid=rng.random((groups, negative_queries)) < 0.8,
                query_hash=hashes(negative_queries), passage_hash=hashes(negatives), text_hash=hashes(negatives),
                known_hash=split_hash(rng.integers(0, ids, (groups, pairs, 2))),
                teacher=Taught(rng.normal(size=(groups, pairs + negative_queries, 3)),
                                rng.normal(size=(groups, pairs + negatives, 3))))
  return unit(groups, pairs + negative_queries), unit(groups, pairs + negatives), batch


def both(loss, queries, passages, batch, mesh=None, train=True):
  """(value, metrics, gradients) of a loss."""
  scale = {"logit_scale": jnp.asarray(math.log(1 / 0.07), queries.dtype)} if loss.learned_temperature else {}

  def f(queries, passages, scale, batch):
    return loss(queries, passages, batch, train=train, params=scale)

  step = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))
  batch = jax.tree.map(jnp.asarray, batch if isinstance(batch, Batch) else dict(vars(batch)))
  if isinstance(batch, dict):
    batch = Batch(None, None, **batch)
  if mesh is None:
    return jax.device_get(step(queries, passages, scale, batch))
  with jax.set_mesh(mesh):
    queries, passages, batch = jax.device_put((queries, passages, batch), partitioning.batch_sharding(mesh))
    return jax.device_get(step(queries, passages, scale, batch))


def check(found, expected, tolerance):
  (value, metrics), gradients = found
  (expected_value, expected_metrics), expected_gradients = expected
  np.testing.assert_allclose(value, expected_value, rtol=tolerance)
  for name, want in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], want, rtol=tolerance, err_msg=name)
  for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-30))


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(sweeps, "BLOCK_ON_CPU", 3)


DATA = {"all": {}, "fill": {"valid": False}, "no negatives": {"negatives": 0},
        "no negative queries": {"negative_queries": 0}}


@pytest.mark.parametrize("options, data", [
    *((options, data) for options in OPTIONS for data in ("all", "fill")), ({"label_smoothing": 0.1}, "no negatives"),
    ({}, "no negative queries"), ({"own_negatives_only": True, "bidirectional": False}, "no negatives")], ids=str)
def test_equals_the_dense_loss(options, data, small_blocks):
  options = {"temperature": 0.05, **options}
  with jax.enable_x64(True):
    inputs = make(**DATA[data])
    for train in (True, False) if options.keys() & {"margin", "false_negative_margin"} else (True,):
      check(both(RingLoss(**options), *inputs, train=train), both(InBatchLoss(**options), *inputs, train=train), 1e-12)


@pytest.mark.parametrize("options", [
    {"margin": 0.1, "label_smoothing": 0.1, "learned_temperature": True}, {"bidirectional": False},
    {"own_negatives_only": True, "bidirectional": False},
    {"label_smoothing": 0.1, "false_negative_margin": 0.1},
    {"learned_temperature": True, "false_negative_margin": 0.1, "guided": True, "teacher_dim": 3}],
                         ids=["all", "forward", "own", "limit", "guided"])
@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_gives_the_dense_loss(mesh, options, small_blocks):
  options = {"temperature": 0.05, **options}
  with jax.enable_x64(True):
    inputs = large()
    check(both(RingLoss(**options), *inputs, partitioning.make_mesh(*MESHES[mesh])),
          both(InBatchLoss(**options), *inputs), 1e-12)


@pytest.mark.parametrize("slices", [
    (0, 0, 0, 0, 1, 1, 1, 1), (0, 1, 0, 1, 0, 1, 0, 1), (3, 3, 0, 0, 1, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"bidirectional": False}], ids=["both", "forward"])
def test_slices_change_nothing(slices, options, small_blocks):
  options = {"temperature": 0.05, **options}
  with jax.enable_x64(True):
    inputs = large()
    check(both(RingLoss(**options, slices=slices), *inputs, partitioning.make_mesh(4, 2)),
          both(InBatchLoss(**options), *inputs), 1e-12)


@pytest.mark.parametrize("temperature", [0.01, 1e-4])
def test_float32_at_low_temperatures(temperature, small_blocks):
  """The running maximum keeps the sums finite, in whatever order the logits come."""
  queries, passages, batch = large()
  queries, passages = queries.astype(np.float32), passages.astype(np.float32)
  found = both(RingLoss(temperature=temperature), queries, passages, batch, partitioning.make_mesh())
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
  check(found, both(InBatchLoss(temperature=temperature), queries, passages, batch), 2e-6)


def test_a_batch_of_fill_only_is_zero():
  queries, passages, batch = large()
  queries, passages = queries.astype(np.float32), passages.astype(np.float32)
  (value, _), gradients = both(RingLoss(), queries, passages, batch._replace(valid=np.zeros_like(batch.valid)))
  assert value == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_groups_that_do_not_go_round_the_ring():
  queries, passages, batch = large(groups=6)
  queries, passages = queries.astype(np.float32), passages.astype(np.float32)
  with jax.set_mesh(partitioning.make_mesh()), pytest.raises(InputError, match="6 groups cannot be divided over 8"):
    RingLoss()(queries, passages, batch)


@functools.cache
def compiled(pairs):
  """Value and gradient at `pairs` in each of 8 groups, not run."""
  mesh = partitioning.make_mesh()
  one = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, large(pairs=1, negatives=1, negative_queries=1, dim=64)))

  def wider(x):
    shape = (8, pairs * x.shape[1], *x.shape[2:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=partitioning.batch_sharding(mesh))

  with jax.set_mesh(mesh):
    f = jax.jit(jax.grad(lambda q, p, b: RingLoss()(q, p, b)[0], (0, 1)))
    return f.lower(*jax.tree.map(wider, one)).compile()


def test_memory_is_linear_in_the_batch():
  small, large = (compiled(pairs).memory_analysis().temp_size_in_bytes for pairs in (2048, 4096))
  assert large < 2.2 * small


def test_the_logits_are_never_built():
  text = compiled(2048).as_text()
  of_block = sweeps.BLOCK_ON_CPU**2
  assert of_block < 2048 * 2048  # Nor those of one device.
  sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
  assert of_block <= max(sizes) < 2048 * 2048


def test_only_vectors_go_round_the_ring():
  """In the loop of each of three sweeps one exchange forward and two backward, and one behind it. What masks are made
  of comes at once, for both passes, as do the weights of the columns; the columns' sums go home at once."""
  text = compiled(2048).as_text()
  permutes = re.findall(r"= \(?(\w+)\[([\d,]+)\]\S* collective-permute(?:-start)?\(", text)
  assert len(permutes) == 3 * (1 + 3)
  assert {kind for kind, _ in permutes} == {"f32"} and all("64" in dims.split(",") for _, dims in permutes)
  gathers = re.findall(r"= \(?(\w+)\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
  assert len(gathers) == 3 + 1 and max(math.prod(map(int, dims.split(","))) for _, dims in gathers) < 8 * 16 * 4096
  assert len(re.findall(r" all-to-all(?:-start)?\(", text)) == 1
