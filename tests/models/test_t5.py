"""The encoder: parity with transformers' golden embeddings, dropout, numerics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5_reference import GOLDEN, LENGTHS, MODELS, pack, random_params
from test_attention import bucket_in

from gtr_jax.errors import InputError
from gtr_jax.models import attention, t5
from gtr_jax.models.attention import relative_position_bucket
from gtr_jax.models.dropout import dropout
from gtr_jax.models.t5 import Encoder, T5Config
from gtr_jax.text.packing import pad_texts

SMALL = T5Config(vocab_size=61, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_layers=2)


def encode(model, params, texts, num_texts, **kwargs):
  return jax.jit(model.encode, static_argnames="num_texts")(params, texts, num_texts=num_texts, **kwargs)


def golden(name):
  file = np.load(GOLDEN / f"{name}.npz")
  return pad_texts(file["tokens"].astype(np.int32), 1), file["embeddings"]


@pytest.mark.parametrize("name", MODELS)
def test_golden_embeddings_of_transformers(name):
  texts, theirs = golden(name)
  ours = encode(MODELS[name], random_params(MODELS[name]), texts, len(LENGTHS))
  np.testing.assert_allclose(ours[0], theirs, atol=1e-5, rtol=0)


def test_packed_texts_have_the_golden_embeddings():
  texts, theirs = golden("t5_1_0")
  lists = [row[:length] for row, length in zip(texts.tokens[0], LENGTHS, strict=True)]
  packed = pack(lists, [[6], [3, 4, 0], [1, 5, 2]], 512)
  ours = encode(MODELS["t5_1_0"], random_params(MODELS["t5_1_0"]), packed, len(LENGTHS))
  np.testing.assert_allclose(ours[0], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrong", [
    lambda d, n, m: bucket_in(jnp.bfloat16, d, n, m),
    lambda d, n, m: relative_position_bucket(-d, n, m),
    lambda d, n, m: relative_position_bucket(abs(d), n, m),
], ids=["bfloat16", "direction", "one direction"])
def test_the_golden_embeddings_show_a_wrong_bucket(wrong, monkeypatch):
  texts, theirs = golden("t5_1_0")
  monkeypatch.setattr(attention, "relative_position_bucket", wrong)
  ours = np.asarray(encode(MODELS["t5_1_0"], random_params(MODELS["t5_1_0"]), texts, len(LENGTHS)))[0]
  difference = dict(zip(LENGTHS, np.abs(ours - theirs).max(axis=1), strict=True))
  assert difference[300] > 1e-3
  assert difference[1] < 1e-5


def primitives(jaxpr):
  """All equations of a jaxpr and of those inside it."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.tree.leaves(eqn.params):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from primitives(inner)


def encoder_jaxpr(config, rngs=None):
  """Of the encoder alone, on 2 rows of 6 tokens."""
  x, ids = (jnp.zeros((1, 2, 6, config.emb_dim)),), (jnp.ones((1, 2, 6), jnp.int32),)
  params = jax.eval_shape(Encoder(config).init, jax.random.key(0), x, ids)
  return jax.make_jaxpr(lambda p: Encoder(config).apply(p, x, ids, rngs=rngs))(params)


def test_dropout_is_wherever_t5_has_it():
  config = dataclasses.replace(SMALL, dropout_rate=0.1)
  def masks(rngs):
    return sum(eqn.primitive.name == "random_bits" for eqn in primitives(encoder_jaxpr(config, rngs).jaxpr))
  # The embedded tokens and the output; in each layer attention weights, attention output, MLP hidden and output.
  assert masks({"dropout": jax.random.key(0)}) == 2 + 4 * config.num_layers
  assert masks(None) == 0
  x = dropout(jnp.ones((1, 3, 50, 400)), 0.25, jax.random.key(0))
  assert set(np.unique(x)) == {np.float32(0), np.float32(1 / 0.75)}
  np.testing.assert_allclose(x.mean(), 1, atol=0.05)
  np.testing.assert_array_equal(x, jnp.broadcast_to(x[:, :, :1], x.shape))  # one mask for all positions


def test_bfloat16_runs_norms_and_softmax_in_float32():
  config = dataclasses.replace(SMALL, dtype="bfloat16")
  eqns = list(primitives(encoder_jaxpr(config).jaxpr))
  dtypes = {name: {str(eqn.invars[0].aval.dtype) for eqn in eqns if eqn.primitive.name == name}
            for name in ("exp", "rsqrt", "dot_general")}
  assert dtypes == {"exp": {"float32"}, "rsqrt": {"float32"}, "dot_general": {"bfloat16"}}


