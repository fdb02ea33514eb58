"""Systems on test collections: what `gtr-jax evaluate` does, and the evaluator that training calls."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from gtr_jax import distributed
from gtr_jax.errors import InputError
from gtr_jax.evaluation.collections import Collection, read_collection
from gtr_jax.evaluation.measures import MEASURES, measure
from gtr_jax.model import Missing, Model, check_model, load_model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.retrieval.bm25 import bm25_run
from gtr_jax.retrieval.encode import embed, embed_tokens, encode_corpus
from gtr_jax.retrieval.runs import Run, write_run
from gtr_jax.retrieval.search import Searcher, search_run
from gtr_jax.text.tokenizer import Tokenizer

DEPTH = 1000  # documents ranked per query, as is the custom with trec_eval
BM25 = "BM25"
RESULTS_FILE = "results.json"
MEDIAN_WORDS_TOP_10 = "median words of top 10"


def evaluate(models: Mapping[str, epath.PathLike], collections: Sequence[epath.PathLike], output: epath.PathLike, *,
             bm25: bool = False, split: str = "test", mesh: Mesh | None = None, exclude_own_id: bool = False,
             allow_empty_documents: bool = False, missing: Missing | None = None,
             progress: bool = True) -> dict[str, Any]:
  """Ranks 1,000 documents for each judged query of each collection with each system, and measures the rankings.

  Writes below `output`: runs/SYSTEM-COLLECTION.trec; embeddings/COLLECTION-WEIGHTS (stores, which a second call uses);
  and last results.json, to which results of other systems and collections that it holds are kept.

  Args:
    models: name -> where the model is. One is loaded at a time.
    collections: folders in BEIR layout; all are read and checked first.
    output: folder.
    bm25: also rank with BM25.
    split: which judgements.
    mesh: devices for the models; default: data parallel over all.
    exclude_own_id: never rank the document whose id is the query's own (ArguAna, Quora).
    allow_empty_documents: keep documents with neither title nor text instead of refusing the collection.
    missing: what models of other programs do not say.
    progress: show progress bars on stderr.

  Returns:
    What this call adds to results.json: "split", "depth", "collections" (name -> "documents", "queries", "median
    words") and "systems" (name -> "model", "weights_hash", "results": collection -> measure -> value).

  Raises:
    InputError: a collection or a model cannot be read, or two of them have the same name.
  """
  output = epath.Path(output)
  if not models and not bm25:
    raise InputError("nothing to evaluate: give a model, or ask for BM25")
  earlier = distributed.from_first(lambda: _earlier_results(output, split))
  names = [BM25] * bm25 + list(models)
  _check_names(names, "systems")
  for path in models.values():
    check_model(path, missing)
  read = [read_collection(path, split, allow_empty_documents=allow_empty_documents) for path in collections]
  _check_names([collection.name for collection in read], "collections")
  distributed.check_same({f"the hash of {collection.name}'s queries": _queries_hash(collection)
                          for collection in read})
  results = {"split": split, "depth": DEPTH, "collections": {}, "systems": {}}
  words = {}
  for collection in read:
    words[collection.name] = dict(zip(collection.documents.ids,
                                      [len(text.split()) for text in collection.documents.full_texts()], strict=True))
    results["collections"][collection.name] = {
        "documents": len(collection.documents.ids), "queries": len(collection.queries),
        "median words": float(np.median(list(words[collection.name].values())))}
  for name in names:
    model = None if name == BM25 else load_model(models[name], mesh, missing)
    of_system = {"model": model and model.path, "weights_hash": model and model.weights_hash, "results": {}}
    for collection in read:
      if progress and distributed.is_first():
        print(f"{name} on {collection.name}: {len(collection.documents.ids):,} documents, "
              f"{len(collection.queries):,} queries", file=sys.stderr)
      if model is not None:
        run = _model_run(model, collection, output / "embeddings", exclude_own_id, progress)
      elif distributed.is_first():
        run = bm25_run(collection.documents, collection.query_ids, collection.queries, DEPTH,
                       exclude_own_id=exclude_own_id, progress=progress)
      if not distributed.is_first():
        continue
      write_run(output / "runs" / f"{_file_name(name)}-{_file_name(collection.name)}.trec", run, name)
      top = [words[collection.name][doc_id] for ranking in run.values() for doc_id in ranking.doc_ids[:10]]
      of_system["results"][collection.name] = {
          **measure(run, collection.qrels), MEDIAN_WORDS_TOP_10: float(np.median(top)) if top else None}
    results["systems"][name] = of_system
  if distributed.is_first():
    temporary = output / f".{RESULTS_FILE}.tmp"
    temporary.write_text(json.dumps(_merged(earlier, results), indent=2) + "\n")
    temporary.replace(output / RESULTS_FILE)
  return distributed.from_first(lambda: results)


def _queries_hash(collection: Collection) -> str:
  return hashlib.sha256(repr((collection.query_ids, collection.queries, collection.qrels)).encode()).hexdigest()


def _earlier_results(output: epath.Path, split: str) -> dict[str, Any]:
  """What results.json holds already, to be added to."""
  path = output / RESULTS_FILE
  if not path.exists():
    if output.exists() and not {"runs", "embeddings"} & {p.name for p in output.iterdir()} and any(output.iterdir()):
      raise InputError(f"{output}: exists and holds no evaluation; choose another folder")
    return {}
  try:
    earlier = json.loads(path.read_text())
    there = earlier["split"], earlier["depth"]
  except (ValueError, KeyError, TypeError) as e:
    raise InputError(f"{path}: damaged; remove it") from e
  if there != (split, DEPTH):
    raise InputError(f"{path}: results of split {there[0]!r} to depth {there[1]}; choose another folder")
  return earlier


def _merged(earlier: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
  """`results`, and of the earlier ones those of other systems, and of the same weights on other collections."""
  if not earlier:
    return dict(results)
  systems = dict(earlier["systems"])
  for name, new in results["systems"].items():
    same = name in systems and systems[name]["weights_hash"] == new["weights_hash"]
    systems[name] = {**new, "results": {**(systems[name]["results"] if same else {}), **new["results"]}}
  return {**results, "systems": systems, "collections": {**earlier["collections"], **results["collections"]}}


def _model_run(model: Model, collection: Collection, stores: epath.Path, exclude_own_id: bool, progress: bool) -> Run:
  store = encode_corpus(model, collection.documents,
                        stores / f"{_file_name(collection.name)}-{model.weights_hash[:12]}", progress=progress)
  queries = embed(model, collection.queries, "query", progress=progress)
  return search_run(Searcher(store, model.mesh), store.ids, collection.query_ids, queries, DEPTH,
                    exclude_own_id=exclude_own_id, progress=progress)


def tables(results: Mapping[str, Any]) -> str:
  """The results as text: for each measure, systems by collections and their plain mean."""
  collections = list(results["collections"])
  blocks = []
  for name in MEASURES:
    rows = [[name, *collections] + ["average"] * (len(collections) > 1)]
    for system, of_system in results["systems"].items():
      values = [of_system["results"][collection][name] for collection in collections]
      values += [float(np.mean(values))] * (len(collections) > 1)
      rows.append([system, *(f"{value:.4f}" for value in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    blocks.append("\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                                  zip(row[1:], widths[1:], strict=True))])
                            for row in rows))
  return "\n\n".join(blocks)


class RetrievalEvaluator:
  """Measures parameters on a collection during training. Texts are tokenised once, programs compiled once.

  Args:
    name: comes before the names of the results in the metrics.
    collection: folder in BEIR layout.
    model: the encoder in training.
    tokenizer: its vocabulary.
    mesh: where the parameters lie.
    query_length: tokens of a query at most.
    document_length: tokens of a document at most.
    query_prompt: text before every query.
    document_prompt: text before every document.
    split: which judgements.
    max_queries: take this many of the queries, the same ones every time.
    max_documents: take this many of the documents: all that are judged for the queries taken, and a sample of the
      others, the same every time. Measures are higher than over the whole corpus.
  """

  def __init__(self, name: str, collection: epath.PathLike, *, model: DualEncoder, tokenizer: Tokenizer, mesh: Mesh,
               query_length: int, document_length: int, query_prompt: str = "", document_prompt: str = "",
               split: str = "test", max_queries: int | None = None, max_documents: int | None = None):
    whole = read_collection(collection, split)
    self.name = name
    self._model, self._mesh, self._lengths = model, mesh, (query_length, document_length)
    queries = _sample(whole.query_ids, max_queries)
    self._query_ids = [whole.query_ids[i] for i in queries]
    self._qrels = {query_id: whole.qrels[query_id] for query_id in self._query_ids}
    judged = set().union(*self._qrels.values())
    documents = sorted(_sample(whole.documents.ids, max_documents, first=judged),
                       key=whole.documents.ids.__getitem__, reverse=True)  # As in a store.
    self._doc_ids = [whole.documents.ids[i] for i in documents]
    texts = whole.documents.full_texts()
    self._documents = tokenizer.encode([document_prompt + texts[i] for i in documents], document_length)
    self._queries = tokenizer.encode([query_prompt + whole.queries[i] for i in queries], query_length)

  def __call__(self, params: Any) -> dict[str, float]:
    """nDCG@10, MRR@10 and Recall@100 of these parameters."""
    query_length, document_length = self._lengths
    documents = embed_tokens(self._model, params, self._documents, "passage", document_length, self._mesh)
    queries = embed_tokens(self._model, params, self._queries, "query", query_length, self._mesh)
    run = search_run(Searcher(documents, self._mesh), self._doc_ids, self._query_ids, queries, 100, progress=False)
    values = measure(run, self._qrels)
    return {name: values[name] for name in ("nDCG@10", "MRR@10", "Recall@100")}


def _sample(ids: Sequence[str], number: int | None, first: set[str] = frozenset()) -> list[int]:
  """Positions, ascending, of `number` ids: those in `first` (all of them), then those with the lowest hashes."""
  if number is None:
    return list(range(len(ids)))

  def rank(position):
    return ids[position] not in first, hashlib.blake2b(ids[position].encode()).digest()

  return sorted(sorted(range(len(ids)), key=rank)[:max(number, sum(i in first for i in ids))])


def _check_names(names: Sequence[str], what: str) -> None:
  of_file = {}
  for name in names:
    if not name.strip():
      raise InputError(f"one of the {what} has no name; give it one")
    if of_file.setdefault(_file_name(name), name) is not name or names.count(name) > 1:
      raise InputError(f"two {what} are called {name!r}; their names must differ")


def _file_name(name: str) -> str:
  return re.sub(r"[^\w.-]+", "_", name)
