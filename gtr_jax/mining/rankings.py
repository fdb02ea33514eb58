"""What a model's search has found, kept on disk for a next call: rows and scores of the best passages.

    KEY/rows.npy              int32 [Q, K], rows of the store, best first
    KEY/scores.npy            float32 [Q, K]
    KEY/positive_scores.npy   float32 [P], of each pair's own passage

A folder is of one block of pairs; KEY is a hash of all that decides it but for K, the number of ranks. More ranks take
its place. 8 bytes for each rank of each query, 4 for each pair.
"""

import os
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
    self._used.add(key)
    place = self._folder / key
    if not processes.from_first(lambda: place.exists() and self._opened(key).rows.shape[1] >= k):
      found = search()
      if processes.is_first():
        if place.exists():
          atomic.set_aside_and_remove(place)  # It has fewer ranks.
        with atomic.new_folder(place, same=lambda: self._opened(key).rows.shape[1] >= k) as new:
          for name, array in found._asdict().items():
            with atomic.replacing(new / f"{name}.npy") as file:
              np.save(file, array)
      processes.wait_for_all()
      del found
    kept = self._opened(key)
    return kept._replace(rows=kept.rows[:, :k], scores=kept.scores[:, :k])

  def _opened(self, key: str) -> Rankings:
    """Arrays that are read when they are looked at."""
    try:
      rows, scores, positive_scores = (
          _open(self._folder / key / f"{name}.npy") for name in ("rows", "scores", "positive_scores"))
      if rows.shape != scores.shape or (rows.ndim, positive_scores.ndim) != (2, 1):
        raise ValueError("other shapes")
    except (OSError, ValueError, EOFError) as e:
      raise InputError(f"{self._folder / key}: damaged or cut off ({first_line(e)}); remove the folder, and run it "
                       "again") from e
    return Rankings(rows, scores, positive_scores)

  def description(self) -> str:
    """Where they lie and how large they are, and what of it nobody has asked this object for."""
    of = {place.name: sum(file.stat().length for file in place.iterdir())
          for place in (self._folder.iterdir() if self._folder.exists() else ()) if not place.name.startswith(".")}
    others = sum(size for key, size in of.items() if key not in self._used)
    more = f", {others / 1e6:,.1f} of them of other pairs, which may be removed" if others else ""
    return f"rankings in {self._folder}: {sum(of.values()) / 1e6:,.1f} MB{more}"


def _open(path: epath.Path) -> np.ndarray:
  if "://" not in os.fspath(path):
    return np.load(os.fspath(path), mmap_mode="r")
  with path.open("rb") as file:
    return np.load(file)
