"""Hugging Face and sentence-transformers folders: written, read again, and what is wrong with them."""

import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import traverse_util
from tiny_model_dir import sentence, tiny_encoder, tiny_params, write_model_dir, write_vocabulary

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.formats import any_form, sentence_transformers_writer
from gtr_jax.formats.convert import convert
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.formats.names import names
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning
from gtr_jax.retrieval.quantization import shortened
from gtr_jax.training.initial_params import with_initial_params

GATED = T5Config(vocab_size=152, emb_dim=16, num_heads=4, head_dim=6, mlp_dim=20, num_layers=2,
                 mlp_activations=("gelu", "linear"), relpos_buckets=8, relpos_max_distance=20)
TEXTS = [sentence(i, 1 + i * 7 % 60) for i in range(20)] + ["", "  two  spaces ", "Größe ﬁ ①", "</s> unknown ☃"]


def arrays_of(encoder, seed=0):
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, tiny_params(encoder, seed)), sep="/")
  return {name: Array(x.shape, x.dtype, lambda x=x: x) for name, x in flat.items()}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return write_vocabulary(epath.Path(tmp_path_factory.mktemp("vocabulary")) / "spiece.model")


@pytest.fixture
def folder(tmp_path, vocabulary):
  return written(tmp_path / "model", DualEncoder(GATED, projection_dim=10), vocabulary)


def written(path, encoder, vocabulary, seed=0, **options):
  path = epath.Path(path)
  sentence_transformers_writer.write(path, encoder, arrays_of(encoder, seed), vocabulary,
               {"query": 24, "document": 40}, {"query": "q: ", "document": ""}, "card\n", **options)
  return path


def change(place, **fields):
  place.write_text(json.dumps({**(json.loads(place.read_text()) if place.exists() else {}), **fields}))


def message(path):
  with pytest.raises(InputError) as e:
    any_form.open_foreign(path)
  assert "\n" not in str(e.value)
  return str(e.value)


def reweigh(place, spoil):
  found = safetensors.numpy.load_file(place)
  safetensors.numpy.save_file(spoil(dict(found)), place)


@pytest.mark.parametrize("options", [
    {}, {"projection_dim": None}, {"pooling": "first", "normalize": False}, {"config": GATED}])
def test_import_of_an_export_is_the_same(tmp_path, vocabulary, options):
  encoder = DualEncoder(**{"config": tiny_encoder(vocabulary).config, "projection_dim": 8, **options})
  found = any_form.open_foreign(written(tmp_path / "model", encoder, vocabulary))
  assert found.encoder == encoder
  assert found.prompts == {"query": "q: ", "document": ""}
  assert found.lengths == {"query": 40, "document": 40}
  assert found.arrays.keys() == {name.native for name in names(encoder)}
  for name, array in arrays_of(encoder).items():
    assert found.arrays[name].shape == array.shape
    np.testing.assert_array_equal(found.arrays[name].read(), array.read())


