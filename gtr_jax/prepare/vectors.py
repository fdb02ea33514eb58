"""A teacher's vectors, as they are kept with texts: base64 of float32, little-endian, as tf.io.decode_base64 reads."""

import base64
from collections.abc import Sequence

import numpy as np


def packed(values: Sequence[float] | np.ndarray) -> str:
  """"" of none. Raises ValueError where a number is not finite."""
  with np.errstate(over="ignore"):
    vector = np.asarray(values, "<f4")
  if not np.isfinite(vector).all():
    raise ValueError("a vector with a number that is not finite in float32")
  return base64.urlsafe_b64encode(vector.tobytes()).decode()


def unpacked(text: str | bytes) -> np.ndarray:
  """float32 `[dimensions]`."""
  return np.frombuffer(base64.urlsafe_b64decode(text), "<f4")
