"""From texts to embeddings: sorted by length, padded to a few lengths, every shape compiled once, spread over the mesh.

Letters: G groups (data shards of the mesh), R rows of a group, L length, D embedding size.
"""

import concurrent.futures
import functools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from gtr_jax.errors import InputError
from gtr_jax.load import Model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.partitioning import batch_sharding, num_groups
from gtr_jax.retrieval.documents import Documents, full_text
from gtr_jax.retrieval.store import Store, StoreWriter
from gtr_jax.text.packing import pad_texts

SHORTEST = 16              # tokens; each padded length is twice the one before
TOKENS_PER_BATCH = 16_384  # token slots of one batch on each data shard
CPU_TOKENS_PER_BATCH = 1024  # the same on a CPU, whose cache has to hold the activations
FEW = 8                    # rows for each data shard in a batch of the few texts that are left over
_AHEAD = 2                 # batches given to the devices before the result of the first is fetched
_SIDE_OF_TOWER = {"query": "query", "passage": "document"}


def embed(model: Model, texts: Sequence[str], tower: str, max_length: int | None = None,
          progress: bool = True) -> np.ndarray:
  """Embeddings of texts, float32 `[texts, D]` in the order of the texts.

  Args:
    model: from `load_model`.
    texts: without the prompt, which is put before them.
    tower: "query" or "passage".
    max_length: tokens of a text at most; default: the model's own for queries or documents.
    progress: show a progress bar on stderr.
  """
  side = _SIDE_OF_TOWER[tower]
  max_length = max_length or model.lengths[side]
  tokens = _tokenize(model, texts, side, max_length)
  with _Progress(len(texts), "encoding queries" if tower == "query" else "encoding documents", progress) as bar:
    embeddings = embed_tokens(model.encoder, model.params, tokens, tower, max_length, model.mesh, bar)
  _check_finite(embeddings, texts, model)
  return embeddings


def encode_corpus(model: Model, documents: Documents, output: Any, max_length: int | None = None,
                  progress: bool = True) -> Store:
  """Embeds a corpus into a store. Started again, goes on at the first chunk that is missing.

  Args:
    model: from `load_model`.
    documents: the corpus.
    output: folder of the store.
    max_length: tokens of a document at most; default: the model's own.
    progress: show a progress bar on stderr.

  Returns:
    The store, complete.

  Raises:
    InputError: the folder holds something else, or the embeddings of another model or corpus; nothing is changed.
  """
  max_length = max_length or model.lengths["document"]
  writer = StoreWriter(output, documents, dim=model.encoder.dim, settings={
      "weights_hash": model.weights_hash, "max_length": max_length, "prompt": model.prompts["document"]})
  ids, titles, texts = writer.documents
  chunks = writer.missing_chunks()

  def tokens_of(chunk):
    return _tokenize(model, [full_text(titles[row], texts[row]) for row in chunk], "document", max_length)

  with (concurrent.futures.ThreadPoolExecutor(1) as thread,
        _Progress(len(ids), "encoding documents", progress) as bar):
    bar.skip(len(ids) - sum(len(chunk) for chunk in chunks))
    coming = [thread.submit(tokens_of, chunk) for chunk in chunks[:1]]
    for number, chunk in enumerate(chunks):
      tokens = coming.pop().result()
      coming = [thread.submit(tokens_of, later) for later in chunks[number + 1:number + 2]]
      embeddings = embed_tokens(model.encoder, model.params, tokens, "passage", max_length, model.mesh, bar)
      _check_finite(embeddings, [ids[row] for row in chunk], model)
      writer.write_chunk(chunk, embeddings)
  return writer.finish()


