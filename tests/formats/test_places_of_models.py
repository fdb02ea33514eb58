"""Where models lie: the cache of the hub, links, a file for its folder, home folders, names and pages of the hub."""

import json
import shutil
import sys
import types

import pytest
from etils import epath
from test_convert import GATED
from test_models_of_others import POINTER, message, put

import gtr_jax
from gtr_jax.cli.main import main
from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.errors import InputError
from gtr_jax.formats import any_form
from gtr_jax.formats.convert import convert
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.load import check_model, load_model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.tokenizer import Tokenizer


def cache(place, exported, snapshots, main=None, blobs=True):
  """The folder of a model in the hub's cache: files in blobs/, links in snapshots/."""
  root = place / "models--sentence-transformers--gtr-t5-base"
  for folder in ("snapshots", "refs", *["blobs"] * blobs):
    (root / folder).mkdir(parents=True)
  for name in snapshots:
    shutil.copytree(exported, root / "snapshots" / name)
    for path in (root / "snapshots" / name).glob("*.*"):
      path.rename(root / "blobs" / f"{name}-{path.name}")
      path.symlink_to(f"../../blobs/{name}-{path.name}")
  if main is not None:
    (root / "refs" / "main").write_text(main + "\n")
  return root


@pytest.mark.parametrize("snapshots, main", [(["a1"], "a1"), (["a1"], None), (["a1", "b2"], "b2")])
@pytest.mark.parametrize("below", ["", "snapshots", "refs", "snapshots/{}"])
def test_the_cache_of_the_hub(tmp_path, exported, snapshots, main, below):
  root = cache(tmp_path, exported, snapshots, main)
  name = main or snapshots[0]
  found = any_form.open_foreign(root / below.format(name))
  assert found.path == root / "snapshots" / name
  assert found.encoder == DualEncoder(GATED, projection_dim=10)


@pytest.mark.parametrize("snapshots, main, text", [
    (["a1", "b2"], None, "has no refs/main: give one of the snapshots: {root}/snapshots/a1, {root}/snapshots/b2"),
    (["a1", "b2"], "c3", "refs/main names 'c3', which is not in snapshots/: give one of the snapshots: {root}/snap"),
    (["a1"], "c3", "refs/main names 'c3', which is not in snapshots/: give one of the snapshots: {root}/snapshots/a1"),
    ([], "c3", "of which no snapshot is there; download the model, and give its name")])
def test_a_cache_that_does_not_say_which(tmp_path, exported, snapshots, main, text):
  root = cache(tmp_path, exported, snapshots, main)
  assert text.format(root=root) in message(root)


@pytest.mark.parametrize("hub", ["hub", ""])
def test_the_whole_cache_of_the_hub(tmp_path, exported, hub):
  place = tmp_path / "huggingface" / hub
  root = cache(place, exported, ["a1"], "a1")
  (place / "datasets--x--y" / "snapshots").mkdir(parents=True)
  assert message(tmp_path / "huggingface").endswith(f"the cache of the Hugging Face hub; give the model in it, {root}")
  (place / "models--google--mt5-base").mkdir()
  assert f"with several models; give one of them: {place}/models--google--mt5-base, {root}" in message(place)
  assert "data set or space" in message(place / "datasets--x--y")
  assert message(next((root / "blobs").iterdir())).endswith(f"give the model's folder there, {root}")


def test_links_that_lead_nowhere(tmp_path, exported):
  root = cache(tmp_path, exported, ["a1"], "a1")
  shutil.rmtree(root / "blobs")
  assert "a link to nothing; copy with links followed (cp -rL)" in message(root)
  (tmp_path / "link").symlink_to(tmp_path / "nothing")
  assert message(tmp_path / "link") == (f"{tmp_path / 'link'}: a link to {tmp_path / 'nothing'}, where nothing is; "
                                        "mend it, or give the model's folder")


def test_the_card_names_the_model_and_not_the_snapshot(tmp_path, exported):
  convert(cache(tmp_path, exported, ["a1"], "a1"), tmp_path / "new", "sentence-transformers")
  assert "- made from: sentence-transformers/gtr-t5-base\n" in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "modules.json", "spiece.model", "tokenizer.json",
                                  "README.md", "1_Pooling/config.json", "2_Dense/model.safetensors",
                                  "model-00001-of-00002.safetensors", "model.safetensors.index.json",
                                  "pytorch_model.bin"])
def test_a_file_for_its_folder(folder, file):
  put(folder, {} if (folder / file).exists() else {file: b"x"})
  for call in (load_model, check_model, gtr_jax.load, lambda path: convert(path, folder.parent / "out", "stablehlo")):
    assert message(folder / file, call) == (f"{folder / file}: one file of a model; give the folder it lies in, "
                                            f"{folder}")