def test_bfloat16_is_close():
  model = dataclasses.replace(MODELS["t5_1_1"], config=dataclasses.replace(MODELS["t5_1_1"].config, dtype="bfloat16"))
  texts, theirs = golden("t5_1_1")
  ours = encode(model, random_params(model), texts, len(LENGTHS))
  assert ours.dtype == jnp.float32
  cosines = np.sum(np.asarray(ours[0]) * theirs, axis=-1)
  assert cosines.min() > 0.995
  assert np.abs(ours[0] - theirs).max() > 1e-5  # it did run in bfloat16


@pytest.mark.parametrize("options", [
    {"remat": "layer"}, {"remat": "dots"}, {"remat": "mlp"}, {"scan_layers": True},
    {"scan_layers": True, "remat": "layer"}], ids=str)
def test_remat_and_scan_change_no_gradient(options):
  model = MODELS["t5_1_0"]
  params = random_params(model)
  texts = pad_texts(np.random.RandomState(1).randint(1, 61, (4, 12)).astype(np.int32), 1)
  key = None if "scan_layers" in options else jax.random.key(3, impl="rbg")  # compiles faster

  def gradient(**options):
    config = dataclasses.replace(model.config, dropout_rate=0.1, **options)
    encoder = dataclasses.replace(model, config=config)
    def f(p):
      return jnp.sum(encoder.encode(p, texts, 4, dropout_key=key)[:, 0] ** 3)
    names = [eqn.primitive.name for eqn in primitives(jax.make_jaxpr(f)(params).jaxpr)]
    return jax.jit(jax.grad(f))(params), sum("remat" in name or "checkpoint" in name for name in names)

  (plain, attentions), (other, recomputed) = gradient(), gradient(**options)
  assert attentions == model.config.num_layers  # attention weights are never kept
  layers = 1 if "scan_layers" in options else model.config.num_layers
  assert recomputed == layers * (2 if "remat" in options else 1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(a).max()), plain, other)


def test_scanned_layers_drop_out():
  model = MODELS["t5_1_0"]
  config = dataclasses.replace(model.config, dropout_rate=0.5, scan_layers=True)
  params, texts = random_params(model), pad_texts(np.full((2, 5), 3, np.int32), 1)

  def encode(key):
    return dataclasses.replace(model, config=config).encode(params, texts, 2, dropout_key=key)

  a, b, none = encode(jax.random.key(0)), encode(jax.random.key(1)), encode(None)
  assert not np.allclose(a, b) and not np.allclose(a, none)
  np.testing.assert_array_equal(a, encode(jax.random.key(0)))


def test_rows_of_attention_in_turn_change_nothing(monkeypatch):
  """Where the weights of all rows do not fit the cache, rows are taken a few at a time, the last ones apart."""
  model = MODELS["t5_1_0"]
  params = random_params(model)
  texts = pad_texts(np.random.RandomState(1).randint(1, 61, (5, 12)).astype(np.int32), 1)

  def gradient():
    def f(p):
      return jnp.sum(model.encode(p, texts, 5, dropout_key=jax.random.key(0))[:, 0] ** 3)
    text = str(jax.make_jaxpr(f)(params))
    return jax.jit(jax.grad(f))(params), "scan" in text

  whole, looped = gradient()
  assert not looped
  monkeypatch.setattr(attention, "_CPU_ATTENTION_BYTES", 2 * 4 * model.config.num_heads * 12**2)
  in_turn, looped = gradient()
  assert looped
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(a).max()), whole, in_turn)


def test_initial_scales():
  config = dataclasses.replace(SMALL, vocab_size=500, emb_dim=64, num_heads=8, head_dim=16, mlp_dim=256, num_layers=1,
                               mlp_activations=("gelu", "linear"))
  x, ids = (jnp.zeros((1, 1, 1, 64)),), (jnp.zeros((1, 1, 1), jnp.int32),)
  params = jax.jit(Encoder(config).init)(jax.random.key(0), x, ids)["params"]
  layer = params["layers_0"]
  kernels = {**layer["attention"], **layer["mlp"]}
  got = {name: float(jnp.std(part["kernel"].value)) for name, part in kernels.items()}
  expected = {"query": (64 * 16) ** -0.5, "key": 64**-0.5, "value": 64**-0.5, "out": 128**-0.5, "wi_0": 64**-0.5,
              "wi_1": 64**-0.5, "wo": 256**-0.5}
  assert got == pytest.approx(expected, rel=0.05)
  embedding = jax.jit(t5.TokenEmbedder(config).init)(jax.random.key(0), ids)["params"]["embedding"].value
  np.testing.assert_allclose([jnp.mean(embedding), jnp.std(embedding)], [0, 1], atol=0.02)
  assert jnp.all(params["encoder_norm"]["scale"].value == 1)


@pytest.mark.parametrize("field, value", [
    ("mlp_activations", ("relu", "linear")), ("dtype", "float16"), ("dropout_rate", 1.0), ("relpos_buckets", 5),
    ("relpos_max_distance", 8)])
def test_config_errors(field, value):
  with pytest.raises(InputError, match=field):
    dataclasses.replace(SMALL, **{field: value})
