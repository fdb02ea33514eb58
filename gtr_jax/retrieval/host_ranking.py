"""The best k of scores that CPUs have computed, chosen by NumPy where they lie.

A CPU's `lax.top_k` is a heap in one thread, and takes as long as the products where k is large. Here a query's scores
are compared with its k-th best so far, in all cores' threads (NumPy works without Python's lock), and what remains is
partitioned by the k-th best. The scores of every block are written over those of the last: into fresh memory the same
products take a fifth longer, of int8 two fifths.

Shapes: as of `search.py`; N scores of one query.
"""

import concurrent.futures
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gtr_jax.retrieval.quantization import candidate_scores, rescored

_FEW_SCORES = 1 << 20    # not worth threads
_RESCORED_APART = 8      # parts of the queries
_RESCORED_TOGETHER = 256  # candidates of a query


class HostRanking:
  """The best k for some queries, of the blocks of a corpus in the order of their rows.

  Args:
    form: the queries, float32; of codes their codes, and what ranks the candidates, as of `Quantizer.query_codes`.
    k: results, or candidates.
    rows: consecutive ones of the corpus; others do not exist.
    mesh: CPUs of this process.
  """

  def __init__(self, form: tuple[np.ndarray, ...], k: int, rows: range, mesh: Mesh):
    self._form, self._k, self._exist, self._mesh = form, k, rows, mesh
    codes = len(form) > 1
    # Of each query in the order of rows: scores, rows, and of codes the scores by the float32 query.
    self.best = [np.zeros((len(form[0]), 0), dtype) for dtype in
                 (np.int32 if codes else np.float32, np.int32, np.float32)[:2 + codes]]

  def begin(self, block: jax.Array, first_row: int, scores: jax.Array | None) -> jax.Array:
    """The scores of a block, being computed in the memory of others of this shape, or in memory of their own."""
    shape, dtype = (len(self._form[0]), block.shape[0]), self.best[0].dtype
    if scores is None or (scores.shape, scores.dtype) != (shape, dtype):
      scores = jax.device_put(np.zeros(shape, dtype), NamedSharding(self._mesh, P(None, self._mesh.axis_names)))
    self._block, self._first_row = block, first_row
    self._scores = _scores(self._form[0], block, scores, mesh=self._mesh)
    return self._scores

  def finish(self) -> None:
    """Adds them."""
    parts = [{shard.index[axis].start or 0: shard.data for shard in array.addressable_shards}
             for axis, array in ((1, self._scores), (0, self._block))]
    for start in sorted(parts[0]):
      first_row = self._first_row + start
      before = max(self._exist.start - first_row, 0)
      of_part = np.asarray(parts[0][start])[:, before:max(self._exist.stop - first_row, 0)]
      if of_part.shape[1]:
        # An eighth says what is certainly too low for the others: comparing is faster than partitioning.
        head = of_part.shape[1] // 8 if 512 * self._k <= of_part.shape[1] and not self.best[0].shape[1] else 0
        for first, piece in ((0, of_part[:, :head]), (head, of_part[:, head:])):
          if piece.shape[1]:
            self.best = _merged(self.best, piece, first_row + before + first, self._k)
        if len(self.best) > 2:
          self._rescore(parts[1][start], first_row)

  def result(self, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, rows) of the best k, best first, ties by row."""
    rows, of_floats = self.best[1], self.best[-1 if len(self.best) > 2 else 0]
    scores = np.asarray(of_floats + np.float32(0), np.float32)  # No -0.
    bits = scores.view(np.int32).astype(np.int64)
    # One number of score and place, the best lowest, is sorted many times as fast as places by their scores.
    keys = np.where(bits < 0, bits & 0x7fffffff, ~bits) << 32 | np.arange(scores.shape[1])
    if k < keys.shape[1]:
      keys = np.partition(keys, k - 1, axis=1)[:, :k]
    order = np.sort(keys, axis=1) & 0xffffffff
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

  def _rescore(self, codes: jax.Array, first_row: int) -> None:
    """The candidates that are new since `first_row`, which are each query's last."""
    _, rows, of_floats = self.best
    # One shape, whatever the blocks and the mesh: another might add up in another way.
    width, step = -(-self._k // -(-self._k // _RESCORED_TOGETHER)), max(8, len(rows) // _RESCORED_APART)
    most = int((rows >= first_row).sum(1).max())
    columns = min(-(-most // width) * width, rows.shape[1])
    chosen, missing = rows[:, rows.shape[1] - columns:] - first_row, -columns % width
    which = np.pad(np.maximum(chosen, 0), ((0, 0), (missing, 0)))

    def of_queries(start):
      part = slice(start, start + step)
      found = [np.zeros((len(chosen[part]), 0), np.float32)]
      found += [np.asarray(_rescored(self._form[1][part], codes, which[part, c:c + width]))
                for c in range(0, which.shape[1], width)]
      of_queries = of_floats[part, rows.shape[1] - columns:]
      np.copyto(of_queries, np.concatenate(found, axis=1)[:, missing:], where=chosen[part] >= 0)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(of_queries, range(0, len(chosen), step)))


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="memory_QxB", keep_unused=True)
def _scores(queries, block, memory_QxB, *, mesh):
  """Scores `[Q, B]`, float32, or int32 of codes; in the memory that is given."""

  def of_one_device(queries, rows):
    if memory_QxB.dtype == jnp.int32:
      return candidate_scores(queries, rows)
    return jnp.einsum("qd,rd->qr", queries, rows, precision=jax.lax.Precision.HIGHEST)

  return jax.shard_map(of_one_device, mesh=mesh, in_specs=(P(), P(mesh.axis_names)),
                       out_specs=P(None, mesh.axis_names))(queries, block)


_rescored = jax.jit(functools.partial(rescored, on_host=True))


def _merged(best: list[np.ndarray], scores_QxR: np.ndarray, first_row: int, k: int) -> list[np.ndarray]:
  """The best k, or all where there are fewer, of those so far and of rows after them; zeros where these have more."""
  num_queries, before = best[0].shape
  most = min(k, before + scores_QxR.shape[1])
  merged = [np.zeros((num_queries, most), of_best.dtype) for of_best in best]

  def of_queries(numbers):
    for q in numbers:
      scores_N, of_query = best[0][q], scores_QxR[q]
      # An equal score of a later row comes after. Not `>`, for which a score that is no number is worse than any.
      better = np.flatnonzero(~(of_query <= scores_N.min())) if before == k else None
      scores_N = np.concatenate([scores_N, of_query if better is None else of_query[better]])
      places = _best_places(scores_N, most)
      old, new = np.split(places, [np.searchsorted(places, before)])
      for kept, of_merged in zip(best, merged, strict=True):
        of_merged[q, :len(old)] = kept[q, old]
      merged[0][q, len(old):] = scores_N[new]
      merged[1][q, len(old):] = first_row + (new - before if better is None else better[new - before])

  threads = os.cpu_count() or 1 if scores_QxR.size > _FEW_SCORES else 1
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(of_queries, np.array_split(np.arange(num_queries), min(4 * threads, num_queries))))
  return merged


def _best_places(scores_N: np.ndarray, k: int) -> np.ndarray:
  """Where the best k scores are, ascending; of equal ones at the cut the first."""
  if len(scores_N) <= k:
    return np.arange(len(scores_N))
  cut = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
  above, equal = np.flatnonzero(scores_N > cut), np.flatnonzero(scores_N == cut)
  places = np.sort(np.concatenate([above, equal[:k - len(above)]]))
  return places if len(places) == k else np.sort(np.argsort(-scores_N, kind="stable")[:k])  # Some were no numbers.
