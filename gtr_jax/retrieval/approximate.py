"""Approximate nearest neighbours: the indices of FAISS and USearch that a store's vectors are found by.

    faiss-hnsw      a graph between the vectors (Malkov and Yashunin 2018, arXiv 1603.09320), and all of them in float32
    faiss-ivf-pq    lists by k-means, of codes of a few bytes (Jégou, Douze and Schmid 2011): small, and coarser
    usearch-hnsw    the first, by USearch, whose file is not read into memory but mapped

All compare by inner product, whatever lengths vectors have, and number them in the order in which they are added. How
much each search looks at grows with its `factor`.

Shapes: R rows, Q queries, D embedding size, C candidates.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np

from gtr_jax.errors import InputError

CONNECTIONS, EFFORT = 32, 200
FEWEST_OF_PQ = 39 * 256  # Vectors from which FAISS learns 256 centroids without complaint.
_FEWEST_OF_LIST = 39
_LEARNED_FROM = 50       # Vectors of a list, and
_LEARNED_FROM_ALL = 65_536  # at least so many of all.
_SHARE = 64              # factor / 64 of the lists are looked at.
_FEWEST_EXPANDED = 128   # Of a graph, candidates that a search keeps.
_THREADS = 0             # of USearch: all.
# Vectors that one thread adds before all do: while an index is small several lose some, which then no search finds.
_ADDED_BY_ONE = 10_000


class Engine(Protocol):
  """An index that is filled, or was read."""

  def add(self, vectors_RxD: np.ndarray) -> None:
    """Adds float32 vectors, which go on numbering."""

  def save(self, path: str) -> None:
    """Writes it. Raises RuntimeError, or OSError, where that cannot be done."""

  def search(self, queries_QxD: np.ndarray, k: int, factor: int) -> np.ndarray:
    """Numbers int64 `[Q, C]`, -1 where no more were found: those of the k best by their float32 vectors, or, where
    these are not kept, of factor times as many by their codes."""


class EngineType(Protocol):
  """Makes and reads them."""

  package: str
  install: str

  @staticmethod
  def settings(documents: int, dim: int, given: Mapping[str, int]) -> dict[str, int]:
    """The whole settings, of those that were given. Raises InputError where they do not do for so many documents."""

  def make(self, dim: int, settings: Mapping[str, int], sample: Callable[[int], np.ndarray]) -> Engine:
    """An empty one; `sample(n)` gives n of the vectors to learn from, or all where there are fewer."""

  def read(self, path: str) -> Engine:
    """What `save` has written, and nothing else: these libraries do not look at what they read."""


class _HNSW:
  @staticmethod
  def settings(documents: int, dim: int, given: Mapping[str, int]) -> dict[str, int]:
    """M and efConstruction of the paper."""
    del documents, dim
    return {"connections": CONNECTIONS, "effort": EFFORT, **given}


class FaissHNSW(_HNSW):
  """`IndexHNSWFlat`; read, its file is mapped."""

  package, install = "faiss", "pip install 'gtr_jax[faiss]' (faiss-cpu)"

  def __init__(self, index: Any):
    self._index = index

  @classmethod
  def make(cls, dim: int, settings: Mapping[str, int], sample: Callable[[int], np.ndarray]) -> Self:
    """Learns nothing."""
    import faiss
    del sample
    index = faiss.IndexHNSWFlat(dim, settings["connections"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings["effort"]
    return cls(index)

  @classmethod
  def read(cls, path: str) -> Self:
    """The file must stay."""
    import faiss
    return cls(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC))

  def add(self, vectors_RxD: np.ndarray) -> None:
    """As `Engine`."""
    self._index.add(vectors_RxD)

  def save(self, path: str) -> None:
    """As `Engine`."""
    import faiss
    faiss.write_index(self._index, path)

  def search(self, queries_QxD: np.ndarray, k: int, factor: int) -> np.ndarray:
    """The best k of factor * k that the graph leads to."""
    import faiss
    k = min(k, self._index.ntotal)
    parameters = faiss.SearchParametersHNSW(efSearch=max(_FEWEST_EXPANDED, factor * k))
    return self._index.search(queries_QxD, k, params=parameters)[1]


class FaissIVFPQ:
  """`IndexIVFPQ`, with codes of the vectors' differences from the centre of their list."""

  package, install = FaissHNSW.package, FaissHNSW.install

  def __init__(self, index: Any):
    self._index = index

  @staticmethod
  def settings(documents: int, dim: int, given: Mapping[str, int]) -> dict[str, int]:
    """About 4 sqrt(n) lists (FAISS's "Guidelines to choose an index"), and a byte for 8 numbers of a vector."""
    if documents < FEWEST_OF_PQ:
      raise InputError(f"--kind ivf-pq learns from {FEWEST_OF_PQ:,} documents or more, and there are {documents:,}; "
                       "take --kind hnsw")
    most = documents // _FEWEST_OF_LIST
    parts = max(number for number in range(1, max(dim // 8, 1) + 1) if dim % number == 0)
    settings = {"lists": min(int(4 * documents ** .5), most), "bytes": parts, **given}
    if settings["lists"] > most:
      raise InputError(f"--lists {settings['lists']}: of {documents:,} documents at most {most:,}, "
                       f"{_FEWEST_OF_LIST} for each")
    if dim % settings["bytes"]:
      raise InputError(f"--bytes {settings['bytes']}: does not divide the {dim} numbers of a vector; give a number "
                       f"that does, such as {parts}")
    return settings

  @classmethod
  def make(cls, dim: int, settings: Mapping[str, int], sample: Callable[[int], np.ndarray]) -> Self:
    """Learns centres and codes from a sample."""
    import faiss
    lists = settings["lists"]
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, settings["bytes"], 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True  # Of a longer centre every vector would seem near.
    index.train(sample(max(_LEARNED_FROM * lists, _LEARNED_FROM_ALL)))
    return cls(index)

  @classmethod
  def read(cls, path: str) -> Self:
    """Into memory."""
    import faiss
    return cls(faiss.read_index(path))

  def add(self, vectors_RxD: np.ndarray) -> None:
    """As `Engine`."""
    self._index.add(vectors_RxD)

  def save(self, path: str) -> None:
    """As `Engine`."""
    import faiss
    faiss.write_index(self._index, path)

  def search(self, queries_QxD: np.ndarray, k: int, factor: int) -> np.ndarray:
    """The best factor * k by their codes, of a share of the lists, and of so many that they hold twice as many."""
    import faiss
    lists, documents = self._index.nlist, self._index.ntotal
    count = min(factor * k, documents)
    looked_at = min(lists, max(-(-lists * factor // _SHARE), -(-2 * count * lists // documents)))
    return self._index.search(queries_QxD, count, params=faiss.SearchParametersIVF(nprobe=looked_at))[1]


class USearchHNSW(_HNSW):
  """`usearch.index.Index`, in float32; read, its file is mapped."""

  package, install = "usearch", "pip install 'gtr_jax[usearch]'"

  def __init__(self, index: Any):
    self._index = index

  @classmethod
  def make(cls, dim: int, settings: Mapping[str, int], sample: Callable[[int], np.ndarray]) -> Self:
    """Learns nothing."""
    from usearch.index import Index
    del sample
    return cls(Index(ndim=dim, metric="ip", dtype="f32", connectivity=settings["connections"],
                     expansion_add=settings["effort"]))

  @classmethod
  def read(cls, path: str) -> Self:
    """The file must stay."""
    from usearch.index import Index
    return cls(Index.restore(path, view=True))

  def add(self, vectors_RxD: np.ndarray) -> None:
    """As `Engine`."""
    first = len(self._index)
    keys, by_one = np.arange(first, first + len(vectors_RxD), dtype=np.uint64), max(_ADDED_BY_ONE - first, 0)
    for part, threads in ((slice(by_one), 1), (slice(by_one, None), _THREADS)):
      if len(keys[part]):
        self._index.add(keys[part], vectors_RxD[part], threads=threads)

  def save(self, path: str) -> None:
    """As `Engine`."""
    self._index.save(path)

  def search(self, queries_QxD: np.ndarray, k: int, factor: int) -> np.ndarray:
    """The best k of factor * k that the graph leads to."""
    k = min(k, len(self._index))
    self._index.expansion_search = max(_FEWEST_EXPANDED, factor * k)
    matches = self._index.search(queries_QxD, k, threads=_THREADS)
    if len(queries_QxD) == 1:  # Then it gives those that it has found, and no rows of them.
      found = np.asarray(matches.keys, np.int64)
      return np.pad(found, (0, k - len(found)), constant_values=-1)[None]
    return np.where(np.arange(k) < matches.counts[:, None], matches.keys.astype(np.int64), -1)


ENGINES: Mapping[str, EngineType] = MappingProxyType(
    {"faiss-hnsw": FaissHNSW, "faiss-ivf-pq": FaissIVFPQ, "usearch-hnsw": USearchHNSW})


def engine(name: str) -> EngineType:
  """One of `ENGINES`. Raises InputError where its library is not installed, and says how to install it."""
  found = ENGINES[name]
  try:
    importlib.import_module(found.package)
  except ImportError as e:
    raise InputError(f"{name} needs {found.package}, which is not installed or does not load ({e}): "
                     f"{found.install}") from e
  return found
