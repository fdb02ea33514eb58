"""A model for MTEB 2: `mteb.evaluate(MTEBModel("runs/mine"), tasks)`. Needs `pip install mteb`."""

import os
from typing import Any

import numpy as np

from gtr_jax.errors import InputError
from gtr_jax.inference.embedder import Embedder, load

try:
  from mteb.models import ModelMeta
except ImportError as e:
  raise ImportError("gtr_jax.integrations.mteb needs MTEB 2: pip install mteb") from e


class MTEBModel:
  """An encoder in MTEB's sense (`mteb.models.EncoderProtocol`).

  Queries and documents are read as the model was trained to, whatever the task; MTEB's own instructions are not used.

  Args:
    model: what `gtr_jax.load` takes, or what it gave.
    name: under which MTEB keeps the results; "owner/model".
  """

  def __init__(self, model: Any, name: str | None = None):
    self._embedder = model if isinstance(model, Embedder) else load(model)
    loaded = self._embedder.model
    name = name or f"gtr_jax/{os.path.basename(os.path.normpath(loaded.path))}"
    if name.count("/") != 1:
      raise InputError(f"name is {name!r}: MTEB wants owner/model")
    self.mteb_model_meta = ModelMeta.create_empty({
        "name": name, "revision": loaded.weights_hash[:12], "embed_dim": self._embedder.dim,
        "max_tokens": loaded.lengths["document"], "framework": ["JAX"], "similarity_fn_name": "cosine"})

  def encode(self, inputs: Any, *, prompt_type: Any = None, show_progress_bar: bool = True, **_: Any) -> np.ndarray:
    """Vectors float32 `[texts, dim]` of MTEB's batches, each a mapping with a list "text"."""
    texts = [text for batch in inputs for text in batch["text"]]
    side = "query" if getattr(prompt_type, "value", prompt_type) == "query" else "document"
    return np.asarray(self._embedder.encode(texts, side, progress=show_progress_bar))

  def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
    """Scores `[first, second]`."""
    return self._embedder.similarity(embeddings1, embeddings2)

  def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
    """Scores `[pairs]` of the first with the first, and so on."""
    return np.sum(np.atleast_2d(embeddings1) * np.atleast_2d(embeddings2), -1)
