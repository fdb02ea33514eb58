"""LoRA: against the merged model's gradient, on every mesh, with and without gradient caching; through whole runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from test_equality import CACHED, LOSSES, MESHES, ONE_SHOT, PACKED, PADDED, features
from test_frozen import flat, train
from tiny_training import tiny_loss, tiny_model

from gtr_jax.checkpoints.checkpointer import restore_params
from gtr_jax.errors import InputError
from gtr_jax.formats.merged import merged_kernel, merged_params
from gtr_jax.losses.own_params import of_loss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.lora import Lora, is_factor
from gtr_jax.models.parameters import abstract_parameters, chosen, overlaid, trained
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import make_batch
from gtr_jax.training import grad_cache, optimizers
from gtr_jax.training.encode_pair import encode_pair
from gtr_jax.training.state import create_state
from gtr_jax.training.step import compile_step, make_train_step

ALL = Lora(rank=3, alpha=6.0, kernels=(".*",))
PAPER = Lora(rank=2)
OPTIMIZER = optimizers.adamw(1e-2, weight_decay=0.01, clip_norm=0.1)


def lora_model(lora=ALL, **options) -> DualEncoder:
  shared = options.pop("shared", True)
  return dataclasses.replace(tiny_model(**{"num_layers": 2, **options}), lora=lora, shared=shared)


@functools.cache
def values(shared=True):
  """Float64 parameters of `lora_model()` and of the losses, none of them 0, by path."""
  boxed = {**lora_model(shared=shared).init(jax.random.key(0)), **LOSSES["dense"].init_params(8)}
  rng = np.random.default_rng(0)
  return {name: np.asarray(leaf, np.float64) + 0.1 * rng.normal(size=leaf.shape) * is_factor(name)
          for name, leaf in sorted(flat(nn.meta.unbox(boxed)).items())}


def on_mesh(model, name, params):
  shape = MESHES[name]
  mesh = partitioning.make_mesh(*shape, devices=jax.devices()[:int(np.prod(shape))])
  boxed = {**model.init(jax.random.key(0)), **LOSSES["dense"].init_params(8)}
  params = traverse_util.unflatten_dict({path: params[path] for path in flat(nn.meta.unbox(boxed))}, sep="/")
  return mesh, jax.device_put(params, partitioning.state_shardings(mesh, boxed))


def gradient_of(model, loss, row_lengths, microbatches, mesh_name, params):
  """By path, and the metrics."""
  mesh, params = on_mesh(model, mesh_name, params)
  loss = LOSSES[loss]

  def one_shot(changing, params, batch):
    params = overlaid(params, changing)
    return loss(*encode_pair(model, params, batch, None), batch, params=of_loss(params))

  def gradient(params, batch):
    if microbatches:
      return grad_cache.gradient(model, loss, params, batch, None)
    return jax.grad(one_shot, has_aux=True)(trained(model, params), params, batch)

  batch = make_batch(features(), partitioning.num_groups(mesh), row_lengths=row_lengths, microbatches=microbatches)
  with jax.set_mesh(mesh):
    found, metrics = jax.device_get(jax.jit(gradient)(params, partitioning.global_batch(mesh, batch)))
  return traverse_util.flatten_dict(found, sep="/"), metrics


@functools.cache
def expected(shared=True):
  """Of the merged model: with G the gradient of W + s A B, that of A is s G B', and that of B is s A' G."""
  params = values(shared)
  merged = {name: leaf + ALL.scale * params[f"{name[:-6]}lora_a"] @ params[f"{name[:-6]}lora_b"]
            if f"{name[:-6]}lora_a" in params else leaf for name, leaf in params.items() if not is_factor(name)}
  of_merged, metrics = gradient_of(lora_model(None, shared=shared), "dense", PADDED, ONE_SHOT, "one", merged)
  found = {name: of_merged[name] for name in of_loss(params)}
  for name in params:
    above = name.rpartition("/")[0]
    if name.endswith("lora_a"):
      found[name] = ALL.scale * of_merged[f"{above}/kernel"] @ params[f"{above}/lora_b"].T
    elif name.endswith("lora_b"):
      found[name] = ALL.scale * params[f"{above}/lora_a"].T @ of_merged[f"{above}/kernel"]
  return found, metrics


def check(found, wanted, tolerance=1e-9):
  assert found[0].keys() == wanted[0].keys()
  for name, of in wanted[0].items():
    assert np.linalg.norm(found[0][name] - of) < tolerance * np.linalg.norm(of), name
  np.testing.assert_allclose(found[1]["loss"], wanted[1]["loss"], rtol=tolerance)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("loss, row_lengths, microbatches", [
    ("dense", PADDED, ONE_SHOT), ("ring", PACKED, ONE_SHOT), ("ring", PACKED, CACHED)])
def test_the_gradient_is_that_of_the_merged_model(loss, row_lengths, microbatches, mesh):
  with jax.enable_x64(True):
    check(gradient_of(lora_model(), loss, row_lengths, microbatches, mesh, values()), expected())


@pytest.mark.parametrize("options, case", [
    ({"remat": "layer"}, ("ring", PACKED, CACHED, "all")), ({"remat": "mlp"}, ("dense", PADDED, ONE_SHOT, "fsdp")),
    ({"scan_layers": True, "remat": "dots"}, ("ring", PACKED, CACHED, "all")),
    ({"shared": False}, ("dense", PADDED, CACHED, "all"))])
def test_however_layers_are_computed(options, case):
  shared = options.get("shared", True)
  with jax.enable_x64(True):
    check(gradient_of(lora_model(**options), *case, values(shared)), expected(shared))


def test_a_loop_over_layers_of_which_some_have_factors():
  lora = Lora(2, 2.0, ("encoder/layers_[12]/attention/out/kernel", "encoder/layers_3/mlp/.*"))
  with jax.enable_x64(True):
    models = [lora_model(lora, num_layers=5, scan_layers=scan) for scan in (False, True)]
    rng = np.random.default_rng(0)
    shapes = {**models[0].init(jax.random.key(0)), **LOSSES["dense"].init_params(8)}
    params = {name: rng.normal(size=leaf.shape) for name, leaf in flat(nn.meta.unbox(shapes)).items()}
    one, loop = (gradient_of(model, "dense", PADDED, ONE_SHOT, "fsdp", params) for model in models)
    check(loop, one)
  assert sorted(one[0]) == sorted(["logit_scale", *(f"encoder/layers_{of}/{factor}" for factor in ("lora_a", "lora_b")
                                                    for of in ("1/attention/out", "2/attention/out", "3/mlp/wi",
                                                               "3/mlp/wo"))])


def test_at_first_it_is_the_model_itself():
  """Whatever the mesh: the same bits, and the parameters of the same seed without LoRA."""
  base, batch = lora_model(None), make_batch(features(), 8)
  plain = base.init(jax.random.key(3))
  for shape in ((8, 1, 1), (2, 2, 2), (1, 8, 1)):
    mesh = partitioning.make_mesh(*shape)
    groups = make_batch(features(), partitioning.num_groups(mesh)) if partitioning.num_groups(mesh) != 8 else batch
    found = []
    for model in (base, lora_model()):
      boxed = model.init(jax.random.key(3))
      params = jax.device_put(nn.meta.unbox(boxed), partitioning.state_shardings(mesh, boxed))
      for name, leaf in flat(nn.meta.unbox(plain)).items():
        np.testing.assert_array_equal(flat(params)[name], leaf)
      with jax.set_mesh(mesh):
        found.append(jax.device_get(jax.jit(functools.partial(encode_pair, model))(
            params, partitioning.global_batch(mesh, groups))))
    jax.tree.map(np.testing.assert_array_equal, *found)
  factors = {name: leaf for name, leaf in flat(nn.meta.unbox(lora_model().init(jax.random.key(3)))).items()
             if is_factor(name)}
  assert len(factors) == 2 * 2 * 6
  for name, leaf in factors.items():
    assert (leaf == 0).all() == name.endswith("lora_b"), name
    assert name.endswith("lora_b") or 0.4 < np.abs(leaf).max() * np.sqrt(len(leaf)) <= 1
  assert len({leaf.tobytes() for name, leaf in factors.items() if name.endswith("lora_a")}) == 12


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  return flat(train(OPTIMIZER, mesh, tmp_path_factory.mktemp("alone"), 3, lora_model(PAPER))[1].params)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_only_the_factors_change(alone, shape, tmp_path):
  before, after, shardings = train(OPTIMIZER, partitioning.make_mesh(*shape), tmp_path, 3, lora_model(PAPER))
  state, found = flat(before.params), flat(after.params)
  for name, array in found.items():
    if is_factor(name) or name == "logit_scale":
      assert (array != state[name]).any(), name
      np.testing.assert_allclose(array, alone[name], rtol=0, atol=2e-4)
    else:
      np.testing.assert_array_equal(array, state[name])
  specs = traverse_util.flatten_dict(shardings.params, sep="/")
  moments = next(of for of in shardings.opt_state if hasattr(of, "mu"))
  assert traverse_util.flatten_dict(moments.mu, sep="/") == {
      name: specs[name] for name in found if is_factor(name) or name == "logit_scale"}
  numbers = sum(leaf.size for leaf in jax.tree.leaves(after.opt_state))
  assert numbers <= 2 * (2 * 2 * 2 * (2 * 16) + 1) + 3  # two moments, two layers, two kernels of 16 x 16, A and B
  for name, sharding in specs.items():
    if is_factor(name):  # A is divided as the kernel's rows are, B as its columns.
      kernel, which = specs[f"{name[:-6]}kernel"].spec, name.endswith("lora_b")
      assert sharding.spec[which] == kernel[which] and sharding.spec[not which] is None


@pytest.mark.parametrize("average", [False, True])
def test_a_run_goes_on_exactly(tmp_path, average):
  model, mesh = lora_model(PAPER), partitioning.make_mesh(1, 4, 2)
  optimizer = optimizers.averaged(OPTIMIZER, 0.5) if average else OPTIMIZER
  _, whole, _ = train(optimizer, mesh, tmp_path / "whole", 4, model)
  train(optimizer, mesh, tmp_path / "parts", 2, model)
  parts = train(optimizer, mesh, tmp_path / "parts", 4, model)[1]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(parts), jax.device_get(whole))
  used = restore_params(tmp_path / "parts", abstract_parameters(model, mesh))
  for name, array in flat(used).items():
    np.testing.assert_array_equal(array, flat(whole.params_to_use)[name])
  assert average == any((array != flat(whole.params)[name]).any() for name, array in flat(used).items())
  if average:  # Of what is trained alone.
    assert flat(whole.opt_state.average).keys() == flat(trained(model, whole.params)).keys()
  with pytest.raises(InputError, match="the checkpoint lacks opt_state/.*; take the model, loss and optimizer that"):
    train(optimizer, mesh, tmp_path / "parts", 6, model.merged)


def test_a_start_gives_an_average_its_beginning():
  model = lora_model(PAPER)
  state, _ = create_state(model, tiny_loss(), optimizers.averaged(OPTIMIZER), partitioning.make_mesh(), 0)
  params = jax.tree.map(lambda x: x + 1, state.params)
  begun = state.beginning_from(params)
  jax.tree.map(np.testing.assert_array_equal, begun.opt_state.average, chosen(params, is_factor))
  jax.tree.map(np.testing.assert_array_equal, begun.params_to_use, params)


@pytest.mark.parametrize("microbatches", [ONE_SHOT, CACHED])
def test_no_gradient_of_a_kernel_is_made(microbatches):
  """The devices sum none, and a step has less work."""
  mesh, loss = partitioning.make_mesh(1, 8, 1), LOSSES["dense"]
  flops, scattered = [], []
  for lora in (None, ALL):
    model = lora_model(lora, mlp_dim=256, emb_dim=64)
    state, shardings = create_state(model, loss, OPTIMIZER, mesh, 0)
    batch = partitioning.global_batch(mesh, make_batch(features(), 8, microbatches=microbatches))
    with jax.set_mesh(mesh):
      compiled = compile_step(make_train_step(model, loss, OPTIMIZER, 0), shardings).lower(state, batch).compile()
    flops.append(compiled.cost_analysis()["flops"])
    scattered.append("f32[8,256]{1,0} reduce-scatter" in compiled.as_text())
  assert scattered == [True, False] and flops[1] < 0.85 * flops[0]


def test_merging_has_the_same_bits_on_every_mesh():
  rng = np.random.default_rng(0)
  model, found = lora_model(), []
  params = {name: leaf.astype(np.float32) for name, leaf in values().items()}
  for mesh in MESHES:
    merged = flat(merged_params(on_mesh(model, mesh, params)[1], model.lora))
    found.append(merged)
    assert merged.keys() == {name for name in params if not is_factor(name)}
  for other in found:
    for name, array in other.items():
      np.testing.assert_array_equal(array, found[0][name])
  w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((700, 900), (700, 5), (5, 900)))
  np.testing.assert_allclose(merged_kernel(w, a, b, 0.3), w + 0.3 * (a.astype(np.float64) @ b), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options, text", [
    ({"rank": 0}, "Lora.rank is 0: give a positive whole number"), ({"alpha": 0.0}, "Lora.alpha is 0.0: give a number"),
    ({"kernels": ()}, "Lora.kernels is empty"), ({"kernels": ("(",)}, "'(' is no regular expression"),
    ({"kernels": "query"}, "Lora.kernels is 'query': give"),
    ({"kernels": (".*", "projection_layer/kernel")}, "'projection_layer/kernel' matches no whole path of a linear"),
    ({"kernels": ("query",)}, "there is encoder/layers_0/attention/key/kernel, for instance"),
    ({"rank": 17}, "Lora.rank is 17, and encoder/layers_0/attention/query/kernel is [16, 16]: give at most 16")])
def test_what_is_wrong(options, text):
  with pytest.raises(InputError) as e:
    create_state(lora_model(Lora(**options)), tiny_loss(), OPTIMIZER, partitioning.make_mesh(), 0)
  assert text in str(e.value) and "\n" not in str(e.value)


def test_json():
  model = lora_model()
  assert DualEncoder.from_json(model.to_json()) == dataclasses.replace(model, config=dataclasses.replace(
      model.config, dtype="auto"))
  assert "lora" not in lora_model(None).to_json()


def test_the_gradient_of_bfloat16_is_summed_in_float32():
  """Over `model` too, where one factor of each pair is the same on all devices."""
  params = {name: leaf.astype(np.float32) for name, leaf in values().items()}
  one, several = (gradient_of(lora_model(dtype="bfloat16"), "dense", PADDED, ONE_SHOT, mesh, params)[0]
                  for mesh in ("one", "all"))
  exact = gradient_of(lora_model(), "dense", PADDED, ONE_SHOT, "one", params)[0]

  def distance(x, y):
    return np.sqrt(sum(np.sum((x[name] - y[name]) ** 2) for name in x))

  assert 0 < distance(several, one) < distance(one, exact)
  assert all(leaf.dtype == jnp.float32 for leaf in several.values())
