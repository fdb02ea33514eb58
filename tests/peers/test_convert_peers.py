"""Exported folders in sentence-transformers, and folders that transformers and sentence-transformers wrote, here."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from etils import epath
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from test_convert import GATED, change, written
from test_convert_refused import PROMPTS
from tiny_model_dir import sentence, tiny_encoder, write_vocabulary

import gtr_jax
from gtr_jax.errors import InputError
from gtr_jax.formats import any_form
from gtr_jax.formats.convert import convert
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.models.dual_encoder import DualEncoder

pytestmark = pytest.mark.peers

# 200 texts: empty, short, longer than the model reads, and with characters that are normalised or unknown.
TEXTS = [sentence(i, i * 7 % 90) for i in range(194)] + [
    "", "   ", "  two  spaces ", "Größe ﬁ ①", "☃ 雪", "tabs\tand\nlines"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return write_vocabulary(epath.Path(tmp_path_factory.mktemp("vocabulary")) / "spiece.model")


@pytest.mark.parametrize("options", [
    {}, {"config": GATED}, {"projection_dim": None, "pooling": "first"}, {"normalize": False}])
def test_an_exported_folder_embeds_the_same(tmp_path, vocabulary, options):
  encoder = DualEncoder(**{"config": tiny_encoder(vocabulary).config, "projection_dim": 8, **options})
  folder = written(tmp_path / "model", encoder, vocabulary, shard_bytes=9000)
  theirs, ours = SentenceTransformer(str(folder), device="cpu", local_files_only=True), load_model(folder)
  assert theirs.max_seq_length == 40
  ids = theirs.tokenizer(TEXTS, truncation=True, max_length=40)["input_ids"]
  assert [list(x) for x in vocabulary.encode(TEXTS, 40)] == [list(x) for x in ids]
  np.testing.assert_allclose(embed(ours, TEXTS, "passage", progress=False), theirs.encode_document(TEXTS), atol=1e-5,
                             rtol=0)
  np.testing.assert_allclose(embed(ours, TEXTS, "query", progress=False), theirs.encode_query(TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"projection_dim": None}, {"normalize": False}])
def test_fewer_dimensions_are_those_of_truncate_dim(tmp_path, vocabulary, options):
  """Which sentence-transformers normalises again where that is asked for."""
  encoder = DualEncoder(**{"config": tiny_encoder(vocabulary).config, "projection_dim": 8, **options})
  source, output = written(tmp_path / "model", encoder, vocabulary), tmp_path / "shorter"
  convert(source, output, "sentence-transformers", dimensions=5)
  whole, shorter = (SentenceTransformer(str(path), device="cpu", local_files_only=True, truncate_dim=dim)
                    for path, dim in ((source, 5), (output, None)))
  expected = whole.encode_document(TEXTS, normalize_embeddings=encoder.normalize)
  assert expected.shape[1] == 5
  np.testing.assert_allclose(shorter.encode_document(TEXTS), expected, atol=1e-5)
  np.testing.assert_allclose(embed(load_model(output), TEXTS, "passage", progress=False), expected, atol=1e-5)


def test_the_same_calls_give_the_same_numbers(tmp_path, vocabulary):
  """Written by save_pretrained, encoded by the same words in both."""
  folder = written(tmp_path / "model", DualEncoder(GATED, projection_dim=10, normalize=False), vocabulary)
  ours = gtr_jax.load(folder)
  ours.save_pretrained(tmp_path / "saved")
  theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
  for length in (None, 12):
    if length:
      ours.max_seq_length = theirs.max_seq_length = length
    assert ours.max_seq_length == theirs.max_seq_length == (length or 40)
    for options in ({}, {"normalize_embeddings": True}, {"normalize_embeddings": False, "batch_size": 7},
                    {"prompt": "lion "}, {"show_progress_bar": False, "convert_to_numpy": True}):
      for method in ("encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(ours, method)(TEXTS, **options), getattr(theirs, method)(TEXTS, **options),
                                   atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours.encode(TEXTS, prompt_name="query"), theirs.encode(TEXTS, prompt_name="query"),
                               atol=1e-5, rtol=1e-5)
  first, second = ours.encode_query(TEXTS[:4]), ours.encode_document(TEXTS[:9])
  np.testing.assert_allclose(ours.similarity(first, second), theirs.similarity(first, second), rtol=1e-5)


@pytest.mark.parametrize("fields, _", PROMPTS)
def test_prompts_are_those_of_encode_query_and_encode_document(tmp_path, vocabulary, fields, _):
  folder = written(tmp_path / "model", DualEncoder(GATED, projection_dim=None), vocabulary)
  change(folder / "config_sentence_transformers.json", **fields)
  theirs, ours = SentenceTransformer(str(folder), device="cpu", local_files_only=True), load_model(folder)
  for side, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
    np.testing.assert_allclose(embed(ours, TEXTS[1:3], side, progress=False), encode(TEXTS[1:3]), atol=1e-5, rtol=0)


def test_bytes_of_unknown_characters(tmp_path):
  vocabulary = write_vocabulary(epath.Path(tmp_path) / "bytes.model", vocab_size=400, byte_fallback=True)
  folder = written(tmp_path / "model", tiny_encoder(vocabulary), vocabulary)
  theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  assert [list(x) for x in vocabulary.encode(TEXTS, 400)] == [theirs.encode(text).ids for text in TEXTS]
  # The class of transformers reads no such flag: there these characters are unknown.
  known = [text for text in TEXTS if text.isascii()]
  ids = SentenceTransformer(str(folder), device="cpu", local_files_only=True).tokenizer(known)["input_ids"]
  assert len(known) == 198 and [list(x) for x in vocabulary.encode(known, 400)] == [list(x) for x in ids]


def test_the_slow_tokenizer_agrees(tmp_path, vocabulary):
  folder = written(tmp_path / "model", DualEncoder(GATED, projection_dim=10), vocabulary)
  (folder / "tokenizer.json").unlink()
  slow = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  assert [list(x) for x in vocabulary.encode(TEXTS, 40)] == slow(TEXTS, truncation=True, max_length=40)["input_ids"]


def their_model(kind="T5EncoderModel", **fields):
  torch.manual_seed(0)
  config = transformers.T5Config(vocab_size=152, d_model=16, d_kv=6, d_ff=20, num_layers=2, num_heads=4,
                                 dropout_rate=0.0, **fields)
  return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize("kind, fields", [
    ("T5EncoderModel", {}), ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"})])
@pytest.mark.parametrize("form", ["safetensors", "shards", "torch", "torch before 1.6"])
def test_what_transformers_saves(tmp_path, vocabulary, kind, fields, form):
  theirs, folder = their_model(kind, **fields), epath.Path(tmp_path / "t5")
  theirs.save_pretrained(folder, max_shard_size="4KB" if form == "shards" else "1GB")
  if form.startswith("torch"):
    for file in folder.glob("model*.safetensors"):
      file.unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "torch")
  (folder / "spiece.model").write_bytes(vocabulary.path.read_bytes())
  (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0, "model_max_length": 40}))
  ids = [torch.tensor(np.asarray(x))[None].long() for x in vocabulary.encode(TEXTS[:40], 40)]
  encoder = theirs if kind == "T5EncoderModel" else theirs.get_encoder()
  with torch.no_grad():
    hidden = [encoder(input_ids=x).last_hidden_state.mean(1)[0] for x in ids]
  expected = torch.nn.functional.normalize(torch.stack(hidden), dim=-1).numpy()
  np.testing.assert_allclose(embed(load_model(folder), TEXTS[:40], "passage", progress=False), expected, atol=1e-5,
                             rtol=0)


@pytest.mark.parametrize("contents, text", [
    (lambda arrays: {**arrays, "step": 3}, "step is a int, not a tensor of floating point; save the model's state_d"),
    (lambda arrays: {"state_dict": arrays}, "state_dict is a OrderedDict, not a tensor of floating point"),
    (lambda arrays: {**arrays, "encoder.ids": torch.arange(3)}, "encoder.ids is of torch.int64, not a tensor of flo"),
    (lambda arrays: {**arrays, "encoder.x": torch.tensor(1.0)}, "encoder.x belongs to no part of a T5 encoder"),
    (lambda arrays: [1], "holds a list, not tensors by name"),
    (lambda arrays: their_model(), "torch cannot read it as a file of tensors (it holds other Python objects, or is"),
])
def test_torch_files_that_hold_something_else(tmp_path, contents, text):
  theirs, place = their_model(), epath.Path(tmp_path / "t5/pytorch_model.bin")
  theirs.config.save_pretrained(place.parent)
  torch.save(contents(theirs.state_dict()), place)
  assert in_one_line(place).startswith(f"{place}: {text}")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("size, text", [(0, "is empty; copy it again"), (3, "torch cannot read it as a file of"),
                                        (3000, "torch cannot read it as a file of tensors")])
def test_torch_files_that_are_cut_short(tmp_path, size, text, zipped):
  theirs, place = their_model(), epath.Path(tmp_path / "t5/pytorch_model.bin")
  theirs.config.save_pretrained(place.parent)
  torch.save(theirs.state_dict(), place, _use_new_zipfile_serialization=zipped)
  place.write_bytes(place.read_bytes()[:size])
  assert in_one_line(place).startswith(f"{place}: {text}")


def in_one_line(place):
  with pytest.raises(InputError) as e:
    any_form.open_foreign(place.parent)
  assert str(e.value).isprintable()
  return str(e.value)


def test_what_sentence_transformers_saves(tmp_path, vocabulary):
  """Its own files, as version 6 writes them, of a model with a projection and prompts."""
  first = written(tmp_path / "model", DualEncoder(GATED, projection_dim=10), vocabulary)
  transformer = modules.Transformer(str(first), max_seq_length=40)
  dense = modules.Dense(16, 10, bias=False, activation_function=torch.nn.Identity())
  theirs = SentenceTransformer(modules=[transformer, modules.Pooling(16, "mean"), dense, modules.Normalize()],
                               device="cpu", prompts={"query": "ask: ", "document": ""})
  theirs.save(str(tmp_path / "saved"))
  folder = epath.Path(tmp_path / "saved")
  assert not (folder / "spiece.model").exists()  # transformers 5 leaves it out where there is a fast tokenizer.
  found = any_form.open_foreign(folder)
  assert found.prompts == {"query": "ask: ", "document": ""}
  assert found.lengths == {"query": 40, "document": 40}
  np.testing.assert_allclose(embed(load_model(folder), TEXTS, "query", progress=False), theirs.encode_query(TEXTS),
                             atol=1e-5, rtol=0)
