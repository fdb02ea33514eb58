"""Exact top-k search by inner product: float32, in blocks of the corpus, each spread over all devices of the mesh.

Of int8 and binary vectors: exact by their codes, for several times k candidates, which float32 queries rank again. A
candidate's score travels with it, and only the k best of all of them are taken in the end, so that what is found
depends neither on the blocks nor on the mesh.

Ties go to the lower row, also at the cut, because every step keeps `lax.top_k`'s rule (the lower index first): a device
ranks consecutive rows, and candidates are merged in the order of their rows. The store keeps its rows by descending
document id, so the lower row is the document that trec_eval ranks first.

Shapes: Q queries, D embedding size, B rows of a block (R of them on each device), K results, C rows in a chunk.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gtr_jax.errors import InputError
from gtr_jax.io.bars import Bar
from gtr_jax.parallel import processes
from gtr_jax.parallel.progress import SEARCH, doing
from gtr_jax.retrieval.host_ranking import HostRanking
from gtr_jax.retrieval.quantization import Quantizer, candidate_scores, rescored
from gtr_jax.retrieval.runs import Run, best_k

MAX_BLOCK_ROWS = 131_072   # rows and bytes of a block on one device; with MAX_QUERIES at most 256 MiB of scores
MAX_BLOCK_BYTES = 256 << 20
MAX_QUERIES = 512          # queries in one program
RESIDENT_BYTES = 4 << 30   # a corpus up to this size on each device stays there between searches
CHUNK = 32
RESCORE = 4                # candidates for each result, of int8 and binary vectors


class Rows(Protocol):
  """A float32 array [rows, D] in memory or on disk."""

  @property
  def shape(self) -> tuple[int, int]: ...

  def __getitem__(self, rows: slice) -> np.ndarray: ...


@runtime_checkable
class Coded(Protocol):
  """Vectors that may be kept in fewer bytes, as a store's."""

  @property
  def shape(self) -> tuple[int, int]: ...

  @property
  def quantizer(self) -> Quantizer: ...

  def codes(self, rows: slice) -> np.ndarray: ...


class Searches(Protocol):
  """A `Searcher`, or what finds nearly the same."""

  def search(self, queries_QxD: np.ndarray, k: int,
             progress: bool = False) -> tuple[Iterable[np.ndarray], Iterable[np.ndarray]]:
    """(scores float32, rows) of each query, k or fewer, best first, ties by row."""