def embed_tokens(encoder: DualEncoder, params: Any, tokens: Sequence[np.ndarray], tower: str, max_length: int,
                 mesh: Mesh, bar: "_Progress | None" = None) -> np.ndarray:
  """Embeddings of tokenised texts, float32 `[texts, D]`. Same shapes, same program, whatever the parameters.

  Args:
    encoder: the computation.
    params: sharded over `mesh`.
    tokens: int32 `[<= max_length]` for each text, with EOS.
    tower: "query" or "passage".
    max_length: tokens of a text at most.
    mesh: the devices.
    bar: to report progress to.
  """
  groups = num_groups(mesh)
  budget = CPU_TOKENS_PER_BATCH if mesh.devices.flat[0].platform == "cpu" else TOKENS_PER_BATCH
  out = np.zeros((len(tokens), encoder.dim), np.float32)
  running = deque()

  def fetch():
    texts, result_GxRxD = running.popleft()
    out[texts] = np.asarray(result_GxRxD).reshape(-1, encoder.dim)[:len(texts)]
    if bar is not None:
      bar.add(len(texts), sum(len(tokens[i]) for i in texts))

  with jax.set_mesh(mesh):
    for texts, length, rows in _batches([len(t) for t in tokens], max_length, groups, budget):
      padded = np.zeros((rows, length), np.int32)
      for row, i in enumerate(texts):
        padded[row, :len(tokens[i])] = tokens[i]
      batch = jax.tree.map(functools.partial(_to_devices, batch_sharding(mesh)), pad_texts(padded, groups))
      running.append((texts, _encode(encoder, params, batch, rows // groups, tower, mesh)))
      if len(running) > _AHEAD:
        fetch()
    while running:
      fetch()
  return out


@functools.partial(jax.jit, static_argnames=("encoder", "num_texts", "tower", "mesh"))
def _encode(encoder, params, texts, num_texts, tower, mesh):
  """Embeddings `[G, R, D]`, the whole of them on every device, so that every process can read them."""
  embeddings = encoder.encode(params, texts, num_texts, tower=tower)
  return jax.lax.with_sharding_constraint(embeddings, NamedSharding(mesh, PartitionSpec()))


def _to_devices(sharding, array):
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _batches(lengths: Sequence[int], max_length: int, groups: int, budget: int) -> list[tuple[np.ndarray, int, int]]:
  """Cuts texts into (texts, padded length, rows), the longest first.

  A batch has the padded length of its longest text and as many rows as `budget` token slots for each of the `groups`
  allow; it is filled with the next shorter texts, so that only the last one can have empty rows. That one is small if
  few texts are left.
  """
  order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
  batches, start = [], 0
  while start < len(order):
    length = SHORTEST
    while length < lengths[order[start]]:
      length *= 2
    length = min(length, max(max_length, SHORTEST))
    rows = max(budget // length, 1) * groups
    if len(order) - start <= FEW * groups:
      rows = min(rows, FEW * groups)
    batches.append((order[start:start + rows], length, rows))
    start += rows
  return batches


def _tokenize(model: Model, texts: Sequence[str], side: str, max_length: int) -> list[np.ndarray]:
  return model.tokenizer.encode([model.prompts[side] + text for text in texts], max_length)


def _check_finite(embeddings: np.ndarray, names: Sequence[str], model: Model) -> None:
  bad = np.flatnonzero(~np.isfinite(embeddings).all(-1))
  if len(bad):
    raise InputError(f"{model.path}: its embedding of {names[bad[0]]!r:.60} is not finite; the weights are damaged, or "
                     "training diverged: take an earlier checkpoint")


class _Progress:
  """A bar with texts per second and tokens per second, on stderr."""

  def __init__(self, total: int, description: str, shown: bool):
    self._bar = tqdm(total=total, desc=description, unit=" texts", disable=not shown or jax.process_index() != 0,
                     dynamic_ncols=True)
    self._tokens, self._start = 0, time.perf_counter()

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._bar.close()

  def skip(self, texts: int) -> None:
    """Texts that were done before."""
    if texts:
      self._bar.initial = texts
      self._bar.update(texts)
      self._bar.unpause()

  def add(self, texts: int, tokens: int) -> None:
    """Texts and their tokens that are done now."""
    self._tokens += tokens
    self._bar.set_postfix_str(f"{self._tokens / (time.perf_counter() - self._start):,.0f} tokens/s", refresh=False)
    self._bar.update(texts)
