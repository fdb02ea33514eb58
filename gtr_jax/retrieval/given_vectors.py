"""Vectors that another program has computed: a .npy file of them, and a file with an id a line, into a store."""

import hashlib
import io
import os
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.collections.corpus import Documents, check_id
from gtr_jax.errors import InputError, first_line
from gtr_jax.io import lines
from gtr_jax.io.paths import is_remote, location
from gtr_jax.retrieval.quantization import are_normalized, check, shortened
from gtr_jax.retrieval.store import Store, StoreWriter

_ROWS_AT_ONCE = 8192


class GivenVectors(NamedTuple):
  """Vectors and what they are of.

  Attributes:
    ids: one for each.
    vectors: `[rows, D]` of float16, float32 or float64, finite; on disk, where that is a local one.
    normalized: whether all of them have the length 1.
    hash: hexadecimal sha256 of the vectors.
  """

  ids: list[str]
  vectors: np.ndarray
  normalized: bool
  hash: str


def read_given(vectors: epath.PathLike, ids: epath.PathLike) -> GivenVectors:
  """Reads and checks both files.

  Raises:
    InputError: one of them is not what it should be, or they do not have the same number; names the file, and the line
      or the row, which are counted from 1 and from 0.
  """
  array, names = _read_array(vectors), _read_ids(ids)
  if len(array) != len(names):
    raise InputError(f"{vectors}: {len(array):,} vectors, and {len(names):,} ids in {ids}; give one id a line for each "
                     "vector, in their order")
  digest, normalized = hashlib.sha256(), True
  for start in range(0, len(array), _ROWS_AT_ONCE):
    part = np.ascontiguousarray(array[start:start + _ROWS_AT_ONCE])
    digest.update(part.data)
    with np.errstate(over="ignore"):  # Too large a float64 is as bad as an infinite one.
      norms = np.linalg.norm(part.astype(np.float32), axis=1)
    if not np.isfinite(norms).all():
      row = start + int(np.argmin(np.isfinite(norms)))
      raise InputError(f"{vectors}: row {row} (of {names[row]!r:.80}) is not finite in float32; compute it again, or "
                       "remove it and its id")
    normalized &= are_normalized(norms)
  return GivenVectors(names, array, normalized, digest.hexdigest())


def store_vectors(given: GivenVectors, output: Any, precision: str = "float32", dimensions: int | None = None,
                  progress: bool = True) -> Store:
  """Makes a store of vectors, without texts. Started again, goes on with the chunks that are missing.

  Args:
    given: from `read_given`; vectors of length 1 are normalised again after they are cut.
    output: folder of the store.
    precision: how the store keeps vectors, as of `Quantizer`.
    dimensions: keep so many of a vector's numbers, the first (Matryoshka); default: all.
    progress: show a progress bar on stderr.

  Returns:
    The store, complete.

  Raises:
    InputError: the folder holds something else, or other vectors; or vectors cannot be kept so.
  """
  dim, empty = check(precision, dimensions, given.vectors.shape[1]), [""] * len(given.ids)
  writer = StoreWriter(output, Documents(given.ids, empty, empty), dim, {"vectors_hash": given.hash}, precision)

  def rows(which):
    return shortened(np.asarray(given.vectors[writer.order[which]], np.float32), dim, given.normalized)

  if writer.not_fitted:
    writer.fit(rows(writer.sample_rows()))

  def made(which):
    vectors = rows(which)
    return vectors, np.linalg.norm(vectors, axis=1)

  return writer.write_all(made, progress)


def for_store(given: GivenVectors, store: Store) -> np.ndarray:
  """Vectors of queries, float32 `[rows, D]`, as short as the store's.

  Raises:
    InputError: they are shorter than those.
  """
  if given.vectors.shape[1] < store.shape[1]:
    raise InputError(f"vectors of {given.vectors.shape[1]} numbers, and {store.shape[1]} in {store.path}; give queries "
                     "of the model that the store's are of")
  return shortened(np.asarray(given.vectors, np.float32), store.shape[1], given.normalized)


def _read_array(path: epath.PathLike) -> np.ndarray:
  place = location(path)
  lines.size_of(place)
  try:
    array = (np.load(io.BytesIO(place.read_bytes())) if is_remote(path) else
             np.load(os.fspath(place), mmap_mode="r"))
  except (ValueError, EOFError, OSError) as e:
    raise InputError(f"{path}: not a whole .npy file ({first_line(e)}); write it with numpy.save") from e
  what = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
  if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.size:
    raise InputError(f"{path}: holds {what}; give one array of floats, [vectors, numbers of each]")
  return array


def _read_ids(path: epath.PathLike) -> list[str]:
  seen: dict[str, str] = {}
  for place, line in lines.read_text(lines.Part(os.fspath(location(path)))):
    name = line.strip()
    try:
      check_id(name)
    except ValueError as e:
      raise InputError(f"{place}: {line!r:.80} is no id; give one a line, without white space") from e
    if name in seen:
      raise InputError(f"{place}: {name!r:.80} is there twice, first at {seen[name]}; ids must be unique")
    seen[name] = place
  return list(seen)
