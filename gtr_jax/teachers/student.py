"""`gtr-jax student`: a small T5 that gives a teacher's vectors a little before its layers are trained at all.

The sum of static vectors of a text's pieces is a first guess of the teacher's vector of the text, and T5 is made to
compute it: the layers add nothing yet, and the projection leads to the teacher's vectors. What the last norm would
undo, that pieces have different weights, goes into one number of the embedding that the projection does not look at.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from flax import traverse_util

from gtr_jax.errors import InputError
from gtr_jax.formats.convert import new_place, write_as
from gtr_jax.formats.model_on_disk import Array, ModelOnDisk
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.tokenizer import Tokenizer

FORM = "sentence-transformers"
_AT_ONCE = 1024  # pieces
_MARK = "▁"      # of SentencePiece: here begins a word
_HEAD_DIM = 64
_LONGEST = 0.98  # Quantile of the weighted vectors' lengths that is the length of all embeddings; longer ones are cut.
_ROWS = 128      # The rows of the token embedding are a multiple of it, as T5's.


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a student; those of its MLP and heads follow, as in T5 1.1.

  Attributes:
    layers: how many.
    dim: width, a multiple of 64; None: the teacher's, or the next multiple above.

  Raises:
    InputError: another width.
  """

  layers: int = 2
  dim: int | None = None

  def __post_init__(self):
    if (self.dim or 0) % _HEAD_DIM:
      raise InputError(f"--dim {self.dim}: give a multiple of {_HEAD_DIM}, the width of a head")

  def config(self, vocab_size: int, teacher_dim: int) -> T5Config:
    """The whole T5."""
    dim = self.dim or -(-teacher_dim // _HEAD_DIM) * _HEAD_DIM
    return T5Config(vocab_size=-(-vocab_size // _ROWS) * _ROWS, emb_dim=dim, num_heads=dim // _HEAD_DIM,
                    head_dim=_HEAD_DIM, mlp_dim=-(-dim * 8 // 3 // _HEAD_DIM) * _HEAD_DIM, num_layers=self.layers,
                    mlp_activations=("gelu", "linear"))


def write_student(static: np.ndarray, vocabulary: Tokenizer, output: epath.PathLike, sizes: Sizes | None = None, *,
                  query_length: int = 64, document_length: int = 256, seed: int = 0) -> tuple[DualEncoder, int]:
  """Writes a student as a sentence-transformers folder, all of it or nothing.

  Args:
    static: vectors of the pieces, `[pieces, T]` (`static_vectors`).
    vocabulary: the student's.
    output: a folder that is not there yet.
    sizes: of the student.
    query_length: most tokens of a query, which the folder says.
    document_length: likewise.
    seed: of what is drawn: all of the layers but what each adds.

  Returns:
    The student, and how many parameters it has.

  Raises:
    InputError: the output is there.
  """
  output = new_place(output, FORM)
  config = (sizes or Sizes()).config(vocabulary.size, static.shape[1])
  encoder = DualEncoder(config, projection_dim=static.shape[1])
  params = traverse_util.flatten_dict(jax.device_get(nn.meta.unbox(encoder.init(jax.random.key(seed)))), sep="/")
  embedding, projection = embedding_and_projection(static, config.vocab_size, config.emb_dim)
  params |= {"token_embedder/embedding": embedding, "projection_layer/kernel": projection}
  params |= {name: np.zeros_like(value) for name, value in params.items()
             if name.endswith(("attention/out/kernel", "mlp/wo/kernel"))}
  arrays = {name: _array(value) for name, value in params.items()}
  model = ModelOnDisk(output, encoder, arrays, epath.Path(vocabulary.path), vocabulary.extra_ids,
                      {"query": query_length, "document": document_length}, {"query": "", "document": ""})
  write_as(FORM, output, model, vocabulary)
  return encoder, sum(array.size for array in params.values())


def embedding_and_projection(static: np.ndarray, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
  """The token embedding `[rows, dim]` and the projection `[dim, T]`, float32, of static vectors `[pieces, T]`.

  The vectors in their first dim - 1 principal components. One number more makes all rows as long as T5's initialiser
  makes them on average, sqrt(dim); the longest 2 % are cut.
  """
  components = np.linalg.svd(static.astype(np.float64), full_matrices=False)[2][:dim - 1]
  inside = static @ components.T
  lengths = np.linalg.norm(inside, axis=1)
  longest = np.quantile(lengths[lengths > 0], _LONGEST)
  inside *= np.minimum(1, longest / np.maximum(lengths, 1e-12))[:, None]
  inside *= math.sqrt(dim) / longest
  embedding = np.zeros((rows, dim))
  embedding[:len(inside), :inside.shape[1]] = inside
  embedding[:, -1] = np.sqrt(np.maximum(dim - np.sum(embedding**2, axis=1), 0))
  projection = np.zeros((dim, static.shape[1]))
  projection[:len(components)] = components
  return embedding.astype(np.float32), projection.astype(np.float32)


def _array(value: Any) -> Array:
  value = np.asarray(value)
  return Array(value.shape, value.dtype, lambda: value)
