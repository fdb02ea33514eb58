"""Runs with LoRA as models: whoever reads them has the factors merged, and PEFT's adapters are of the factors alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from flax import traverse_util
from tiny_model_dir import sentence, tiny_params, write_model_dir

from gtr_jax.checkpoints.checkpointer import Checkpointer, restore_params
from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.formats import safetensors
from gtr_jax.formats.any_form import open_model
from gtr_jax.formats.convert import convert
from gtr_jax.formats.merge import merge
from gtr_jax.formats.model_dir import read_model_json, write_model_json
from gtr_jax.formats.peft import open_adapter
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.models.lora import Lora, is_factor
from gtr_jax.models.parameters import abstract_parameters, chosen
from gtr_jax.parallel import partitioning
from gtr_jax.training.initial_params import with_initial_params

LORA = Lora(rank=2, alpha=3.0, kernels=(".*/query/kernel", ".*/wo/kernel"))
TEXTS = [sentence(i, 2 + i % 9) for i in range(20)]
FACTORS = {f"encoder/layers_0/{of}/{factor}" for of in ("attention/query", "mlp/wo") for factor in ("lora_a", "lora_b")}


def arrays_of(path):
  return {name: array.read() for name, array in open_model(path)[0].arrays.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run with LoRA, whose factors are not 0, and what it began from: a run, and a folder of sentence-transformers."""
  place = epath.Path(tmp_path_factory.mktemp("lora"))
  write_model_dir(place / "run", (0, 1), lora=LORA)
  params = restore_params(place / "run", abstract_parameters(encoder_of(place / "run"), partitioning.make_mesh()))
  write_run(place / "base", params, encoder_of(place / "run").merged)
  convert(place / "base", place / "folder", "sentence-transformers")
  return place


def encoder_of(path):
  return read_model_json(path / "model.json")[0]


def write_run(path, params, encoder):
  write_model_json(path, encoder, open_model(path.parent / "run")[1], query_length=16, document_length=32)
  checkpointer = Checkpointer(path / "checkpoints")
  names = traverse_util.flatten_dict(jax.eval_shape(encoder.init, jax.random.key(0)), sep="/")
  checkpointer.save(1, {"params": chosen(params, names.__contains__)}, {})
  checkpointer.close()


def test_model_json_says_it(place):
  assert json.loads((place / "run/model.json").read_text())["model"]["lora"] == {
      "rank": 2, "alpha": 3.0, "kernels": list(LORA.kernels)}
  assert encoder_of(place / "run").lora == LORA and encoder_of(place / "base").lora is None
  tokenizer = open_model(place / "run")[1]
  for other in (None, dataclasses.replace(LORA, rank=1), dataclasses.replace(LORA, alpha=1.0)):
    with pytest.raises(InputError, match="run: was begun with LoRA of rank 2, alpha 3, of .*query/k.*, and not with "):
      write_model_json(place / "run", dataclasses.replace(encoder_of(place / "run"), lora=other), tokenizer,
                       query_length=16, document_length=32)


def test_arrays_are_merged(place):
  encoder, mesh = encoder_of(place / "run"), partitioning.make_mesh()
  params = traverse_util.flatten_dict(restore_params(place / "run", abstract_parameters(encoder, mesh)), sep="/")
  found = arrays_of(place / "run")
  assert params.keys() - found.keys() == FACTORS and not found.keys() - params.keys()
  for name, array in found.items():
    expected, above = np.asarray(params[name]), name.rpartition("/")[0]
    if f"{above}/lora_a" in params:
      expected = expected + 1.5 * np.asarray(params[f"{above}/lora_a"]) @ np.asarray(params[f"{above}/lora_b"])
      assert np.abs(array - params[name]).max() > 0.1
    np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6)


def test_it_embeds_as_it_was_trained(place):
  """On every mesh, with one hash, also as a folder of sentence-transformers."""
  model = load_model(place / "run")
  assert model.encoder.lora is None
  mesh, encoder = model.mesh, encoder_of(place / "run")
  trained = dataclasses.replace(model, encoder=dataclasses.replace(encoder, config=model.encoder.config),
                                params=restore_params(place / "run", abstract_parameters(encoder, mesh)))
  found = embed(model, TEXTS, "passage", progress=False)
  np.testing.assert_allclose(found, embed(trained, TEXTS, "passage", progress=False), rtol=0, atol=1e-6)
  assert np.abs(found - embed(load_model(place / "base"), TEXTS, "passage", progress=False)).max() > 0.1
  for shape in ((1, 8, 1), (2, 2, 2)):
    again = load_model(place / "run", partitioning.make_mesh(*shape))
    assert again.weights_hash == model.weights_hash
    np.testing.assert_allclose(embed(again, TEXTS, "passage", progress=False), found, rtol=0, atol=1e-6)


