"""What people hold instead of a model that gtr_jax reads: it is read where it certainly is one, else named, with what
to do about it. Whole things are never said to be damaged.
"""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from test_convert import GATED, change, reweigh

import gtr_jax
from gtr_jax.errors import InputError
from gtr_jax.formats import any_form, foreign_json
from gtr_jax.formats.any_form import open_model
from gtr_jax.formats.convert import convert
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.load import check_model, load_model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.tokenizer import Tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 438007537\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"
EMBEDDING = "shared.weight"
BLAME = ("damaged", "copy it again", "copy the whole model", "copy the model again", "copy both again", "cut short")


def message(path, call=load_model, whole=True):
  with pytest.raises(InputError) as e:
    call(path)
  text = str(e.value)
  assert "\n" not in text
  assert not whole or not any(blame in text for blame in BLAME), text
  return text


def put(folder, files):
  """Writes files, of names that end in a slash folders, JSON of what is no bytes."""
  for name, contents in files.items():
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
      place.mkdir(parents=True, exist_ok=True)
    else:
      place.write_bytes(contents if isinstance(contents, bytes) else json.dumps(contents).encode())


def renamed(found, name):
  """The embedding under another name, alone."""
  found[name] = found.pop(EMBEDDING)
  return found


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("tied", [True, None])
def test_the_embedding_lies_elsewhere(bare, exported, name, tied):
  reweigh(bare / "model.safetensors", lambda found: renamed(found, name))
  if tied is not None:
    change(bare / "config.json", tie_word_embeddings=tied)
  found = any_form.open_foreign(bare).arrays["token_embedder/embedding"].read()
  np.testing.assert_array_equal(found, any_form.open_foreign(exported).arrays["token_embedder/embedding"].read())


@pytest.mark.parametrize("fields", [{"tie_word_embeddings": False}, {"model_type": "mt5"}])
def test_an_output_layer_that_is_not_the_embedding(bare, fields):
  reweigh(bare / "model.safetensors", lambda found: renamed(found, "lm_head.weight"))
  change(bare / "config.json", **fields)
  assert "has no shared.weight (the embedding), and lm_head.weight is not it, as" in message(bare)


def test_no_embedding_at_all(bare):
  reweigh(bare / "model.safetensors", lambda found: {k: x for k, x in found.items() if k != EMBEDDING})
  assert "has no shared.weight, which" in message(bare, whole=False)


@pytest.mark.parametrize("rename, text", [
    (lambda k: f"base_model.model.{k}", "save the T5 itself (save_pretrained), or take 'base_model.model.' away"),
    (lambda k: f"module.{k}", "take 'module.' away from the names (DataParallel puts it there)"),
    (lambda k: f"model.{k}", "take 'model.' away from the names"),
    (lambda k: f"_orig_mod.{k}", "(torch.compile puts it there)"),
    (lambda k: f"0.auto_model.{k}", "(sentence-transformers puts it there)"),
    (lambda k: f"encoder.{k}", "take 'encoder.' away from the names"),
    (lambda k: k.removeprefix("encoder.").replace(EMBEDDING, "embed_tokens.weight"), "has the stack of the encoder"),
    (lambda k: k.replace("q.weight", "q.base_layer.weight"), "has an adapter (LoRA) beside the weights: "),
])
def test_arrays_under_other_names(bare, rename, text):
  reweigh(bare / "model.safetensors", lambda found: {rename(name): array for name, array in found.items()})
  assert text in message(bare)


ADAPTER = {"base_model_name_or_path": "google-t5/t5-base", "peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM"}


@pytest.mark.parametrize("fields, text", [
    (ADAPTER, "an adapter (LORA) of google-t5/t5-base, not a whole model; merge it first, with peft: "),
    ({**ADAPTER, "peft_type": "IA3"}, "an adapter (IA3) of google-t5/t5-base, not a whole model; merge it first"),
    ({"base_model_name_or_path": None}, "an adapter of a model that it does not name, not a whole model; merge it"),
    ({**ADAPTER, "peft_type": "PROMPT_TUNING"}, "adapters of this kind cannot be merged"),
])
@pytest.mark.parametrize("beside", ["nothing", "a T5", "modules.json"])
def test_adapters(bare, exported, fields, text, beside):
  if beside == "nothing":
    shutil.rmtree(bare)
  elif beside == "modules.json":
    shutil.rmtree(bare)
    shutil.copytree(exported, bare)
  put(bare, {"adapter_config.json": fields, "adapter_model.safetensors": b"x"})
  for call in (load_model, check_model, open_model, gtr_jax.load):
    assert message(bare, call).startswith(f"{bare}: ") and text in message(bare, call)


