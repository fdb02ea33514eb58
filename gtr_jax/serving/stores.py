"""Embedding stores that are served: searches of many requests, together where they are alike."""

import asyncio
import bisect
import collections
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gtr_jax.retrieval.bm25_file import FILE, bm25_of
from gtr_jax.retrieval.hybrid import Hybrid
from gtr_jax.retrieval.quantization import shortened
from gtr_jax.retrieval.search import Searcher
from gtr_jax.retrieval.store import Store
from gtr_jax.serving.metrics import Metrics
from gtr_jax.serving.model import ServedModel, settle
from gtr_jax.serving.problems import Problem

_TOP_KS = (10, 100, 1000)  # Programs are compiled for so many results; others are cut from the next.
_TOGETHER = 64             # searches at once


@dataclasses.dataclass(eq=False)
class _Search:
  """One query of a request."""

  vector: np.ndarray
  top_k: int
  rows: range | None
  done: Callable[[Any], None]
  given_up: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
  """A document of an answer."""

  row: int
  score: float


class ServedStore:
  """A store behind a name, searched in a thread of its own.

  Args:
    name: by which clients know it.
    store: complete.
    model: whose embeddings it holds.
    metrics: what is measured goes there.
    hybrid: make a BM25 index where there is none.
    rescore: as of `Searcher`.
    max_top_k: documents of an answer.
  """

  def __init__(self, name: str, store: Store, model: ServedModel, metrics: Metrics, *, hybrid: bool, rescore: int,
               max_top_k: int):
    store.check_model(model.model)
    self.name, self.store, self.model = name, store, model
    self._seconds = metrics.search.labels(name)
    self._searcher = Searcher(store, model.model.mesh, rescore=rescore)
    if hybrid and not (store.path / FILE).exists():
      bm25_of(store)
    self._hybrid = Hybrid(self._searcher, store, progress=False) if (store.path / FILE).exists() else None
    most = min(max_top_k, store.shape[0])
    self._top_ks = sorted({*(k for k in _TOP_KS if k < most), most})
    self._lock = threading.Lock()  # of the searcher, which hybrid searches share
    self._changed = threading.Condition()
    self._waiting: collections.deque[_Search] = collections.deque()
    self._ending = False
    self._thread = threading.Thread(target=self._run, name=f"search {name}", daemon=True)

  @property
  def has_bm25(self) -> bool:
    """Whether hybrid searches are possible."""
    return self._hybrid is not None

  def start(self) -> None:
    """Reads all embeddings, compiles all programs, and searches from then on."""
    for size in (8, 16, 32, _TOGETHER):
      for k in self._top_ks:
        self._searcher.search(np.zeros((size, self.store.shape[1]), np.float32), k)
    self._thread.start()

  def end(self) -> None:
    """Searches what is there, and no more."""
    with self._changed:
      self._ending = True
      self._changed.notify()
    if self._thread.is_alive():
      self._thread.join()

  def rows_of(self, id_prefix: str) -> range | None:
    """The rows of documents whose ids begin so; None: all. Ids descend."""
    if not id_prefix:
      return None
    ids = self.store.ids
    first = bisect.bisect_left(range(len(ids)), True, key=lambda i: ids[i] < id_prefix or ids[i].startswith(id_prefix))
    last = bisect.bisect_left(range(len(ids)), True,
                              key=lambda i: ids[i] < id_prefix and not ids[i].startswith(id_prefix))
    return range(first, last)

  async def search(self, query: str, top_k: int, id_prefix: str = "",
                   hybrid: bool | float = False) -> list[Found]:
    """The best documents.

    Args:
      query: without the model's prompt.
      top_k: how many, at most.
      id_prefix: only those whose ids begin so.
      hybrid: by BM25 too; a number: the weight of the embeddings, 0 to 1.

    Raises:
      Problem: there is no BM25 index, or as of `ServedModel.encode`.
    """
    if hybrid is not False and self._hybrid is None:
      raise Problem(422, f"hybrid: store {self.name!r} has no BM25 index; start the server with --hybrid, or leave it "
                    "out", "no_bm25", "hybrid")
    encoded = await self.model.encode([query], "query")
    vector = shortened(encoded.vectors, self.store.shape[1], self.model.model.encoder.normalize)
    rows, loop = self.rows_of(id_prefix), asyncio.get_running_loop()
    if rows is not None and not rows:
      return []
    began = time.monotonic()
    if hybrid is not False:
      weight = None if hybrid is True else float(hybrid)
      assert self._hybrid is not None
      found = await loop.run_in_executor(None, self._search_both, self._hybrid, query, vector, top_k, rows, weight)
    else:
      future: asyncio.Future[list[Found]] = loop.create_future()

      def done(answer):
        loop.call_soon_threadsafe(settle, future, answer)

      wanted = _Search(vector[0], top_k, rows, done)
      with self._changed:
        self._waiting.append(wanted)
        self._changed.notify()
      try:
        found = await future
      except asyncio.CancelledError:
        wanted.given_up = True
        raise
    self._seconds.observe(time.monotonic() - began)
    return found

  def document(self, row: int) -> tuple[str, str, str]:
    """(id, title, text)."""
    return self.store.document(row)

  def _search_both(self, hybrid, query, vector, top_k, rows, weight):
    with self._lock:
      run, _ = hybrid.search(["0"], [query], vector, top_k, rows, weight)
    ranking = run["0"]
    return [Found(hybrid.row(doc_id), float(score))
            for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True)]

  def _run(self):
    while True:
      with self._changed:
        while not self._waiting and not self._ending:
          self._changed.wait()
        if not self._waiting:
          return
        first = next((search for search in self._waiting if not search.given_up), None)
        alike = [search for search in self._waiting if first is not None and not search.given_up
                 and search.rows == first.rows and self._program(search) == self._program(first)][:_TOGETHER]
        chosen = set(map(id, alike))
        self._waiting = collections.deque(search for search in self._waiting
                                          if id(search) not in chosen and not search.given_up)
      if alike:
        self._answer(alike)

  def _program(self, search):
    """The results that are computed."""
    return next(k for k in self._top_ks if k >= min(search.top_k, self._top_ks[-1]))

  def _answer(self, alike):
    try:
      with self._lock:
        scores, rows = self._searcher.search(np.stack([search.vector for search in alike]), self._program(alike[0]),
                                             rows=alike[0].rows)
    except Exception as e:  # Of the devices or the disk: it is the requests' to know.
      for search in alike:
        search.done(e)
      return
    for search, of_scores, of_rows in zip(alike, scores, rows, strict=True):
      search.done([Found(row, score) for row, score in
                   zip(of_rows[:search.top_k].tolist(), of_scores[:search.top_k].tolist(), strict=True)])