def test_written_and_averaged(place, tmp_path):
  convert(place / "run", tmp_path / "folder", "sentence-transformers")
  jax.tree.map(np.testing.assert_array_equal, arrays_of(tmp_path / "folder"), arrays_of(place / "run"))
  merge([place / "run", place / "base"], tmp_path / "soup")
  mean = {name: (array.astype(np.float64) + arrays_of(place / "base")[name]) / 2
          for name, array in arrays_of(place / "run").items()}
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), arrays_of(tmp_path / "soup"), mean)


@pytest.mark.parametrize("lora", [None, LORA, Lora(4, 4.0, (".*",))])
def test_another_run_starts_from_it(place, lora):
  """From what is merged, with factors of its own."""
  encoder = dataclasses.replace(encoder_of(place / "run"), lora=lora)
  mesh, boxed = partitioning.make_mesh(2, 2, 2), encoder.init(jax.random.key(5))
  params = {**nn.meta.unbox(boxed), "logit_scale": np.float32(3)}
  shardings = {**partitioning.state_shardings(mesh, boxed),
               "logit_scale": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())}
  tokenizer, expected = open_model(place / "run")[1], arrays_of(place / "run")
  for path in (place / "run", place / "run/checkpoints/2"):
    started = traverse_util.flatten_dict(with_initial_params(params, shardings, path, tokenizer), sep="/")
    assert started.keys() == traverse_util.flatten_dict(params, sep="/").keys()
    for name, leaf in started.items():
      wanted = expected.get(name, traverse_util.flatten_dict(params, sep="/")[name])
      np.testing.assert_array_equal(leaf, wanted, err_msg=name)
  started = with_initial_params(params, shardings, place / "folder", tokenizer)
  jax.tree.map(np.testing.assert_array_equal, chosen(started, is_factor), chosen(params, is_factor))


def test_no_projection_stays_as_it_was_drawn(place, tmp_path):
  (bare := tmp_path / "t5").mkdir()
  for file in ("config.json", "model.safetensors", "spiece.model"):
    (bare / file).write_bytes((place / "folder" / file).read_bytes())
  (bare / "tokenizer_config.json").write_text((place / "folder/tokenizer_config.json").read_text())
  params = tiny_params(encoder_of(place / "run"), 0)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with pytest.raises(InputError, match="t5: has no projection, and with LoRA this run's would stay as it is drawn"):
    with_initial_params(params, jax.tree.map(lambda _: here, params), bare, open_model(place / "run")[1])


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_an_adapter(place, tmp_path, capsys, dtype, size):
  words = ["convert", str(place / "run"), str(tmp_path / "adapter"), "--to", "peft", "--dtype", dtype]
  assert main([*words, "--base_model", str(place / "folder")]) == 0
  assert capsys.readouterr().out == f"{tmp_path / 'adapter'}\n"
  config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
  modules = ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wo"]
  assert config["target_modules"] == modules and config["base_model_name_or_path"] == str(place / "folder")
  assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 3.0, "LORA")
  found = safetensors.read(tmp_path / "adapter/adapter_model.safetensors")
  assert found.keys() == {f"base_model.model.{module}.lora_{which}.weight" for module in modules for which in "AB"}
  assert {array.dtype.itemsize for array in found.values()} == {size}
  arrays = open_adapter(place / "run", str(place / "folder")).arrays
  for module, ours in zip(modules, ("attention/query", "mlp/wo"), strict=True):
    for which in "ab":
      np.testing.assert_array_equal(
          found[f"base_model.model.{module}.lora_{which.upper()}.weight"].read().astype(np.float32).T,
          arrays[f"encoder/layers_0/{ours}/lora_{which}"].astype(dtype).read().astype(np.float32))


@pytest.mark.parametrize("source, base, text", [
    ("run", None, "--to peft writes an adapter for the model that it was trained from: say which, --base_model MODEL"),
    ("base", "folder", "base: was not trained with LoRA (DualEncoder.lora), so there is no adapter to write"),
    ("run", "base", "base: is a training run, which transformers does not load; convert it first: gtr-jax convert "),
    ("run/checkpoints/1", "folder", "run/checkpoints/1 was trained from: token_embedder/embedding is another; give"),
    ("run", "nothing", "nothing: no such model")])
def test_no_adapter(place, tmp_path, source, base, text):
  with pytest.raises(InputError) as e:
    convert(place / source, tmp_path / "adapter", "peft", base_model=base and str(place / base))
  assert text in str(e.value) and not (tmp_path / "adapter").exists()
  with pytest.raises(InputError, match="--base_model x: is for --to peft alone; leave it out"):
    convert(place / "run", tmp_path / "other", "sentence-transformers", base_model="x")


def test_no_adapter_of_two_towers(place, tmp_path):
  write_model_dir(tmp_path / "two", shared=False, lora=LORA)
  with pytest.raises(InputError, match="two: has a tower for queries and one for documents, and an adapter is of one"):
    convert(tmp_path / "two", tmp_path / "adapter", "peft", base_model=str(place / "folder"))