def test_shards_and_bfloat16(tmp_path, vocabulary):
  encoder = DualEncoder(GATED, projection_dim=10)
  path = written(tmp_path / "model", encoder, vocabulary, dtype="bfloat16", shard_bytes=3000)
  assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
  model = load_model(path, partitioning.make_mesh())
  for name, leaf in traverse_util.flatten_dict(model.params, sep="/").items():
    value = arrays_of(encoder)[name].read()
    assert leaf.dtype == (np.float32 if name.startswith("projection") else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(leaf, value.astype(leaf.dtype))
  # bfloat16 weights compute as the same numbers in float32 do.
  upcast = {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in (
      (name, array.read()) for name, array in arrays_of(encoder).items()) if not name.startswith("projection")}
  upcast["projection_layer/kernel"] = arrays_of(encoder)["projection_layer/kernel"].read()
  sentence_transformers_writer.write(path.parent / "float32", encoder, {name: Array(x.shape, x.dtype, lambda x=x: x)
                                                  for name, x in upcast.items()},
               vocabulary, {"query": 24, "document": 40}, {"query": "q: ", "document": ""}, "")
  same = load_model(path.parent / "float32", partitioning.make_mesh())
  np.testing.assert_allclose(embed(model, TEXTS, "query", progress=False), embed(same, TEXTS, "query", progress=False),
                             atol=1e-6, rtol=0)


def test_float16_is_read_as_float32(folder):
  reweigh(folder / "model.safetensors", lambda found: {name: x.astype(np.float16) for name, x in found.items()})
  assert {leaf.dtype for leaf in jax.tree.leaves(load_model(folder).params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("both", [True, False])
def test_bare_t5_with_a_decoder(folder, both):
  for name in ("modules.json", "config_sentence_transformers.json"):
    (folder / name).unlink()
  for name in ("1_Pooling", "2_Dense"):
    (folder / name).rmtree()

  def with_decoder(found):
    found["encoder.embed_tokens.weight"] = found["shared.weight"] if both else found.pop("shared.weight")
    return {**found, "decoder.block.0.layer.0.SelfAttention.q.weight": np.ones((2, 2), np.float32),
            "lm_head.weight": np.ones((2, 2), np.float32)}

  reweigh(folder / "model.safetensors", with_decoder)
  found = any_form.open_foreign(folder)
  assert found.encoder == DualEncoder(GATED, projection_dim=None)
  mesh = partitioning.make_mesh()
  encoder = DualEncoder(GATED, projection_dim=10)
  params = tiny_params(encoder, 5)
  shardings = jax.tree.map(lambda _: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()), params)
  tokenizer = load_model(folder).tokenizer
  started = with_initial_params(params, shardings, folder, tokenizer)
  np.testing.assert_array_equal(started["projection_layer"]["kernel"], params["projection_layer"]["kernel"])
  np.testing.assert_array_equal(started["token_embedder"]["embedding"], found.arrays["token_embedder/embedding"].read())
  both = {"query": params, "passage": params}
  started = with_initial_params(both, {"query": shardings, "passage": shardings}, folder, tokenizer)
  for tower in ("query", "passage"):
    np.testing.assert_array_equal(started[tower]["encoder"]["layers_1"]["mlp"]["wo"]["kernel"],
                                  found.arrays["encoder/layers_1/mlp/wo/kernel"].read())
  smaller = tiny_params(DualEncoder(GATED, projection_dim=None), 0)
  del smaller["encoder"]["layers_1"]
  with pytest.raises(InputError, match="has encoder/layers_1/.*, and this run's model has not; gtr-jax train --init"):
    with_initial_params(smaller, jax.tree.map(lambda _: jax.tree.leaves(shardings)[0], smaller), folder, tokenizer)


@pytest.mark.parametrize("spoil, text", [
    (lambda found: found | {"encoder.block.7.x": found["shared.weight"]}, "encoder.block.7.x belongs to no part of a"),
    (lambda found: {k: x for k, x in found.items() if "final" not in k}, "has no encoder.final_layer_norm.weight, wh"),
    (lambda found: found | {"shared.weight": found["shared.weight"][1:].copy()},
     "shared.weight is [151, 16], and {folder}/config.json says [152, 16]"),
    (lambda found: {k.replace("wi_0", "wi"): x for k, x in found.items() if "wi_1" not in k},
     "so the weights are of T5 1.0, and {folder}/config.json says feed_forward_proj 'gated-gelu'"),
    (lambda found: {f"0.auto_model.{k}": x for k, x in found.items()}, "names of arrays are prefixed: 0.auto_model.en"),
    (lambda found: {f"transformer.{k}": x for k, x in found.items()}, "was expected; save the T5 itself (save_pretrai"),
])
def test_wrong_weights(folder, spoil, text):
  place = folder / "model.safetensors"
  reweigh(place, spoil)
  assert message(folder).startswith(str(place))
  assert text.format(folder=folder) in message(folder)


@pytest.mark.parametrize("name, value, text", [
    ("encoder.final_layer_norm.weight", np.nan, "holds NaN or infinity; copy it again"),
    ("encoder.block.1.layer.1.DenseReluDense.wo.weight", -np.inf, "holds NaN or infinity; copy it again"),
    ("encoder.embed_tokens.weight", 0, "is not shared.weight, of which it is a copy in every T5"),
])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_wrong_numbers(folder, name, value, text, dtype):
  def spoil(found):
    array = found.get(name, found["shared.weight"]).astype(dtype)
    array.reshape(-1)[-1] = value
    return {**found, name: array}

  reweigh(folder / "model.safetensors", spoil)
  for read in (load_model, lambda path: convert(path, path.parent / "out", "sentence-transformers")):
    with pytest.raises(InputError) as e:
      read(folder)
    assert str(e.value).startswith(f"{folder / 'model.safetensors'}: {name} {text}")
  assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("file, fields, text", [
    ("config.json", {"model_type": "bert"}, "model_type is 'bert'; gtr_jax reads 't5' and 'mt5'"),
    ("config.json", {"model_type": "umt5"}, "each layer of umT5 has its own position bias"),
    ("config.json", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
    ("config.json", {"is_gated_act": False}, "feed_forward_proj is 'gated-gelu', dense_act_fn 'gelu_new' and is_gated"),
    ("config.json", {"dense_act_fn": "relu"}, "feed_forward_proj is 'gated-gelu', dense_act_fn 'relu' and is_gated_ac"),
    ("config.json", {"is_decoder": True}, "is_decoder is true"),
    ("config.json", {"quantization_config": {"bits": 8}}, "has a quantization_config"),
    ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'"),
    ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "tokenizer_class is 'BertTokenizer'; gtr_jax rea"),
    ("config.json", {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
    ("config.json", {"relative_attention_num_buckets": 7}, "use an even number of at least 4 buckets"),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by mean, pooling_mode_max_tokens; "),
    ("1_Pooling/config.json", {"pooling_mode_new": True}, "pools by mean, pooling_mode_new; gtr"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "pools by nothing that it names"),
    ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pools by lasttoken"),
    ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt is false"),
    ("2_Dense/config.json", {"bias": True}, "bias is True"),
    ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}, "computes Identity only"),
    ("2_Dense/config.json", {"in_features": 7}, "goes from 7 to 10"),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is true"),
    ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'; gtr_jax comp"),
    ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim is 8; gtr_jax gives whole vectors, "),
    ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "ranks by dot product"),
    ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name is 'x'"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "<mask>"}}}, "adds the token '<mask>'"),
    ("tokenizer_config.json", {"additional_special_tokens": ["<extra_id_0>", "<mask>"]}, "adds the token '<mask>'"),
    ("special_tokens_map.json", {"additional_special_tokens": [{"content": "<mask>"}]}, "adds the token '<mask>'"),
    ("tokenizer.json", {"added_tokens": [{"id": 0, "content": "<pad>"}, {"id": 9, "content": "[NEW]"}]}, "en '[NEW]'"),
    ("added_tokens.json", {"<extra_id_0>": 151, "[NEW]": 152}, "adds the token '[NEW]'"),
])
def test_what_gtr_jax_does_not_compute(folder, file, fields, text):
  change(folder / file, **fields)
  assert message(folder).startswith(str(folder / file))
  assert text in message(folder)


@pytest.mark.parametrize("file, name, value, kind", [
    ("config.json", "num_layers", None, "a whole number of at least 1"),
    ("config.json", "num_layers", 0, "a whole number of at least 1"),
    ("config.json", "d_model", "16", "a whole number of at least 1"),
    ("config.json", "relative_attention_num_buckets", True, "a whole number"),
    ("config.json", "layer_norm_epsilon", "a", "a number"),
    ("config.json", "feed_forward_proj", ["relu"], "a text"),
    ("1_Pooling/config.json", "pooling_mode_mean_tokens", "yes", "true or false"),
    ("2_Dense/config.json", "out_features", True, "a whole number of at least 1"),
    ("2_Dense/config.json", "activation_function", 3, "a text"),
    *(("sentence_bert_config.json", "max_seq_length", value, "a whole number of at least 1")
      for value in ("128", 2.5, True, 0, -1, [1], math.nan)),
    *(("tokenizer_config.json", "model_max_length", value, "a whole number of at least 1")
      for value in ("512", 512.5, 0, -1, math.nan, -math.inf)),
    ("tokenizer_config.json", "extra_ids", "x", "a whole number of at least 0"),
    ("tokenizer_config.json", "extra_ids", -5, "a whole number of at least 0"),
    ("tokenizer_config.json", "added_tokens_decoder", [], "an object"),
    ("tokenizer.json", "added_tokens", {}, "a list"),
    ("config_sentence_transformers.json", "prompts", ["query: "], "an object"),
    ("config_sentence_transformers.json", "truncate_dim", "8", "a whole number"),
    ("config_sentence_transformers.json", "similarity_fn_name", ["dot"], "a text"),
])
def test_fields_of_another_kind(folder, file, name, value, kind):
  if name == "model_max_length":  # which is read where that one says nothing
    change(folder / "sentence_bert_config.json", max_seq_length=None)
  change(folder / file, **{name: value})
  assert message(folder).startswith(f"{folder / file}: {name} is {json.dumps(value)}; it must be {kind}: " +
                                    ("correct it, or write null, which is no limit" if "_length" in name else
                                     f"copy the model's own {file.split('/')[-1]} again, or correct it"))


def test_prompts_that_are_no_texts(folder):
  change(folder / "config_sentence_transformers.json", prompts={"query": 3})
  assert message(folder).endswith("the prompt 'query' is 3; give a text")
  change(folder / "config_sentence_transformers.json", prompts={"query": None, "passage": "p: "})
  assert any_form.open_foreign(folder).prompts == {"query": "", "document": ""}


@pytest.mark.parametrize("max_seq_length, model_max_length, expected", [
    (24, 40, 24), (None, 40, 40), (300_000, 40, 300_000), (None, 10**30, None), (2_000_000, 40, None),
    (24.0, 40, 24), (None, 40.0, 40), (None, 1e30, None), (1e30, 40, None), (None, math.inf, None), (None, None, None),
    (None, 1000000000000000019884624838656, None)])
def test_lengths(folder, max_seq_length, model_max_length, expected):
  change(folder / "sentence_bert_config.json", max_seq_length=max_seq_length)
  change(folder / "tokenizer_config.json", model_max_length=model_max_length)
  if expected:
    assert any_form.open_foreign(folder).lengths == {"query": expected, "document": expected}
    return
  with pytest.raises(InputError, match="does not say how long a query may be; give a number of tokens"):
    load_model(folder)
  assert load_model(folder, tokenization=Tokenization(query_length=8, document_length=9)).lengths == {
      "query": 8, "document": 9}


@pytest.mark.parametrize("left", ["1_Pooling", "2_Dense", "config_sentence_transformers.json"])
def test_a_folder_without_its_modules(folder, left):
  (folder / "modules.json").unlink()
  for name in {"1_Pooling", "2_Dense", "3_Normalize"} - {left}:
    (folder / name).rmtree()
  if left != "config_sentence_transformers.json":
    (folder / "config_sentence_transformers.json").unlink()
  assert message(folder).startswith(f"{folder / 'modules.json'}: no such file, and {left} beside it is of a sentence-t")


def test_modules(folder):
  place = folder / "modules.json"
  modules = json.loads(place.read_text())
  place.write_text(json.dumps(modules + [{"path": "4", "type": "sentence_transformers.models.LayerNorm"}]))
  assert "is a chain of Transformer, Pooling, Dense, Normalize, LayerNorm; gtr_jax computes" in message(folder)
  place.write_text(json.dumps([module for module in modules if module["type"].endswith(("Transformer", "Pooling"))]))
  assert "similarity_fn_name is 'cosine' of vectors that are not normalised" in message(folder)
  change(folder / "config_sentence_transformers.json", similarity_fn_name="dot")
  assert any_form.open_foreign(folder).encoder == DualEncoder(GATED, projection_dim=None, normalize=False)
  for text, expected in (("[{}]", "has no type; copy"), ("[3]", "module 0 is no object with `type` and `path`"),
                         ("[]", "is a chain of nothing; gtr_jax computes Transformer")):
    place.write_text(text)
    assert expected in message(folder)
  place.write_text(json.dumps([{**modules[0], "type": "custom_st.Transformer"}, *modules[1:]]))
  assert "is a chain of custom_st.Transformer, Pooling, Dense, Normalize; gtr_jax computes" in message(folder)


def test_missing_files(folder):
  shards = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
  (folder / "model.safetensors").rename(folder / "elsewhere")
  assert "model-00001-of-00002.safetensors: no such file, and" in message(folder)
  (folder / "elsewhere").rename(folder / "model-00001-of-00002.safetensors")
  assert "layer_norm" not in any_form.open_foreign(folder).arrays
  shards["weight_map"]["other"] = "model-00001-of-00002.safetensors"
  (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
  assert "has no other, and" in message(folder)
  (folder / "model.safetensors.index.json").unlink()
  assert "has shards without their index (model-00001-of-00002.safetensors); gtr_jax reads" in message(folder)
  (folder / "model-00001-of-00002.safetensors").unlink()
  assert "has neither model.safetensors nor pytorch_model.bin" in message(folder)
  (folder / "model.safetensors").mkdir()
  assert "has neither model.safetensors nor pytorch_model.bin" in message(folder)
  (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
  (folder / "model.safetensors").rmdir()
  assert "weight_map must name the file of each array" in message(folder)
  (folder / "model.safetensors.index.json").unlink()
  (folder / "tf_model.h5").write_bytes(b"")
  assert "for TensorFlow or Flax only" in message(folder)


def test_vocabulary_of_the_folder(folder, vocabulary):
  change(folder / "tokenizer_config.json", extra_ids=100)
  with pytest.raises(InputError, match="ids do not fit the model's embedding of 152 rows"):
    load_model(folder)
  for name in ("spiece.model", "tokenizer.json"):
    (folder / name).unlink()
  with pytest.raises(InputError, match="comes without a vocabulary; give the SentencePiece .*--vocabulary, in Python"):
    load_model(folder)


def test_vocabulary_from_the_fast_tokenizer(folder, vocabulary):
  (folder / "spiece.model").unlink()
  assert load_model(folder).tokenizer.encode(TEXTS, 40)[-1].tolist() == vocabulary.encode(TEXTS, 40)[-1].tolist()
  fields = json.loads((folder / "tokenizer.json").read_text())
  change(folder / "tokenizer.json", model={**fields["model"], "type": "BPE"})
  with pytest.raises(InputError, match="tokenizer.json: a BPE tokenizer with .* give its SentencePiece model as vocab"):
    load_model(folder)
  for spoilt, text in (({"added_tokens": []}, "KeyError: '<pad>'"), ({"model": []}, "TypeError"),
                       ({"model": {**fields["model"], "vocab": [[3, 0.0]]}}, "AttributeError")):
    change(folder / "tokenizer.json", **{**fields, **spoilt})
    with pytest.raises(InputError, match=f"not T5's tokenizer .{text}.*; give its SentencePiece model as vocabulary"):
      load_model(folder)
  given = load_model(folder, tokenization=Tokenization(vocabulary=vocabulary.path))  # As the message says.
  assert given.tokenizer.sha256 == vocabulary.sha256


@pytest.mark.parametrize("options, text", [
    ({"pooling": "first"}, "pooling is 'first'"), ({"normalize": False}, "normalize is False"),
    ({"shared": False}, "holds one tower")])
def test_what_t5x_does_not_say(tmp_path, options, text, capsys):
  run = write_model_dir(tmp_path / "run", **options)
  assert main(["convert", str(run), str(tmp_path / "checkpoint_0"), "--to", "t5x"]) == 2
  assert text in capsys.readouterr().err
  assert not (tmp_path / "checkpoint_0").exists()


def test_json_of_another_kind(folder):
  for file in ("config.json", "1_Pooling/config.json", "2_Dense/config.json", "tokenizer_config.json"):
    before = (folder / file).read_text()
    (folder / file).write_text("[]")
    assert message(folder).endswith(f"{file}: holds a list, not an object; copy it again")
    (folder / file).write_text(before)


def test_convert_on_the_command_line(tmp_path, capsys):
  run = write_model_dir(tmp_path / "run")
  assert main(["convert", str(run), str(tmp_path / "model")]) == 0
  ours, theirs = load_model(run), load_model(tmp_path / "model")
  np.testing.assert_array_equal(embed(ours, TEXTS, "passage", progress=False),
                                embed(theirs, TEXTS, "passage", max_length=ours.lengths["document"], progress=False))
  assert "gtr_jax.load(\"model\")" in (tmp_path / "model" / "README.md").read_text()
  assert main(["convert", str(run), str(tmp_path / "model")]) == 2
  assert "model: exists; give a new folder" in capsys.readouterr().err
  for name in ("t5x", "checkpoint_01"):
    assert main(["convert", str(run), str(tmp_path / name), "--to", "t5x"]) == 2
    assert "give " + str(tmp_path / name / "checkpoint_0") in capsys.readouterr().err
  for form, name in (("t5x", "checkpoint_1"), ("stablehlo", "programs"), ("saved-model", "programs")):
    assert main(["convert", str(run), str(tmp_path / name), "--to", form, "--results", str(tmp_path)]) == 2
    assert f"--to {form} writes none; leave it out" in capsys.readouterr().err
  towers = write_model_dir(tmp_path / "towers", shared=False)
  assert main(["convert", str(towers), str(tmp_path / "b")]) == 2
  assert "holds one tower" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run", "towers", "vocabulary.model"]
  assert main(["convert", str(run), str(tmp_path / "c"), "--vocabulary", "x"]) == 2
  assert "a training run says its vocabulary" in capsys.readouterr().err
  assert main(["convert", "no/such", str(tmp_path / "d")]) == 2
  assert "no/such: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{}, {"projection_dim": None}, {"normalize": False}])
@pytest.mark.parametrize("form", ["sentence-transformers", "t5x", "stablehlo"])
def test_a_model_of_fewer_dimensions(tmp_path, capsys, form, options):
  """Its vectors are those that `encode --dimensions` keeps; of a model without a projection as well."""
  if form == "t5x" and "normalize" in options:
    pytest.skip("T5X does not say it")
  source, output = tmp_path / "source", tmp_path / "checkpoint_0"
  vocabulary = write_vocabulary(epath.Path(tmp_path / "spiece.model"))
  encoder = DualEncoder(**{"config": tiny_encoder(vocabulary).config, "projection_dim": 8, **options})
  sentence_transformers_writer.write(epath.Path(source), encoder, arrays_of(encoder), vocabulary,
                                     {"query": 40, "document": 40}, {"query": "", "document": ""}, "card\n")
  assert main(["convert", str(source), str(output), "--to", form, "--dimensions", "5"]) == 0
  assert f"measure what 5 of {encoder.dim} numbers lose" in capsys.readouterr().err
  if form == "stablehlo":
    weights = safetensors.numpy.load_file(output / "weights.safetensors")
    assert weights["projection_layer/kernel"].shape == (encoder.config.emb_dim, 5)
    return
  tokenization = Tokenization(vocabulary=str(tmp_path / "spiece.model"), extra_ids=vocabulary.extra_ids,
                              query_length=40, document_length=40)
  found = load_model(output, tokenization=tokenization if form == "t5x" else None)
  assert found.encoder.dim == 5 and found.encoder.normalize == encoder.normalize
  expected = shortened(embed(load_model(source), TEXTS, "passage", progress=False), 5, encoder.normalize)
  np.testing.assert_allclose(embed(found, TEXTS, "passage", progress=False), expected, atol=1e-6)
  if form == "sentence-transformers":
    assert f"the first 5 of {encoder.dim} numbers" in (output / "README.md").read_text()


def test_dimensions_that_a_model_does_not_have(tmp_path, folder, capsys):
  for flags, text in ((["--dimensions", "11"], "--dimensions 11: the vectors have 10; give 1 to 10"),
                      (["--dimensions", "4", "--to", "peft", "--base_model", "x"], "and no vectors' length")):
    assert main(["convert", str(folder), str(tmp_path / "out"), *flags]) == 2
    assert text in capsys.readouterr().err
  assert main(["convert", str(folder), str(tmp_path / "out"), "--dimensions", "10"]) == 0
  assert any_form.open_foreign(tmp_path / "out").encoder.dim == 10
  assert "the first" not in (tmp_path / "out" / "README.md").read_text() + capsys.readouterr().err
