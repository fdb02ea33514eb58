"""Attention: position buckets and the bias; the reference against loops, and the kernel against the reference."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gtr_jax.models import attention_by_text, attention_kernel
from gtr_jax.models.attention import (
  Pattern,
  attention,
  kernel_refuses,
  pattern,
  position_bias,
  relative_position_bucket,
)
from gtr_jax.text.packing import pack_texts


def bucket_in(dtype, distance, num_buckets=32, max_distance=128):
  """T5X's formula with its logarithm in `dtype`."""
  half, exact, size = num_buckets // 2, num_buckets // 4, abs(distance)
  if size >= exact:
    octaves = np.log(np.asarray(size, dtype) / np.asarray(exact, dtype) + np.finfo(np.float32).eps.astype(dtype))
    value = octaves / np.asarray(math.log(max_distance / exact), dtype) * np.asarray(half - exact, dtype)
    size = min(exact + int(value), half - 1)
  return size + half * (distance > 0)


def test_buckets():
  distances = [*range(-1000, 1001)]
  ours = {d: relative_position_bucket(d, 32, 128) for d in distances}
  assert ours == {d: bucket_in(np.float32, d) for d in distances}
  assert [ours[d] for d in (0, -1, 1, -7, 7, -8, 8)] == [0, 1, 17, 7, 23, 8, 24]
  # Steps: 8 * 16 ** (k / 8), of which 16, 32 and 64 are exact.
  assert [ours[-d] for d in (11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 1000)] == [
      8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15]
  wrong = [d for d in distances if bucket_in(jnp.bfloat16, d) != ours[d]]
  assert {45, 90} <= {abs(d) for d in wrong}


def bucket_of_pair(length):
  return np.array([[relative_position_bucket(j - i, 32, 128) for j in range(length)] for i in range(length)])


@pytest.mark.parametrize("length", [1, 2, 130])
def test_position_bias_is_a_table_of_distances(length):
  table = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
  np.testing.assert_array_equal(position_bias(table, length, 128), table[:, bucket_of_pair(length)])


@pytest.mark.parametrize("block", [128, 256])
@pytest.mark.parametrize(("length", "max_distance"), [(8, 128), (128, 128), (1000, 128), (640, 20), (600, 300)])
def test_the_kernel_s_blocks_of_the_bias(length, max_distance, block):
  """Of each pair of positions, wherever its row begins in a block."""
  table = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
  tiles = np.asarray(position_bias(table, length, max_distance, block))
  farthest = tiles.shape[1] // 2
  for first in (0, 72):
    query, key = np.meshgrid(*2 * [np.arange(first, first + length)], indexing="ij")
    tile = np.clip(key // block - query // block, -farthest, farthest) + farthest
    buckets = [relative_position_bucket(distance, 32, max_distance) for distance in range(-length, length + 1)]
    np.testing.assert_array_equal(tiles[:, tile, key % block, query % block],
                                  table[:, np.asarray(buckets)[key - query + length]])


def test_attention_against_loops():
  rng = np.random.default_rng(0)
  q, k, v = rng.normal(size=(3, 1, 3, 5, 2, 4)).astype(np.float32)
  bias = rng.normal(size=(2, 5, 5)).astype(np.float32)
  segments = np.array([[[1, 1, 2, 2, 2], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]]], np.int32)
  expected = np.zeros_like(q)
  for r, i, h in np.ndindex(3, 5, 2):
    keys = [j for j in range(5) if segments[0, r, j] == segments[0, r, i]]
    logits = np.array([q[0, r, i, h] @ k[0, r, j, h] + bias[h, i, j] for j in keys], np.float64)
    weights = np.exp(logits - logits.max())
    expected[0, r, i, h] = sum(w * v[0, r, j, h] for w, j in zip(weights / weights.sum(), keys, strict=True))
  np.testing.assert_allclose(attention(q, k, v, Pattern(bias, segments, None)), expected, atol=1e-5)


def rows_of(*lengths_of_rows, length):
  """Segment ids `[1, R, L]` of rows with texts of these lengths; what is left over is padding."""
  segments, number = np.zeros((1, len(lengths_of_rows), length), np.int32), 0
  for row, lengths in enumerate(lengths_of_rows):
    start = 0
    for of_text in lengths:
      number += 1
      segments[0, row, start:start + of_text], start = number, start + of_text
  return segments


def outputs_and_gradients(segments, heads, head_dim, dtype, way, table, q, k, v, weights, **dropout):
  def f(table, q, k, v):
    of_rows = pattern(table, segments, 128, way)
    out = attention(q, k, v, of_rows, precision=None if dtype == jnp.bfloat16 else "highest", **dropout)
    assert out.dtype == dtype
    return jnp.sum(out.astype(jnp.float32) * weights), out

  (_, out), gradients = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3), has_aux=True))(table, q, k, v)
  return [np.asarray(x, np.float32) for x in (out, *gradients)]