class Searcher:
  """Searches one corpus of embeddings. A corpus that fits stays on the devices between calls.

  Args:
    embeddings: float32 [rows, D], or codes of them; for instance a store's.
    mesh: its devices share the work, all axes alike; None takes all devices.
    keep: keep a corpus that fits on the devices, for the next call; of CPUs also the memory of its scores.
    rescore: of codes, this many times k candidates are ranked again by float32 queries.
  """

  def __init__(self, embeddings: Rows | Coded, mesh: Mesh | None = None, keep: bool = True, rescore: int = RESCORE):
    if not embeddings.shape[0]:
      raise InputError("the corpus to search is empty")
    self._read: Callable[[slice], np.ndarray]
    if isinstance(embeddings, Coded):
      self._quantizer, self._read = embeddings.quantizer, embeddings.codes
    else:
      self._quantizer, self._read = Quantizer("float32", embeddings.shape[1]), embeddings.__getitem__
    self._small, self._rescore = self._quantizer.precision != "float32", rescore
    self._mesh = mesh if mesh is not None else Mesh(np.asarray(jax.devices()), ("data",))
    self.num_rows, self.dim = embeddings.shape
    devices, self._ranking_of = self._mesh.size, HostRanking if _on_host(self._mesh) else _DeviceRanking
    # Every block's new candidates are ranked again: on a host fewer blocks, and as many fewer queries, are faster.
    wide = 2 if self._small and self._ranking_of is HostRanking else 1
    self._max_queries = MAX_QUERIES // wide
    most = max(CHUNK, min(wide * MAX_BLOCK_ROWS, MAX_BLOCK_BYTES // self._quantizer.num_bytes) // CHUNK * CHUNK)
    self._num_blocks = math.ceil(self.num_rows / (devices * most))
    rows = math.ceil(self.num_rows / (self._num_blocks * devices * CHUNK)) * CHUNK
    self._block_rows = rows * devices
    stays = keep and self._num_blocks * rows * self._quantizer.num_bytes <= RESIDENT_BYTES
    self._resident: dict[int, jax.Array] | None = {} if stays else None
    self._memory: jax.Array | None = None  # of a `HostRanking`'s scores

  def search(self, queries_QxD: np.ndarray, k: int, progress: bool = False,
             rows: range | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest inner products.

    Args:
      queries_QxD: float32.
      k: results per query; more than the corpus has gives the whole corpus.
      progress: show a progress bar on stderr.
      rows: consecutive ones, which are searched alone, as if the corpus had no others; default: all.

    Returns:
      (scores float32 [Q, K], rows int32 [Q, K]), best first, ties by row; K = min(k, corpus).
    """
    queries_QxD = np.asarray(queries_QxD, np.float32)
    if queries_QxD.ndim != 2 or queries_QxD.shape[1] != self.dim:
      raise InputError(f"queries of shape {queries_QxD.shape} do not match the corpus's embeddings of size {self.dim}; "
                       "encode both with the same model")
    rows = range(self.num_rows) if rows is None else rows
    num_queries, k = len(queries_QxD), min(k, self.num_rows)
    there = max(min(k, len(rows)), 0)
    if not num_queries or not there:
      return np.zeros((num_queries, there), np.float32), np.zeros((num_queries, there), np.int32)
    size = min(self._max_queries, max(8, 1 << (num_queries - 1).bit_length()))
    parts = [np.pad(part, ((0, size - len(part)), (0, 0))) for part in
             (queries_QxD[start:start + size] for start in range(0, num_queries, size))]
    candidates = min(self._rescore * k, self.num_rows) if self._small else k  # Whatever the rows: programs know it.
    rankings = [self._ranking_of(self._quantizer.query_codes(part) if self._small else (part,), candidates, rows,
                                 self._mesh) for part in parts]
    blocks = range(rows.start // self._block_rows, -(-rows.stop // self._block_rows))
    memory, self._memory = self._memory, None
    with (jax.set_mesh(self._mesh), doing(SEARCH),
          Bar(len(blocks) * len(parts), "searching", " blocks", shown=progress and processes.is_first(),
              leave=False) as bar):
      coming_BxD = self._block(blocks.start)
      for block in blocks:  # Blocks outside: each is read from disk once.
        doing(SEARCH)
        block_BxD = coming_BxD
        for ranking in rankings:
          memory = ranking.begin(block_BxD, block * self._block_rows, memory)
          if ranking is rankings[-1] and block + 1 < blocks.stop:
            coming_BxD = self._block(block + 1)  # While the devices work; and no further ahead, for memory's sake.
          ranking.finish()
          bar.update()
        jax.block_until_ready([ranking.best for ranking in rankings])
      best = [ranking.result(k) for ranking in rankings]
    if self._resident is not None:
      self._memory = memory
    scores, found = (np.concatenate(of_all)[:num_queries, :there] for of_all in zip(*best, strict=True))
    return scores, found

  def _block(self, number: int) -> jax.Array:
    """Block `number` of the corpus, float32 or codes [B, ...] over all devices; zeros after the last row."""
    if self._resident is not None and number in self._resident:
      return self._resident[number]
    first = number * self._block_rows

    def shard(index):
      start, stop, _ = index[0].indices(self._block_rows)
      part = np.asarray(self._read(slice(first + start, min(first + stop, self.num_rows))), self._quantizer.dtype)
      part = self._quantizer.on_devices(part)
      return np.pad(part, ((0, stop - start - len(part)), (0, 0))) if len(part) < stop - start else part

    block = jax.make_array_from_callback((self._block_rows, self._quantizer.width_on_devices),
                                         NamedSharding(self._mesh, P(self._mesh.axis_names)), shard)
    if self._resident is not None:
      self._resident[number] = block
    return block


def _on_host(mesh: Mesh) -> bool:
  """Whether its devices are CPUs of this process."""
  return all(device.platform == "cpu" for device in mesh.devices.flat) and not mesh.is_multi_process


class _DeviceRanking:
  """What `HostRanking` is, on the devices."""

  def __init__(self, form: tuple[np.ndarray, ...], k: int, rows: range, mesh: Mesh):
    self._mesh = mesh
    self._form, self._limits = tuple(map(self._put, form)), self._put(np.asarray([rows.start, rows.stop], np.int32))
    kinds = [(-np.inf, np.float32), (0, np.int32), (0, np.float32)][:1 + len(form)]
    self.best = tuple(self._put(np.full((len(form[0]), k), *kind)) for kind in kinds)

  def _put(self, array):
    return jax.make_array_from_callback(array.shape, NamedSharding(self._mesh, P()), lambda index: array[index])

  def begin(self, block: jax.Array, first_row: int, memory: jax.Array | None) -> jax.Array | None:
    search = _search_codes if len(self._form) > 1 else _search_block
    self.best = search(*self._form, block, self._put(np.int32(first_row)), self._limits, *self.best, mesh=self._mesh)
    return memory

  def finish(self) -> None:
    pass

  def result(self, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = self.best if len(self._form) == 1 else _by_rescored(*self.best, k=k)
    return np.asarray(scores), np.asarray(rows)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames=("best_scores_QxK", "best_rows_QxK"))
def _search_block(queries_QxD, block_BxD, first_row, limits, best_scores_QxK, best_rows_QxK, *, mesh):
  """Merges the results so far, which come from lower rows, with those of a block that starts at `first_row`."""

  def products(queries_QxD, rows_RxD):
    scores_QxR = jnp.einsum("qd,rd->qr", queries_QxD, rows_RxD, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(scores_QxR == 0, 0.0, scores_QxR)  # top_k puts +0 before -0; for trec_eval they are equal.

  return _merged((best_scores_QxK, best_rows_QxK), (queries_QxD,), block_BxD, first_row, limits, products, mesh)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames=("scores_QxK", "rows_QxK", "rescored_QxK"))
def _search_codes(query_codes_QxW, queries_QxD, block_BxW, first_row, limits, scores_QxK, rows_QxK, rescored_QxK, *,
                  mesh):
  """Likewise the candidates so far, each with its score by float32 queries."""

  def products(query_codes_QxW, queries_QxD, codes_RxW):
    del queries_QxD
    return candidate_scores(query_codes_QxW, codes_RxW).astype(jnp.float32)

  def with_scores(query_codes_QxW, queries_QxD, codes_RxW, chosen_QxK):
    del query_codes_QxW
    return rescored(queries_QxD, codes_RxW, chosen_QxK)

  return _merged((scores_QxK, rows_QxK, rescored_QxK), (query_codes_QxW, queries_QxD), block_BxW, first_row, limits,
                 products, mesh, with_scores)


def _merged(best, queries, block, first_row, limits, products, mesh, of_chosen=None):
  """Of (scores, rows, ...) `[Q, K]` of lower rows and of a block, the best.

  Args:
    best: so far.
    queries: arrays `[Q, ...]`, what the functions take first.
    block: `[B, ...]`, over all devices.
    first_row: of the block.
    limits: `[2]`, the first row that exists, and the one after the last.
    products: scores float32 `[Q, R]` of queries and the rows of a device.
    mesh: the devices.
    of_chosen: what else `best` has of the chosen ones, from queries, the rows of a device, and which of them.
  """
  k = best[0].shape[1]

  def of_one_device(first_row, limits, rows, *queries):
    scores_QxR = products(*queries, rows)
    first_row = first_row + jax.lax.axis_index(mesh.axis_names) * len(rows)
    row_R = first_row + jnp.arange(len(rows), dtype=jnp.int32)
    exists_1xR = ((limits[0] <= row_R) & (row_R < limits[1]))[None, :]
    scores_QxR = jnp.where(exists_1xR, scores_QxR, -jnp.inf)
    scores_QxK, chosen_QxK = _top_k(scores_QxR, min(k, len(rows)))
    others = (of_chosen(*queries, rows, chosen_QxK),) if of_chosen else ()
    return _of_all_devices((scores_QxK, first_row + chosen_QxK, *others), k, mesh)

  # The results are the same everywhere, which JAX cannot see.
  found = jax.shard_map(of_one_device, mesh=mesh, in_specs=(P(), P(), P(mesh.axis_names), *(P() for _ in queries)),
                        out_specs=P(), check_vma=False)(first_row, limits, block, *queries)
  return _best(k, *(jnp.concatenate(both, axis=1) for both in zip(best, found, strict=True)))


@functools.partial(jax.jit, static_argnames="k")
def _by_rescored(scores_QxK, rows_QxK, rescored_QxK, *, k):
  """(scores, rows) of the best k candidates by their second scores, ties by row; those that do not exist come last."""
  rescored_QxK = jnp.where(scores_QxK == -jnp.inf, -jnp.inf, rescored_QxK)
  order = jnp.argsort(rows_QxK, axis=1)
  return _best(k, *(jnp.take_along_axis(x, order, axis=1) for x in (rescored_QxK, rows_QxK)))


def _of_all_devices(found: tuple[jax.Array, ...], k: int, mesh: Mesh) -> tuple[jax.Array, ...]:
  """The best k of what all devices have found, (scores, rows, ...) `[Q, K]`, on each of them.

  In log2(devices) exchanges: at each one a device and its partner, twice as far away as before, merge what both have of
  their neighbours. Of a number of devices that is no power of two the odd factor comes last, in as many exchanges.
  """
  number, together = jax.lax.axis_index(mesh.axis_names), 1

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
    found = _best(k, *(jnp.moveaxis(jnp.stack(of_all)[order], 0, 1).reshape(len(found[0]), -1)
                       for of_all in zip(*parts, strict=True)))
  return found


def _best(k: int, scores: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
  """The best k of scores `[Q, ...]` in the order of their rows, or all where there are fewer; and their others."""
  scores, order = jax.lax.top_k(scores, min(k, scores.shape[1]))
  return (scores, *(jnp.take_along_axis(other, order, axis=1) for other in others))


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


def search_run(searcher: Searches, doc_ids: list[str], query_ids: list[str], queries_QxD: np.ndarray, k: int, *,
               exclude_own_id: bool = False, progress: bool = True, rows: range | None = None) -> Run:
  """Ranks the best k documents for each query.

  Args:
    searcher: over the embeddings of `doc_ids`; with `rows` a `Searcher`.
    doc_ids: by row. In descending order (as a store keeps them), ties come out in trec_eval's order.
    query_ids: one for each row of `queries_QxD`.
    queries_QxD: float32 embeddings.
    k: documents per query.
    exclude_own_id: leave out the document whose id is the query's own.
    progress: show a progress bar on stderr.
    rows: consecutive ones that are searched alone; default: all.
  """
  among = {} if rows is None else {"rows": rows}
  found = searcher.search(queries_QxD, k + exclude_own_id, progress, **among)
  return {query_id: best_k(query_id, [doc_ids[row] for row in rows.tolist()], scores, k, exclude_own_id)
          for query_id, scores, rows in zip(query_ids, *found, strict=True)}
