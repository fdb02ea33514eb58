"""From texts to embeddings: packed into rows of a few lengths, every shape compiled once, spread over the mesh.

Of several processes each tokenises, packs and gets back texts of its own.

Letters: G groups (data shards of the mesh), T texts of a group, D embedding size.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gtr_jax.errors import InputError
from gtr_jax.inference.load import Model
from gtr_jax.inference.row_queue import PackedTexts, RowQueue
from gtr_jax.io.bars import Bar
from gtr_jax.models import kernel_check
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.parallel.partitioning import global_batch, num_groups, own_groups, part_of_batch
from gtr_jax.parallel.progress import ENCODING, doing
from gtr_jax.text.packing import Texts

_AHEAD = 2                 # batches given to the devices before the result of the first is fetched
_SIDE_OF_TOWER = {"query": "query", "passage": "document"}


def embed(model: Model, texts: Sequence[str], tower: str, max_length: int | None = None, progress: bool = True, *,
          prompt: str | None = None, batch_size: int | None = None) -> np.ndarray:
  """Embeddings of texts, float32 `[texts, D]` in the order of the texts.

  Args:
    model: from `load_model`.
    texts: without the prompt, which is put before them.
    tower: "query" or "passage".
    max_length: tokens of a text at most; default: the model's own for queries or documents.
    progress: show a progress bar on stderr.
    prompt: put before every text; default: the model's own for queries or documents.
    batch_size: texts that are computed at once, at most; default: as many as fit into the rows of a batch.
  """
  side = _SIDE_OF_TOWER[tower]
  max_length = max_length or model.lengths[side]
  tokens = tokenize(model, texts, side, max_length, prompt)
  part, parts = part_of_batch(model.mesh)
  own = len(range(part, len(texts), parts))
  with Progress(len(texts), "encoding queries" if tower == "query" else "encoding documents", progress, own) as bar:
    embeddings = embed_tokens(model.encoder, model.params, tokens, tower, max_length, model.mesh, bar, batch_size)
  check_finite(embeddings, texts, model)
  return embeddings


def embed_tokens(encoder: DualEncoder, params: Any, tokens: Sequence[np.ndarray], tower: str, max_length: int,
                 mesh: Mesh, bar: "Progress | None" = None, batch_size: int | None = None) -> np.ndarray:
  """Embeddings of tokenised texts, float32 `[texts, D]`. Same shapes, same program, whatever the parameters.

  All processes have all texts, and get all embeddings; each embeds a part.

  Args:
    encoder: the computation.
    params: sharded over `mesh`.
    tokens: int32 `[<= max_length]` for each text, with EOS.
    tower: "query" or "passage".
    max_length: tokens of a text at most.
    mesh: the devices.
    bar: to report progress to.
    batch_size: texts that are computed at once, at most; where several processes embed, a batch is full whatever it is.
  """
  part, parts = part_of_batch(mesh)
  out = np.zeros((-(-len(tokens) // parts), encoder.dim), np.float32)

  def put(numbers, embeddings):
    out[numbers] = embeddings

  with EmbeddingStream(encoder, params, tower, max_length, mesh, put, bar) as stream:
    if parts == 1:
      for batch in _batches(tokens, max_length, num_groups(mesh), stream.on_cpu, batch_size):
        stream.run(batch)
    else:
      own = [tokens[i] for i in range(part, len(tokens), parts)]
      stream.add(own, range(len(own)))
      stream.flush(few_shapes=True)
  return out if parts == 1 else from_all_parts(out, mesh)[:len(tokens)]


def from_all_parts(own: np.ndarray, mesh: Mesh) -> np.ndarray:
  """`[parts * n, ...]`, row i from part i modulo their number, of which each process has `[n, ...]`."""
  numbers = multihost_utils.process_allgather(np.int32(part_of_batch(mesh)[0]))
  of_processes = multihost_utils.process_allgather(own)
  of_parts = of_processes[np.unique(numbers, return_index=True)[1]]
  return np.moveaxis(of_parts, 0, 1).reshape(-1, *own.shape[1:])


class EmbeddingStream:
  """Embeds texts as they come: packed into rows, which wait until they fill a batch of all processes.

  Every process adds texts of its own and gets their embeddings; all of them add, and flush, equally often. A context:
  under the mesh, and waits for what is running.

  Args:
    encoder: the computation.
    params: sharded over `mesh`.
    tower: "query" or "passage".
    max_length: tokens of a text at most.
    mesh: the devices.
    put: gets numbers of texts, int `[n]`, and their embeddings, float32 `[n, D]`.
    bar: to report progress to.

  Attributes:
    on_cpu: whether the devices are CPUs.
  """

  def __init__(self, encoder: DualEncoder, params: Any, tower: str, max_length: int, mesh: Mesh,
               put: Callable[[np.ndarray, np.ndarray], None], bar: "Progress | None" = None):
    self.on_cpu = mesh.devices.flat[0].platform == "cpu"
    self._encode = functools.partial(encode_packed, encoder, params, tower=tower)
    self._mesh, self._put, self._bar, self._groups = mesh, put, bar, own_groups(mesh)
    self._waiting = RowQueue(max_length, self.on_cpu)
    self._is_first = True
    self._running: deque[tuple[PackedTexts, jax.Array]] = deque()
    self._within = contextlib.ExitStack()

  def __enter__(self) -> "EmbeddingStream":
    self._within.enter_context(jax.set_mesh(self._mesh))
    self._within.enter_context(doing(ENCODING))
    return self

  def __exit__(self, kind, *exc_info):
    with self._within:
      while self._running and kind is None:
        self._fetch()

  def add(self, tokens: Sequence[np.ndarray], numbers: Sequence[int]) -> None:
    """Takes more texts, int32 `[<= max_length]` each, with their numbers, and embeds what fills whole batches."""
    self._waiting.add(tokens, numbers)
    whole = [self._waiting.rows(length) // (most * len(self._groups)) for length, most in self._waiting.batch_rows]
    for (length, most), number in zip(self._waiting.batch_rows, _agreed(whole, min), strict=True):
      for _ in range(number):
        self.run(self._waiting.take(length, most, len(self._groups)))

  def flush(self, few_shapes: bool = False) -> None:
    """Embeds what is left.

    Args:
      few_shapes: no other programs are compiled than for a whole batch and for one of a single row; else the last
        batch of each length has the shape that its texts fill best.
    """
    waiting, groups = self._waiting, len(self._groups)
    for length, most in waiting.batch_rows:
      rows, = _agreed([-(-waiting.rows(length) // groups)], max)
      for _ in range(rows // most):
        self.run(waiting.take(length, most, groups))
      if few_shapes and rows % most:
        self.run(waiting.take(length, 1 if rows % most == 1 else most, groups))
      elif rows % most:
        lengths, needed = waiting.lengths_of_last(length), _agreed(waiting.rows_of_last(length, groups), max)
        other, rows = min(zip(lengths, needed, strict=True), key=math.prod)
        waiting.repack(length, other)
        self.run(waiting.take(other, rows, groups))

  def run(self, batch: PackedTexts) -> None:
    """Embeds a batch of this process's groups."""
    doing(ENCODING)
    texts = global_batch(self._mesh, batch.texts)
    result_GxTxD = self._encode(texts=texts, num_texts=batch.num_texts)
    if self._is_first:
      self._is_first = False
      self._check_kernel(result_GxTxD, texts, batch.num_texts)
    self._running.append((batch, result_GxTxD))
    if len(self._running) > _AHEAD:
      self._fetch()

  def _check_kernel(self, result_GxTxD, texts, num_texts):
    """Raises InputError where the kernel embeds a batch in another way than the reference."""
    encoder, params = self._encode.args
    if encoder.config.attention != "kernel":
      return
    config = dataclasses.replace(encoder.config, attention="reference")
    by_reference = encode_packed(dataclasses.replace(encoder, config=config), params, texts=texts, num_texts=num_texts,
                           **self._encode.keywords)
    difference = float(jax.jit(kernel_check.difference)(result_GxTxD, by_reference))
    device = self._mesh.devices.flat[0]
    if refusal := kernel_check.refusal("embeddings of the first batch", difference, config.dtype_on(device.platform),
                                       device):
      raise InputError(f"--attention: {refusal}")

  def _fetch(self):
    batch, result_GxTxD = self._running.popleft()
    of_group = {shard.index[0].start or 0: shard.data for shard in result_GxTxD.addressable_shards}
    own = np.concatenate([np.asarray(of_group[group]) for group in self._groups])
    if len(batch.numbers):
      self._put(batch.numbers, own.reshape(-1, own.shape[-1])[batch.places])
    if self._bar is not None:
      self._bar.add(len(batch.numbers), int(np.count_nonzero(batch.texts.segment_ids)))


