"""Packing, gradient caching, the ring and the mesh change no result: as on one device, padded, in one shot, dense."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_training import VOCAB, tiny_model

from gtr_jax.losses.embedding_distillation import EmbeddingDistillationLoss
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.kl_distillation import KLDistillationLoss
from gtr_jax.losses.margin_mse import MarginMSELoss
from gtr_jax.losses.matryoshka import MatryoshkaLoss
from gtr_jax.losses.own_params import of_loss
from gtr_jax.losses.ring import RingLoss
from gtr_jax.losses.sigmoid import SigmoidLoss
from gtr_jax.losses.similarity_distillation import SimilarityDistillationLoss
from gtr_jax.losses.weighted_sum import WeightedSumLoss
from gtr_jax.models import attention_by_text, attention_kernel
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import RowLengths, make_batch
from gtr_jax.training import grad_cache
from gtr_jax.training.encode_pair import encode_pair
from gtr_jax.training.step import make_eval_step

PAIRS = 32
MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2), "tensor": (4, 1, 2)}
ONE_SHOT, CACHED = None, 2  # microbatches
PADDED, PACKED = None, RowLengths(9, 14)
TEACHER_DIM = 6
OPTIONS: dict = {"temperature": 0.1, "margin": 0.1, "label_smoothing": 0.1, "learned_temperature": True}
LOSSES = {"dense": InBatchLoss(**OPTIONS), "ring": RingLoss(**OPTIONS)}
OTHERS = {"matryoshka, dense": MatryoshkaLoss(LOSSES["dense"], (8, 6, 2), (1.0, 0.5, 0.3)),
          "matryoshka, ring": MatryoshkaLoss(LOSSES["ring"], (2, 6, 8), (0.3, 0.5, 1.0)),
          "sigmoid": SigmoidLoss(bias=-2.0), "embeddings": EmbeddingDistillationLoss(TEACHER_DIM),
          "similarities": SimilarityDistillationLoss(TEACHER_DIM), "margins": MarginMSELoss(),
          "KL": KLDistillationLoss(0.1, 0.5),
          "sum, dense": WeightedSumLoss((EmbeddingDistillationLoss(TEACHER_DIM), LOSSES["dense"]), (2.0, 0.1)),
          "sum, ring": WeightedSumLoss((EmbeddingDistillationLoss(TEACHER_DIM), LOSSES["ring"]), (2.0, 0.1))}
EVERY = [pytest.param(loss, rows, micro,
                      id=f"{loss}-{'packed' if rows else 'padded'}-{'cached' if micro else 'one_shot'}")
         for loss, rows, micro in itertools.product(LOSSES, [PADDED, PACKED], [ONE_SHOT, CACHED])]


@functools.cache
def features():
  """Texts of all lengths, hard negatives and negative queries, some of them missing, false negatives among them."""
  rng = np.random.default_rng(0)

  def tokens(*shape):
    lengths = rng.integers(1, shape[-1] + 1, shape[:-1])
    return np.where(np.arange(shape[-1]) < lengths[..., None], rng.integers(1, VOCAB, shape), 0).astype(np.int32)

  f = {"left_encoder_input_tokens": tokens(PAIRS, 7), "right_encoder_input_tokens": tokens(PAIRS, 10),
       "right_negative_encoder_input_tokens": tokens(PAIRS, 2, 12),
       "left_negative_encoder_input_tokens": tokens(PAIRS, 1, 9)}
  f["right_negative_encoder_input_tokens"][::3, 1] = 0
  f["left_negative_encoder_input_tokens"][::2] = 0
  f["valid"] = np.arange(PAIRS) % 11 != 5
  for name in ("left_encoder_input_tokens", "right_encoder_input_tokens"):
    f[name][~f["valid"]] = 0
  f |= {name: rng.integers(1, 20, PAIRS) for name in ("query_hash", "passage_hash", "text_hash")}
  f |= {f"negative_{name}": rng.integers(1, 20, (PAIRS, 2)) for name in ("passage_hash", "text_hash")}
  f |= {"query_vector": rng.normal(size=(PAIRS, TEACHER_DIM)), "passage_vector": rng.normal(size=(PAIRS, TEACHER_DIM)),
        "negative_vector": rng.normal(size=(PAIRS, 2, TEACHER_DIM)), "score": rng.normal(size=PAIRS),
        "negative_score": rng.normal(size=(PAIRS, 2))}
  f["passage_vector"][3] = f["negative_vector"][5, 1] = 0
  f["score"][4] = f["negative_score"][6, 0] = np.nan
  return f


def gradient_of(loss, row_lengths, microbatches, mesh_name, dtype, activations="float32", **options):
  """(gradient, metrics) of one batch."""
  model = tiny_model(dtype=activations, **options)
  loss = {**LOSSES, **OTHERS}[loss]
  boxed = {**model.init(jax.random.key(0)), **loss.init_params(model.dim)}
  shape = MESHES[mesh_name]
  mesh = partitioning.make_mesh(*shape, devices=jax.devices()[:int(np.prod(shape))])
  params = jax.device_put(jax.tree.map(lambda x: x.astype(dtype), nn.meta.unbox(boxed)),
                          partitioning.state_shardings(mesh, boxed))

  def one_shot(params, batch):
    queries, passages = encode_pair(model, params, batch, None)
    return loss(queries, passages, batch, params=of_loss(params))

  def gradient(params, batch):
    if microbatches:
      return grad_cache.gradient(model, loss, params, batch, None)
    return jax.grad(one_shot, has_aux=True)(params, batch)

  batch = make_batch(features(), partitioning.num_groups(mesh), row_lengths=row_lengths, microbatches=microbatches)
  with jax.set_mesh(mesh):
    return jax.device_get(jax.jit(gradient)(params, partitioning.global_batch(mesh, batch)))


@functools.cache
def reference(dtype):
  return gradient_of("dense", PADDED, ONE_SHOT, "one", dtype)


def check(found, expected, tolerance):
  """Relative L2 of each leaf, and the metrics."""
  def error(path, a, b):
    distance = np.linalg.norm(np.ravel(a - b)) / np.linalg.norm(np.ravel(b))
    assert distance < tolerance, (jax.tree_util.keystr(path), distance)

  jax.tree_util.tree_map_with_path(error, found[0], expected[0])
  for name, value in expected[1].items():
    of_part = "RingLoss" if name == "InBatchLoss" and name not in found[1] else name
    np.testing.assert_allclose(found[1][of_part], value, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("loss, row_lengths, microbatches", EVERY)
def test_same_gradient_in_float64(loss, row_lengths, microbatches, mesh):
  with jax.enable_x64(True):
    check(gradient_of(loss, row_lengths, microbatches, mesh, jnp.float64), reference(jnp.float64), 1e-9)


@pytest.mark.parametrize("loss, case", [
    ("matryoshka, dense", (PADDED, ONE_SHOT, "fsdp")), ("matryoshka, ring", (PACKED, CACHED, "all")),
    ("sigmoid", (PACKED, CACHED, "all")), ("sigmoid", (PADDED, ONE_SHOT, "fsdp")),
    ("embeddings", (PACKED, CACHED, "all")), ("margins", (PACKED, CACHED, "all")),
    ("similarities", (PACKED, CACHED, "all")), ("KL", (PACKED, CACHED, "data")),
    ("sum, ring", (PACKED, CACHED, "fsdp"))])
def test_same_gradient_of_other_losses(loss, case):
  with jax.enable_x64(True):
    expected = gradient_of(loss.replace("ring", "dense"), PADDED, ONE_SHOT, "one", jnp.float64)
    check(gradient_of(loss, *case, jnp.float64), expected, 1e-9)


def test_same_gradient_in_float32():
  check(gradient_of("ring", PACKED, CACHED, "all", jnp.float32), reference(jnp.float32), 1e-4)


@pytest.mark.parametrize("case, remat", [(("ring", PACKED, CACHED, "data"), "none"),
                                         (("dense", PADDED, ONE_SHOT, "fsdp"), "mlp")], ids=["data", "fsdp"])
def test_same_gradient_with_the_kernel_for_attention(case, remat, monkeypatch):
  monkeypatch.setattr(attention_kernel, "INTERPRET", True)
  # What interprets kernels does not know along which axes of the mesh its arrays differ.
  monkeypatch.setattr(jax, "shard_map", functools.partial(jax.shard_map, check_vma=False))
  heads = {"num_heads": 8, "head_dim": 16}
  check(gradient_of(*case, jnp.float32, attention="kernel", remat=remat, **heads),
        gradient_of("dense", PADDED, ONE_SHOT, "one", jnp.float32, **heads), 1e-4)


@pytest.mark.parametrize("case", [
    ("ring", PACKED, CACHED, "all"), ("dense", PACKED, ONE_SHOT, "fsdp"), ("dense", PADDED, CACHED, "data"),
    ("dense", PACKED, ONE_SHOT, "one")], ids=["all", "fsdp", "data", "one"])
def test_same_gradient_text_by_text(case, monkeypatch):
  with jax.enable_x64(True):
    expected = reference(jnp.float64)  # By rows.
    monkeypatch.setattr(attention_by_text, "SHORTEST", 1)
    check(gradient_of(*case, jnp.float64), expected, 1e-9)


@pytest.mark.parametrize("mesh", ["data", "fsdp", "all"])
def test_in_bfloat16_meshes_differ_by_less_than_it_does_from_float32(mesh):
  """Sums over the devices are in float32, so a mesh adds no error of its own kind."""
  exact, one, several = (gradient_of("ring", PACKED, CACHED, name, jnp.float32, activations)[0]
                         for name, activations in (("one", "float32"), ("one", "bfloat16"), (mesh, "bfloat16")))

  def distance(a, b):
    return np.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)))

  assert 0 < distance(several, one) < distance(one, exact)


def test_dropout_masks_are_drawn_again():
  """The second pass of gradient caching sees the dropout of the first: its gradient is that of the loss it reports."""
  model, loss = tiny_model(dropout_rate=0.3), InBatchLoss(temperature=0.1)
  batch = make_batch(features(), 1, microbatches=2)
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: x.astype(jnp.float64), nn.meta.unbox(model.init(jax.random.key(0))))
    key = jax.random.key(5)

    @jax.jit
    def cached(params):
      gradient, metrics = grad_cache.gradient(model, loss, params, batch, key)
      return metrics["loss"], gradient

    value, gradient = cached(params)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    step = 1e-6
    ahead, behind = (cached(jax.tree.map(lambda x, d, h=h: x + h * d, params, direction))[0] for h in (step, -step))
    slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5)
    # Another microbatch, another mask: equal microbatches drop out differently.
    twice = make_batch({k: np.concatenate([v[:16], v[:16]]) for k, v in features().items()}, 1, microbatches=2)
    queries, _ = jax.jit(lambda p: grad_cache.encode_microbatches(model, p, twice, key))(params)
    assert np.abs(queries[0] - queries[1]).max() > 1e-3


@pytest.mark.parametrize("row_lengths", [PADDED, PACKED], ids=["padded", "packed"])
def test_validation_metrics_with_microbatches(row_lengths):
  model, loss = tiny_model(), InBatchLoss(temperature=0.1)
  params = nn.meta.unbox(model.init(jax.random.key(0)))
  step = jax.jit(make_eval_step(model, loss))
  expected = step(params, make_batch(features(), 1))
  found = step(params, make_batch(features(), 1, row_lengths=row_lengths, microbatches=4))
  for name in ("loss", "accuracy", "mrr", "pairs", "tokens"):
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
