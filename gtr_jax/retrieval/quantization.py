"""Vectors in fewer bytes: cut to their first dimensions, as int8 with a scale for each dimension, or as bits, the signs
of vectors that were rotated (`rotation.py`).

int8 is as FAISS's IndexScalarQuantizer has it. Bits are packed as FAISS's IndexBinaryFlat and sentence-transformers'
"ubinary" have them, but those are signs of vectors as they are. A search finds candidates among the codes, by whole
numbers, and ranks these by the query in float32.

Shapes: Q queries, D embedding size, R rows, K candidates, W numbers of a code (D of int8, D/32 words of bits).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gtr_jax.errors import InputError
from gtr_jax.formats.shortened import check_dimensions
from gtr_jax.retrieval.rotation import fit_rotation, rotated

PRECISIONS = ("float32", "int8", "binary")
SAMPLE_ROWS = {"int8": 2048, "binary": 8192}  # vectors that what is fitted is fitted on, at most
_MOST = 127  # -128 has no counterpart.
_WORD = 32   # bits
_LANES = 128
_RESCORED_AT_ONCE = 8192  # candidates, of one or several queries
_UNIT = 1e-3  # How far from 1 a length may be, as of vectors that were normalised in 16 bits.
_QUERIES_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Quantizer:
  """How vectors are kept.

  Attributes:
    precision: "float32", as they are; "int8", `rint(x / scale)` within +-127; or "binary", a bit for each number of the
      rotated vector that says whether it is above its threshold, the first in the highest bit of a byte, as of
      `np.packbits`.
    dim: D.
    fitted: float32, what `fit` gives: of int8 the scales [D], above 0; of bits the rotation and the thresholds
      [D + 1, D].
  """

  precision: str
  dim: int
  fitted: np.ndarray | None = None

  @property
  def dtype(self) -> np.dtype:
    """Of the codes."""
    return np.dtype({"float32": np.float32, "int8": np.int8, "binary": np.uint8}[self.precision])

  @property
  def width(self) -> int:
    """Numbers of a code."""
    return self.dim // 8 if self.precision == "binary" else self.dim

  @property
  def width_on_devices(self) -> int:
    """Numbers of a code there."""
    return -(-self.dim // _WORD) if self.precision == "binary" else self.dim

  @property
  def num_bytes(self) -> int:
    """Bytes of a code."""
    return self.width * self.dtype.itemsize

  def encode(self, vectors_RxD: np.ndarray) -> np.ndarray:
    """The codes `[R, width]` of vectors."""
    vectors_RxD = np.asarray(vectors_RxD, np.float32)
    if self.fitted is None:
      return vectors_RxD
    if self.precision == "binary":
      return np.packbits(rotated(vectors_RxD, self.fitted[:-1]) > self.fitted[-1], axis=1)
    return _rounded(vectors_RxD / self.fitted)

  def decode(self, codes_RxW: np.ndarray) -> np.ndarray:
    """The vectors float32 `[R, D]` that codes stand for; of bits +1 and -1, rotated back."""
    if self.fitted is None:
      return codes_RxW
    if self.precision == "binary":
      signs_RxD = np.unpackbits(codes_RxW, axis=1).astype(np.float64) * 2 - 1
      return rotated(signs_RxD, self.fitted[:-1].T).astype(np.float32)
    return codes_RxW.astype(np.float32) * self.fitted

  def on_devices(self, codes_RxW: np.ndarray) -> np.ndarray:
    """The codes as devices take them: those of bits as uint32 words, filled up with zeros."""
    if self.precision != "binary":
      return codes_RxW
    filled = np.pad(codes_RxW, ((0, 0), (0, self.width_on_devices * _WORD // 8 - self.width)))
    return filled.view("<u4").astype(np.uint32, copy=False)

  def query_codes(self, queries_QxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What candidates are found with, `[Q, W]`, and what they are ranked with, float32 `[Q, D or 32 W]`.

    Of int8 the scales are multiplied into the queries first, so that a product needs none, and each query has a scale
    of its own, which does not change its ranking. For bits queries are rotated; theirs are of the signs, as the mean of
    the documents adds to all products of a query alike.
    """
    assert self.fitted is not None
    if self.precision == "binary":
      turned = rotated(queries_QxD, self.fitted[:-1]).astype(np.float32)
      words = self.on_devices(np.packbits(turned > 0, axis=1))
      return words, np.pad(turned, ((0, 0), (0, words.shape[1] * _WORD - self.dim)))
    scaled = queries_QxD * self.fitted
    most = np.abs(scaled).max(axis=1, keepdims=True)
    return _rounded(scaled * np.divide(_MOST, most, out=np.zeros_like(most), where=most > 0)), scaled


