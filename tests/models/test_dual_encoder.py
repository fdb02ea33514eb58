"""The dual encoder: parameter tables of every configuration, packing, pooling, towers, numerics, description."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from t5_reference import GOLDEN, MODELS, pack, random_params

from gtr_jax.errors import InputError
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import parameter_table
from gtr_jax.models.pooling import l2_normalize, segment_first, segment_mean
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.packing import Texts, pad_texts

CONFIGS = Path(__file__).parents[2] / "gin"
FAMILIES = ("t5_1_0", "t5_1_1", "mt5")  # included by the sizes
SIZES = sorted(path.stem for path in (CONFIGS / "models").glob("*.gin") if path.stem not in FAMILIES)
encode = jax.jit(DualEncoder.encode, static_argnums=(0, 3), static_argnames="tower")
SMALL = DualEncoder(T5Config(61, 16, 2, 8, 32, 1, dropout_rate=0.1), 12)


@pytest.fixture
def configured_model(monkeypatch):
  """From a file name of gin/models to what its MODEL is."""
  monkeypatch.setattr(gin.config, "_LOCATION_PREFIXES", [str(CONFIGS)])

  def model(name):
    gin.clear_config()
    gin.parse_config_file(str(CONFIGS / "models" / f"{name}.gin"))
    return gin.query_parameter("MODEL/gin.macro.value").scoped_configurable_fn()

  yield model
  gin.clear_config()


def tokens(*shape, seed=0):
  return np.random.RandomState(seed).randint(1, 61, shape).astype(np.int32)


@functools.cache
def init(model):
  return jax.tree.map(np.asarray, jax.jit(lambda key: nn.meta.unbox(model.init(key)))(jax.random.key(0)))


@pytest.mark.parametrize("size", SIZES)
def test_golden_parameter_table(size, configured_model):
  table = parameter_table(jax.eval_shape(configured_model(size).init, jax.random.key(0)))
  golden = GOLDEN / "parameters" / f"{size}.txt"
  if os.environ.get("GOLDEN_UPDATE"):
    golden.write_text(table)
  assert table == golden.read_text(), f"if the change is meant: GOLDEN_UPDATE=1 python -m pytest {__file__}"


def test_gtr_base_is_gtr_base(configured_model):
  model = configured_model("t5_base")
  arrays = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
  assert (len(arrays), sum(x.size for x in arrays)) == (100, 110_218_368)
  assert {str(x.dtype) for x in arrays} == {"float32"}
  assert model == DualEncoder(T5Config(32128, 768, 12, 64, 3072, 12, dropout_rate=0.1))
  assert sorted(path.stem for path in (GOLDEN / "parameters").glob("*.txt")) == SIZES


def test_alone_padded_and_packed_are_the_same():
  model = MODELS["t5_1_1"]
  params = random_params(model)
  lists = [tokens(n, seed=n) for n in (5, 1, 17, 9, 30)]
  packed = encode(model, params, pack(lists, [[3, 0, 2], [1, 4]], 33), len(lists))
  rows = np.stack([np.pad(t, (0, 33 - len(t))) for t in lists])
  padded = encode(model, params, pad_texts(rows, 1), len(lists))
  grouped = encode(model, params, pad_texts(np.concatenate([rows, rows[:1]]), 2), 3)
  for i in range(len(lists)):
    np.testing.assert_allclose(packed[0, i], padded[0, i], atol=1e-5)
    np.testing.assert_allclose(packed[0, i], grouped[i // 3, i % 3], atol=1e-5)
  for i in (1, 2):
    alone = encode(model, params, pad_texts(lists[i][None], 1), 1)
    np.testing.assert_allclose(packed[0, i], alone[0, 0], atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(packed, axis=-1), 1, atol=1e-6)


def test_dropout_differs_by_key_and_tower_and_repeats():
  params, texts = init(SMALL), pad_texts(tokens(3, 7), 1)

  def masked(seed, tower):
    return encode(SMALL, params, texts, 3, tower=tower, dropout_key=jax.random.key(seed))

  query, passage, again, other = masked(1, "query"), masked(1, "passage"), masked(1, "query"), masked(2, "query")
  without = encode(SMALL, params, texts, 3)
  np.testing.assert_array_equal(query, again)
  for different in (passage, other, without):
    assert np.abs(query - different).max() > 1e-3


def test_separate_towers():
  model = dataclasses.replace(SMALL, shared=False)
  params = init(model)
  assert set(params) == {"query", "passage"}
  assert jax.tree.structure(params["query"]) == jax.tree.structure(params["passage"]) == jax.tree.structure(init(SMALL))
  texts = pad_texts(tokens(2, 5), 1)
  for tower in ("query", "passage"):
    np.testing.assert_array_equal(encode(model, params, texts, 2, tower=tower), encode(SMALL, params[tower], texts, 2))
  assert np.abs(encode(model, params, texts, 2) - encode(model, params, texts, 2, tower="passage")).max() > 1e-2
  shared = init(SMALL)
  with_temperature = {**shared, "logit_scale": np.float32(4)}
  np.testing.assert_array_equal(encode(SMALL, shared, texts, 2),
                                encode(SMALL, with_temperature, texts, 2, tower="passage"))


def test_without_projection_and_normalisation():
  model = dataclasses.replace(SMALL, projection_dim=None, normalize=False)
  params = init(model)
  assert set(params) == {"token_embedder", "encoder"} and model.dim == 16 and SMALL.dim == 12
  texts = pad_texts(tokens(2, 5), 1)
  mean = np.asarray(encode(model, params, texts, 2))
  assert mean.shape == (1, 2, 16)
  kernel = np.random.RandomState(0).normal(size=(16, 12)).astype(np.float32)
  projected = encode(SMALL, {**params, "projection_layer": {"kernel": kernel}}, texts, 2)
  expected = mean @ kernel
  np.testing.assert_allclose(projected, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-6)


def test_pooling_against_loops():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
  segments = np.array([[[2, 2, 2, 1, 1], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
                       [[1, 1, 1, 1, 1], [2, 2, 0, 0, 0], [9, 9, 3, 3, 0]]], np.int32)
  means, firsts = np.zeros((2, 2, 4, 4), np.float32)
  for g in range(2):
    for t in range(4):
      vectors = hidden[g][segments[g] == 1 + t]
      if len(vectors):
        means[g, t], firsts[g, t] = vectors.mean(0), vectors[0]
  np.testing.assert_allclose(segment_mean(hidden, segments, 4), means, atol=1e-6)
  np.testing.assert_array_equal(segment_first(hidden, segments, 4), firsts)
  assert segment_mean(hidden.astype(jnp.bfloat16), segments, 4).dtype == jnp.float32
  np.testing.assert_allclose(segment_mean(jnp.ones((1, 1, 300, 1), jnp.bfloat16), jnp.ones((1, 1, 300), jnp.int32), 1),
                             np.ones((1, 1, 1)))


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_empty_texts_are_zero_with_zero_gradient(pooling):
  model = dataclasses.replace(SMALL, pooling=pooling)
  params, texts = init(model), pad_texts(tokens(2, 4), 1)

  @functools.partial(jax.jit, static_argnums=2)
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params, texts, num_texts):
    embeddings = model.encode(params, texts, num_texts)
    return jnp.sum(embeddings[..., 0] * 3 + embeddings[..., 1] ** 2), embeddings

  with_empty, five = gradient(params, texts, 5)
  without, two = gradient(params, texts, 2)
  assert not np.any(five[:, 2:])
  np.testing.assert_allclose(five[:, :2], two, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), with_empty, without)
  of_nothing, zeros = gradient(params, Texts(*np.zeros((2, 1, 2, 4), np.int32)), 2)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves((of_nothing, zeros)))


def test_l2_normalize():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0], [3e5, 4e5]])
  np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0, 0], [0, 0], [0.6, 0.8]], rtol=1e-6)
  gradient = jax.grad(lambda x: jnp.sum(l2_normalize(x)))(x)
  assert np.all(np.isfinite(gradient)) and not np.any(gradient[1])


def test_float64_parameters_give_float64():
  model = MODELS["t5_1_0"]
  params, texts = random_params(model), pad_texts(tokens(2, 9), 1)
  single = encode(model, params, texts, 2)
  with jax.enable_x64(True):
    double = encode(model, jax.tree.map(lambda x: x.astype(np.float64), params), texts, 2)
    assert double.dtype == jnp.float64
    moved = jax.tree.map(lambda x: x.astype(np.float64) * (1 + 1e-13), params)
    change = np.abs(encode(model, moved, texts, 2) - double).max()
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, double, atol=1e-5)
  assert 0 < change < 1e-10  # a step through float32 would hide it or magnify it


def test_description_round_trip():
  for model in (SMALL, MODELS["t5_1_1"], dataclasses.replace(SMALL, projection_dim=None, shared=False)):
    assert DualEncoder.from_json(json.loads(json.dumps(model.to_json()))) == model
  fields = SMALL.to_json()
  with pytest.raises(InputError, match="surprise"):
    DualEncoder.from_json({**fields, "surprise": 1})
  with pytest.raises(InputError, match="config"):
    DualEncoder.from_json({"projection_dim": 3})


def test_errors():
  params, texts = init(SMALL), pad_texts(tokens(2, 4), 1)
  with pytest.raises(InputError, match="tower"):
    encode(SMALL, params, texts, 2, tower="document")
  with pytest.raises(InputError, match="pooling"):
    dataclasses.replace(SMALL, pooling="max")
  with pytest.raises(ScopeParamShapeError):
    encode(dataclasses.replace(SMALL, projection_dim=13), params, texts, 2)
