"""Models that give the first numbers of their vectors, as `--dimensions` of `gtr-jax encode` keeps them.

Every form can say it, as a projection: the first columns of the model's own, or of a model that has none, those of the
identity. What normalises comes after it, and so normalises what is left.
"""

import dataclasses

import numpy as np

from gtr_jax.errors import InputError
from gtr_jax.formats.model_on_disk import Array, ModelOnDisk
from gtr_jax.formats.names import projection_name


def check_dimensions(dimensions: int, dim: int) -> None:
  """Raises InputError where vectors of `dim` numbers cannot be cut to `dimensions`."""
  if not 0 < dimensions <= dim:
    raise InputError(f"--dimensions {dimensions}: the vectors have {dim}; give 1 to {dim}")


def not_trained_for(model_path: object, dimensions: int, dim: int, trained: tuple[int, ...]) -> str:
  """What to say of vectors of `dim` numbers that are cut to others than the model was trained for; "" if to them."""
  if dimensions == dim or dimensions in trained:
    return ""
  if trained:
    return f"{model_path}: was trained for vectors of {', '.join(map(str, trained))} numbers, not for {dimensions}"
  return (f"{model_path}: does not say that it was trained for shorter vectors (matryoshka.MatryoshkaLoss); measure "
          f"what {dimensions} of {dim} numbers lose")


def shortened(model: ModelOnDisk, dimensions: int) -> ModelOnDisk:
  """The model of the first `dimensions` numbers. Raises InputError where its vectors have no so many."""
  encoder = model.encoder
  check_dimensions(dimensions, encoder.dim)
  if dimensions == encoder.dim:
    return model
  shorter = dataclasses.replace(encoder, projection_dim=dimensions)
  name = projection_name(shorter)
  if encoder.projection_dim is None:
    projection = Array(name.shape, np.dtype(np.float32), lambda: np.eye(*name.shape, dtype=np.float32))
  else:
    whole = model.arrays[name.native]
    projection = Array(name.shape, whole.dtype, lambda: whole.read()[:, :dimensions])
  return dataclasses.replace(model, encoder=shorter, arrays={**model.arrays, name.native: projection},
                             dimensions=tuple(number for number in model.dimensions if number <= dimensions),
                             whole_dim=encoder.dim)
