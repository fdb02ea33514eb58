"""A corpus into an embedding store, chunk by chunk; of several processes each makes chunks of its own."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gtr_jax.collections.corpus import Documents, full_text
from gtr_jax.formats.shortened import not_trained_for
from gtr_jax.inference.embed import EmbeddingStream, Progress, check_finite, embed, tokenize
from gtr_jax.inference.load import Model
from gtr_jax.io import bars
from gtr_jax.parallel import processes
from gtr_jax.parallel.partitioning import own_groups, part_of_batch
from gtr_jax.retrieval.quantization import check, normalized, shortened
from gtr_jax.retrieval.store import Store, StoreWriter

_GROUPS_OF_CHUNK = 8  # The texts of a chunk fill a few batches of so many groups.


def encode_corpus(model: Model, documents: Documents, output: Any, max_length: int | None = None,
                  progress: bool = True, precision: str = "float32", dimensions: int | None = None) -> Store:
  """Embeds a corpus into a store. Started again, goes on with the chunks that are missing.

  A chunk is what is written at once, and no more: its last texts wait for those of the next to fill a batch.

  Args:
    model: from `load_model`.
    documents: the corpus.
    output: folder of the store.
    max_length: tokens of a document at most; default: the model's own.
    progress: show a progress bar on stderr.
    precision: how the store keeps vectors, as of `Quantizer`. The scales of int8 and the rotation of bits are those of
      a sample of the corpus, which is embedded first, and not again.
    dimensions: keep so many of a vector's numbers, the first (Matryoshka); default: all.

  Returns:
    The store, complete.

  Raises:
    InputError: the folder holds something else, or the embeddings of another model or corpus; nothing is changed. Or
      the model's vectors cannot be kept so.
  """
  dim = check(precision, dimensions, model.encoder.dim)
  warning = not_trained_for(model.path, dim, model.encoder.dim, model.dimensions)
  if warning and processes.is_first():
    bars.say(warning)
  max_length = max_length or model.lengths["document"]
  not_normalized = dataclasses.replace(model.encoder, normalize=False)
  writer = StoreWriter(output, documents, dim=dim, precision=precision, settings={
      "dtype": model.encoder.config.dtype, "weights_hash": model.weights_hash, "max_length": max_length,
      "prompt": model.prompts["document"]})
  ids, titles, texts = writer.documents

  def final(embeddings):
    """As they are kept, before they are quantised; and their lengths."""
    embeddings = shortened(embeddings, dim, normalize=False)
    norms = np.linalg.norm(embeddings, axis=1)
    return normalized(embeddings, norms) if model.encoder.normalize else embeddings, norms

  known, of_known = np.zeros(0, np.int64), np.zeros((0, model.encoder.dim), np.float32)
  if writer.not_fitted:
    known = writer.sample_rows()
    of_known = embed(dataclasses.replace(model, encoder=not_normalized),
                     [full_text(titles[row], texts[row]) for row in known.tolist()], "passage", max_length, progress)
    writer.fit(final(of_known)[0])
  chunks = writer.missing_chunks()
  part, parts = part_of_batch(model.mesh)
  # Enough at once for all groups of a process; all processes add equally often.
  at_once = -(-len(own_groups(model.mesh)) // _GROUPS_OF_CHUNK)
  windows = [chunks[first + part:first + at_once * parts:parts] for first in range(0, len(chunks), at_once * parts)]
  unfinished: dict[int, _Chunk] = {}
  starts_of_chunks = np.asarray([chunk.start for chunk in chunks])

  def tokens_of(window):
    for chunk in window:
      writer.check_documents(chunk)
    rows = [row for chunk in window for row in np.setdiff1d(chunk, known, assume_unique=True).tolist()]
    return rows, tokenize(model, [full_text(titles[row], texts[row]) for row in rows], "document", max_length)

  def in_sample(chunk):
    """Where the rows are that are known already."""
    return slice(*np.searchsorted(known, [chunk.start, chunk.stop]).tolist())

  def new(chunk):
    """How many rows are still to be embedded."""
    return len(chunk) - len(known[in_sample(chunk)])

  def put(rows, embeddings):
    starts = starts_of_chunks[np.searchsorted(starts_of_chunks, rows, "right") - 1]
    for start in np.unique(starts).tolist():
      chunk, here = unfinished[start], starts == start
      chunk.embeddings[rows[here] - start] = embeddings[here]
      chunk.missing -= int(here.sum())
      if not chunk.missing:
        write(unfinished.pop(start))

  def write(chunk):
    embeddings, norms = final(chunk.embeddings)
    check_finite(norms[:, None], [ids[row] for row in chunk.rows], model)
    writer.write_chunk(chunk.rows, embeddings, norms)

  with (concurrent.futures.ThreadPoolExecutor(1) as thread,
        Progress(len(ids), "encoding documents", progress, sum(map(new, chunks[part::parts]))) as bar,
        EmbeddingStream(not_normalized, model.params, "passage", max_length, model.mesh, put, bar) as stream):
    bar.skip(len(ids) - sum(map(new, chunks)))
    coming = [thread.submit(tokens_of, window) for window in windows[:1]]
    for number, window in enumerate(windows):
      unfinished |= {chunk.start: _Chunk(chunk, model.encoder.dim) for chunk in window}
      rows, tokens = coming.pop().result()
      coming = [thread.submit(tokens_of, later) for later in windows[number + 1:number + 2]]
      for chunk in window:
        put(known[in_sample(chunk)], of_known[in_sample(chunk)])
      stream.add(tokens, rows)
    stream.flush()
  return writer.finish()


def embed_queries(model: Model, queries: Sequence[str], store: Store, max_length: int | None = None,
                  progress: bool = True) -> np.ndarray:
  """Embeddings of queries float32 `[queries, D]`, as short as the store's. All else is as of `embed`."""
  return shortened(embed(model, queries, "query", max_length, progress), store.shape[1], model.encoder.normalize)


class _Chunk:
  """Rows of a store whose embeddings are coming."""

  def __init__(self, rows: range, dim: int):
    self.rows, self.missing = rows, len(rows)
    self.embeddings = np.zeros((len(rows), dim), np.float32)
