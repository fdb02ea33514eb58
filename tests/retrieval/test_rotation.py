"""The rotation of binary vectors: what is fitted, against the formulas in float64, and what it is good for."""

import numpy as np
import pytest

from gtr_jax.retrieval import rotation
from gtr_jax.retrieval.quantization import Quantizer, fit
from gtr_jax.retrieval.rotation import fit_rotation


def anisotropic(rng, rows, dim=64):
  """Vectors of length 1 that are not centred, and whose dimensions are of unequal widths, as those of models."""
  widths = 1 / np.arange(1, dim + 1) ** 0.3
  vectors = rng.standard_normal((rows, dim)) * widths + np.linspace(-3, 3, dim) * np.sqrt(np.square(widths).mean())
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("rows", "dim"), [(500, 32), (20, 32), (33, 32), (1, 8), (2, 16)])
def test_is_orthogonal_also_of_fewer_vectors_than_dimensions(rows, dim):
  sample = anisotropic(np.random.default_rng(rows), rows, dim)
  fitted = fit_rotation(sample)
  assert fitted.shape == (dim + 1, dim) and fitted.dtype == np.float32 and fitted.flags.c_contiguous
  turn = fitted[:-1].astype(np.float64)
  np.testing.assert_allclose(turn.T @ turn, np.eye(dim), atol=1e-5)
  np.testing.assert_allclose(fitted[-1], sample.mean(0, dtype=np.float64) @ turn, atol=1e-6)
  np.testing.assert_array_equal(fit_rotation(sample), fitted)


@pytest.mark.parametrize("value", [0, 0.25])
def test_of_vectors_that_are_all_the_same(value):
  fitted = fit_rotation(np.full((5, 8), value, np.float32))
  np.testing.assert_allclose(fitted[:-1].T @ fitted[:-1], np.eye(8), atol=1e-6)
  codes = Quantizer("binary", 8, fitted).encode(np.full((5, 8), value, np.float32))
  assert len({*codes[:, 0].tolist()}) == 1


def test_each_round_brings_the_sample_nearer_to_its_corners(monkeypatch):
  """And is the formula's: of all rotations the nearest to B is U V^T."""
  sample = anisotropic(np.random.default_rng(0), 400, 16)
  centred, distances, turns = sample - sample.mean(0, dtype=np.float64), [], []
  for rounds in range(8):
    monkeypatch.setattr(rotation, "_ROUNDS", rounds)
    turns.append(fit_rotation(sample)[:-1].astype(np.float64))
    turned = centred @ turns[-1]
    # The cube that is as large as the vectors.
    distances.append(np.square(turned / np.abs(turned).mean() - np.where(turned > 0, 1, -1)).mean())
  assert (np.diff(distances) < 1e-9).all() and distances[-1] < 0.9 * distances[0]
  for before, after in zip(turns, turns[1:], strict=False):
    left, _, right = np.linalg.svd(centred.T @ np.where(centred @ before > 0, 1.0, -1.0))
    np.testing.assert_allclose(after, left @ right, atol=1e-4)


def test_codes_by_the_formula():
  rng = np.random.default_rng(1)
  vectors, queries = anisotropic(rng, 300, 32), rng.standard_normal((5, 32)).astype(np.float32)
  kept = fit("binary", vectors)
  turn, thresholds = kept.fitted[:-1].astype(np.float64), kept.fitted[-1].astype(np.float64)
  above = vectors.astype(np.float64) @ turn > thresholds
  codes = kept.encode(vectors)
  np.testing.assert_array_equal(codes, np.packbits(above, axis=1))
  assert abs(above.mean() - 0.5) < 0.1  # A bit tells documents apart.
  signs = np.where(above, 1.0, -1.0)
  np.testing.assert_allclose(kept.decode(codes), signs @ turn.T, atol=1e-5)
  # What stands for a document has with queries the products that they are ranked by.
  words, turned = kept.query_codes(queries)
  np.testing.assert_allclose(turned, queries.astype(np.float64) @ turn, atol=1e-5)
  np.testing.assert_array_equal(words, np.packbits(queries.astype(np.float64) @ turn > 0, axis=1).view("<u4"))
  np.testing.assert_allclose(turned @ signs.T, queries @ kept.decode(codes).T, atol=1e-4)


def test_equal_vectors_have_equal_codes_in_blocks_of_any_size():
  """A library's sums depend on how many there are."""
  rng = np.random.default_rng(2)
  vectors = anisotropic(rng, 3000, 96)
  kept = fit("binary", vectors[:500])
  whole = kept.encode(vectors)
  _, queries = kept.query_codes(vectors)
  for size in (1, 7, 1000):
    start = 2 * size
    np.testing.assert_array_equal(kept.encode(vectors[start:start + size]), whole[start:start + size])
    np.testing.assert_array_equal(kept.query_codes(vectors[start:start + size])[1], queries[start:start + size])


@pytest.mark.parametrize("sample", [4000, 1000])
def test_keeps_more_than_signs_of_vectors_as_they_are(sample):
  rng = np.random.default_rng(3)
  documents = anisotropic(rng, 4000)
  queries = documents[:200] + 0.05 * rng.standard_normal((200, 64)).astype(np.float32)
  expected = np.argsort(-queries @ documents.T, axis=1)[:, :10]

  def share(kept):
    """Of the ten best documents those that are found."""
    found = np.argsort(-queries @ kept.decode(kept.encode(documents)).T, axis=1)[:, :10]
    return np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])

  plain, ours = (share(kept) for kept in (Quantizer("binary", 64, np.eye(65, 64, dtype=np.float32)),
                                          fit("binary", documents[:sample])))
  assert ours > 1.5 * plain > 0.1
