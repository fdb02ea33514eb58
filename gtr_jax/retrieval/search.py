"""Exact top-k search by inner product: float32, in blocks of the corpus, each spread over all devices of the mesh.

Ties go to the lower row, also at the cut, because every step keeps `lax.top_k`'s rule (the lower index first): a device
ranks consecutive rows, and candidates are merged in the order of their rows. The store keeps its rows by descending
document id, so the lower row is the document that trec_eval ranks first.

Shapes: Q queries, D embedding size, B rows of a block (R of them on each device), K results, C rows in a chunk.
"""

import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gtr_jax.errors import InputError
from gtr_jax.io.bars import Bar
from gtr_jax.parallel import processes
from gtr_jax.parallel.progress import SEARCH, doing
from gtr_jax.retrieval.runs import Run, best_k

MAX_BLOCK_ROWS = 131_072   # rows and bytes of a block on one device; with MAX_QUERIES at most 256 MiB of scores
MAX_BLOCK_BYTES = 256 << 20
MAX_QUERIES = 512          # queries in one program
RESIDENT_BYTES = 4 << 30   # a corpus up to this size on each device stays there between searches
CHUNK = 32


class Rows(Protocol):
  """A float32 array [rows, D] in memory or on disk."""

  @property
  def shape(self) -> tuple[int, int]: ...

  def __getitem__(self, rows: slice) -> np.ndarray: ...


