"""A sentence-transformers model with the architecture and weights of a `DualEncoder`, to be compared with."""

from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from sentence_transformers import SentenceTransformer

from gtr_jax.formats import sentence_transformers_writer
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.tokenizer import Tokenizer


def build(model: DualEncoder, params: dict, vocabulary: str | Path, folder: Path, max_length: int,
          extra_ids: int = 0) -> SentenceTransformer:
  """What sentence-transformers makes of the exported model, without dropout.

  Args:
    model: with one tower for both sides.
    params: its parameters.
    vocabulary: SentencePiece model.
    folder: where the exported files go.
    max_length: tokens of a text at most.
    extra_ids: sentinels after the vocabulary's pieces.
  """
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
  arrays = {name: Array(x.shape, x.dtype, lambda x=x: x) for name, x in flat.items()}
  sentence_transformers_writer.write(epath.Path(folder), model, arrays, Tokenizer(vocabulary, extra_ids),
               {"query": max_length, "document": max_length}, {"query": "", "document": ""}, "")
  return SentenceTransformer(str(folder), device="cpu", config_kwargs={"dropout_rate": 0.0})
