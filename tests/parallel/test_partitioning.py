"""The mesh: its shapes, what lies where, and that value and gradient of the whole model do not depend on it."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from gtr_jax.errors import InputError
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.dropout import dropout
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import make_batch
from gtr_jax.text.packing import Texts

MODEL = DualEncoder(T5Config(64, 16, 4, 4, 32, 1, mlp_activations=("gelu", "linear")), 12)
LOSS = InBatchLoss(temperature=0.05, margin=0.05, label_smoothing=0.1, learned_temperature=True)


def mesh_of(*shape):
  return partitioning.make_mesh(*shape, devices=jax.devices()[:int(np.prod(shape))])


def boxed_params(key):
  return {**MODEL.init(key), **LOSS.init_params(8)}


def features(pairs=8, seed=0):
  """Model features with 2 hard negatives a pair, a negative query, a fill pair and duplicates."""
  rng = np.random.default_rng(seed)

  def tokens(*shape):
    ids, lengths = rng.integers(1, 64, shape), rng.integers(1, shape[-1] + 1, shape[:-1])
    return np.where(np.arange(shape[-1]) < lengths[..., None], ids, 0).astype(np.int32)

  hashes = {name: rng.integers(0, 12, shape) for name, shape in (
      ("query_hash", pairs), ("passage_hash", pairs), ("text_hash", pairs),
      ("negative_passage_hash", (pairs, 2)), ("negative_text_hash", (pairs, 2)))}
  negatives = tokens(pairs, 2, 9)
  negatives[1, 1] = 0
  return {"left_encoder_input_tokens": tokens(pairs, 5), "right_encoder_input_tokens": tokens(pairs, 9),
          "right_negative_encoder_input_tokens": negatives, "left_negative_encoder_input_tokens": tokens(pairs, 1, 5),
          "valid": np.arange(pairs) != 5, **hashes}


def value_and_gradient(mesh, params):
  """Of model and loss under a mesh, from host parameters; back on the host."""
  shardings = partitioning.state_shardings(mesh, jax.eval_shape(boxed_params, jax.random.key(0)))
  batch = partitioning.global_batch(mesh, make_batch(features(), partitioning.num_groups(mesh)))

  @jax.value_and_grad
  def f(params, batch):
    queries = MODEL.encode(params, batch.queries, batch.query_hash.shape[1])
    passages = MODEL.encode(params, batch.passages, batch.passage_hash.shape[1], tower="passage")
    return LOSS(queries, passages, batch, params={"logit_scale": params["logit_scale"]})[0]

  with jax.set_mesh(mesh):
    compiled = jax.jit(f, in_shardings=(shardings, partitioning.batch_sharding(mesh)), out_shardings=(None, shardings))
    return jax.device_get(compiled(jax.device_put(params, shardings), batch))


@functools.cache
def reference(dtype):
  params = jax.device_get(nn.meta.unbox(jax.jit(boxed_params)(jax.random.key(0))))
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  return params, value_and_gradient(mesh_of(1, 1, 1), params)


def assert_equal_gradients(got, expected, tolerance):
  np.testing.assert_allclose(got[0], expected[0], rtol=tolerance)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got[1]), jax.tree.leaves(expected[1]), strict=True):
    assert a.dtype == b.dtype and np.any(b)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), jax.tree_util.keystr(path)


@pytest.mark.parametrize("shape", [(2, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_value_and_gradient_on_any_mesh_float64(shape):
  with jax.enable_x64(True):
    params, expected = reference("float64")
    got = value_and_gradient(mesh_of(*shape), params)
  assert got[0].dtype == np.float64
  assert_equal_gradients(got, expected, 1e-9)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_value_and_gradient_on_any_mesh_float32(shape):
  params, expected = reference("float32")
  assert_equal_gradients(value_and_gradient(mesh_of(*shape), params), expected, 1e-4)


def test_dropout_masks_do_not_depend_on_the_devices():
  x = np.ones((8, 2, 5, 6), np.float32)
  drop = jax.jit(lambda x: dropout(x, 0.5, jax.random.key(0)))
  masks = [drop(jax.device_put(x, partitioning.batch_sharding(mesh_of(*shape)))) for shape in ((1, 1, 1), (4, 1, 2))]
  np.testing.assert_array_equal(*masks)
  assert len(np.unique(masks[0])) == 2


def test_float32_agrees_with_float64():
  with jax.enable_x64(True):
    _, double = reference("float64")
  assert double[1]["logit_scale"].dtype == np.float64
  single = reference("float32")[1]
  np.testing.assert_allclose(single[0], double[0], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max()), single[1], double[1])


def test_parameters_are_created_where_they_stay_and_equal_on_any_mesh():
  abstract = jax.eval_shape(boxed_params, jax.random.key(0))
  created = []
  for shape in ((1, 1, 1), (2, 2, 2)):
    mesh = mesh_of(*shape)
    shardings = partitioning.state_shardings(mesh, abstract)
    with jax.set_mesh(mesh):
      created.append(jax.jit(lambda key: nn.meta.unbox(boxed_params(key)), out_shardings=shardings)(jax.random.key(0)))
  jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, created))
  params = created[1]
  layer = params["encoder"]["layers_0"]
  specs = {
      "embedding": params["token_embedder"]["embedding"], "query": layer["attention"]["query"]["kernel"],
      "out": layer["attention"]["out"]["kernel"], "wi_0": layer["mlp"]["wi_0"]["kernel"],
      "wo": layer["mlp"]["wo"]["kernel"], "norm": layer["pre_mlp_layer_norm"]["scale"],
      "bias": params["encoder"]["relpos_bias"]["rel_embedding"], "projection": params["projection_layer"]["kernel"],
      "logit_scale": params["logit_scale"]}
  assert {name: x.sharding.spec for name, x in specs.items()} == {
      "embedding": P("model", "fsdp"), "query": P("fsdp", "model"), "out": P("model", "fsdp"),
      "wi_0": P("fsdp", "model"), "wo": P("model", "fsdp"), "norm": P("fsdp"), "bias": P("model", None),
      "projection": P("fsdp", None), "logit_scale": P()}
  assert specs["query"].addressable_shards[0].data.shape == (8, 8)


def test_activations_stay_divided_under_fsdp():
  """No device gathers token vectors, and each needs about an eighth of one device's memory."""
  model = DualEncoder(T5Config(64, 64, 8, 8, 256, 1), 48)
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  hashes = {name: np.arange(64) for name in ("query_hash", "passage_hash", "text_hash")}
  arrays = {"left_encoder_input_tokens": rng.integers(1, 64, (64, 48)).astype(np.int32),
            "right_encoder_input_tokens": rng.integers(1, 64, (64, 48)).astype(np.int32), **hashes}

  def compiled(*shape):
    mesh = mesh_of(*shape)
    shardings = partitioning.state_shardings(mesh, abstract)
    params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
                          nn.meta.unbox(abstract), shardings)
    batch = partitioning.global_batch(mesh, make_batch(arrays, partitioning.num_groups(mesh)))

    @jax.grad
    def f(params, batch):
      texts = batch.valid.shape[1]
      return InBatchLoss()(model.encode(params, batch.queries, texts), model.encode(params, batch.passages, texts),
                           batch)[0]

    with jax.set_mesh(mesh):
      return jax.jit(f, out_shardings=shardings).lower(params, batch).compile()

  one, eight = compiled(1, 1, 1), compiled(1, 8, 1)
  assert eight.memory_analysis().temp_size_in_bytes < one.memory_analysis().temp_size_in_bytes / 5
  gathered = re.findall(r"= (f32.*?) all-gather(?:-start)?\(", eight.as_text())
  assert gathered, "parameters are gathered, layer by layer"
  assert not [shapes for shapes in gathered if re.search(r"\[(\d+,){3,}\d+\]", shapes)], "so are token vectors"


