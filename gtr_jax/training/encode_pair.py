"""The encoder call of every training path: one shot, gradient caching, validation, T5X."""

from typing import Any

import jax

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.batch import Batch


def encode_pair(model: DualEncoder, params: Any, batch: Batch,
                dropout_key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """Embeddings of both sides, `[groups, texts, dim]`, of a batch without microbatches.

  Args:
    model: of both sides.
    params: its own, and perhaps the loss's.
    batch: the texts, and how many there are on each side.
    dropout_key: None without dropout.
  """
  num_texts = batch.query_hash.shape[1], batch.passage_hash.shape[1]
  return model.encode_both(params, batch.queries, batch.passages, num_texts, dropout_key)