def test_an_adapter_without_its_description(tmp_path):
  put(tmp_path, {"adapter_model.bin": b"x"})
  assert "the weights of an adapter (adapter_model), not of a whole model" in message(tmp_path)


@pytest.mark.parametrize("files, text", [
    ({"tf_model.h5": b"x"}, "holds its weights for TensorFlow or Flax only (tf_model.h5)"),
    ({"flax_model.msgpack": b"x"}, "holds its weights for TensorFlow or Flax only (flax_model.msgpack)"),
    ({"t5-q4.gguf": b"GGUF"}, "has GGUF (llama.cpp) (t5-q4.gguf); gtr_jax reads model.safetensors and pytorch_model.b"),
    ({"onnx/": None}, "has ONNX (onnx)"), ({"model.onnx": b"x"}, "has ONNX (model.onnx)"),
    ({"openvino_model.xml": b"x"}, "has OpenVINO"), ({"rust_model.ot": b"x"}, "has weights for one runtime"),
    ({"global_step500/": None, "latest": b"x", "zero_to_fp32.py": b"x"}, "has a checkpoint of DeepSpeed in parts"),
    ({"pytorch_model_fsdp_0/": None}, "has a checkpoint of FSDP in parts"),
    ({"__0_0.distcp": b"x"}, "has a checkpoint of FSDP in parts"),
    ({"model-00001-of-00002.safetensors": b"x"}, "has shards without their index (model-00001-of-00002.safetensors)"),
    ({"t5_finetuned.safetensors": b"x"}, "has weights under another name (t5_finetuned.safetensors)"),
    ({"best.ckpt": b"x"}, "has a file of torch under another name (best.ckpt)"),
    ({"optimizer.pt": b"x", "trainer_state.json": {}, "training_args.bin": b"x"}, "has the state of a Trainer and no"),
])
@pytest.mark.parametrize("config", [True, False])
def test_weights_of_another_kind(bare, files, text, config):
  (bare / "model.safetensors").unlink()
  if not config:
    if "Trainer" in text:
      pytest.skip("nothing is left that says what it is")
    shutil.rmtree(bare)
    text = text.replace("holds its", "has")
  put(bare, files)
  assert text in message(bare)


def test_a_trainers_checkpoint_is_read(bare, tmp_path):
  checkpoint = tmp_path / "out" / "checkpoint-500"
  shutil.copytree(bare, checkpoint)
  put(checkpoint, {"trainer_state.json": {}, "optimizer.pt": b"x", "training_args.bin": b"x", "global_step500/": None})
  assert any_form.open_foreign(checkpoint).encoder == DualEncoder(GATED, projection_dim=None)
  assert message(tmp_path / "out").endswith(f"no model itself, and {checkpoint} in it is one; give that")
  shutil.copytree(bare, tmp_path / "out" / "checkpoint-900")
  assert f"give one of the 2 in it: {checkpoint}, {tmp_path}/out/checkpoint-900" in message(tmp_path / "out")