def both(segments, heads=2, head_dim=64, dtype=jnp.float32, way="kernel", **dropout):
  """Output and gradients of the bias, queries, keys and values: that way, by the reference, and in float32."""
  rng = np.random.default_rng(0)
  q, k, v, weights = (jnp.asarray(rng.normal(size=(*segments.shape, heads, head_dim)) * scale, dtype)
                      for scale in (0.3, 0.3, 1, 1))
  if way == "by text":  # What padding gets is nobody's.
    weights = weights * (segments > 0)[..., None, None]
  table = jnp.asarray(rng.normal(size=(heads, 32)), jnp.float32)
  of = functools.partial(outputs_and_gradients, segments, heads, head_dim, **dropout)
  given = table, q, k, v, weights.astype(jnp.float32)
  exact = [x.astype(jnp.float32) for x in given]
  outs = of(dtype, way, *given), of(dtype, "reference", *given), of(jnp.float32, "reference", *exact)
  return [[np.where((segments > 0)[..., None, None], out, 0) if way == "by text" else out, *gradients]
          for out, *gradients in outs]


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(attention_kernel, "INTERPRET", True)


CASES = {
    "short rows are joined": (rows_of([64], [3, 30], [1], [], length=64), {}),
    "rows that cannot be joined": (rows_of([40], [1, 2, 37], [20, 10], length=40), {}),
    "joined where no block ends": (rows_of([320], [7, 100, 128], length=320), {}),
    "one text, far apart": (rows_of([600], length=600), {}),
    "many texts in a row": (rows_of([60, 200, 128, 1, 90, 33, 128], [640], length=640), {}),
    "one token": (rows_of([1], length=1), {}),
    "wide heads": (rows_of([200, 50], length=256), {"heads": 1, "head_dim": 128}),
    "narrow heads": (rows_of([100, 20], length=128), {"heads": 8, "head_dim": 16}),
}


@pytest.mark.parametrize(("name", "block"), [*((name, 128) for name in CASES), ("many texts in a row", 256),
                                             ("short rows are joined", 256)])
def test_the_kernel_is_the_reference(name, block, interpreted, monkeypatch):
  monkeypatch.setitem(attention_kernel._BLOCK_OF, jax.devices()[0].device_kind, block)
  segments, options = CASES[name]
  ours, expected, _ = both(segments, **options)
  for one, other in zip(ours, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("name", CASES)
def test_text_by_text_is_the_reference(name, monkeypatch):
  segments, options = CASES[name]
  for at_once in (1, 3, 8):
    monkeypatch.setattr(attention_by_text, "_TEXTS", at_once)
    ours, expected, _ = both(segments, way="by text", **options)
    for one, other in zip(ours, expected, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("length", [1, 16, 100, 128, 130, 288, 512])
def test_what_texts_are_taken_as(length):
  sizes = attention_by_text._sizes(length)
  assert sizes[-1] == length and sizes == sorted(set(sizes))
  assert all(size - before <= max(32, before / 2) for before, size in zip([0, *sizes], sizes, strict=False))


@pytest.mark.parametrize("way", ["kernel", "by text"])
def test_in_bfloat16(interpreted, way):
  """As far from float32 as the reference is, if for other roundings."""
  kernel, reference, exact = both(CASES["many texts in a row"][0], dtype=jnp.bfloat16, way=way)
  for of_kernel, of_reference, right in zip(kernel, reference, exact, strict=True):
    ours, theirs = (np.square(found - right).mean() ** 0.5 for found in (of_kernel, of_reference))
    assert 0 < ours < 1.2 * theirs < 0.02 * np.square(right).mean() ** 0.5


@pytest.mark.parametrize("way", ["kernel", "by text"])
def test_all_drop_what_the_reference_drops(interpreted, way):
  case, _ = CASES["joined where no block ends"]
  ours, expected, _ = both(case, way=way, dropout_rate=0.3, dropout_key=jax.random.key(0))
  plain, _, _ = both(case, way=way)
  assert np.abs(ours[0] - plain[0]).max() > 0.1
  for one, other in zip(ours, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1, np.abs(other).max()))


def test_blocks_without_a_common_text_are_left_out():
  segments = rows_of([100, 28, 300, 84, 128], length=640)[0]
  first, behind = np.asarray(attention_kernel.runs_of(jnp.asarray(segments), 128).bounds)[0]
  assert list(zip(first.tolist(), behind.tolist(), strict=True)) == [(0, 1), (1, 4), (1, 4), (1, 4), (4, 5)]


def test_of_five_texts_a_row_about_half_of_the_blocks_are_left_out():
  lengths = np.minimum(np.random.default_rng(0).gamma(4, 122 / 4, 2000).astype(int) + 1, 256)
  texts = np.where(np.arange(256) < lengths[:, None], 1, 0)[None]
  segments = pack_texts(texts, 640, 0.1).segment_ids[0]
  assert len(lengths) / len(segments) > 5 and np.count_nonzero(segments) / segments.size > 0.95
  first, behind = np.moveaxis(np.asarray(attention_kernel.runs_of(jnp.asarray(segments), 128).bounds), 1, 0)
  assert (behind - first).sum() / (len(segments) * 5 * 5) < 0.55


def test_where_there_is_a_kernel(interpreted, monkeypatch):
  assert not kernel_refuses(8192, 12, 64) and not kernel_refuses(64, 1, 128)
  assert "longer than 8,192" in kernel_refuses(8193, 12, 64)
  assert "3 heads of 64" in kernel_refuses(64, 3, 64)  # Half of a block of lanes would be empty.
  assert "longer than 1,024" in attention_kernel.refuses("TPU v4", 1025, 12, 64)
  monkeypatch.undo()
  assert kernel_refuses(64, 12, 64) == "it is for TPUs"
