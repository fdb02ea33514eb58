"""Models merged: against averages in NumPy, into a folder that every command reads, and what cannot be merged."""

import math

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from test_convert import GATED, change, written
from tiny_model_dir import sentence, tiny_encoder, tiny_params, write_model_dir, write_vocabulary

import gtr_jax
from gtr_jax.checkpoints.checkpointer import Checkpointer
from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.formats import t5x
from gtr_jax.formats.any_form import open_model
from gtr_jax.formats.merge import merge
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.training.initial_params import with_initial_params


def arrays_of(path):
  return {name: array.read() for name, array in open_model(path)[0].arrays.items()}


def average(paths, weights):
  """In float64, by NumPy."""
  of = [arrays_of(path) for path in paths]
  return {name: np.average(np.stack([arrays[name].astype(np.float64) for arrays in of]), axis=0, weights=weights)
          for name in of[0]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Two runs, one with two steps, and another vocabulary."""
  place = epath.Path(tmp_path_factory.mktemp("merge"))
  write_model_dir(place / "a", (0, 1))
  write_model_dir(place / "b", (2,))
  return place


@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.3], [3, 0, 1.5]])
def test_against_numpy(place, tmp_path, weights):
  paths = [place / "a", place / "a/checkpoints/1", place / "b"]
  merge(paths, tmp_path / "soup", weights)
  found, expected = arrays_of(tmp_path / "soup"), average(paths, weights)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_max_ulp(found[name], array.astype(np.float32), 1)


@pytest.mark.parametrize("models", [1, 2, 3, 7])
def test_a_model_merged_with_itself_is_itself(place, tmp_path, models):
  merge([place / "b"] * models, tmp_path / "soup", [0.1 + i for i in range(models)])
  jax.tree.map(np.testing.assert_array_equal, arrays_of(tmp_path / "soup"), arrays_of(place / "b"))
  texts = [sentence(i, 5 + i) for i in range(6)]
  np.testing.assert_array_equal(gtr_jax.load(tmp_path / "soup").encode_document(texts),
                                gtr_jax.load(place / "b").encode_document(texts))


def test_all_forms_together(place, tmp_path):
  """Also bfloat16, and what does not say all."""
  tokenizer = open_model(place / "a")[1]
  encoder = tiny_encoder(tokenizer)
  folder = written(tmp_path / "folder", encoder, tokenizer, 5, dtype="bfloat16")
  change(folder / "config_sentence_transformers.json", prompts={})
  arrays = {name: Array(x.shape, x.dtype, lambda x=x: x) for name, x in arrays_of(place / "b").items()}
  epath.Path(tmp_path / "checkpoint_3").mkdir()
  t5x.write(epath.Path(tmp_path / "checkpoint_3"), arrays, 3)
  paths = [place / "a", folder, tmp_path / "checkpoint_3"]
  words = ["merge", *map(str, paths), "--output", str(tmp_path / "soup"), "--vocabulary", str(tokenizer.path)]
  assert main([*words, "--extra_ids", "0", "--query_length", "20", "--document_length", "36"]) == 0
  found, b = arrays_of(tmp_path / "soup"), arrays_of(place / "b")
  for name, array in arrays_of(place / "a").items():
    of_folder = arrays_of(folder)[name]
    assert of_folder.dtype == (np.float32 if name.startswith("projection") else ml_dtypes.bfloat16)
    expected = np.mean([array, of_folder.astype(np.float32), b[name]], axis=0, dtype=np.float64)
    np.testing.assert_array_max_ulp(found[name], expected.astype(np.float32), 1)
  assert open_model(tmp_path / "soup")[0].lengths == {"query": 36, "document": 36}


def test_the_average_of_a_run_that_keeps_one(place, tmp_path):
  """The parameters that `load` takes of it are those that are merged."""
  run = write_model_dir(tmp_path / "run")
  encoder = open_model(run)[0].encoder
  checkpointer = Checkpointer(run / "checkpoints")
  checkpointer.save(2, {"params": tiny_params(encoder, 7), "opt_state": {"average": tiny_params(encoder, 8)}}, {})
  checkpointer.close()
  merge([run], tmp_path / "soup")
  jax.tree.map(np.testing.assert_array_equal, arrays_of(tmp_path / "soup"), arrays_of(run))
  np.testing.assert_array_equal(arrays_of(run)["projection_layer/kernel"],
                                tiny_params(encoder, 8)["projection_layer"]["kernel"])


def test_on_the_command_line(place, tmp_path, capsys):
  output = str(tmp_path / "soup")
  words = ["merge", str(place / "a/checkpoints/1"), str(place / "b"), "--output", output]
  assert main([*words, "--weights", "3", "1"]) == 0
  said = capsys.readouterr()
  assert said.out == f"{output}\n" and said.err == "weights that sum to 4 are divided by it: 0.75, 0.25\n"
  card = (tmp_path / "soup/README.md").read_text()
  assert "- made from: the average of a at step 1 (0.75), b at step 1 (0.25)\n" in card and str(place) not in card
  params = tiny_params(open_model(place / "a")[0].encoder, 9)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  started = with_initial_params(params, jax.tree.map(lambda _: here, params), output, open_model(place / "a")[1])
  np.testing.assert_array_equal(started["token_embedder"]["embedding"], arrays_of(output)["token_embedder/embedding"])
  assert main(words) == 2
  assert "soup: exists; give a new folder, or remove this one" in capsys.readouterr().err


@pytest.mark.parametrize("options, text", [
    ({"projection_dim": 6}, "projection_dim 8 and 6"), ({"projection_dim": None}, "projection_dim 8 and None"),
    ({"pooling": "first", "normalize": False}, "pooling 'mean' and 'first', normalize True and False"),
    ({"num_heads": 4, "head_dim": 4}, "num_heads 2 and 4, head_dim 8 and 4"),
    ({"shared": False}, "shared True and False")])
def test_models_of_another_shape(place, tmp_path, options, text):
  other = write_model_dir(tmp_path / "other", **options)
  with pytest.raises(InputError) as e:
    merge([place / "a", place / "b", other], tmp_path / "soup")
  assert str(e.value) == (f"{place / 'a'} and {other} cannot be merged: they differ in {text}; give steps of one run, "
                          "or runs from one start")
  assert not (tmp_path / "soup").exists()


def test_models_that_read_texts_in_another_way(tmp_path):
  vocabulary = write_vocabulary(epath.Path(tmp_path) / "spiece.model")
  encoder = DualEncoder(GATED, projection_dim=10)
  folder, other = (written(tmp_path / name, encoder, vocabulary, seed) for seed, name in enumerate("ab"))

  def message(*options):
    with pytest.raises(InputError) as e:
      merge([folder, other], tmp_path / "soup", tokenization=Tokenization(*options))
    return str(e.value).partition("they differ in ")[2]

  change(other / "config_sentence_transformers.json", prompts={"query": "q:"})
  assert message().startswith("prompt of a query 'q: ' and 'q:'; give")
  change(other / "config_sentence_transformers.json", prompts={"query": "q: "})
  change(other / "sentence_bert_config.json", max_seq_length=41)
  assert message() == "longest text 40 and 41; say with --query_length and --document_length what it is to be"
  merge([folder, other], tmp_path / "soup", tokenization=Tokenization(document_length=50))
  assert open_model(tmp_path / "soup")[0].lengths == {"query": 50, "document": 50}
  change(other / "sentence_bert_config.json", max_seq_length=40)
  smaller = write_vocabulary(epath.Path(tmp_path) / "other.model", vocab_size=45)
  (other / "spiece.model").write_bytes(smaller.model)
  (other / "tokenizer.json").unlink()
  found = "'{}' and '{}'".format(*(tokenizer.sha256[:12] for tokenizer in (vocabulary, smaller)))
  (tmp_path / "soup").rename(tmp_path / "merged")
  assert message().startswith(f"vocabulary {found}")


@pytest.mark.parametrize("weights, text", [
    ([1], "1 for 2 models; give one for each"), ([1, 2, 3], "3 for 2 models"), ([0, 0], "they sum to 0; give some"),
    ([1, -1], "-1 is no weight; give numbers of 0 or more"), ([1, math.nan], "nan is no weight"),
    ([math.inf, 1], "inf is no weight"), ([1.7e308, 1.7e308], "they sum to inf")])
def test_wrong_weights(place, tmp_path, weights, text, capsys):
  paths = [str(place / "a"), str(place / "b")]
  with pytest.raises(InputError) as e:
    merge(paths, tmp_path / "soup", weights)
  assert str(e.value).startswith("--weights: ") and text in str(e.value)
  if all(map(math.isfinite, weights)):
    assert main(["merge", *paths, "--output", str(tmp_path / "soup"), "--weights", *map(str, weights)]) == 2
    assert text in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_wrong_models(place, tmp_path, capsys):
  for words, text in ((["no/such"], "no/such: no such folder"),
                      (["--vocabulary", "x"], "--vocabulary: no model here lacks it")):
    assert main(["merge", str(place / "a"), *words, "--output", str(tmp_path / "soup")]) == 2
    assert text in capsys.readouterr().err
  towers = write_model_dir(tmp_path / "towers", shared=False)
  assert main(["merge", str(towers), str(towers), "--output", str(tmp_path / "soup")]) == 2
  assert "holds one tower" in capsys.readouterr().err
  with pytest.raises(InputError, match="nothing to merge"):
    merge([], tmp_path / "soup")
  assert not (tmp_path / "soup").exists()