@pytest.mark.parametrize("fields, text", [
    ({"model_type": "bert"}, "this is an encoder with other layers than T5's"),
    ({"model_type": "mpnet"}, "this is an encoder with other layers"),
    ({"model_type": "xlm-roberta"}, "this is an encoder with other layers"),
    ({"model_type": "gpt2"}, "this is a decoder-only language model"),
    ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "this is a decoder-only language model"),
    ({"model_type": "qwen2"}, "this is a decoder-only language model"), ({"model_type": "umt5"}, "its own position"),
    ({"model_type": "longt5"}, "this is LongT5"), ({"model_type": "bart"}, "this is an encoder-decoder with other"),
    ({"model_type": "new-thing"}, "model_type is 'new-thing'; gtr_jax reads 't5' and 'mt5': take a T5"),
    ({"model_type": None}, "has no model_type, by which transformers says what a model is"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "has a quantization_config (gptq)"),
    ({"quantization_config": {"load_in_8bit": True}}, "has a quantization_config; gtr_jax reads weights of floating"),
    ({"tokenizer_class": "ByT5Tokenizer"}, "so it is a ByT5, which reads bytes"),
])
@pytest.mark.parametrize("modules", [True, False])
def test_other_architectures(folder, fields, text, modules):
  if not modules:
    (folder / "modules.json").unlink()
    (folder / "config_sentence_transformers.json").unlink()
    for name in ("1_Pooling", "2_Dense"):
      shutil.rmtree(folder / name)
  change(folder / "config.json", **fields)
  assert message(folder).startswith(f"{folder / 'config.json'}: ") and text in message(folder)


@pytest.mark.parametrize("files, text", [
    ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, "model_type is 'CrossEncoder'; gtr_jax c"),
    ({"quantize_config.json": {}}, "quantize_config.json: is of a quantised model (GPTQ, AWQ)"),
    ({"tokenizer_config.json": {"tokenizer_class": "ByT5Tokenizer"}}, "tokenizer_class is 'ByT5Tokenizer'; gtr_jax"),
    ({"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}, "take a model that reads pieces of Sentence"),
    ({"config.json": {"word_embedding_dimension": 768}}, "has no model_type"),
])
def test_other_folders_of_transformers(bare, files, text):
  put(bare, files)
  assert text in message(bare)


def test_cross_encoders_and_quantised_arrays(bare):
  change(bare / "config.json", architectures=["T5ForSequenceClassification"])
  assert "T5ForSequenceClassification, a CrossEncoder or classifier, which scores texts" in message(bare)
  change(bare / "config.json", architectures=["T5ForConditionalGeneration"])
  reweigh(bare / "model.safetensors", lambda found: {**found, EMBEDDING: found[EMBEDDING].astype(np.int8)})
  assert "shared.weight is of dtype I8; weights are of F64, F32, F16, BF16: of a quantised model" in message(bare)
  reweigh(bare / "model.safetensors", lambda found: {**found, EMBEDDING: np.ones((0,), np.float32)})
  assert "without numbers, as DeepSpeed writes where the parts lie elsewhere (ZeRO-3)" in message(bare)


def without_tokenizer(folder):
  for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
    (folder / name).unlink()


@pytest.mark.parametrize("kind, text", [
    ("WordPiece", "a WordPiece tokenizer with BERT's kind of pieces; gtr_jax reads T5's"),
    ("BPE", "a BPE tokenizer with GPT's kind of pieces"), ("WordLevel", "a WordLevel tokenizer with whole words as"),
    ("X", "a X tokenizer with other pieces")])
@pytest.mark.parametrize("beside", [True, False])
def test_a_fast_tokenizer_of_another_kind(bare, kind, text, beside):
  if not beside:
    (bare / "spiece.model").unlink()
  change(bare / "tokenizer.json", model={"type": kind, "vocab": {"[UNK]": 0}})
  assert text in message(bare)


def test_a_fast_tokenizer_with_what_transformers_adds_for_spaces(bare):
  expected = load_model(bare).tokenizer
  precompiled = json.loads((bare / "tokenizer.json").read_text())["normalizer"]
  spaces = [{"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}]
  change(bare / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [precompiled, *spaces]})
  (bare / "spiece.model").unlink()
  text = ["a  lion   by the river  "]
  assert load_model(bare).tokenizer.encode(text, 40)[0].tolist() == expected.encode(text, 40)[0].tolist()
  change(bare / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [precompiled, {"type": "Lowercase"}]})
  assert "with normalizer Sequence; gtr_jax reads T5's, Precompiled" in message(bare)


@pytest.mark.parametrize("file, text", [
    ("vocab.txt", "(there is {}/vocab.txt; that one is of another kind than SentencePiece's); give"),
    ("merges.txt", "/merges.txt; that one is of another kind"),
    ("tokenizer.model", "if that is its SentencePiece model")])
def test_a_folder_with_another_vocabulary(bare, file, text):
  without_tokenizer(bare)
  put(bare, {file: b"[PAD]\n"})
  assert text.format(bare) in message(bare)


@pytest.mark.parametrize("data, text, whole", [
    (POINTER, "a pointer of git-lfs, not the file itself; run git lfs pull", True),
    (PAGE, "a web page, such as a server shows instead of a file", True),
    (b"\xef\xbb\xbf\n <HTML>", "a web page", True), (b"", "is empty", False),
    (b"[PAD]\n[UNK]\nthe\n", "a text file (vocab.txt is a vocabulary of another kind), not a SentencePiece", True),
    (b'{"model": {}}', "a JSON file (tokenizer.json is another form of a vocabulary), not a SentencePiece mo", True),
    (b"PK\x03\x04" + bytes(50), "a compressed file, not a SentencePiece model", True),
    (b"\x01" + bytes(50), "damaged, or of another program, not a SentencePiece model", False),
])
def test_vocabularies_that_are_none(bare, tmp_path, data, text, whole):
  place = tmp_path / "given.model"
  place.write_bytes(data)
  assert message(place, Tokenizer, whole).startswith(f"{place}: {text}")
  said = message(bare, lambda path: load_model(path, tokenization=Tokenization(place)), whole)
  assert said.startswith(f"{place}: {text}")
  (bare / "tokenizer.json").unlink()
  (bare / "spiece.model").write_bytes(data)
  assert message(bare, whole=whole).startswith(f"{bare / 'spiece.model'}: {text}")


@pytest.mark.parametrize("data, text, whole", [
    (POINTER, "a pointer of git-lfs", True), (PAGE, "a web page", True), (b"", "is empty", False),
    (b"GGUF" + bytes(50), "a GGUF file (llama.cpp), not what its name says", True),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file", True),
])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "2_Dense/model.safetensors"])
def test_files_in_place_of_weights(folder, data, text, whole, file):
  (folder / file).unlink(missing_ok=True)
  if "torch" in file:
    (folder / "model.safetensors").unlink()
  (folder / file).write_bytes(data)
  assert message(folder, whole=whole).startswith(f"{folder / file}: {text}")


