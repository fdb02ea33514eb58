"""The files of an embedding store: what each is called, and how they are read and held to what they should be."""

import io
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.io.json_file import check_json, read_json
from gtr_jax.retrieval.quantization import Quantizer
from gtr_jax.values.ranges import NonNegative, Positive

FORMAT = 4
MANIFEST, COMPLETE = "manifest.json", "COMPLETE"
IDS, DOCUMENTS, OFFSETS, CHECKSUMS = "ids.txt", "documents.jsonl", "offsets.npy", "checksums.npy"
FITTED = {"int8": "scales.npy", "binary": "rotation.npy"}  # by precision
_ORTHOGONAL = 1e-3  # How far products of columns may be from 0 and 1.
EMBEDDINGS, NORMS, OF_BOTH = "embeddings-{:05}.npy", "norms-{:05}.npy", "checksums-{:05}.npy"  # of each chunk


def npy(array: np.ndarray) -> bytes:
  """The file of an array."""
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


class Settings(TypedDict):
  """What embeddings depend on besides the documents: a model, or "vectors_hash" of vectors that were given."""

  dtype: NotRequired[str]
  weights_hash: NotRequired[str]
  max_length: NotRequired[Positive]
  prompt: NotRequired[str]
  vectors_hash: NotRequired[str]


class Manifest(TypedDict):
  """manifest.json, but for its "format"; no "precision" is float32."""

  documents: NonNegative
  dim: Positive
  chunk_rows: Positive
  documents_hash: str
  settings: Settings
  precision: NotRequired[Literal["int8", "binary"]]


def read_manifest(folder: epath.Path) -> dict[str, Any]:
  """manifest.json. Raises InputError, as all here, where it is not what it should be."""
  path, advice = folder / MANIFEST, "remove the folder, and run the command that made it again"
  manifest = read_json(path, dict, advice)
  if manifest.get("format") != FORMAT:
    raise InputError(f"{path}: format {manifest.get('format')!r:.40}, this version reads {FORMAT}; encode again")
  return check_json(path, manifest, Manifest, advice)


def read_sums(folder: epath.Path) -> dict[str, Any]:
  """COMPLETE: name of a file -> CRC-32."""
  path = folder / COMPLETE
  advice = "remove it, and run the command that made the store again: it writes it anew, and encodes nothing"
  if not path.stat().length:
    raise InputError(f"{path}: is empty, as an earlier version has left it, so nobody can tell whether the ids are as "
                     f"they were; {advice}")
  return read_json(path, dict[str, int], advice)


def check_sum(path: epath.Path, data: bytes, sums: Mapping[str, int], advice: str = "") -> None:
  """Raises InputError unless this is the checksum that COMPLETE says."""
  if zlib.crc32(data) != sums.get(path.name):
    raise damaged(path, "its checksum is another", advice)


def read_ids(path: epath.Path, count: int, sums: Mapping[str, int]) -> list[str]:
  """The ids by row."""
  data = path.read_bytes() if path.exists() else b""
  try:
    ids = data.decode().split("\n")[:-1]
  except UnicodeDecodeError as e:
    raise damaged(path, f"not UTF-8, {e.reason}") from e
  if len(ids) != count:
    raise damaged(path, f"{len(ids)} ids instead of {count}")
  check_sum(path, data, sums)
  return ids


def read_quantizer(folder: epath.Path, precision: str, dim: int, sums: Mapping[str, int] | None = None) -> Quantizer:
  """How vectors are kept, with what was fitted; with `sums`, the checksum of its file is looked at."""
  if precision not in FITTED:
    return Quantizer(precision, dim)
  path, advice = folder / FITTED[precision], "remove the folder, and encode again"
  if precision == "binary" and sums is not None and path.name not in sums:
    raise InputError(f"{folder}: binary vectors of an earlier version, which has not rotated them (there is no "
                     f"{path.name}); {advice}")
  shape = (dim,) if precision == "int8" else (dim + 1, dim)
  fitted = np.array(read_array(path, shape, np.float32, sums, advice))  # And not mapped.
  if precision == "int8" and not (np.isfinite(fitted) & (fitted > 0)).all():
    raise damaged(path, "a scale is not above 0", advice)
  if precision == "binary" and not (np.isfinite(fitted).all() and
                                    np.abs(fitted[:-1].T @ fitted[:-1] - np.eye(dim)).max() < _ORTHOGONAL):
    raise damaged(path, "not a rotation", advice)
  return Quantizer(precision, dim, fitted)


def checksum_of(quantizer: Quantizer, codes: np.ndarray) -> int:
  """The checksum of embeddings, by way of what was fitted."""
  return zlib.crc32(codes.data, 0 if quantizer.fitted is None else zlib.crc32(quantizer.fitted.data))


def check_form(path: epath.Path, shape: tuple[int, ...], dtype: Any) -> None:
  """Raises InputError unless the file is of such an array, whose numbers are not read."""
  try:
    with path.open("rb") as file:
      if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
      there, fortran, its_dtype = np.lib.format.read_array_header_1_0(file)
      size = file.tell() + math.prod(there) * its_dtype.itemsize
    if path.stat().length < size:
      raise ValueError(f"{path.stat().length} bytes instead of {size}")
  except (OSError, ValueError, EOFError) as e:
    raise damaged(path, first_line(e) if path.exists() else "missing") from e
  _check_array(path, there, its_dtype, not fortran, shape, dtype)


def read_array(path: epath.Path, shape: tuple[int, ...], dtype: Any, sums: Mapping[str, int] | None = None,
                advice: str = "") -> np.ndarray:
  """An array of the store; with `sums`, its file's checksum is looked at."""
  try:
    data = None if "://" not in str(path) else path.read_bytes()
    array = np.load(os.fspath(path), mmap_mode="r") if data is None else np.load(io.BytesIO(data))
  except (OSError, ValueError, EOFError) as e:
    raise damaged(path, first_line(e) if path.exists() else "missing", advice) from e
  _check_array(path, array.shape, array.dtype, array.flags.c_contiguous, shape, dtype, advice)
  if sums is not None:
    check_sum(path, path.read_bytes() if data is None else data, sums, advice)
  return array


def _check_array(path, there, its_dtype, in_order, shape, dtype, advice=""):
  if there != shape or its_dtype != dtype:
    raise damaged(path, f"{its_dtype} {list(there)} instead of {np.dtype(dtype)} {list(shape)}", advice)
  if not in_order:
    raise damaged(path, "in another order", advice)


def damaged(path: epath.Path, what: str, advice: str = "") -> InputError:
  """The error that says so of a file, and what to do."""
  advice = advice or f"remove {path.name} and {COMPLETE}, and run the command that made it again"
  return InputError(f"{path}: damaged or cut off ({what}); {advice}")
