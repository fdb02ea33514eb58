"""T5X checkpoints in each format, as T5X writes them; tests/t5x has T5X itself write and read them."""

import json

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from etils import epath
from flax import serialization, traverse_util
from test_convert import GATED, TEXTS, arrays_of
from tiny_model_dir import corpus, tiny_encoder, write_collection, write_model_dir, write_vocabulary

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.formats import any_form, t5x
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config

# T5X does not say the largest distance: it is always 128.
ENCODER = DualEncoder(T5Config(vocab_size=152, emb_dim=16, num_heads=4, head_dim=6, mlp_dim=20, num_layers=2,
                               mlp_activations=("gelu", "linear"), relpos_buckets=8), projection_dim=10)


def values(encoder=ENCODER):
  return {name: array.read() for name, array in arrays_of(encoder).items()}


def nested(flat):
  return traverse_util.unflatten_dict(flat, sep="/")


def same(path, expected, encoder=ENCODER):
  found = any_form.open_foreign(path)
  assert found.encoder == encoder
  assert found.arrays.keys() == expected.keys()
  for name, value in expected.items():
    array = found.arrays[name]
    assert (array.shape, array.dtype) == (value.shape, value.dtype)
    np.testing.assert_array_equal(array.read(), value)


def write_zarr(place, value, dtype, **metadata):
  spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(place)}, "dtype": dtype,
          "metadata": {"shape": value.shape, "chunks": [max(1, n // 2) for n in value.shape], **metadata}}
  tensorstore.open(spec, create=True).result().write(value).result()


def write_legacy(folder, flat, version=3, driver="file", inline=lambda name: name.endswith("scale")):
  """Scales in the msgpack file, the rest beside it; bfloat16 as uint16 in version 2."""
  folder.mkdir(parents=True)
  target = {}
  for name, value in flat.items():
    if inline(name):
      target[name] = value
      continue
    dotted = f"target.{name.replace('/', '.')}"
    as_integers = version == 2 and value.dtype == ml_dtypes.bfloat16
    stored = value.view(np.uint16) if as_integers else value
    write_zarr(folder / dotted, stored, stored.dtype.name, compressor={"id": "gzip", "level": 1})
    target[name] = {"driver": "zarr", "metadata": {"shape": list(value.shape)}, **(
        {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": dotted} if driver == "gcs" else
        {"kvstore": {"driver": driver, "path": dotted}})}
  contents = {"version": version, "optimizer": {"target": nested(target), "state": {"step": np.int32(3)}}}
  (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(contents))
  return folder


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / "run" / "checkpoint_3"


@pytest.mark.parametrize("driver", ["file", "gfile", "gcs"])
def test_version_3(folder, driver):
  write_legacy(folder, values(), driver=driver)
  write_legacy(folder.parent / "checkpoint_2", values(DualEncoder(GATED, projection_dim=None)))
  same(folder, values())
  same(folder.parent, values())  # the last one


@pytest.mark.parametrize("version", [2, 3])
def test_bfloat16(folder, version):
  flat = {name: value if "scale" in name else value.astype(ml_dtypes.bfloat16) for name, value in values().items()}
  same(write_legacy(folder, flat, version), flat)


def test_all_in_the_msgpack_file(folder):
  write_legacy(folder, values(), inline=lambda name: True)
  same(folder, values())
  same(folder / "checkpoint", values())  # the bare file
  (folder / "checkpoint").write_bytes(serialization.msgpack_serialize({"params": nested(values())}))
  same(folder, values())


def test_encoder_of_an_encoder_decoder(folder):
  alone = {name: value for name, value in values().items() if not name.startswith("projection")}
  write_legacy(folder, {**alone, "decoder/logits_dense/kernel": np.ones((16, 152), np.float32)})
  same(folder, alone, DualEncoder(ENCODER.config, projection_dim=None))


def stacked(flat, bias=lambda i, x: x):
  """The layers along axis 1, as T5X scans them; each has a position bias."""
  layers = [{name.split("/", 2)[2]: value for name, value in flat.items() if name.startswith(f"encoder/layers_{i}/")}
            for i in range(2)]
  for i, layer in enumerate(layers):
    layer["relpos_bias/rel_embedding"] = bias(i, flat["encoder/relpos_bias/rel_embedding"])
  out = {name: value for name, value in flat.items() if "/layers_" not in name and "relpos" not in name}
  return out | {f"encoder/encoder/{name}": np.stack([layer[name] for layer in layers], 1) for name in layers[0]}


def test_scanned_layers(folder):
  same(write_legacy(folder, stacked(values())), values())
  write_legacy(folder.parent / "checkpoint_4", stacked(values(), bias=lambda i, x: x + i))
  with pytest.raises(InputError, match="each layer has a position bias of its own"):
    any_form.open_foreign(folder.parent)


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_orbax(folder, use_ocdbt):
  tree = {"target": nested(values()), "state": {"step": np.int32(3)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)) as writer:
    writer.save(folder / "state", args=ocp.args.PyTreeSave(tree))
  same(folder, values())
  same(folder.parent, values())
  (folder / "state" / "_METADATA").unlink()
  with pytest.raises(InputError, match="half written|no such file"):
    any_form.open_foreign(folder)


def test_placeholders(folder):
  """Orbax before it had metadata: names in a msgpack file, each array beside it."""
  place = folder / "state"
  place.mkdir(parents=True)
  target = {}
  for name, value in values().items():
    dotted = f"target.{name.replace('/', '.')}"
    write_zarr(place / dotted, value, "float32")
    target[name] = f"PLACEHOLDER://{dotted}"
  (place / "checkpoint").write_bytes(serialization.msgpack_serialize({"target": nested(target)}))
  same(folder, values())


def test_import_of_an_export_is_the_same(folder):
  folder.mkdir(parents=True)
  t5x.write(folder, arrays_of(ENCODER), 3)
  same(folder, values())
  bfloat16 = {name: array.astype("bfloat16") for name, array in arrays_of(ENCODER).items()}
  other = folder.parent / "checkpoint_9"
  other.mkdir()
  t5x.write(other, bfloat16, 9)
  same(other, {name: array.read() for name, array in bfloat16.items()})
  (wo,) = other.glob("*layers_0.mlp.wo.kernel")
  assert json.loads((wo / ".zarray").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("spoil, text", [
    (lambda folder: (folder / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray").unlink(),
     "target.encoder.layers_1.mlp.wo.kernel: no such array, or damaged, and .*checkpoint names it"),
    (lambda folder: (folder / "checkpoint").write_bytes(b"\x81"), "checkpoint: cannot be read"),
    (lambda folder: (folder / "checkpoint").unlink(), r"checkpoint_3: half written: has neither checkpoint .* nor"),
    (lambda folder: ((folder / "checkpoint").unlink(), (folder / "state").mkdir()), "half written: has no state/_META"),
])
def test_damaged(folder, spoil, text):
  write_legacy(folder, values())
  spoil(folder)
  with pytest.raises(InputError, match=text) as e:
    any_form.open_foreign(folder)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("spoil, text", [
    ({"encoder/layers_0/mlp/wi_1/kernel": None}, "has no encoder/layers_0/mlp/wi_1/kernel, which an encoder of 2"),
    ({"encoder/layers_1/mlp/wo/kernel": np.ones((3, 16), np.float32)}, r"is \[3, 16\], and its other .* \[20, 16\]"),
    ({"encoder/extra": np.ones((3,), np.float32)}, "encoder/extra belongs to no part of a T5 dual encoder"),
    ({"token_embedder/embedding": None}, "is of no T5 encoder as T5X writes it"),
])
def test_wrong_arrays(folder, spoil, text):
  flat = {name: value for name, value in {**values(), **spoil}.items() if value is not None}
  write_legacy(folder, flat)
  with pytest.raises(InputError, match=text):
    any_form.open_foreign(folder)


@pytest.mark.parametrize("contents, text", [
    (5, "holds 5 where T5X writes parameters by name"),
    ({"version": 1}, "is of version 1; gtr_jax reads versions 2 and 3"),
    ({"version": 3, "optimizer": 4}, "holds 4 where T5X writes"),
    ({"version": 3, "optimizer": {"target": "a"}}, "holds 'a' where T5X writes"),
    ({"target": {"a": {"driver": "zarr"}}}, "a does not say in which folder it lies"),
    ({"target": {"a": {"driver": "zarr", "kvstore": {"driver": "file"}}}}, "a does not say in which folder it lies"),
    ({"target": {"a": {"driver": "zarr", "kvstore": {"path": 3}}}}, "a does not say in which folder it lies"),
    ({"target": {"a": 3}}, "a is int, and no array"),
])
def test_odd_contents(folder, contents, text):
  folder.mkdir(parents=True)
  (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(contents))
  with pytest.raises(InputError, match=text) as e:
    any_form.open_foreign(folder)
  assert str(e.value).startswith(str(folder / "checkpoint"))


@pytest.mark.parametrize("inline", [True, False])
def test_integers_and_nan(folder, inline):
  name = "encoder/encoder_norm/scale"
  write_legacy(folder, {**values(), name: np.ones((16,), np.int32)}, inline=lambda _: inline)
  with pytest.raises(InputError, match=f"{name} is of int32; weights are of floating point"):
    any_form.open_foreign(folder)
  other = write_legacy(folder.parent / "checkpoint_4", stacked({**values(), name: np.full((16,), np.nan, np.float32)}),
                       inline=lambda _: inline)
  array = any_form.open_foreign(other).arrays[name]
  with pytest.raises(InputError, match=f"checkpoint_4: {name} holds NaN or infinity"):
    array.read()


def test_a_chunk_that_is_missing(folder):
  """Which tensorstore would read as zeros; zeros that are there are none the worse."""
  flat = {**values(), "projection_layer/kernel": np.zeros((16, 10), np.float32)}
  same(write_legacy(folder, flat), flat)
  (folder / "target.encoder.layers_1.mlp.wo.kernel" / "1.0").unlink()
  with pytest.raises(InputError, match=r"layers_1.mlp.wo.kernel: a part of the array \[20, 16\] is missing"):
    any_form.open_foreign(folder)


def test_a_chunk_that_is_cut_short(folder):
  write_legacy(folder, values())
  chunk = folder / "target.encoder.layers_1.mlp.wo.kernel" / "0.0"
  chunk.write_bytes(chunk.read_bytes()[:10])
  array = any_form.open_foreign(folder).arrays["encoder/layers_1/mlp/wo/kernel"]
  with pytest.raises(InputError, match="layers_1.mlp.wo.kernel: damaged"):
    array.read()


def test_what_the_checkpoint_does_not_say(folder, tmp_path, capsys):
  vocabulary = write_vocabulary(epath.Path(tmp_path) / "spiece.model")
  encoder = tiny_encoder(vocabulary)
  write_legacy(folder, values(encoder))
  for missing, name in ((Tokenization(), "vocabulary"), (Tokenization(vocabulary.path, 0), "query_length"),
                        (Tokenization(vocabulary.path, 0, 16), "document_length")):
    with pytest.raises(InputError, match=f"give .*: --{name}, in Python {name}="):
      load_model(folder, tokenization=missing)
  for place, text in ((tmp_path, "a folder; give the vocabulary in it, .*spiece.model"),
                      (tmp_path / "nothing", "no such vocabulary; give the path of a SentencePiece model")):
    with pytest.raises(InputError, match=text):
      load_model(folder, tokenization=Tokenization(place, 0, 16, 32))
  words = ["convert", str(folder), str(tmp_path / "model"), "--vocabulary", str(vocabulary.path), "--extra_ids", "0"]
  assert main(words) == 2
  assert "give a number of tokens (GTR: 64 for queries, 512 for documents): --query_length" in capsys.readouterr().err
  assert main([*words, "--query_length=16", "--document_length=32"]) == 0
  given = load_model(folder, tokenization=Tokenization(vocabulary.path, 0, 16, 32))
  converted = load_model(tmp_path / "model")
  np.testing.assert_array_equal(embed(given, TEXTS, "query", 32, progress=False),
                                embed(converted, TEXTS, "query", progress=False))
  assert jax.tree.leaves(given.params)[0].dtype == np.float32


def test_several_models_of_which_one_does_not_say_it(tmp_path, capsys):
  """A run, a folder, and the run's weights in a T5X checkpoint, which alone needs the flags, and alone takes them."""
  tmp_path = epath.Path(tmp_path)
  run = write_model_dir(tmp_path / "run")
  other = write_model_dir(tmp_path / "other", seeds=(5,))
  for source, *rest in ((run, tmp_path / "checkpoint_0", "--to=t5x"), (other, tmp_path / "folder")):
    assert main(["convert", str(source), *map(str, rest)]) == 0
  words = ["evaluate", "--collection", str(write_collection(tmp_path / "small", corpus(20))), "--output",
           str(tmp_path / "results"), "--model", f"run={run}", "--model", f"folder={tmp_path / 'folder'}"]
  flags = ["--vocabulary", str(run / "spiece.model"), "--extra_ids=0", "--query_length=16", "--document_length=32"]
  capsys.readouterr()
  assert main([*words, *flags]) == 2
  assert "vocabulary: no model here lacks it, each says its own" in capsys.readouterr().err
  assert main([*words[:-2], *flags]) == 2
  assert "leave vocabulary, extra_ids, query_length, document_length out" in capsys.readouterr().err
  assert main([*words, "--model", f"t5x={tmp_path / 'checkpoint_0'}", *flags]) == 0
  systems = json.loads((tmp_path / "results" / "results.json").read_text())["systems"]
  hashes = {name: system["weights_hash"] for name, system in systems.items()}
  assert hashes["run"] == load_model(run).weights_hash == hashes["t5x"]
  assert hashes["folder"] == load_model(tmp_path / "folder").weights_hash
  assert systems["run"]["results"] == systems["t5x"]["results"]
