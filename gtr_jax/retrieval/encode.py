"""A corpus into an embedding store, chunk by chunk."""

import concurrent.futures
import dataclasses
from typing import Any

import numpy as np

from gtr_jax.collections.corpus import Documents, full_text
from gtr_jax.inference.embed import Progress, check_finite, embed_tokens, tokenize
from gtr_jax.inference.load import Model
from gtr_jax.parallel.progress import ENCODING, doing
from gtr_jax.retrieval.store import Store, StoreWriter, normalized


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
  not_normalized = dataclasses.replace(model.encoder, normalize=False)
  writer = StoreWriter(output, documents, dim=model.encoder.dim, settings={
      "weights_hash": model.weights_hash, "max_length": max_length, "prompt": model.prompts["document"]})
  ids, titles, texts = writer.documents
  chunks = writer.missing_chunks()

  def tokens_of(chunk):
    return tokenize(model, [full_text(titles[row], texts[row]) for row in chunk], "document", max_length)

  with (concurrent.futures.ThreadPoolExecutor(1) as thread,
        Progress(len(ids), "encoding documents", progress) as bar, doing(ENCODING)):
    bar.skip(len(ids) - sum(len(chunk) for chunk in chunks))
    coming = [thread.submit(tokens_of, chunk) for chunk in chunks[:1]]
    for number, chunk in enumerate(chunks):
      tokens = coming.pop().result()
      coming = [thread.submit(tokens_of, later) for later in chunks[number + 1:number + 2]]
      embeddings = embed_tokens(not_normalized, model.params, tokens, "passage", max_length, model.mesh, bar)
      norms = np.linalg.norm(embeddings, axis=1)
      check_finite(norms[:, None], [ids[row] for row in chunk], model)
      if model.encoder.normalize:
        embeddings = normalized(embeddings, norms)
      writer.write_chunk(chunk, embeddings, norms)
  return writer.finish()