def _agreed(numbers: Sequence[int], by: Callable[[Iterable[int]], int]) -> list[int]:
  """The least, or largest, of each that any process has."""
  if jax.process_count() == 1:
    return list(numbers)
  of_all = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
  return [int(by(of_number)) for of_number in of_all.T.tolist()]


@functools.partial(jax.jit, static_argnames=("encoder", "num_texts", "tower"))
def encode_packed(encoder: DualEncoder, params: Any, texts: Texts, num_texts: int, tower: str) -> jax.Array:
  """Embeddings `[G, T, D]` of packed texts, those of a group where the group is."""
  return encoder.encode(params, texts, num_texts, tower=tower)


def _batches(tokens: Sequence[np.ndarray], max_length: int, groups: int, on_cpu: bool,
             batch_size: int | None = None) -> Iterator[PackedTexts]:
  """Packs all of some texts into batches of few shapes, those of the longest texts first.

  Each length of rows has one shape, and a second one of a single row for the little that a query needs. A
  `batch_size` leaves rows out of a batch; only where it is less than the rows of one, these are fewer, a power of two.
  """
  at_once = max(batch_size // groups, 1) if batch_size else None  # Texts of each group.
  queue = RowQueue(max_length, on_cpu, at_once)
  queue.add(tokens, range(len(tokens)))
  for length, most in queue.batch_rows:
    if at_once:
      most = min(most, 1 << at_once.bit_length() - 1)
    while queue.rows(length):
      chosen = min(queue.rows(length), most * groups)
      if batch_size:
        chosen = min(chosen, queue.rows_with(length, batch_size))
        if chosen < min(most * groups // 2, queue.rows(length)):  # Most of a full batch would be empty.
          chosen = min(chosen, groups)
      yield queue.take(length, most if chosen > groups else 1, groups, chosen)


def tokenize(model: Model, texts: Sequence[str], side: str, max_length: int,
             prompt: str | None = None) -> list[np.ndarray]:
  """Token ids of texts, of at most `max_length`, with `prompt`, or else that of the side, before each."""
  prompt = model.prompts[side] if prompt is None else prompt
  return model.tokenizer.encode([prompt + text for text in texts], max_length)


def check_finite(embeddings: np.ndarray, names: Sequence[str], model: Model) -> None:
  """Raises InputError where an embedding is not finite."""
  bad = np.flatnonzero(~np.isfinite(embeddings).all(-1))
  if len(bad):
    raise InputError(f"{model.path}: its embedding of {names[bad[0]]!r:.60} is not finite; the weights are damaged, or "
                     "training diverged: take an earlier checkpoint")


class Progress:
  """A bar with texts per second and tokens per second, on stderr.

  Args:
    total: texts.
    description: of what is done.
    shown: whether there is a bar.
    own: so many of them are this process's; the others are taken to be as far with theirs. None: all.
  """

  def __init__(self, total: int, description: str, shown: bool, own: int | None = None):
    self._bar = Bar(total, description, " texts", shown=shown and jax.process_index() == 0)
    self._total, self._own = total, total if own is None else own
    self._texts, self._tokens, self._start = 0, 0, time.perf_counter()

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._bar.close()

  def skip(self, texts: int) -> None:
    """Texts that were done before, of all processes."""
    self._total -= texts
    self._bar.skip(texts)

  def add(self, texts: int, tokens: int) -> None:
    """Texts of this process and their tokens that are done now."""
    before = self._of_all(self._texts)
    self._texts, self._tokens = self._texts + texts, self._tokens + tokens
    rate = self._of_all(self._tokens) / (time.perf_counter() - self._start)
    self._bar.update(self._of_all(self._texts) - before, f"{rate:,.0f} tokens/s")

  def _of_all(self, own: int) -> int:
    """Of all processes, where so many are this one's."""
    return own * self._total // max(self._own, 1)