class Searcher:
  """Searches one corpus of embeddings. A corpus that fits stays on the devices between calls.

  Args:
    embeddings: float32 [rows, D], for instance a store's.
    mesh: its devices share the work, all axes alike; None takes all devices.
    keep: keep a corpus that fits on the devices, for the next call.
  """

  def __init__(self, embeddings: Rows, mesh: Mesh | None = None, keep: bool = True):
    if not embeddings.shape[0]:
      raise InputError("the corpus to search is empty")
    self._embeddings = embeddings
    self._mesh = mesh if mesh is not None else Mesh(np.asarray(jax.devices()), ("data",))
    self.num_rows, self.dim = embeddings.shape
    devices = self._mesh.size
    most = max(CHUNK, min(MAX_BLOCK_ROWS, MAX_BLOCK_BYTES // (4 * self.dim)) // CHUNK * CHUNK)
    self._num_blocks = math.ceil(self.num_rows / (devices * most))
    rows = math.ceil(self.num_rows / (self._num_blocks * devices * CHUNK)) * CHUNK
    self._block_rows = rows * devices
    stays = keep and self._num_blocks * rows * self.dim * 4 <= RESIDENT_BYTES
    self._resident: dict[int, jax.Array] | None = {} if stays else None

  def search(self, queries_QxD: np.ndarray, k: int, progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest inner products.

    Args:
      queries_QxD: float32.
      k: results per query; more than the corpus has gives the whole corpus.
      progress: show a progress bar on stderr.

    Returns:
      (scores float32 [Q, K], rows int32 [Q, K]), best first, ties by row; K = min(k, corpus).
    """
    queries_QxD = np.asarray(queries_QxD, np.float32)
    if queries_QxD.ndim != 2 or queries_QxD.shape[1] != self.dim:
      raise InputError(f"queries of shape {queries_QxD.shape} do not match the corpus's embeddings of size {self.dim}; "
                       "encode both with the same model")
    num_queries, k = len(queries_QxD), min(k, self.num_rows)
    if not num_queries or k < 1:
      return np.zeros((num_queries, max(k, 0)), np.float32), np.zeros((num_queries, max(k, 0)), np.int32)
    size = min(MAX_QUERIES, max(8, 1 << (num_queries - 1).bit_length()))
    starts = range(0, num_queries, size)
    everywhere = NamedSharding(self._mesh, P())

    def put(array):
      return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

    parts = [np.pad(queries_QxD[s:s + size], ((0, size - len(queries_QxD[s:s + size])), (0, 0))) for s in starts]
    parts = [put(part) for part in parts]
    best = [(put(np.full((size, k), -np.inf, np.float32)), put(np.zeros((size, k), np.int32))) for _ in starts]
    limit = put(np.int32(self.num_rows))
    with (jax.set_mesh(self._mesh), doing(SEARCH),
          Bar(self._num_blocks * len(parts), "searching", " blocks", shown=progress and processes.is_first(),
              leave=False) as bar):
      coming_BxD = self._block(0)
      for block in range(self._num_blocks):  # Blocks outside: each is read from disk once.
        doing(SEARCH)
        block_BxD, first = coming_BxD, put(np.int32(block * self._block_rows))
        for i, part in enumerate(parts):
          best[i] = _search_block(part, block_BxD, first, limit, *best[i], mesh=self._mesh)
          bar.update()
        if block + 1 < self._num_blocks:
          coming_BxD = self._block(block + 1)  # While the devices work; and no further ahead, for memory's sake.
        jax.block_until_ready(best)
    scores, rows = (np.concatenate([np.asarray(pair[i]) for pair in best])[:num_queries] for i in range(2))
    return scores, rows

  def _block(self, number: int) -> jax.Array:
    """Block `number` of the corpus, float32 [B, D] over all devices; zeros after the last row."""
    if self._resident is not None and number in self._resident:
      return self._resident[number]
    first = number * self._block_rows

    def shard(index):
      start, stop, _ = index[0].indices(self._block_rows)
      part = np.asarray(self._embeddings[first + start:min(first + stop, self.num_rows)], np.float32)
      return np.pad(part, ((0, stop - start - len(part)), (0, 0))) if len(part) < stop - start else part

    block = jax.make_array_from_callback((self._block_rows, self.dim),
                                         NamedSharding(self._mesh, P(self._mesh.axis_names)), shard)
    if self._resident is not None:
      self._resident[number] = block
    return block


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames=("best_scores_QxK", "best_rows_QxK"))
def _search_block(queries_QxD, block_BxD, first_row, num_rows, best_scores_QxK, best_rows_QxK, *, mesh):
  """Merges the results so far, which come from lower rows, with those of a block that starts at `first_row`."""
  k = best_scores_QxK.shape[1]

  def of_one_device(queries_QxD, rows_RxD, first_row, num_rows):
    scores_QxR = jnp.einsum("qd,rd->qr", queries_QxD, rows_RxD, precision=jax.lax.Precision.HIGHEST)
    first_row = first_row + jax.lax.axis_index(mesh.axis_names) * len(rows_RxD)
    exists_1xR = (first_row + jnp.arange(len(rows_RxD), dtype=jnp.int32) < num_rows)[None, :]
    scores_QxR = jnp.where(scores_QxR == 0, 0.0, scores_QxR)  # top_k puts +0 before -0; for trec_eval they are equal.
    scores_QxR = jnp.where(exists_1xR, scores_QxR, -jnp.inf)
    scores_QxK, rows_QxK = _top_k(scores_QxR, min(k, len(rows_RxD)))
    return _of_all_devices(scores_QxK, first_row + rows_QxK, k, mesh)

  # The results are the same everywhere, which JAX cannot see.
  found = jax.shard_map(of_one_device, mesh=mesh, in_specs=(P(), P(mesh.axis_names), P(), P()), out_specs=P(),
                        check_vma=False)(queries_QxD, block_BxD, first_row, num_rows)
  return _best(k, *(jnp.concatenate(both, axis=1) for both in zip((best_scores_QxK, best_rows_QxK), found,
                                                                    strict=True)))


def _of_all_devices(scores_QxK: jax.Array, rows_QxK: jax.Array, k: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
  """The best k of what all devices have found, on each of them.

  In log2(devices) exchanges: at each one a device and its partner, twice as far away as before, merge what both have of
  their neighbours. Of a number of devices that is no power of two the odd factor comes last, in as many exchanges.
  """
  found, number = (scores_QxK, rows_QxK), jax.lax.axis_index(mesh.axis_names)
  together = 1

  def from_device(sender_of):
    pairs = [(sender_of(i), i) for i in range(mesh.size)]
    return [jax.lax.ppermute(x, mesh.axis_names, pairs) for x in found]

  while together < mesh.size:
    if mesh.size % (2 * together) == 0:
      parts = [found, from_device(lambda i: i ^ together)]  # noqa: B023  (called at once)
      order = number // together % 2 ^ jnp.arange(2)
    else:
      count = mesh.size // together
      parts = [found, *(from_device(lambda i: (i - step * together) % mesh.size)  # noqa: B023
                        for step in range(1, count))]
      order = (number // together - jnp.arange(count)) % count
    together *= len(parts)
    # By their rows: which of them is the device's own depends on its number.
    found = _best(k, *(jnp.moveaxis(jnp.stack(of_all)[order], 0, 1).reshape(len(scores_QxK), -1)
                       for of_all in zip(*parts, strict=True)))
  return found


def _best(k: int, scores: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The best k of scores `[Q, ...]` in the order of their rows, or all where there are fewer."""
  scores, order = jax.lax.top_k(scores, min(k, scores.shape[1]))
  return scores, jnp.take_along_axis(rows, order, axis=1)


def _top_k(scores_QxR: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """`lax.top_k`, ties by index, in two steps where rows are wide: first the k chunks with the largest maxima.

  A score of the top k is in one of these chunks: were its chunk not among them, each of the k chosen ones would hold a
  score that is larger, or equal with a lower index.
  """
  width = scores_QxR.shape[1]
  if 4 * k * CHUNK > width or width % CHUNK:
    return jax.lax.top_k(scores_QxR, k)
  chunks_QxRxC = scores_QxR.reshape(len(scores_QxR), -1, CHUNK)
  _, chosen_QxK = jax.lax.top_k(chunks_QxRxC.max(-1), k)
  chosen_QxK = jnp.sort(chosen_QxK, axis=-1)  # Candidates in the order of their index.
  candidates = jnp.take_along_axis(chunks_QxRxC, chosen_QxK[:, :, None], axis=1).reshape(len(scores_QxR), -1)
  best_scores_QxK, place_QxK = jax.lax.top_k(candidates, k)
  chunk_QxK = jnp.take_along_axis(chosen_QxK, place_QxK // CHUNK, axis=1)
  return best_scores_QxK, chunk_QxK * CHUNK + place_QxK % CHUNK


def search_run(searcher: Searcher, doc_ids: list[str], query_ids: list[str], queries_QxD: np.ndarray, k: int, *,
               exclude_own_id: bool = False, progress: bool = True) -> Run:
  """Ranks the best k documents for each query.

  Args:
    searcher: over the embeddings of `doc_ids`.
    doc_ids: by row. In descending order (as a store keeps them), ties come out in trec_eval's order.
    query_ids: one for each row of `queries_QxD`.
    queries_QxD: float32 embeddings.
    k: documents per query.
    exclude_own_id: leave out the document whose id is the query's own.
    progress: show a progress bar on stderr.
  """
  scores, rows = searcher.search(queries_QxD, k + exclude_own_id, progress)
  return {query_id: best_k(query_id, [doc_ids[row] for row in rows[i].tolist()], scores[i], k, exclude_own_id)
          for i, query_id in enumerate(query_ids)}
