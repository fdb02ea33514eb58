"""Search against FAISS's flat index."""

import faiss
import jax
import numpy as np
import pytest

from gtr_jax.retrieval import search
from gtr_jax.retrieval.quantization import Quantizer, fit
from gtr_jax.retrieval.search import Searcher

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("devices", [1, 8])
def test_equals_the_flat_index_on_100000_vectors(devices, monkeypatch):
  """Equal scores, and equal rows wherever scores differ; a tenth of the vectors is there twice."""
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 65_536 // devices)  # More than one block.
  rng = np.random.default_rng(0)
  corpus = rng.normal(size=(100_000, 64)).astype(np.float32)
  corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
  corpus[90_000:] = corpus[:10_000]
  queries = rng.normal(size=(200, 64)).astype(np.float32)
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  index = faiss.IndexFlatIP(64)
  index.add(corpus)
  expected_scores, expected = index.search(queries, 100)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), ("data",))
  scores, rows = Searcher(corpus, mesh).search(queries, 100)
  np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)

  # Rows whose score differs from both neighbours' by more than rounding, and that no cut through a tie decides.
  gaps = np.abs(np.diff(expected_scores, axis=1)) > 1e-6
  edge = np.zeros((len(queries), 1), bool)
  alone = np.concatenate([~edge, gaps], axis=1) & np.concatenate([gaps, edge], axis=1)
  assert alone.mean() > 0.5
  np.testing.assert_array_equal(rows[alone], expected[alone])

  # The twins tie exactly and come in the order of their rows, which FAISS does not promise.
  twins = (np.diff(rows, axis=1) == 90_000) & (np.diff(scores, axis=1) == 0)
  assert twins.sum() > 1000
  assert not (np.diff(rows, axis=1)[np.diff(scores, axis=1) == 0] < 0).any()


def unit(rng, rows, dim=64):
  vectors = rng.normal(size=(rows, dim)).astype(np.float32)
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Codes:
  def __init__(self, vectors, precision, quantizer=None):
    self.quantizer = quantizer or fit(precision, vectors)
    self.all, self.shape = self.quantizer.encode(vectors), vectors.shape

  def codes(self, rows):
    return self.all[rows]


@pytest.mark.parametrize("devices", [1, 8])
def test_int8_equals_the_scalar_quantizer(devices, monkeypatch):
  """The candidates those of its products of int8; the results those of its flat index of what the codes stand for."""
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 8192 // devices)
  rng = np.random.default_rng(1)
  corpus, queries = unit(rng, 20_000), unit(rng, 100)
  codes = Codes(corpus, "int8")
  index = faiss.IndexScalarQuantizer(64, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
  index.add(codes.all.astype(np.float32))
  query_codes, _ = codes.quantizer.query_codes(queries)
  products, _ = index.search(query_codes.astype(np.float32), 40)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), ("data",))
  _, rows = Searcher(codes, mesh, rescore=1).search(queries, 40)
  ours = np.einsum("qd,qkd->qk", query_codes.astype(np.int32), codes.all[rows].astype(np.int32))
  np.testing.assert_array_equal(-np.sort(-ours), products)

  index = faiss.IndexFlatIP(64)
  index.add(codes.quantizer.decode(codes.all))
  expected_scores, expected = index.search(queries, 10)
  scores, rows = Searcher(codes, mesh).search(queries, 10)
  np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)
  assert (rows == expected).mean() > 0.999

  # And as it quantises itself, of each dimension the range, with as many bits.
  index = faiss.IndexScalarQuantizer(64, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
  index.train(corpus)
  index.add(corpus)
  _, flat = Searcher(corpus, mesh).search(queries, 10)

  def share(found):
    return np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), flat.tolist(), strict=True)])

  assert share(rows) > share(index.search(queries, 10)[1]) - 0.02 > 0.9


@pytest.mark.parametrize("devices", [1, 8])
def test_binary_equals_the_binary_index_and_its_rescoring(devices, monkeypatch):
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 8192 // devices)
  rng = np.random.default_rng(2)
  corpus, queries = unit(rng, 20_000), unit(rng, 100)
  # As these two have them: signs of vectors as they are.
  as_they_are = np.eye(65, 64, dtype=np.float32)
  codes = Codes(corpus, "binary", Quantizer("binary", 64, as_they_are))
  index = faiss.IndexBinaryFlat(64)
  index.add(codes.all)
  query_bits = np.packbits(queries > 0, axis=1)
  distances, _ = index.search(query_bits, 40)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), ("data",))
  _, rows = Searcher(codes, mesh, rescore=1).search(queries, 40)
  ours = np.unpackbits(codes.all[rows] ^ query_bits[:, None], axis=2).sum(-1)
  np.testing.assert_array_equal(np.sort(ours, axis=1), distances)

  quantization = pytest.importorskip("sentence_transformers.quantization")
  np.testing.assert_array_equal(quantization.quantize_embeddings(corpus, "ubinary"), codes.all)
  found, _ = quantization.semantic_search_faiss(queries, corpus_embeddings=codes.all, corpus_precision="ubinary",
                                                top_k=10, rescore=True, rescore_multiplier=4, exact=True)
  _, rows = Searcher(codes, mesh).search(queries, 10)
  theirs = [{hit["corpus_id"] for hit in hits} for hits in found]
  # Of candidates at the same distance at the cut each takes others.
  assert np.mean([len({*a} & b) / 10 for a, b in zip(rows.tolist(), theirs, strict=True)]) > 0.9
