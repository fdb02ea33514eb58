"""What every importer makes of a model on disk: all but the arrays themselves, which are read when asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes  # noqa: F401  numpy learns the name bfloat16 from it
import numpy as np
import numpy.typing
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.models.dual_encoder import DualEncoder

_BLOCK = 2**20  # numbers that are looked at together


class Array(NamedTuple):
  """An array on disk, or one still to be made: its shape and dtype, and what reads the whole of it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[..., np.ndarray]

  def astype(self, dtype: np.typing.DTypeLike) -> "Array":
    """The same in another dtype."""
    dtype = np.dtype(dtype)
    return Array(self.shape, dtype, lambda: self.read().astype(dtype, copy=False))

  def transposed(self) -> "Array":
    """The same, transposed."""
    return Array(self.shape[::-1], self.dtype, lambda: self.read().T)

  def finite(self, what: str) -> "Array":
    """The same, whose `read` raises InputError, beginning with `what`, where a number is NaN or infinite."""
    def read(*index):
      value = self.read(*index)
      numbers = value.reshape(-1)
      if not all(np.isfinite(numbers[i:i + _BLOCK]).all() for i in range(0, numbers.size, _BLOCK)):
        raise InputError(f"{what} holds NaN or infinity; copy it again, or take another checkpoint")
      return value
    return Array(self.shape, self.dtype, read)


@dataclass(frozen=True)
class ModelOnDisk:
  """A model in another program's format.

  Attributes:
    path: the folder.
    encoder: the computation.
    arrays: by native name, "encoder/layers_0/attention/query/kernel", with native shapes.
    vocabulary: the file of the SentencePiece model, or None where the format carries none.
    vocabulary_model: makes the SentencePiece model, where the file holds it in another form.
    extra_ids: sentinels after its pieces.
    lengths: most tokens of a "query" and of a "document"; one that the model does not say is left out.
    prompts: text put before every "query" and every "document".
    dimensions: the lengths that embeddings may be cut to, the longest first; () where it was not trained for any.
    whole_dim: how many numbers its embeddings had before they were cut; None of whole ones.
  """

  path: epath.Path
  encoder: DualEncoder
  arrays: Mapping[str, Array]
  vocabulary: epath.Path | None
  extra_ids: int
  lengths: Mapping[str, int]
  prompts: Mapping[str, str]
  vocabulary_model: Callable[[], bytes] | None = None
  dimensions: tuple[int, ...] = ()
  whole_dim: int | None = None
