"""Systems on test collections: what `gtr-jax evaluate` does, and the evaluator that training calls."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from gtr_jax.collections.collection import Collection
from gtr_jax.collections.find import find_collections, look_for_collections
from gtr_jax.collections.protocol import Protocol, Task, check_task, find_one, read_task
from gtr_jax.collections.qrels import without_relevant
from gtr_jax.errors import InputError
from gtr_jax.evaluation import averages, fused, results_file, significance
from gtr_jax.evaluation.dense import Clock, Kept, StoreOfVectors, file_name, model_run, store_run
from gtr_jax.evaluation.fused import BM25
from gtr_jax.evaluation.given_runs import GivenRun
from gtr_jax.evaluation.measures import means, measure, of_queries
from gtr_jax.evaluation.results_file import DEPTH
from gtr_jax.evaluation.sample import sample
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.embed import embed_tokens
from gtr_jax.inference.load import Model, check_model, load_model
from gtr_jax.inference.weights_hash import weights_hash
from gtr_jax.io import bars
from gtr_jax.io.paths import location
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.parallel import processes
from gtr_jax.retrieval.bm25 import bm25_run
from gtr_jax.retrieval.runs import Run, write_run
from gtr_jax.retrieval.search import Searcher, search_run
from gtr_jax.text.tokenizer import Tokenizer
from gtr_jax.values.ranges import Positive

MEDIAN_WORDS_TOP_10 = "median words of top 10"
SIMILARITIES = ("cosine", "dot")


def evaluate(models: Mapping[str, epath.PathLike], collections: Sequence[epath.PathLike], output: epath.PathLike, *,
             bm25: bool = False, suite: str | None = None, data_root: epath.PathLike = ".",
             protocol: Protocol | None = None, mesh: Mesh | None = None, tokenization: Tokenization | None = None,
             dtype: str | None = None, attention: str = "auto", kept: Sequence[Kept] = (Kept(),),
             stores: Mapping[str, StoreOfVectors] = MappingProxyType({}),
             runs: Mapping[str, GivenRun] = MappingProxyType({}), fuse: Sequence[str] = (),
             progress: bool = True) -> dict[str, Any]:
  """Ranks 1,000 documents for each judged query of each collection with each system, and measures the rankings.

  Writes below `output`: runs/SYSTEM-COLLECTION.trec; embeddings/COLLECTION-WEIGHTS (stores, which a second call uses);
  and, after each of these, results.json, in which results of other systems and collections that it holds are kept.

  Args:
    models: name -> where the model is. One is loaded at a time. Where a similarity is not the model's own, the system
      is called "NAME (dot)" or "NAME (cosine)"; of vectors that are kept otherwise "NAME (int8)".
    collections: folders in BEIR layout, "beir/NAME" or "nano-beir/NAME"; all are read and checked first.
    output: folder.
    bm25: also rank with BM25.
    suite: also the sets of "beir", "beir-public" or "nano-beir".
    data_root: where sets of BEIR are looked for, and downloaded to.
    protocol: how.
    mesh: devices for the models; default: data parallel over all.
    tokenization: what models of other programs do not say.
    dtype: that the models are computed in, as of `load_model`.
    attention: likewise.
    kept: how, each for itself: documents are encoded for every one. Where one is not the usual, systems also have
      "bytes a document" and "ms a query" (collection -> of the whole search, reading and compiling included).
    stores: name -> what has no model, on one collection, whose documents and queries they have.
    runs: name -> a run that is there already, likewise; one called "BM25" stands for `bm25`.
    fuse: "rrf", "convex" or both (`fused.FUSIONS`): every other system fused with BM25 is a system too, called "NAME +
      BM25 (rrf)". Those of "convex" have "weights" (collection -> `results_file.Weight`).
    progress: show progress bars, and how long what took, on stderr.

  Returns:
    What this call adds to results.json: "depth", "collections" (name -> "split", "documents", "queries", "queries
    without relevant documents", "median words", "hash", "beir": whether it is that set, "warnings"), "systems"
    (name -> "model", "weights_hash", "dtype", "similarity", "results": collection -> measure -> value, "per query": as
    `significance.PerQuery`), and "significance" (`significance.Certainties`), of the systems of this call.

  Raises:
    InputError: a collection or a model cannot be read, or two of them have the same name.
  """
  output, protocol = location(output), protocol or Protocol()
  if not models and not bm25 and not stores and not runs:
    raise InputError("nothing to evaluate: give a model, or ask for BM25")
  for similarity in protocol.similarities:
    if similarity not in SIMILARITIES:
      raise InputError(f"similarity {similarity!r}: give one of {', '.join(SIMILARITIES)}")
  if (measured := bool(stores) or any(of.words() for of in kept)) and protocol.similarities:
    raise InputError("--similarity: vectors in fewer bytes are compared as the model was trained; leave it out, or "
                     "--precision and --dimensions")
  earlier = processes.from_first(lambda: results_file.read_earlier(output))
  names = [BM25] * bm25 + [*stores, *runs] + [of_model for name in models for of_model in (name, *(
      f"{name} ({what})" for what in dict.fromkeys([*protocol.similarities, *(of.words() for of in kept)]) if what))]
  fused.check(fuse, names)
  names += [of_both for name in names if name != BM25 for of_both in fused.names(name, fuse)]
  _check_names(names, "systems")
  for path in models.values():
    check_model(path, tokenization)
  found = processes.first_before_others(lambda: find_collections(collections, suite, data_root))
  tasks = [read_task(one, protocol) for one in found]
  _check_names([task.collection.name for task in tasks], "collections")
  validations = [fused.validation_task(one.folder, task) if "convex" in fuse else None
                 for one, task in zip(found, tasks, strict=True)]
  for of_vectors in stores.values():
    of_vectors.check(tasks)
  for of_run in runs.values():
    of_run.check(tasks)
  if BM25 in runs:
    validations = [of and fused.of_known_queries(of, runs[BM25].run) for of in validations]
  _check_names([f"{name}-{task.collection.name}" for name in names for task in tasks], "run files")
  processes.check_same({f"the hash of {task.collection.name}": task.collection.hash for task in tasks})
  of_bm25: dict[str, Run] = {}  # In process 0, to be fused.
  results: dict[str, Any] = {
      "depth": DEPTH, "collections": {task.collection.name: _described(task, earlier) for task in tasks}, "systems": {}}
  say = (lambda text: print(text, file=sys.stderr)) if progress and processes.is_first() else lambda text: None
  note = say if bars.shown() else lambda text: None
  for name, of in results["collections"].items():
    for warning in of.get("warnings", ()):
      say(f"{name}: {warning}")
  for line in results_file.other_protocols(earlier, results):
    say(line)

  def measured_run(name, task, run, clock):
    """Writes the run, and what it is worth."""
    collection, of_system = task.collection, results["systems"][name]
    with clock.times("measuring"):
      write_run(output / "runs" / f"{file_name(name)}-{file_name(collection.name)}.trec", run, name)
      values = of_queries(run, collection.qrels)
      of_system["results"][collection.name] = {**means(values), **_median_words(run, collection)}
      of_system["per query"][collection.name] = significance.stored(values)
    note(f"{name} on {collection.name}: {clock}")
    results_file.write(output, results)

  def evaluate_system(name, trained=None, similarity=None, of_kept=None, of_vectors=None, of_run=None):
    """BM25, a model with one of the similarities, or with its vectors kept in one way, a store of vectors, or a run."""
    model = trained and _with_similarity(trained, similarity)
    name = name if model is trained else f"{name} ({similarity})"
    name = f"{name} ({of_kept.words()})" if of_kept and of_kept.words() else name
    source, methods = model or of_vectors, fuse if name != BM25 else ()
    for system in (name, *fused.names(name, methods)):
      _add_system(results, system, source and source.weights_hash, model, similarity)
    of_system = results["systems"][name]
    there = earlier.get("systems", {}).get(name, of_system)
    again = averages.with_forums(results["collections"])
    dropped = [of_earlier for of_earlier in averages.shown(there["results"]) if of_earlier not in again]
    if there["weights_hash"] != of_system["weights_hash"] and dropped:
      say(f"{name}: the results here are of other weights, or computed in another dtype; those on "
          f"{', '.join(dropped)} are dropped")
    for task, validation in zip(tasks, validations, strict=True):
      collection, clock = task.collection, Clock()
      note(f"{name} on {collection.name}: {len(collection.documents.ids):,} documents, {len(collection.queries):,} "
           "queries")
      if validation and (of_vectors or of_run):
        validation = fused.of_known_queries(validation, set(of_vectors.queries.ids if of_vectors else of_run.run))
      asked = fused.with_validation(task, validation)
      if of_run:
        run = of_run.of(asked)
      elif source:
        run, num_bytes = (model_run(trained, model, asked, output / "embeddings", of_kept, clock, progress) if model
                          else store_run(of_vectors, asked, mesh, kept[0].rescore, clock, progress))
        if measured:
          of_system["bytes a document"] = num_bytes
          of_system.setdefault("ms a query", {})[collection.name] = round(
              1000 * clock.seconds["searching"] / len(asked.collection.queries), 3)
      elif processes.is_first():
        with clock.times("indexing and searching"):
          run = bm25_run(collection.documents, asked.collection.query_ids, asked.collection.queries, DEPTH,
                         exclude_own_id=task.protocol.exclude_own_id, progress=progress)
      if not processes.is_first():
        continue
      if fuse and name == BM25:
        of_bm25[collection.name] = run
      measured_run(name, task, fused.of_task(run, task), clock)
      for method, both in zip(methods, fused.names(name, methods), strict=True):
        with (clock := Clock()).times("fusing"):
          of_both, weight = fused.fuse(method, run, of_bm25[collection.name], task, validation)
        if weight:
          results["systems"][both].setdefault("weights", {})[collection.name] = weight
        measured_run(both, task, of_both, clock)

  if bm25:
    evaluate_system(BM25)
  for name in sorted(runs, key=lambda name: name != BM25):  # What others are fused with comes first.
    evaluate_system(name, of_run=runs[name])
  for name, path in models.items():
    trained = load_model(path, mesh, tokenization, dtype, attention)
    for similarity in dict.fromkeys(protocol.similarities or [_similarity(trained)]):
      for of_kept in dict.fromkeys(kept):
        evaluate_system(name, trained, similarity, of_kept)
    del trained  # Before the next one is loaded.
  for name, of_vectors in stores.items():
    evaluate_system(name, of_vectors=of_vectors)
  return processes.from_first(lambda: results_file.finish(output, results))


def check_collections(collections: Sequence[epath.PathLike], suite: str | None, data_root: epath.PathLike,
                      protocol: Protocol | None = None) -> list[str]:
  """Looks for what `evaluate` would read, without reading it; returns the sets that it would download first.

  Raises:
    InputError: a collection is neither there nor to be downloaded, or none is given.
  """
  if not collections and not suite:
    raise InputError("nothing to evaluate on: give --collection, a folder or beir/NAME, or --suite")
  there, downloads = look_for_collections(collections, suite, data_root)
  for found in there:
    check_task(found, protocol or Protocol())
  return downloads


def _described(task: Task, earlier: Mapping[str, Any]) -> dict[str, Any]:
  """What results.json says about a collection. Raises InputError where it says otherwise already."""
  collection, protocol = task.collection, task.protocol
  documents, queries = len(collection.documents.ids), len(collection.queries)
  described = {"split": collection.split, "documents": documents, "queries": queries,
               "median words": float(np.median(collection.words)), "hash": collection.hash,
               "queries without relevant documents": without_relevant(collection.qrels),
               "beir": task.beir is not None,
               **{name: getattr(protocol, name) for name in results_file.PROTOCOL}}
  there = earlier.get("collections", {}).get(collection.name, described)
  for name in ("split", "documents", "queries"):
    if there.get(name) != described[name]:
      raise InputError(f"{collection.name}: {name} {described[name]}, and of what the results here call so "
                       f"{there.get(name)}; choose another --output")
  if there.get("hash", described["hash"]) != described["hash"]:
    raise InputError(f"{collection.name}: another collection {collection.name} than in the results here, with other "
                     "documents, queries or judgements; choose another --output, or rename the folder")
  return {**described, "warnings": warnings} if (warnings := task.warnings()) else described


def _add_system(results: dict[str, Any], name: str, weights: str | None, model: Model | None,
                similarity: str | None) -> None:
  """What is said of a system before it is measured."""
  results["systems"][name] = {"model": model and model.path, "similarity": similarity,
                              "dtype": model and model.encoder.config.dtype, "weights_hash": weights, "results": {},
                              "per query": {}}


def _similarity(model: Model) -> str:
  """The one that the model was trained with."""
  return "cosine" if model.encoder.normalize else "dot"


def _with_similarity(model: Model, similarity: str) -> Model:
  """The model with its vectors normalised, or not; its hash says so."""
  if similarity == _similarity(model):
    return model
  encoder = dataclasses.replace(model.encoder, normalize=similarity == "cosine")
  return dataclasses.replace(model, encoder=encoder, weights_hash=weights_hash(
      encoder, model.params, model.tokenizer, model.lengths, model.prompts))


def _median_words(run: Run, collection: Collection) -> dict[str, float]:
  """Of the ten documents that rank first, over all queries; nothing where none is ranked."""
  top = [doc_id for ranking in run.values() for doc_id in ranking.doc_ids[:10]]
  wanted = set(top)
  rows = {doc_id: row for row, doc_id in enumerate(collection.documents.ids) if doc_id in wanted}
  return {MEDIAN_WORDS_TOP_10: float(np.median(collection.words[[rows[doc_id] for doc_id in top]]))} if top else {}


class RetrievalEvaluator:
  """Measures parameters on a collection during training, by the protocol of `gtr-jax evaluate`: the same figures.

  Texts are tokenised once, programs compiled once. What is None is, on a set of BEIR, as BEIR and GTR do it.

  Args:
    name: comes before the names of the results in the metrics.
    collection: folder in BEIR layout, "beir/NAME" or "nano-beir/NAME".
    model: the encoder in training.
    tokenizer: its vocabulary.
    mesh: where the parameters lie.
    query_length: tokens of a query at most, where the collection is no set of BEIR.
    document_length: tokens of a document at most, likewise.
    query_prompt: text before every query.
    document_prompt: text before every document.
    split: which judgements (None: "test"; of MS MARCO "dev").
    exclude_own_id: never rank the document whose id is the query's own (None: on ArguAna and Quora).
    allow_empty_documents: keep documents with neither title nor text; those of BEIR are kept anyway.
    max_queries: take this many of the queries, the same ones every time.
    max_documents: take this many of the documents: all that are judged for the queries taken, and a sample of the
      others, the same every time. Measures are higher than over the whole corpus.

  Attributes:
    name: as given.
    collection: likewise.
    content: a hash of the collection.
    size: how many queries and documents are taken, in words.
  """

  def __init__(self, name: str, collection: epath.PathLike, *, model: DualEncoder, tokenizer: Tokenizer, mesh: Mesh,
               query_length: int, document_length: int, query_prompt: str = "", document_prompt: str = "",
               split: str | None = None, exclude_own_id: bool | None = None, allow_empty_documents: bool = False,
               max_queries: Positive | None = None, max_documents: Positive | None = None):
    protocol = Protocol(split, exclude_own_id, allow_empty_documents=allow_empty_documents)
    found = processes.first_before_others(lambda: find_one(collection))
    try:
      task = read_task(found, protocol)
    except InputError as e:  # Here the flags of `evaluate` are bindings.
      binding = "RetrievalEvaluator.allow_empty_documents = True"
      raise InputError(str(e).replace("--allow_empty_documents", binding)) from e
    whole, self._protocol = task.collection, task.protocol
    if processes.is_first():
      for warning in task.warnings():
        print(f"{name}: {warning}", file=sys.stderr)
    self.name, self.collection, self.content = name, collection, whole.hash
    self._model, self._mesh = model, mesh
    self._lengths = task.protocol.query_length or query_length, task.protocol.document_length or document_length
    queries = sample(whole.query_ids, max_queries)
    self._query_ids = [whole.query_ids[i] for i in queries]
    self._qrels = {query_id: whole.qrels[query_id] for query_id in self._query_ids}
    judged = set().union(*self._qrels.values())
    documents = sorted(sample(whole.documents.ids, max_documents, first=judged),
                       key=whole.documents.ids.__getitem__, reverse=True)  # As in a store.
    self._doc_ids = [whole.documents.ids[i] for i in documents]
    self.size = f"{len(queries):,} queries among {len(documents):,} documents"
    texts = whole.documents.full_texts()
    self._documents = tokenizer.encode([document_prompt + texts[i] for i in documents], self._lengths[1])
    self._queries = tokenizer.encode([query_prompt + whole.queries[i] for i in queries], self._lengths[0])

  def __call__(self, params: Any) -> dict[str, float]:
    """nDCG@10, MRR@10 and Recall@100 of these parameters."""
    query_length, document_length = self._lengths
    documents = embed_tokens(self._model, params, self._documents, "passage", document_length, self._mesh)
    queries = embed_tokens(self._model, params, self._queries, "query", query_length, self._mesh)
    run = search_run(Searcher(documents, self._mesh), self._doc_ids, self._query_ids, queries, 100,
                     exclude_own_id=self._protocol.exclude_own_id, progress=False)
    values = measure(run, self._qrels)
    return {name: values[name] for name in ("nDCG@10", "MRR@10", "Recall@100")}


def _check_names(names: Sequence[str], what: str) -> None:
  of_file: dict[str, str] = {}
  for name in names:
    if not name.strip():
      raise InputError(f"one of the {what} has no name; give it one")
    if of_file.setdefault(file_name(name), name) is not name or names.count(name) > 1:
      raise InputError(f"two {what} are called {name!r}; their names must differ")