@pytest.mark.parametrize("file", ["model.json", "spiece.model", "checkpoints/1/state/_METADATA"])
def test_a_file_of_a_run(run, file):
  assert message(run / file) == f"{run / file}: one file of a model; give the folder it lies in, {run}"


def test_a_part_of_a_model(folder, run):
  assert message(run / "checkpoints" / "1" / "state").endswith(f"give the model's folder, {run}")
  for name in ("1_Pooling", "2_Dense", "3_Normalize"):
    assert message(folder / name).endswith(f"give the model's folder, {folder}")


@pytest.mark.parametrize("file, data, text", [
    ("t5.gguf", b"GGUF", "a GGUF file (llama.cpp); give the model that it was made of"),
    ("x.safetensors", b"1234", "weights without config.json and a tokenizer; give a folder with all"),
    ("x.tar.gz", b"\x1f\x8b", "an archive; unpack it, and give the model's folder"),
    ("x.zip", b"PK\x03\x04", "an archive; unpack it"), ("x.bin", POINTER, "a pointer of git-lfs"),
    ("notes", b"abc", "a file, and none of a model's; give a training run's MODEL_DIR")])
def test_files_alone(tmp_path, file, data, text):
  put(tmp_path, {file: data})
  assert message(tmp_path / file).startswith(f"{tmp_path / file}: {text}")


@pytest.mark.parametrize("files, text", [
    ({"programs.json": {}}, "holds programs of gtr-jax convert --to stablehlo"),
    ({"saved_model.pb": b"x"}, "holds a SavedModel of TensorFlow"),
    ({"results.json": {}}, "holds results of gtr-jax evaluate"),
    ({"model.safetensors": b"x"}, "has weights and no config.json, which says what they compute"),
    ({"checkpoint": b'model_checkpoint_path: "model.ckpt-1"\n', "model.ckpt-1.index": b"x"},
     "a checkpoint of TensorFlow (as of Mesh TensorFlow's T5)"),
    ({"_METADATA": {}}, "a checkpoint of Orbax alone"),
    ({"a/modules.json": []}, "no model itself, and {}/a in it is one; give that"),
    ({"a/model.json": {}, "b/config.json": {}}, "no model itself; give one of the 2 in it: {0}/a, {0}/b"),
    ({}, "no model that gtr_jax reads: it has neither model.json"),
])
def test_other_folders(tmp_path, files, text):
  put(tmp_path, files)
  assert message(tmp_path).startswith(f"{tmp_path}: {text.format(tmp_path)}")


def test_a_model_json_of_another_program(run, tmp_path):
  put(tmp_path, {"model.json": {"format": "layers-model", "weightsManifest": []}})
  assert "model.json: is of no training run of gtr_jax" in message(tmp_path, whole=False)
  fields = json.loads((run / "model.json").read_text())
  for change_, text in (({"vocabulary": {**fields["vocabulary"], "file": "../x"}}, "vocabulary.file is \"../x\"; it m"),
                        ({"vocabulary": {**fields["vocabulary"], "extra_ids": "0"}}, "vocabulary.extra_ids is \"0\""),
                        ({"lengths": {"query": 16, "document": float("nan")}}, "lengths.document is NaN; it must be a"),
                        ({"prompts": {"query": "\ud800", "document": ""}}, "prompts.query is \"\\ud800\"; it must"),
                        ({"model": {**fields["model"], "projection_dim": "8"}}, "model.projection_dim is \"8\"; it mu"),
                        ({"model": {**fields["model"], "config": {**fields["model"]["config"], "emb_dim": None}}},
                         "T5Config.emb_dim is None: give a positive whole number"),
                        ({"model": {**fields["model"], "config": [1]}}, "model.config is [1]; it must be an object")):
    put(tmp_path, {"model.json": {**fields, **change_}})
    assert message(tmp_path, whole=False).startswith(f"{tmp_path}/model.json: {text}")


@pytest.mark.parametrize("name, full", [
    ("gtr-t5-base", "sentence-transformers/gtr-t5-base"), ("sentence-t5-xxl", "sentence-transformers/sentence-t5-xxl"),
    ("t5-base", "google-t5/t5-base"), ("t5-v1_1-small", "google/t5-v1_1-small"), ("mt5-base", "google/mt5-base"),
    ("t5_small", None), ("my-t5-base", None), ("./t5-base", None)])
def test_a_name_without_its_owner(name, full, tmp_path, monkeypatch):
  monkeypatch.setattr(any_form, "_of_hub", lambda name: pytest.fail(f"{name} was asked for"))
  monkeypatch.chdir(tmp_path)
  said = message(name)
  assert f"did you mean {full}, on the Hugging Face hub" in said if full else "did you mean" not in said
  assert said.startswith(f"{name}: no such model")


