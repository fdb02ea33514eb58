"""What a model's search has found, kept on disk for a next call: rows and scores of the best passages.

    KEY-K/rows.npy              int32 [Q, K], rows of the store, best first
    KEY-K/scores.npy            float32 [Q, K]
    KEY-K/positive_scores.npy   float32 [P], of each pair's own passage
    KEY-K/checksums.npy         uint32 [3], of these arrays (CRC-32); written last

A folder is of one block of pairs; KEY is a hash of all that decides it but for K, the number of ranks. More ranks take
the place of fewer. 8 bytes for each rank of each query, 4 for each pair.
"""

import os
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.io import atomic
from gtr_jax.parallel import processes


class Rankings(NamedTuple):
  """Of a block of pairs: `[Q, K]`, `[Q, K]` and `[P]`."""

  rows: np.ndarray
  scores: np.ndarray
  positive_scores: np.ndarray


_COLUMNS, _CHECKSUMS = Rankings._fields, "checksums"


class KeptRankings:
  """A folder of rankings; all processes see it.

  Args:
    folder: is made where there is something to keep.
  """

  def __init__(self, folder: epath.Path):
    self._folder, self._used = folder, set[str]()

  def get(self, key: str, k: int, search: Callable[[], Rankings]) -> Rankings:
    """The rankings of a block with `k` ranks: kept ones, else what `search` finds, which is kept.

    Raises:
      InputError: what is kept is damaged.
    """
    name = processes.from_first(lambda: self._name(key, k))
    if name is None:
      found, name = search(), f"{key}-{k}"
      if processes.is_first():
        arrays = [np.ascontiguousarray(array) for array in found]
        checksums = np.array([zlib.crc32(array.data) for array in arrays], np.uint32)
        for column, array in zip((*_COLUMNS, _CHECKSUMS), (*arrays, checksums), strict=True):
          with atomic.replacing(self._folder / name / f"{column}.npy") as file:
            np.save(file, array)
        for fewer in self._names(key) - {name}:
          atomic.remove(self._folder / fewer)
      del found
      processes.wait_for_all()
    self._used.add(name)
    kept = self._opened(name)
    return kept._replace(rows=kept.rows[:, :k], scores=kept.scores[:, :k])

  def _names(self, key: str = "") -> set[str]:
    """Of all folders, or of those of a key."""
    there = self._folder.iterdir() if self._folder.exists() else ()
    return {place.name for place in there if place.name.startswith(key) and place.is_dir()}

  def _name(self, key: str, k: int) -> str | None:
    """Of a whole folder with so many ranks."""
    return next((name for name in sorted(self._names(key)) if int(name.rpartition("-")[2]) >= k
                 and (self._folder / name / f"{_CHECKSUMS}.npy").exists()), None)

  def _opened(self, name: str) -> Rankings:
    """Arrays that are read when they are looked at."""
    place = self._folder / name
    try:
      found = Rankings(*(_open(place / f"{column}.npy") for column in _COLUMNS))
      if found.rows.shape != found.scores.shape or (found.rows.ndim, found.positive_scores.ndim) != (2, 1):
        raise ValueError("other shapes")
      checksums = _open(place / f"{_CHECKSUMS}.npy")
      for column, array, checksum in zip(_COLUMNS, found, checksums.tolist(), strict=True):
        if not array.flags.c_contiguous or zlib.crc32(array.data) != checksum:
          raise ValueError(f"the checksum of {column}.npy is another")
    except (OSError, ValueError, EOFError) as e:
      raise InputError(f"{place}: damaged or cut off ({first_line(e)}); remove the folder, and run it again") from e
    return found

  def description(self) -> str:
    """Where they lie and how large they are, and what of it nobody has asked this object for."""
    of = {name: sum(file.stat().length for file in (self._folder / name).iterdir()) for name in self._names()}
    others = sum(size for name, size in of.items() if name not in self._used)
    more = f", {others / 1e6:,.1f} of them of other pairs, which may be removed" if others else ""
    return f"rankings in {self._folder}: {sum(of.values()) / 1e6:,.1f} MB{more}"


def _open(path: epath.Path) -> np.ndarray:
  if "://" not in os.fspath(path):
    return np.load(os.fspath(path), mmap_mode="r")
  with path.open("rb") as file:
    return np.load(file)