def test_make_mesh():
  assert partitioning.AXES == ("data", "fsdp", "model")
  for arguments, shape in (({}, (8, 1, 1)), ({"model": 2}, (4, 1, 2)), ({"data": 1, "fsdp": -1}, (1, 8, 1)),
                           ({"data": 2, "fsdp": 2, "model": 2}, (2, 2, 2)),
                           ({"devices": jax.devices()[:3]}, (3, 1, 1))):
    mesh = partitioning.make_mesh(**arguments)
    assert tuple(mesh.shape.values()) == shape
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert partitioning.num_groups(mesh) == len(partitioning.own_groups(mesh)) == shape[0] * shape[1]


@pytest.mark.parametrize("arguments", [{"model": 3}, {"data": 2, "model": 2}, {"data": 16}, {"fsdp": 0}, {"fsdp": -1},
                                       {"model": -2}], ids=str)
def test_a_mesh_that_does_not_fit(arguments):
  with pytest.raises(InputError, match="mesh data=.*") as error:
    partitioning.make_mesh(**arguments)
  assert "\n" not in str(error.value)


def test_one_device_is_one():
  with pytest.raises(InputError, match="does not fit 1 device: make the product of the axes 1, or set one axis to -1"):
    partitioning.make_mesh(model=2, devices=jax.devices()[:1])


def test_global_batch_keeps_every_array():
  mesh = mesh_of(2, 2, 2)
  host = make_batch({name: value for name, value in features().items() if "negative" not in name}, 4)
  batch = partitioning.global_batch(mesh, host)
  assert type(batch) is type(host)
  for theirs, ours in zip(jax.tree.leaves(host), jax.tree.leaves(batch), strict=True):
    np.testing.assert_array_equal(theirs, ours)
    assert ours.sharding.is_equivalent_to(partitioning.batch_sharding(mesh), ours.ndim)
  assert batch.negative_valid.shape == (4, 0)
  assert {shard.data.shape for shard in batch.valid.addressable_shards} == {(1, 2)}


def test_what_the_mesh_cannot_divide():
  mesh = mesh_of(4, 1, 2)
  with pytest.raises(InputError, match=r"shape \(2, 3\).* 4 data shards"):
    partitioning.global_batch(mesh, {"x": np.zeros((2, 3))})
  wide = dataclasses.replace(MODEL, config=dataclasses.replace(MODEL.config, num_heads=3, head_dim=4))
  with pytest.raises(InputError, match="encoder/relpos_bias/rel_embedding: axis 'heads' of length 3"):
    partitioning.state_shardings(mesh, jax.eval_shape(wide.init, jax.random.key(0)))
  texts = Texts(*np.zeros((2, 6, 2, 3), np.int32))
  with jax.set_mesh(mesh), pytest.raises(InputError, match="6 groups of texts cannot be divided over 4 data shards"):
    jax.eval_shape(lambda key: MODEL.encode(nn.meta.unbox(MODEL.init(key)), texts, 2), jax.random.key(0))


def test_names_of_axes_must_be_known():
  with pytest.raises(KeyError, match="grp"):
    partitioning.logical_spec(("grp",))
