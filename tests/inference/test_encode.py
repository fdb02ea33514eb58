"""Embeddings do not depend on batches, padding, order or the mesh; encoding a corpus goes on where it stopped."""

import contextlib
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from tiny_model_dir import corpus, sentence, write_model_dir

from gtr_jax.errors import InputError
from gtr_jax.inference import embed, row_queue
from gtr_jax.inference.load import load_model
from gtr_jax.models import attention_kernel
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.retrieval import encode, quantization, store
from gtr_jax.retrieval.encode import embed_queries, encode_corpus
from gtr_jax.text.packing import Texts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return write_model_dir(tmp_path_factory.mktemp("encode") / "run", seeds=(0, 1), shared=False)


@pytest.fixture
def small_batches(monkeypatch):
  monkeypatch.setattr(row_queue, "CPU_TOKENS_PER_BATCH", 64)
  monkeypatch.setattr(store, "CHUNK_ROWS", 10)


def loaded(run, *shape, step=1):
  devices = jax.devices()[:int(np.prod(shape))]
  return load_model(run / "checkpoints" / str(step), make_mesh(*shape, devices=devices))


@functools.partial(jax.jit, static_argnames=("encoder", "tower"))
def alone(encoder, params, texts, tower):
  return encoder.encode(params, texts, 1, tower=tower)


def one_by_one(model, texts, tower, max_length):
  """Each text alone in one row, without padding, in the order given."""
  rows = []
  for text in texts:
    tokens = model.tokenizer.encode([text], max_length)[0][None, None]
    rows.append(alone(model.encoder, model.params, Texts(tokens, np.ones_like(tokens)), tower)[0, 0])
  return np.stack(rows)


