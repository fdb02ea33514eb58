"""Rankings by vectors: of a model, which embeds documents and queries, or of vectors that another program has made."""

import contextlib
import dataclasses
import hashlib
import re
import time
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jax.sharding import Mesh

from gtr_jax.collections.protocol import Task
from gtr_jax.errors import InputError
from gtr_jax.evaluation.results_file import DEPTH
from gtr_jax.inference.load import Model
from gtr_jax.parallel import processes
from gtr_jax.retrieval.encode import embed_queries, encode_corpus
from gtr_jax.retrieval.given_vectors import GivenVectors, for_store
from gtr_jax.retrieval.quantization import normalized
from gtr_jax.retrieval.runs import Run
from gtr_jax.retrieval.search import RESCORE, Searcher, search_run
from gtr_jax.retrieval.smaller_store import smaller_store
from gtr_jax.retrieval.store import Store
from gtr_jax.retrieval.store_files import COMPLETE


class Clock:
  """How long what took."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def times(self, what: str) -> Iterator[None]:
    """What is done inside takes this long."""
    start = time.perf_counter()
    yield
    self.seconds[what] = time.perf_counter() - start

  def __str__(self) -> str:
    whole = sum(self.seconds.values())
    return f"{whole:,.1f} s (" + ", ".join(f"{what} {seconds:,.1f} s, {seconds / max(whole, 1e-9):.1%}"
                                           for what, seconds in self.seconds.items()) + ")"


@dataclasses.dataclass(frozen=True)
class Kept:
  """How the vectors of documents are kept, and searched.

  Attributes:
    precision: as of `quantization.Quantizer`.
    dimensions: so many of their numbers, the first; None: all.
    rescore: as of `Searcher`, of int8 and binary.
  """

  precision: str = "float32"
  dimensions: int | None = None
  rescore: int = RESCORE

  def words(self) -> str:
    """What of this is not the usual: "int8, 256"; else nothing."""
    small = self.precision != "float32"
    return ", ".join([self.precision] * small + [str(self.dimensions)] * (self.dimensions is not None)
                     + [f"rescore {self.rescore}"] * (small and self.rescore != RESCORE))


@dataclasses.dataclass(frozen=True)
class StoreOfVectors:
  """A store, and vectors of the queries, without a model."""

  store: Store
  queries: GivenVectors

  @property
  def weights_hash(self) -> str:
    """Of what is alike in the vectors of all collections: their width, and how the store keeps them."""
    of = (self.store.quantizer.precision, self.store.shape[1])
    return hashlib.sha256(repr(of).encode()).hexdigest()

  def check(self, tasks: Sequence[Task]) -> None:
    """Raises InputError unless there is one collection, and these are its documents and its queries."""
    if len(tasks) != 1:
      raise InputError(f"--embeddings: a store is of one collection, and {len(tasks)} are given; evaluate each alone")
    collection = tasks[0].collection
    if others := set(self.store.ids) ^ set(collection.documents.ids):
      raise InputError(f"{self.store.path}: not the documents of {collection.name} ({len(others):,} are in one of them "
                       f"only, such as {min(others)!r:.80}); store the vectors of all of them")
    if missing := set(collection.query_ids) - set(self.queries.ids):
      raise InputError(f"--ids: of {len(missing):,} queries of {collection.name} there is no vector (such as "
                       f"{min(missing)!r:.80}); give those of all of them")
    for_store(self.queries, self.store)


def model_run(trained: Model, model: Model, task: Task, stores: epath.Path, kept: Kept, clock: Clock,
               progress: bool) -> tuple[Run, int]:
  """The ranking by `model`, which is `trained`, maybe with the other similarity; both have one store. And the bytes of
  a document in it.
  """
  collection, protocol = task.collection, task.protocol
  name, length = f"{file_name(collection.name)}-{trained.weights_hash[:12]}", protocol.document_length
  name += f"-{length}" * (length not in (None, model.lengths["document"]))
  whole = stores / name
  name += f"-{kept.precision}" * (kept.precision != "float32") + f"-d{kept.dimensions}" * (kept.dimensions is not None)
  with clock.times("encoding documents"):
    if whole != stores / name and processes.from_first((whole / COMPLETE).exists):
      (of_model := Store(whole)).check_model(trained)
      store = smaller_store(of_model, stores / name, kept.precision, kept.dimensions, progress)
    else:
      store = encode_corpus(trained, collection.documents, stores / name, length, progress=progress,
                            precision=kept.precision, dimensions=kept.dimensions)
  with clock.times("encoding queries"):
    queries = embed_queries(model, collection.queries, store, protocol.query_length, progress=progress)
  with clock.times("searching"):
    vectors = store if model is trained else _Rescaled(store, model.encoder.normalize)
    searcher = Searcher(vectors, model.mesh, keep=False, rescore=kept.rescore)
    return search_run(searcher, store.ids, collection.query_ids, queries, DEPTH,
                      exclude_own_id=protocol.exclude_own_id, progress=progress), store.quantizer.num_bytes


def store_run(of: StoreOfVectors, task: Task, mesh: Mesh | None, rescore: int, clock: Clock,
              progress: bool) -> tuple[Run, int]:
  """The ranking by vectors that were given, and the bytes of a document."""
  rows, store = {name: row for row, name in enumerate(of.queries.ids)}, of.store
  queries = for_store(of.queries, store)[[rows[name] for name in task.collection.query_ids]]
  with clock.times("searching"):
    searcher = Searcher(store, mesh, keep=False, rescore=rescore)
    return search_run(searcher, store.ids, task.collection.query_ids, queries, DEPTH,
                      exclude_own_id=task.protocol.exclude_own_id, progress=progress), store.quantizer.num_bytes


@dataclasses.dataclass(frozen=True)
class _Rescaled:
  """The embeddings of a store for the similarity that its model was not trained with."""

  store: Store
  normalize: bool

  @property
  def shape(self) -> tuple[int, int]:
    return self.store.shape

  def __getitem__(self, rows: slice) -> np.ndarray:
    norms = self.store.norms(rows)
    return normalized(self.store[rows], norms) if self.normalize else self.store[rows] * norms[:, None]


def file_name(name: str) -> str:
  """The name of a system or a collection, as a part of a file's."""
  return re.sub(r"[^\w.-]+", "_", name)
