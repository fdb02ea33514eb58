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
  queries = model.encode(params, batch.queries, batch.query_hash.shape[1], tower="query", dropout_key=dropout_key)
  # Else, under fsdp, the parameters that are gathered for the queries may be kept for the passages, all layers of them.
  params, queries = jax.lax.optimization_barrier((params, queries))
  passages = model.encode(params, batch.passages, batch.passage_hash.shape[1], tower="passage", dropout_key=dropout_key)
  return queries, passages