TEXTS = [sentence(i, n) for i, n in enumerate([3, 30, 1, 12, 30, 7, 2, 12, 25])]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_embeddings_equal_those_of_each_text_alone(run, small_batches, shape):
  model = loaded(run, *shape)
  found = embed.embed(model, TEXTS, "passage", progress=False)
  assert found.dtype == np.float32
  assert found.shape == (len(TEXTS), 8)
  np.testing.assert_allclose(found[:4], one_by_one(loaded(run, 1), TEXTS[:4], "passage", 32), rtol=0, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
  queries = embed.embed(model, TEXTS[:1], "query", progress=False)
  assert np.abs(queries - found[:1]).max() > 1e-3  # The other tower.


def test_lengths_and_prompts_are_the_models(run):
  model = loaded(run, 1)
  long = sentence(1, 40)
  query = embed.embed(model, [long], "query", progress=False)
  cut = embed.embed(model, [long], "query", max_length=8, progress=False)
  assert np.abs(query - cut).max() > 1e-3
  np.testing.assert_allclose(query, one_by_one(model, [long], "query", 16), atol=1e-5)
  prompted = loaded(run, 1)
  prompted.prompts["query"] = "lion "
  np.testing.assert_allclose(embed.embed(prompted, ["zebra"], "query", progress=False),
                             one_by_one(model, ["lion zebra"], "query", 16), atol=1e-5)


def test_few_programs_for_all_lengths(run, monkeypatch):
  monkeypatch.setattr(row_queue, "CPU_TOKENS_PER_BATCH", 128)
  model = loaded(run, 1)
  tokens = [np.full(length, 5, np.int32) for length in np.random.default_rng(0).integers(1, 100, 300)]
  embed.encode_packed.clear_cache()
  for params in (model.params, jax.tree.map(lambda x: x * 2, model.params)):  # As between evaluations in training.
    embed.embed_tokens(model.encoder, params, tokens, "query", 100, model.mesh)
  assert embed.encode_packed._cache_size() <= 2  # and a single row


@pytest.mark.parametrize("groups", [1, 2])
def test_batches_hold_every_text_once_where_they_say(groups, monkeypatch):
  monkeypatch.setattr(row_queue, "CPU_TOKENS_PER_BATCH", 128)
  monkeypatch.setattr(row_queue, "LONGEST_IN_SHORT_ROWS", 32)
  rng = np.random.default_rng(0)
  tokens = [rng.integers(1, 99, n).astype(np.int32) for n in (*rng.integers(1, 40, 60), 70, 64, 32, 33, 1)]
  found = {}
  shapes = set()
  for batch in embed._batches(tokens, max_length=70, groups=groups, on_cpu=True):
    shapes.add(batch.texts.tokens.shape)
    assert batch.texts.tokens[0].size <= 128
    for number, place in zip(batch.numbers, batch.places, strict=True):
      group, text = divmod(place, batch.num_texts)
      assert number not in found
      found[number] = batch.texts.tokens[group][batch.texts.segment_ids[group] == 1 + text]
      # A text is in one piece of one row.
      rows, columns = np.nonzero(batch.texts.segment_ids[group] == 1 + text)
      assert len(set(rows)) == 1 and np.all(np.diff(columns) == 1)
    np.testing.assert_array_equal(batch.texts.segment_ids == 0, batch.texts.tokens == 0)
  for number, text in enumerate(tokens):
    np.testing.assert_array_equal(found[number], text)
  assert {shape[-1] for shape in shapes} == {40, 72, 80}  # made for 32, 64 and 70 tokens
  assert len(shapes) <= 6


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_a_batch_size_bounds_the_texts_at_once(groups, batch_size, monkeypatch):
  monkeypatch.setattr(row_queue, "CPU_TOKENS_PER_BATCH", 512)
  rng = np.random.default_rng(0)
  tokens = [rng.integers(1, 99, n).astype(np.int32) for n in (*rng.integers(1, 10, 60), *rng.integers(30, 64, 60))]
  batches = list(embed._batches(tokens, 64, groups, True, batch_size))
  assert sorted(number for batch in batches for number in batch.numbers) == list(range(120))
  for batch in batches:
    assert len(batch.numbers) <= batch_size
    for number, place in zip(batch.numbers, batch.places, strict=True):
      group, text = divmod(place, batch.num_texts)
      np.testing.assert_array_equal(batch.texts.tokens[group][batch.texts.segment_ids[group] == 1 + text],
                                    tokens[number])
  rows = {batch.texts.tokens.shape[1] for batch in batches}
  assert len(rows) <= 2 and max(rows) <= max(batch_size // groups, 1)
  if batch_size == 100 * groups:
    assert max(rows) == 512 // 72  # As without a batch size.


def test_short_texts_fill_the_rows():
  rng = np.random.default_rng(0)
  tokens = [np.ones(n, np.int32) for n in rng.integers(2, 256, 3000)]
  slots = sum(batch.texts.tokens.size for batch in embed._batches(tokens, 256, 1, on_cpu=True))
  assert sum(map(len, tokens)) / slots > 0.97


class Planned(embed.EmbeddingStream):
  """Of so many groups on a TPU, which are not here: counts what would be computed."""

  def __init__(self, groups, max_length):
    super().__init__(None, None, "passage", max_length, make_mesh(devices=jax.devices()[:1]), None)
    self._groups, self._waiting = range(groups), row_queue.RowQueue(max_length, on_cpu=False)
    self.slots, self.numbers, self.shapes = 0, [], set()

  def run(self, batch):
    self.slots += batch.texts.tokens.size
    self.numbers += batch.numbers.tolist()
    self.shapes.add(batch.texts.tokens.shape)
    assert (batch.places < batch.num_texts * len(self._groups)).all()


@pytest.mark.parametrize("groups", [8, 64, 256])
@pytest.mark.parametrize("texts, max_length", [(8192, 256), (40_000, 512)])
def test_batches_are_full_on_any_number_of_devices(groups, texts, max_length):
  """However the texts come; a store's chunks are of 8,192."""
  lengths = np.minimum(np.random.default_rng(0).gamma(2, 77 / 2, texts).astype(int) + 1, max_length)
  stream = Planned(groups, max_length)
  for first in range(0, texts, 8192):
    stream.add([np.ones(n, np.int32) for n in lengths[first:first + 8192]], range(first, min(first + 8192, texts)))
  stream.flush()
  assert sorted(stream.numbers) == list(range(texts))
  assert lengths.sum() / stream.slots > 0.95
  assert len(stream.shapes) <= 4


def test_a_store_holds_what_embed_gives(run, small_batches, tmp_path):
  model, documents = loaded(run, 2), corpus(25)
  made = encode_corpus(model, documents, tmp_path / "store", progress=False)
  assert made.shape == (25, 8)
  assert made.ids == sorted(documents.ids, reverse=True)
  row = {doc_id: i for i, doc_id in enumerate(documents.ids)}
  expected = embed.embed(model, [documents.full_texts()[row[doc_id]] for doc_id in made.ids], "passage", progress=False)
  np.testing.assert_allclose(made[0:25], expected, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_store_of_shorter_vectors(run, small_batches, tmp_path, normalize):
  """Cut, and normalised after that; queries likewise."""
  model, documents = loaded(run, 2), corpus(12)
  model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, normalize=normalize))
  whole = encode_corpus(model, documents, tmp_path / "whole", progress=False)[0:12].astype(np.float64)
  made = encode_corpus(model, documents, tmp_path / "store", progress=False, dimensions=5)
  lengths = np.linalg.norm(whole[:, :5], axis=1)
  expected = whole[:, :5] / lengths[:, None] if normalize else whole[:, :5]
  np.testing.assert_allclose(made[0:12], expected, atol=1e-5)
  if not normalize:
    np.testing.assert_allclose(made.norms(slice(0, 12)), lengths, rtol=1e-5)
  queries = embed.embed(model, TEXTS, "query", progress=False)[:, :5]
  expected = queries / np.linalg.norm(queries, axis=1, keepdims=True) if normalize else queries
  np.testing.assert_allclose(embed_queries(model, TEXTS, made, progress=False), expected, atol=1e-6)
  with pytest.raises(InputError, match="--dimensions 9: the vectors have 8"):
    encode_corpus(model, documents, tmp_path / "long", progress=False, dimensions=9)


def test_an_int8_store_goes_on_with_its_scales(run, small_batches, tmp_path, monkeypatch):
  model, documents = loaded(run, 1), corpus(25)
  whole = encode_corpus(model, documents, tmp_path / "whole", progress=False)[0:25]
  real, calls = store.StoreWriter.write_chunk, []

  def dies_in_the_second(writer, rows, *arrays):
    calls.append(rows)
    if len(calls) == 2:
      raise KeyboardInterrupt
    real(writer, rows, *arrays)

  monkeypatch.setattr(store.StoreWriter, "write_chunk", dies_in_the_second)
  for _ in range(2):
    with contextlib.suppress(KeyboardInterrupt):
      made = encode_corpus(model, documents, tmp_path / "store", progress=False, precision="int8")
    monkeypatch.setattr(store.StoreWriter, "fit", None)  # Once is enough.
  assert calls == [range(10), range(10, 20), range(10, 20), range(20, 25)]
  np.testing.assert_allclose(made.quantizer.fitted, np.abs(whole).max(axis=0) / 127, rtol=1e-5)
  np.testing.assert_allclose(made[0:25], whole, atol=made.quantizer.fitted.max())
  with pytest.raises(InputError, match="holds int8 vectors, not float32"):
    encode_corpus(model, documents, tmp_path / "store", progress=False)


@pytest.mark.parametrize("sample", [8192, 7])
def test_the_sample_of_a_binary_store_is_embedded_once(run, small_batches, tmp_path, monkeypatch, sample):
  model, documents = loaded(run, 2), corpus(25)
  whole = encode_corpus(model, documents, tmp_path / "whole", progress=False)
  real, texts = encode.tokenize, []
  monkeypatch.setattr(encode, "tokenize", lambda model, of, *rest: texts.extend(of) or real(model, of, *rest))
  monkeypatch.setitem(quantization.SAMPLE_ROWS, "binary", sample)
  made = encode_corpus(model, documents, tmp_path / "store", progress=False, precision="binary")
  assert len(texts) == max(25 - sample, 0)
  apart = np.unpackbits(made.codes(slice(0, 25)) ^ made.quantizer.encode(whole[0:25]), axis=1)
  assert apart.mean() < 0.01  # Numbers next to a threshold, of texts among others.
  np.testing.assert_allclose(made.norms(slice(0, 25)), whole.norms(slice(0, 25)), rtol=1e-5)


def test_goes_on_at_the_first_missing_chunk(run, small_batches, tmp_path, monkeypatch):
  model, documents = loaded(run, 1), corpus(25)
  whole = encode_corpus(model, documents, tmp_path / "whole", progress=False)
  real, calls = store.StoreWriter.write_chunk, []

  def dies_in_the_second(writer, rows, *arrays):
    calls.append(rows)
    if len(calls) == 2:
      (writer.path / ".embeddings-00001.npy.tmp").write_bytes(b"half")
      raise KeyboardInterrupt
    real(writer, rows, *arrays)

  monkeypatch.setattr(store.StoreWriter, "write_chunk", dies_in_the_second)
  with pytest.raises(KeyboardInterrupt):
    encode_corpus(model, documents, tmp_path / "store", progress=False)
  with pytest.raises(InputError, match="not complete; run the same command again"):
    store.Store(tmp_path / "store")
  first = (tmp_path / "store" / "embeddings-00000.npy").stat().st_mtime_ns
  encode_corpus(model, documents, tmp_path / "store", progress=False)
  assert calls == [range(10), range(10, 20), range(10, 20), range(20, 25)]
  assert (tmp_path / "store" / "embeddings-00000.npy").stat().st_mtime_ns == first
  again = encode_corpus(model, documents, tmp_path / "store", progress=False)
  assert len(calls) == 4
  np.testing.assert_allclose(again[0:25], whole[0:25], atol=1e-6)  # In other rows, among other texts.


def test_a_folder_of_anything_else_is_refused_and_left_alone(run, small_batches, tmp_path):
  model, documents = loaded(run, 1), corpus(12)
  place = tmp_path / "store"
  encode_corpus(model, documents, place, progress=False)
  before = {p.name: p.read_bytes() for p in place.iterdir()}
  with pytest.raises(InputError, match="holds another model's embeddings"):
    encode_corpus(loaded(run, 1, step=2), documents, place, progress=False)
  with pytest.raises(InputError, match="embeddings of another maximum length"):
    encode_corpus(model, documents, place, max_length=8, progress=False)
  with pytest.raises(InputError, match="the embeddings of other documents"):
    encode_corpus(model, corpus(11), place, progress=False)
  assert {p.name: p.read_bytes() for p in place.iterdir()} == before
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "todo.txt").write_text("x")
  with pytest.raises(InputError, match="exists and is not an embedding store"):
    encode_corpus(model, documents, tmp_path / "notes", progress=False)
  assert [p.name for p in (tmp_path / "notes").iterdir()] == ["todo.txt"]