@pytest.mark.parametrize("path", ["~/no/such", "~/nosuch", "./a/b", "../a/b", "a/b/", "a/b/c", "/a/b", "~no/x", ".",
                                  "a/checkpoint_1000"])
def test_a_path_is_never_taken_for_a_name(path, tmp_path, monkeypatch):
  monkeypatch.setattr(any_form, "_of_hub", lambda name: pytest.fail(f"{name} was asked for"))
  monkeypatch.chdir(tmp_path)
  said = message(path)
  assert "no such model" in said or path == "." or path == "~no/x" and "there is no user 'no'" in said


@pytest.mark.parametrize("page", ["https://huggingface.co/sentence-transformers/gtr-t5-base", "hf.co/{}/tree/main",
                                  "https://huggingface.co/{}/blob/main/model.safetensors", "hf://{}"])
def test_a_page_of_the_hub(page):
  name = "sentence-transformers/gtr-t5-base"
  assert message(page.format(name)).endswith(f"a page of the Hugging Face hub; give the model's name, {name}")


def test_without_the_network_the_cache_is_read(exported, monkeypatch, tmp_path):
  class HfApi:
    """That reaches nothing."""

    def model_info(self, name, timeout):
      assert timeout <= 10
      raise OSError("no network\nat all")

  def snapshot_download(name, local_files_only=False, **_):
    assert local_files_only
    if name != "owner/cached":
      raise FileNotFoundError(name)
    return str(exported)

  monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(
      HfApi=HfApi, snapshot_download=snapshot_download))
  assert any_form.open_foreign("owner/cached").path == exported
  assert ("owner/other: no such folder here, and it cannot be had from the Hugging Face hub (no network); correct the "
          "path, or check the name") in message("owner/other")
  # Beside a folder of the owner's name it is a path, and nobody is asked but the cache.
  monkeypatch.chdir(tmp_path)
  (tmp_path / "owner").mkdir()
  monkeypatch.delattr(HfApi, "model_info")
  assert any_form.open_foreign("owner/cached").path == exported
  no_name = ("owner/other: no such folder (owner is one here, so this is not taken for a name on the Hugging Face "
             "hub); correct the path")
  assert message("owner/other") == no_name
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # Not installed.
  assert message("owner/other") == no_name
  assert message("other/owner").endswith("to take it for a model on the Hugging Face hub: pip install huggingface_hub")


@pytest.mark.parametrize("options", [["--model", "runs/nope"], ["--model", "A=runs/nope"]])
def test_a_run_that_is_not_there(options, tmp_path, monkeypatch, capsys):
  hub = types.SimpleNamespace(snapshot_download=lambda name, **_: (_ for _ in ()).throw(FileNotFoundError(name)))
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs/other").mkdir(parents=True)
  (tmp_path / "c/qrels").mkdir(parents=True)
  (tmp_path / "c/corpus.jsonl").write_text('{"_id": "a", "text": "x"}\n')
  (tmp_path / "c/queries.jsonl").write_text('{"_id": "q", "text": "x"}\n')
  (tmp_path / "c/qrels/test.tsv").write_text("q\ta\t1\n")
  assert main(["evaluate", *options, "--collection", "c", "--output", "o"]) == 2
  assert capsys.readouterr().err.splitlines()[-1].startswith("gtr-jax evaluate: runs/nope: no such folder (runs is one")
  for words in (["convert", "runs/nope", "out"], ["encode", "--model=runs/nope", "--collection=c", "--output=s"],
                ["mine", "--model=runs/nope", "--collection=c", "--output=m.jsonl"]):
    assert main(words) == 2
    assert "runs/nope: no such folder (runs is one here" in capsys.readouterr().err
  with pytest.raises(InputError, match=r"runs/nope: no such folder \(runs is one here"):
    gtr_jax.load("runs/nope")


def test_home_folders(folder, run, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  shutil.copytree(run, tmp_path / "run")
  for path in ("~/model", "~/run", "~/run/checkpoints/1"):
    assert gtr_jax.load(path).dim == load_model(path).encoder.dim
    check_model(path)
  tokenization = Tokenization(vocabulary="~/run/spiece.model", extra_ids=0)
  assert load_model("~/model", tokenization=tokenization).path == "~/model"
  assert Tokenizer("~/run/spiece.model").path == epath.Path(tmp_path / "run" / "spiece.model")
  train_vocabulary([f"word{i % 50} other{i % 7}" for i in range(500)], "~/new/spiece.model", 100)
  assert (tmp_path / "new" / "spiece.model").exists()
  put(tmp_path, {"results/results.json": {"collections": [], "systems": {}}})
  convert("~/run", "~/out/exported", "sentence-transformers", results="~/results")
  assert (tmp_path / "out" / "exported" / "modules.json").exists()
