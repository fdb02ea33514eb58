"""Safetensors files, read and written array by array: what is in memory is one array, whatever the size of the file.

The format (https://github.com/huggingface/safetensors): the length of a header in 8 bytes, little-endian; the header, a
JSON of each array's dtype, shape and place; the arrays.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats.diagnose import check_magic
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.io.atomic import replacing
from gtr_jax.io.contents import first_bytes
from gtr_jax.io.jsonl import parse
from gtr_jax.io.paths import check_regular, location

DTYPES = {"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
          "BF16": np.dtype(ml_dtypes.bfloat16)}
_LONGEST_HEADER = 100_000_000  # as in the format's own library


def read(path: epath.PathLike) -> dict[str, Array]:
  """The arrays of a file by name; none is read yet.

  Raises:
    InputError: the file is not there, is cut short, or is no safetensors file; or an array is not of floating point.
  """
  path = location(path)
  check_regular(path)
  if not path.exists():
    raise InputError(f"{path}: no such file")
  size = path.stat().length
  check_magic(path, first_bytes(path))
  with path.open("rb") as f:
    length = int.from_bytes(f.read(8), "little")
    text = f.read(length) if length <= _LONGEST_HEADER else b""
  if size < 8 or length > size - 8 or len(text) < length:
    raise InputError(f"{path}: {size:,} bytes are too few, or no safetensors file; copy it again")
  try:
    header = parse(text)
    fields = [(*map(_count, field["data_offsets"]), name, field["dtype"], tuple(map(_count, field["shape"])))
              for name, field in header.items() if name != "__metadata__"]
    place, arrays = 0, {}
    for begin, end, name, dtype, shape in sorted(fields):
      if dtype not in DTYPES:
        raise InputError(f"{path}: {name} is of dtype {dtype}; weights are of {', '.join(DTYPES)}: of a quantised "
                         "model, take the one that is not")
      if 8 + length + end > size:
        raise InputError(f"{path}: cut short: {name} {list(shape)} lies at bytes {8 + length + begin:,} to "
                         f"{8 + length + end:,} of {size:,}; copy it again")
      if (begin, end) != (place, place + math.prod(shape) * DTYPES[dtype].itemsize):
        raise InputError(f"{path}: damaged: {name} {list(shape)} of {dtype} lies at bytes {begin:,} to {end:,} of the "
                         f"arrays, of which the first {place:,} are taken; copy it again")
      arrays[name] = Array(shape, DTYPES[dtype], _reader(path, 8 + length + begin, DTYPES[dtype], shape))
      place = end
  except InputError:
    raise
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    raise InputError(f"{path}: no safetensors file (its header cannot be read: {e}); copy it again") from e
  if 8 + length + place != size:
    raise InputError(f"{path}: damaged: {size - 8 - length - place:,} bytes after its arrays belong to none; copy it "
                     "again")
  return arrays


def write(path: epath.PathLike, arrays: Mapping[str, Array]) -> None:
  """Writes arrays in the order of their names, each read when its turn comes."""
  tags = {dtype: tag for tag, dtype in DTYPES.items()}
  # transformers wants to know that it may read it with torch
  header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
  place = 0
  for name, array in sorted(arrays.items()):
    end = place + math.prod(array.shape) * array.dtype.itemsize
    header[name] = {"dtype": tags[array.dtype], "shape": list(array.shape), "data_offsets": [place, end]}
    place = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8
  with replacing(path) as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for _, array in sorted(arrays.items()):
      f.write(np.ascontiguousarray(array.read()).view(np.uint8).reshape(-1).data)


def _count(value):
  if type(value) is not int or value < 0:
    raise ValueError(f"{value!r} is no size or place")
  return value


def _reader(path, begin, dtype, shape):
  def read():
    size = math.prod(shape) * dtype.itemsize
    with path.open("rb") as f:
      f.seek(begin)
      data = f.read(size)
    if len(data) < size:
      raise InputError(f"{path}: was cut short while it was read; copy it again")
    return np.frombuffer(data, dtype).reshape(shape)
  return read