def test_embeddings_that_are_not_finite(run, tmp_path):
  model = loaded(run, 1)
  model.params["passage"]["projection_layer"]["kernel"] = np.full((16, 8), np.nan, np.float32)
  with pytest.raises(InputError, match=r"its embedding of 'd\d' is not finite"):
    encode_corpus(model, corpus(3), tmp_path / "store", progress=False)
  assert json.loads((tmp_path / "store" / "manifest.json").read_text())["documents"] == 3
  assert not (tmp_path / "store" / "COMPLETE").exists()


def test_the_kernel_s_first_batch_is_held_against_the_reference(tmp_path, monkeypatch, capsys):
  run = write_model_dir(tmp_path / "run", num_heads=8, head_dim=16)
  monkeypatch.setattr(jax, "shard_map", lambda f, **specs: f)  # On one device; see test_equality.py.
  monkeypatch.setattr(attention_kernel, "INTERPRET", True)
  one = make_mesh(devices=jax.devices()[:1])
  reference, model = load_model(run, one), load_model(run, one, attention="kernel")
  assert model.weights_hash == reference.weights_hash  # One store for both.
  found = embed.embed(model, TEXTS, "passage", progress=False)
  np.testing.assert_allclose(found, embed.embed(reference, TEXTS, "passage", progress=False), rtol=0, atol=1e-6)
  training = dataclasses.replace(model.encoder, config=dataclasses.replace(model.encoder.config, dtype="auto"))
  np.testing.assert_array_equal(
      embed.embed(dataclasses.replace(model, encoder=training), TEXTS, "passage", progress=False), found)
  assert "attention" not in capsys.readouterr().err
  right = attention_kernel.bias_tiles
  monkeypatch.setattr(attention_kernel, "bias_tiles", lambda *args: 2 * right(*args))
  jax.clear_caches()
  with pytest.raises(InputError, match="--attention: on .* embeddings of the first batch differ by"):
    embed.embed(model, TEXTS, "passage", progress=False)
  with pytest.raises(InputError, match="attention is 'flash': give one of auto, reference, kernel"):
    load_model(run, one, attention="flash")
  monkeypatch.setattr(attention_kernel, "INTERPRET", False)
  load_model(run, one, attention="kernel")
  assert capsys.readouterr().err == "attention is computed by the reference, not the kernel: it is for TPUs\n"
