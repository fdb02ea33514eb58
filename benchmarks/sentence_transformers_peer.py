"""A sentence-transformers model with the architecture and weights of a `DualEncoder`, to be compared with."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from gtr_jax.formats import sentence_transformers_writer
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.tokenizer import Tokenizer


def write(model: DualEncoder, params: dict, vocabulary: str | Path, folder: Path, max_length: int,
          extra_ids: int = 0) -> None:
  """Exports a model with one tower for both sides to a folder for sentence-transformers, which this does not need.

  Args:
    model: the computation.
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


def build(model: DualEncoder, params: dict, vocabulary: str | Path, folder: Path, max_length: int,
          extra_ids: int = 0) -> Any:
  """What sentence-transformers makes of the exported model, without dropout; arguments as of `write`."""
  from sentence_transformers import SentenceTransformer
  write(model, params, vocabulary, folder, max_length, extra_ids)
  return SentenceTransformer(str(folder), device="cpu", config_kwargs={"dropout_rate": 0.0})
