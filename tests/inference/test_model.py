"""Models from disk: what comes back, what the hash covers, and one line for all that is wrong."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from tiny_model_dir import tiny_encoder, tiny_params, write_model_dir, write_vocabulary

from gtr_jax.errors import InputError
from gtr_jax.formats.convert import convert
from gtr_jax.formats.model_dir import write_model_json
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import check_model, for_several, load_model
from gtr_jax.inference.weights_hash import weights_hash
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel.partitioning import make_mesh


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return write_model_dir(tmp_path_factory.mktemp("load") / "run", seeds=(3, 4), scores={1: 0.5, 2: 0.25})


def one_device():
  return make_mesh(devices=jax.devices()[:1])


def message(call, *args, **kwargs):
  with pytest.raises(InputError) as e:
    call(*args, **kwargs)
  assert "\n" not in str(e.value)
  return str(e.value)


def change(path, **fields):
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_loads_the_best_checkpoint_or_the_one_named(run):
  best, second = load_model(run, one_device()), load_model(run / "checkpoints" / "2", one_device())
  for model, seed in ((best, 3), (second, 4)):
    jax.tree.map(np.testing.assert_array_equal, model.params, tiny_params(model.encoder, seed))
  assert (dict(best.lengths), dict(best.prompts)) == ({"query": 16, "document": 32}, {"query": "", "document": ""})
  assert best.tokenizer.path == run / "spiece.model"
  assert best.weights_hash != second.weights_hash
  assert load_model(run / "checkpoints" / "1", one_device()).weights_hash == best.weights_hash


def test_the_hash_is_the_same_on_every_mesh_and_shards_hold_parts(run):
  model = load_model(run, make_mesh(2, 2, 2))
  assert model.weights_hash == load_model(run, one_device()).weights_hash
  kernel = model.params["encoder"]["layers_0"]["mlp"]["wi"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (8, 16)  # embed over fsdp, mlp over model


def test_the_hash_covers_all_that_decides_an_embedding(run):
  model = load_model(run, one_device())
  values = {"encoder": model.encoder, "params": model.params, "tokenizer": model.tokenizer,
            "lengths": model.lengths, "prompts": model.prompts}
  assert weights_hash(**values) == model.weights_hash
  kernel = np.asarray(model.params["projection_layer"]["kernel"])
  nudged = np.where(np.arange(kernel.size).reshape(kernel.shape) == 5, np.nextafter(kernel, np.float32(9)), kernel)
  others = [{"params": {**model.params, "projection_layer": {"kernel": nudged}}},
            {"encoder": tiny_encoder(model.tokenizer, pooling="first")},
            {"encoder": tiny_encoder(model.tokenizer, normalize=False)},
            {"encoder": in_dtype(model.encoder, "bfloat16")},
            {"lengths": {"query": 16, "document": 33}}, {"prompts": {"query": "q: ", "document": ""}}]
  hashes = {weights_hash(**{**values, **other}) for other in others} | {model.weights_hash}
  assert len(hashes) == len(others) + 1


def in_dtype(encoder, dtype):
  return dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, dtype=dtype))


def test_computes_in_what_suits_the_devices_or_is_asked_for(run, tmp_path):
  """Not in what it was trained in, which model.json of earlier versions says."""
  shutil.copytree(run, tmp_path / "run")
  place = tmp_path / "run" / "model.json"
  described = json.loads(place.read_text())["model"]
  assert "dtype" not in described["config"]
  change(place, model={**described, "config": {**described["config"], "dtype": "bfloat16"}})
  model, half = load_model(tmp_path / "run", one_device()), load_model(tmp_path / "run", one_device(), dtype="bfloat16")
  assert (model.encoder.config.dtype, half.encoder.config.dtype) == ("float32", "bfloat16")
  assert model.weights_hash == load_model(run, one_device()).weights_hash != half.weights_hash
  assert model.encoder.config.dtype_on("gpu") == "float32"
  assert [T5Config(9, 8, 1, 8, 8, 1).dtype_on(on) for on in ("cpu", "gpu", "tpu")] == ["float32", *["bfloat16"] * 2]
  texts = ["a text of a few words"]
  difference = np.abs(embed(model, texts, "query", progress=False) - embed(half, texts, "query", progress=False)).max()
  assert 0 < difference < 0.05
  assert "dtype is 'float16': give one of float32, bfloat16, or None" in message(load_model, run, dtype="float16")


def test_separate_towers(tmp_path):
  model = load_model(write_model_dir(tmp_path / "run", shared=False), one_device())
  assert set(model.params) == {"query", "passage"}


def test_what_is_not_a_model_dir(run, tmp_path):
  assert "no such model" in message(load_model, tmp_path / "nothing")
  assert "it has neither model.json (a training run), modules.json or" in message(load_model, tmp_path)
  assert "holds no whole checkpoint" in message(load_model, run / "checkpoints" / "7")


@pytest.mark.parametrize("path, text", [
    ("", "the path is empty; give the path of a file or folder"), ("file:///a/b", "give the path without file://"),
    ("https://h/x", "https://h/x: gtr_jax reads and writes local paths and gs://…; copy it to this machine"),
    ("s3://b/x", "copy it to this machine"), ("GS://b/x", "write gs:// in small letters, with two slashes"),
    ("gs://b/x", "gs://b/x: cannot be reached (no such host); check the name, the network"),
])
def test_other_places_than_local_folders(run, tmp_path, path, text, monkeypatch):
  def unreachable(path):
    raise type("Unavailable", (Exception,), {"__module__": "tensorflow.errors"})("no such\n host")

  monkeypatch.setattr(type(epath.Path("gs://b/x")), "exists", lambda self: unreachable(self) if "gs://" in str(self)
                      else os.path.exists(self))
  for call in (load_model, check_model, lambda path: for_several(Tokenization(query_length=3), [path]),
               lambda path: convert(path, tmp_path / "out", "stablehlo"), lambda path: convert(run, path, "t5x")):
    assert text in message(call, path)
  assert list(tmp_path.iterdir()) == []


def test_lengths_of_numpy(run):
  missing = Tokenization(query_length=np.int64(5), document_length=np.int32(6))
  assert (type(missing.query_length), type(missing.document_length)) == (int, int)
  for length in (2**63, 1_000_001, np.bool_(True)):
    assert "query_length is" in message(Tokenization, query_length=length)


def test_wrong_vocabulary_and_damaged_files(run, tmp_path):
  folder = tmp_path / "copy"
  folder.mkdir()
  for name in ("model.json", "spiece.model"):
    (folder / name).write_bytes((run / name).read_bytes())
  assert "holds no whole checkpoint" in message(load_model, folder)
  place = folder / "model.json"
  fields = json.loads(place.read_text())
  change(place, vocabulary={**fields["vocabulary"], "extra_ids": 100})
  assert "ids do not fit the model's embedding" in message(load_model, folder)
  change(place, vocabulary={**fields["vocabulary"], "sha256": "0" * 64})
  assert "not the vocabulary that" in message(load_model, folder)
  (folder / "spiece.model").unlink()
  assert "no such vocabulary" in message(load_model, folder)
  change(place, lengths={"query": 16})
  assert "model.json: has no lengths.document; copy" in message(load_model, folder)
  change(place, lengths=fields["lengths"], model={"no_such_field": 1})
  assert f"{place}: the model description does not fit" in message(load_model, folder)
  place.write_text("{")
  assert "model.json: cannot be read (not JSON (Expecting property name" in message(load_model, folder)


def test_a_model_dir_is_not_overwritten_by_another_model(run, tmp_path):
  tokenizer = write_vocabulary(tmp_path / "v.model")
  before = (run / "model.json").read_bytes()
  text = message(write_model_json, run, tiny_encoder(tokenizer, projection_dim=4), tokenizer, query_length=16,
                 document_length=32)
  assert "already holds another model" in text
  assert (run / "model.json").read_bytes() == before
  write_model_json(run, tiny_encoder(tokenizer), tokenizer, query_length=16, document_length=32)  # Of this very run.
  assert (run / "model.json").read_bytes() == before
  assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_what_several_models_lack_is_given_to_those_that_lack_it(run, tmp_path):
  convert(run, tmp_path / "checkpoint_0", "t5x")
  convert(run, tmp_path / "folder", "sentence-transformers")
  whole = Tokenization(run / "spiece.model", 0, 5, 6)
  missing = for_several(whole, [run, tmp_path / "checkpoint_0", tmp_path / "folder"])
  for path, lengths in ((run, (16, 32)), (tmp_path / "folder", (32, 32)), (tmp_path / "checkpoint_0", (5, 6))):
    model = load_model(path, one_device(), missing)
    assert tuple(model.lengths.values()) == lengths
    assert model.tokenizer.path == (path if path.name != "checkpoint_0" else run) / "spiece.model"
  for given in (Tokenization(query_length=5), Tokenization(vocabulary=run / "spiece.model"), Tokenization(extra_ids=0)):
    text = message(for_several, given, [run, tmp_path / "folder"])
    assert f"--{given.given()[0]}: no model here lacks it, each says its own; leave it out, or" in text
  assert for_several(Tokenization(), ["no/such"]).given() == []  # Nothing to look for, so nothing is opened.
  assert "leave vocabulary, extra_ids, query_length, document_length out" in message(check_model, run, whole)