def test_weights_under_the_name_of_another_format(bare):
  (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
  assert message(bare) == f"{bare / 'pytorch_model.bin'}: a safetensors file; name it model.safetensors"
  (bare / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(50))
  assert "a zip archive, as torch writes one, not what its name says; if torch wrote it, name it" in message(bare)


JSON_FILES = ["config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json",
              "2_Dense/config.json", "1_Pooling/config.json", "config_sentence_transformers.json"]


@pytest.mark.parametrize("data, text", [
    (b"[" * 200_000, "nested too deeply"), (b'{"a":' * 200_000, "nested too deeply"),
    (b'{"vocab_size": ' + b"1" * 5000 + b"}", "a number of more than 4,300 digits"), (b'{"a": "\xff"}', "UTF-8"),
    (b'{"a": 1, "a": 2}', 'has "a" twice'), (b"", "is empty"), (b"   ", "not JSON"), (b"{", "not JSON"),
    ("{}".encode("utf-16"), "UTF-16"), (b"3", "holds a number, not"), (b"null", "holds null, not"),
    (POINTER, "a pointer of git-lfs"), (PAGE, "a web page"), (b'{"a": 1} x', "not JSON")])
def test_json_that_cannot_be_read(folder, data, text):
  for file in JSON_FILES:
    before = (folder / file).read_bytes()
    (folder / file).write_bytes(data)
    assert message(folder, whole=False).startswith(f"{folder / file}: ") and text in message(folder, whole=False)
    (folder / file).write_bytes(before)


def test_json_with_a_mark_of_byte_order_and_whole_numbers_with_a_point(folder):
  for file in JSON_FILES:
    (folder / file).write_bytes(b"\xef\xbb\xbf" + (folder / file).read_bytes())
  fields = json.loads((folder / "config.json").read_bytes())
  (folder / "config.json").write_text(json.dumps({**fields, "d_model": 16.0, "layer_norm_epsilon": 1e-6}))
  assert any_form.open_foreign(folder).encoder == DualEncoder(GATED, projection_dim=10)


@pytest.mark.parametrize("header, text", [
    (b"[" * 200_000, "nested too deeply"), (b'{"a":' + b"1" * 5000 + b"}", "4,300 digits"), (b'{"a": "\xff"}', "UTF-8"),
    (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 0]}}', "nan is no size"),
    (b'{"a": {"dtype": "F32", "shape": [1e30], "data_offsets": [0, 0]}}', "1e+30 is no size"),
    (b'{"a": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}', "header cannot be read"),
    (b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}', 'has "a" twice'),
    (b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0, 0]}}', "header cannot be read"),
    (b"{}", "has no shared.weight")])
