"""Search against FAISS's flat index."""

import faiss
import jax
import numpy as np
import pytest

from gtr_jax.retrieval import search
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
