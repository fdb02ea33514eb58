"""int8 and binary vectors: what is kept of them, and what a search finds, against formulas in NumPy."""

import jax
import numpy as np
import pytest

from gtr_jax.errors import InputError
from gtr_jax.retrieval import search
from gtr_jax.retrieval.quantization import Quantizer, check, fit, scales_of, shortened
from gtr_jax.retrieval.search import Searcher


class Codes:
  """As a store has them, in memory."""

  def __init__(self, vectors, precision, quantizer=None):
    self.quantizer, self.shape = quantizer or fit(precision, vectors), vectors.shape
    self.all = self.quantizer.encode(vectors)

  def codes(self, rows):
    return self.all[rows]


def mesh_of(*shape):
  axes = ("data", "fsdp", "model")[:len(shape)]
  return jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
                       devices=jax.devices()[:np.prod(shape)])


@pytest.fixture(params=["host", "devices"])
def where(request, monkeypatch):
  """Where the best are chosen: on CPUs the host, elsewhere the devices."""
  monkeypatch.setattr(search, "_on_host", lambda mesh: request.param == "host")


def swapped(dim):
  """A rotation by which products are as exact as without: numbers in another order, every other one negative."""
  turn = np.eye(dim, dtype=np.float32)[np.random.default_rng(dim).permutation(dim)]
  turn[:, ::2] *= -1
  return Quantizer("binary", dim, np.concatenate([turn, np.linspace(-0.1, 0.1, dim, dtype=np.float32)[None]]))


def best(scores, k, rows=None):
  """(scores, rows) of the best, ties by row."""
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  rows = order if rows is None else np.take_along_axis(rows, order, 1)
  return np.take_along_axis(scores, order, 1), rows


def by_formula(codes, queries, k, rescore):
  """Both stages, in whole numbers and float64."""
  quantizer = codes.quantizer
  if quantizer.precision == "int8":
    scaled = queries.astype(np.float64) * quantizer.fitted
    most = np.abs(scaled).max(1, keepdims=True)
    products = np.rint(scaled / np.where(most > 0, most, 1) * 127) @ codes.all.T.astype(np.float64)
    vectors = codes.all.astype(np.float64) * quantizer.fitted
  else:
    vectors = np.where(np.unpackbits(codes.all, axis=1), 1.0, -1.0)
    queries = queries @ quantizer.fitted[:-1].astype(np.float64)
    products = -(np.where(queries > 0, 1, -1)[:, None] != vectors).sum(-1)
  _, candidates = best(products, k * rescore)
  candidates = np.sort(candidates, axis=1)
  return best(np.take_along_axis(queries.astype(np.float64) @ vectors.T, candidates, 1), k, candidates)


def of_the_kind(precision, rng, rows, dim):
  """Numbers whose products are exact in float32, so that ties are ties; every third row is there twice."""
  vectors = rng.integers(-3, 4, (rows, dim)).astype(np.float32) / 8
  vectors[:2] = 127 / 256  # So that the scales are powers of two.
  vectors[2::3] = vectors[1:-1:3][:len(vectors[2::3])]
  return vectors


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("precision", ["int8", "binary"])
@pytest.mark.parametrize("mesh", [(1,), (4, 1, 2), (7,)])
@pytest.mark.parametrize(("rows", "dim", "k", "rescore"), [(1000, 40, 10, 4), (700, 64, 150, 2), (5, 8, 10, 4),
                                                           (900, 32, 7, 1)])