def test_headers_of_safetensors(bare, header, text):
  (bare / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
  assert text in message(bare, whole=False)


@pytest.mark.parametrize("name, value", [("layer_norm_epsilon", float("nan")), ("num_layers", 10**9),
                                         ("layer_norm_epsilon", 10**400), ("d_model", float("inf")), ("d_ff", "20")])
def test_sizes_that_are_none(bare, name, value):
  change(bare / "config.json", **{name: value})
  assert message(bare, whole=False).startswith(f"{bare / 'config.json'}: {name} is ")


@pytest.mark.parametrize("path", ["/etc", "../model", "a/../../b", "x\0y", "\ud800"])
def test_files_that_lead_out_of_the_folder(folder, path):
  modules = json.loads((folder / "modules.json").read_text())
  (folder / "modules.json").write_text(json.dumps([{**modules[0], "path": path}, *modules[1:]]))
  assert "modules.json: path is " in message(folder, whole=False)
  (folder / "modules.json").write_text(json.dumps(modules))
  put(folder, {"model.safetensors.index.json": {"weight_map": {EMBEDDING: path}}})
  (folder / "model.safetensors").unlink()
  assert "a file of weight_map is " in message(folder, whole=False) or path == "\ud800"


@pytest.mark.parametrize("form", ["sentence-transformers", "t5x", "stablehlo"])
def test_a_conversion_that_fails_leaves_nothing(bare, tmp_path, form):
  def spoil(found):
    found["encoder.final_layer_norm.weight"][0] = np.nan
    return found

  reweigh(bare / "model.safetensors", spoil)
  change(bare / "config.json", relative_attention_max_distance=128)  # which a T5X checkpoint takes for granted
  before = sorted(tmp_path.rglob("*"))
  assert "NaN" in message(bare, lambda path: convert(path, tmp_path / "a" / "b" / "checkpoint_0", form), whole=False)
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("data", [b"[]", b"[" * 200_000, b'{"collections": {}, "systems": 3}', b"\xff", b"",
                                  b'{"collections": {"a": 1}, "systems": {"s": {"results": {"a": {"nDCG@10": "x"}}}}}'])
def test_results_that_are_none(bare, tmp_path, data):
  put(tmp_path, {"results/results.json": data})
  results = tmp_path / "results"
  assert message(bare, lambda path: convert(path, tmp_path / "out", "sentence-transformers", results=results),
                 whole=False).startswith(f"{tmp_path}/results/results.json: ")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value, kind, good", [
    (3, int, True), (3.0, int, True), (3.5, int, False), (float("nan"), int, False), (True, int, False),
    (float("nan"), float, False), (float("inf"), float, False), (2, float, True), ("a", str, True),
    ("\ud800", str, False), (None, str, False)])
def test_fields(value, kind, good):
  fields = foreign_json.Fields(epath.Path("x.json"), {"a": value})
  if good:
    assert fields.get("a", kind) == value and type(fields.get("a", kind)) in (kind, int)
  else:
    assert message("a", lambda name: fields.get(name, kind), whole=False).startswith("x.json: a is ")


def test_safetensors_of_others_have_headers_of_others(bare):
  """Metadata of other frameworks changes nothing."""
  found = safetensors.numpy.load_file(bare / "model.safetensors")
  safetensors.numpy.save_file(found, bare / "model.safetensors", metadata={"format": "mlx", "x": "y"})
  assert any_form.open_foreign(bare).encoder == DualEncoder(GATED, projection_dim=None)