def check(precision: str, dimensions: int | None, dim: int) -> int:
  """The size of vectors of `dim` numbers that are kept so. Raises InputError where they cannot be."""
  if precision not in PRECISIONS:
    raise InputError(f"precision is {precision!r:.40}: give one of {', '.join(PRECISIONS)}")
  if dimensions is not None:
    check_dimensions(dimensions, dim)
  kept = dimensions or dim
  if precision == "binary" and kept % 8:
    raise InputError(f"--precision binary: vectors of {kept} numbers fill no whole bytes; give --dimensions, a "
                     "multiple of 8")
  return kept


def fit(precision: str, sample_RxD: np.ndarray) -> Quantizer:
  """How vectors `[R, D]` are kept by which a sample of them, not empty, is kept best."""
  fitted = {"float32": lambda sample: None, "int8": scales_of, "binary": fit_rotation}[precision](sample_RxD)
  return Quantizer(precision, sample_RxD.shape[1], fitted)


def scales_of(sample_RxD: np.ndarray) -> np.ndarray:
  """The scales float32 `[D]` by which the largest value of each dimension, its sign aside, becomes 127.

  A dimension that is 0 throughout the sample, or as good as that, has the largest scale of all.
  """
  scales = np.abs(np.asarray(sample_RxD, np.float32)).max(axis=0) / np.float32(_MOST)
  none = scales < np.finfo(np.float32).tiny
  return np.where(none, np.float32(1 / _MOST) if none.all() else scales.max(), scales)


def shortened(vectors_RxD: np.ndarray, dim: int, normalize: bool) -> np.ndarray:
  """The first `dim` numbers of vectors, normalised again if `normalize`; vectors that have no more are as they were."""
  if vectors_RxD.shape[1] <= dim:
    return vectors_RxD
  cut = vectors_RxD[:, :dim]
  return normalized(cut, np.linalg.norm(cut, axis=1)) if normalize else np.ascontiguousarray(cut)


def are_normalized(norms: np.ndarray) -> bool:
  """Whether all of these lengths are 1."""
  return bool((np.abs(norms - 1) < _UNIT).all())


def normalized(embeddings: np.ndarray, norms: np.ndarray) -> np.ndarray:
  """Embeddings `[rows, D]` divided by their lengths `[rows]`; zero where these are below 1e-12, as in a model."""
  return embeddings / np.where(norms <= 1e-12, np.inf, norms)[:, None]


def _rounded(values: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(values), -_MOST, _MOST).astype(np.int8)


def candidate_scores(queries_QxW: jax.Array, codes_RxW: jax.Array) -> jax.Array:
  """int32 `[Q, R]`: the products of int8, or of words the number of bits that differ, negative.

  Sums of int32 are exact, and so the same in any order.
  """
  if codes_RxW.dtype == jnp.int8:
    return jnp.einsum("qw,rw->qr", queries_QxW, codes_RxW, preferred_element_type=jnp.int32)
  # Laid out by words, word after word, and few queries at once: on a CPU 2.3 times as fast as one sum over all.
  words_WxR = jax.lax.optimization_barrier(codes_RxW.T)

  def of_query(query_W: jax.Array) -> jax.Array:
    differ = [jax.lax.population_count(query ^ of_rows) for query, of_rows in zip(query_W, words_WxR, strict=True)]
    return -functools.reduce(jnp.add, differ).astype(jnp.int32)

  return jax.lax.map(of_query, queries_QxW, batch_size=_QUERIES_AT_ONCE)


def rescored(queries_QxD: jax.Array, codes_RxW: jax.Array, chosen_QxK: jax.Array, *,
             on_host: bool = False) -> jax.Array:
  """float32 `[Q, K]`: the products of queries with the vectors that chosen rows stand for, but for their scales.

  Each is summed by itself, whatever stands beside it, so that equal rows have equal scores on any mesh. `on_host`: a
  query after the other, and of its products many sums at once, which is faster on a CPU.
  """

  def sums(products_KxD: jax.Array) -> jax.Array:
    num_rows, dim = products_KxD.shape
    lanes = math.gcd(dim, _LANES) if on_host else dim
    return products_KxD.reshape(num_rows, -1, lanes).sum(1).sum(-1) if lanes < dim else products_KxD.sum(-1)

  def of_query(query_D: Any, chosen_K: Any) -> jax.Array:
    codes_KxW = codes_RxW[chosen_K]
    if codes_RxW.dtype == jnp.int8:
      return sums(codes_KxW.astype(jnp.float32) * query_D[None])
    place = np.arange(len(query_D), dtype=np.uint32) % _WORD
    bit_D = np.uint32(1) << (place // 8 * 8 + 7 - place % 8)  # The highest of each byte comes first.
    above_0_KxD = jnp.repeat(codes_KxW, _WORD, axis=1) & bit_D[None] != 0
    return sums(jnp.where(above_0_KxD, query_D[None], -query_D[None]))

  scores = jax.lax.map(lambda both: of_query(*both), (queries_QxD, chosen_QxK),
                       batch_size=None if on_host else max(1, _RESCORED_AT_ONCE // chosen_QxK.shape[1]))
  return jnp.where(scores == 0, 0.0, scores)