def test_equals_the_formula_on_any_mesh(precision, mesh, rows, dim, k, rescore, monkeypatch):
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 64)  # Several blocks, the last not full.
  rng = np.random.default_rng(rows)
  codes = Codes(of_the_kind(precision, rng, rows, dim), precision, swapped(dim) if precision == "binary" else None)
  queries = rng.integers(-127, 128, (11, dim)).astype(np.float32) / 128
  queries[:, 0] = 127 / 128  # A query's scale is exact too.
  scores, found = Searcher(codes, mesh_of(*mesh), rescore=rescore).search(queries, k)
  expected_scores, expected = by_formula(codes, queries, k, rescore)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))
  assert rows < k or (np.diff(scores, axis=1) == 0).any()  # There were ties to get wrong.


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("precision", ["int8", "binary"])
@pytest.mark.parametrize("rows", [range(100, 700), range(250, 257), range(40)])
def test_some_rows_are_searched_as_if_there_were_no_others(precision, rows, monkeypatch):
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 64)
  rng = np.random.default_rng(0)
  codes = Codes(of_the_kind(precision, rng, 1000, 32), precision, swapped(32) if precision == "binary" else None)
  part = Codes(np.zeros((1000, 32), np.float32), precision, codes.quantizer)
  part.all = codes.all[rows.start:rows.stop]
  queries = rng.integers(-127, 128, (11, 32)).astype(np.float32) / 128
  queries[:, 0] = 127 / 128
  scores, found = Searcher(codes, mesh_of(4)).search(queries, 20, rows=rows)
  expected_scores, expected = by_formula(part, queries, 20, 4)
  np.testing.assert_array_equal(found, expected + rows.start)
  np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_the_mesh_and_the_blocks_change_no_bit(precision, monkeypatch):
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((1500, 72)).astype(np.float32)
  vectors[1000:] = vectors[:500]
  codes, queries = Codes(vectors, precision), rng.standard_normal((20, 72)).astype(np.float32)
  expected_scores, expected = Searcher(codes, mesh_of(1)).search(queries, 30)
  twins = (np.diff(expected_scores, axis=1) == 0) & (np.diff(expected, axis=1) == 1000)
  assert twins.sum() > 100
  monkeypatch.setattr(search, "MAX_QUERIES", 8)
  for block, shape in ((32, (8,)), (96, (3,)), (500, (2, 2))):
    monkeypatch.setattr(search, "MAX_BLOCK_ROWS", block)
    scores, found = Searcher(codes, mesh_of(*shape), keep=False).search(queries, 30)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, expected_scores)


def test_int8_is_near_float32():
  """A step of rint is 1/127 of the largest value; of unit vectors scores are off by less than that."""
  rng = np.random.default_rng(1)
  vectors, queries = (rng.standard_normal((n, 96)).astype(np.float32) for n in (3000, 30))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  codes = Codes(vectors, "int8")
  assert np.abs(codes.quantizer.decode(codes.all) - vectors).max() <= codes.quantizer.fitted.max() / 2 * 1.001
  exact, exact_rows = Searcher(vectors, mesh_of(2)).search(queries, 10)
  scores, rows = Searcher(codes, mesh_of(2)).search(queries, 10)
  np.testing.assert_allclose(scores, exact, atol=0.01)
  assert np.mean([len({*a} & {*b}) for a, b in zip(rows.tolist(), exact_rows.tolist(), strict=True)]) > 9


def test_codes():
  vectors = np.float32([[1, -2, 0, 0], [-0.5, 4, 0, 1e-9]])
  scales = scales_of(vectors)
  np.testing.assert_array_equal(scales, np.float32([1, 4, 4, 1e-9]) / np.float32(127))
  int8 = Quantizer("int8", 4, scales)
  np.testing.assert_array_equal(int8.encode(np.float32([[1, -2, 0, 0], [-0.5, 9, 1, 0]])),
                                np.int8([[127, -64, 0, 0], [-64, 127, 32, 0]]))  # 63.5 is rounded to even.
  np.testing.assert_array_equal(scales_of(np.zeros((3, 2))), np.float32([1, 1]) / np.float32(127))
  assert (scales_of(np.float32([[1e-44, 2]])) > 0.01).all()
  binary = Quantizer("binary", 16, np.eye(17, 16, dtype=np.float32))
  codes = binary.encode(np.float32([[1, -1, 0, 0, 0, 0, 0, 1] + [-1] * 7 + [2]]))
  assert (codes.tolist(), binary.num_bytes, int8.num_bytes) == ([[129, 1]], 2, 4)
  assert binary.decode(codes).tolist() == [[1, *[-1] * 6, 1, *[-1] * 7, 1]]


def test_shortened():
  vectors = np.float32([[3, 4, 12], [0, 0, 1]])
  np.testing.assert_allclose(shortened(vectors, 2, True), [[0.6, 0.8], [0, 0]], rtol=1e-6)
  np.testing.assert_array_equal(shortened(vectors, 2, False), [[3, 4], [0, 0]])
  assert shortened(vectors, 3, True) is vectors


@pytest.mark.parametrize(("arguments", "message"), [
    (("int4", None, 8), "precision is 'int4': give one of float32, int8, binary"),
    (("int8", 9, 8), "--dimensions 9: the vectors have 8; give 1 to 8"),
    (("binary", None, 12), "--precision binary: vectors of 12 numbers fill no whole bytes; give --dimensions"),
    (("binary", 4, 16), "--precision binary: vectors of 4 numbers")])
def test_what_cannot_be_kept_so(arguments, message):
  with pytest.raises(InputError, match=message):
    check(*arguments)


def test_queries_of_another_size():
  with pytest.raises(InputError, match="size 8"):
    Searcher(Codes(np.ones((3, 8), np.float32), "binary")).search(np.ones((1, 16), np.float32), 1)
