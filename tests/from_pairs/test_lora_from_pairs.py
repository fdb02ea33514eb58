"""`gtr-jax train --pairs` with LoRA: gin on top, all of it through the command line."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from tiny_model_dir import sentence, write_model_dir

import gtr_jax
from gtr_jax.checkpoints.checkpointer import restore_params
from gtr_jax.cli.main import main
from gtr_jax.formats.any_form import open_model
from gtr_jax.formats.model_dir import read_model_json
from gtr_jax.io import data_root
from gtr_jax.models.lora import Lora, is_factor
from gtr_jax.models.parameters import abstract_parameters
from gtr_jax.parallel import partitioning

LORA = ["--gin.LORA=@lora.Lora()", "--gin.lora.Lora.rank=2", "--gin.OPTIMIZER=@optimizers.adamw()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lora")
  write_model_dir(folder / "model")
  (folder / "my.jsonl").write_text("".join(
      json.dumps({"query": f"{i} {sentence(i, 4)}", "passage": f"{i} {sentence(i, 9)}"}) + "\n" for i in range(120)))
  yield folder
  data_root.set_data_dir(None)


def train(place, output, *flags, init="model"):
  return main(["train", "--pairs", str(place / "my.jsonl"), "--init", str(place / init), "--output",
               str(place / output), "--data_dir", str(place / "data"), "--batch_size", "16", "--steps", "4",
               "--gin.MICROBATCH_SIZE=8", "--gin.EVAL_PERIOD=2", *flags])


def arrays_of(path):
  return {name: array.read() for name, array in open_model(path)[0].arrays.items()}


def test_a_run(place, capfd):
  assert train(place, "mine", *LORA) == 0
  out, err = capfd.readouterr()
  assert "\nLoRA      rank 2, alpha 16: 128 of the parameters are trained, the others stay as they are\n" in out
  assert "Adafactor" not in err and "RANDOM WEIGHTS" not in err
  encoder = read_model_json(place / "mine/model.json")[0]
  assert encoder.lora == Lora(rank=2)
  params = restore_params(place / "mine", abstract_parameters(encoder, partitioning.make_mesh()))
  before, merged = arrays_of(place / "model"), arrays_of(place / "mine")
  for name, leaf in traverse_util.flatten_dict(jax.device_get(params), sep="/").items():
    if is_factor(name):
      assert leaf.any(), name
    else:
      np.testing.assert_array_equal(leaf, before[name])
      assert (merged[name] != before[name]).any() == name.endswith(("query/kernel", "value/kernel"))
  assert "attention/query/lora_a" in (place / "mine/parameters.txt").read_text()
  assert gtr_jax.load(place / "mine").encode(["lion"]).shape == (1, 8)
  # Another run from it, without LoRA.
  assert train(place, "more", "--steps", "1", "--gin.LEARNING_RATE=0", init="mine") == 0
  for name, array in arrays_of(place / "more").items():
    np.testing.assert_allclose(array, merged[name], rtol=0, atol=1e-6)
  # And this one with other LoRA, or none.
  capfd.readouterr()
  assert train(place, "mine") == 2
  assert "mine: was begun with LoRA of rank 2, alpha 16, of .*/attention/(query|value)/kernel, and not with no " in (
      capfd.readouterr().err)


def test_what_is_hardly_meant(place, capfd):
  assert train(place, "adafactor", "--steps", "1", *LORA[:2]) == 0
  assert "half of LoRA's begin at 0 and hardly move; set OPTIMIZER = @optimizers.adamw()\n" in capfd.readouterr().err
  assert train(place, "wrong", *LORA, "--gin.lora.Lora.kernels=['encoder/layers_9/.*']") == 2
  assert "'encoder/layers_9/.*' matches no whole path of a linear layer of the encoder; " in capfd.readouterr().err
