"""`gtr-jax evaluate`: models and BM25 on collections."""

import argparse
import dataclasses
import json

from gtr_jax.cli import process_flags, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags
from gtr_jax.parallel.processes import print_once

HELP = "nDCG@10, MRR@10, Recall@100 and MAP on collections"
DESCRIPTION = """\
Prints a table, and writes results.json and TREC runs below --output. Started again, it encodes nothing twice.

  gtr-jax evaluate --model runs/mine --bm25 --collection my_collection --output results
  gtr-jax evaluate --model GTR=runs/gtr --collection beir/scifact --collection beir/nfcorpus --output results
  gtr-jax evaluate --model base=runs/base --model large=runs/large --suite beir-public --output results
  gtr-jax evaluate --model runs/mine --bm25 --fuse convex --collection my_collection --output results

A set of BEIR is looked for here, then in the data folder, and is downloaded to it. It is evaluated as in the papers on
GTR and BEIR: its own split, lengths and exclusion of the query itself, CQADupStack as the mean of its forums."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("--model", action="append", default=[], type=flags.named_path, metavar="[NAME=]MODEL",
                 help=shared_flags.MODEL_HELP + "; repeatable")
  shared_flags.add_tokenization(
      p, "\nOf several models, those that say their vocabulary keep it; the lengths are for all of them.")
  p.add_argument("--collection", action="append", default=[], type=flags.path,
                 help=shared_flags.COLLECTION_HELP + "; or beir/NAME, nano-beir/NAME; repeatable")
  p.add_argument("--suite", choices=["beir", "beir-public", "nano-beir"],
                 help="MS MARCO and BEIR's 18 sets, MS MARCO and the 14 public ones, or NanoBEIR's 13")
  shared_flags.add_data_dir(p)
  p.add_argument("--bm25", action="store_true", help="also BM25, in the same table (needs no model)")
  p.add_argument("--similarity", action="append", default=[], choices=["cosine", "dot"],
                 help="normalise the model's vectors, or do not (default: as it was trained); repeatable, to have both "
                 "beside each other: documents are encoded once")
  p.add_argument("--embeddings", action="append", default=[], type=flags.named_path, metavar="[NAME=]STORE",
                 help="a store of `gtr-jax encode --vectors`, whose queries are --vectors; repeatable")
  shared_flags.add_vectors(p, "queries", "--model")
  p.add_argument("--run", action="append", default=[], type=flags.named_path, metavar="[NAME=]FILE", dest="runs",
                 help="a TREC run of one collection, which is measured as it is; BM25=FILE stands for --bm25; "
                 "repeatable")
  p.add_argument("--fuse", action="append", default=[], choices=["rrf", "convex"],
                 help="also every other system fused with BM25, in the same table: rrf by ranks; convex by scores, "
                 "where the system's weight is chosen on the collection's dev or train queries, never on the test's, "
                 "and where it has none follows from how well the system finds what BM25 ranks first; repeatable")
  shared_flags.add_precision(p, several=True)
  shared_flags.add_rescore(p)
  p.add_argument("--split", help="which qrels/SPLIT.tsv (default: test; beir/msmarco: dev)")
  p.add_argument("--exclude_own_id", action=argparse.BooleanOptionalAction,
                 help="never rank the document whose id is the query's own (default: on beir/arguana and beir/quora)")
  shared_flags.add_empty_documents(p)
  p.add_argument("--output", required=True, type=flags.path, help="folder for results.json, runs/ and embeddings/")
  p.add_argument("--json", action="store_true", help="print what was measured as JSON instead of tables: what "
                 "this call adds to results.json, but for the values of single queries")
  shared_flags.add_computing(p)
  process_flags.add_arguments(p)


def run(args: argparse.Namespace) -> None:
  """Evaluates. Raises InputError."""
  if not args.collection and not args.suite:
    raise InputError("nothing to evaluate on: give --collection, a folder or beir/NAME, or --suite")
  from gtr_jax.collections.protocol import Protocol
  from gtr_jax.evaluation.dense import Kept
  from gtr_jax.evaluation.evaluate import evaluate
  from gtr_jax.evaluation.results_file import tables, without_queries
  from gtr_jax.formats.tokenization import Tokenization
  from gtr_jax.inference.load import for_several
  from gtr_jax.io.data_root import data_dir
  from gtr_jax.parallel.partitioning import make_mesh
  shared_flags.set_data_dir(args)
  from gtr_jax.evaluation.given_runs import read_given_run
  models, stores = shared_flags.by_name("model", args.model), _stores(args)
  runs = {name: read_given_run(path) for name, path in shared_flags.by_name("run", args.runs).items()}
  tokenization = Tokenization(args.vocabulary, args.extra_ids)
  if len(models) > 1 or not tokenization.given():
    tokenization = for_several(tokenization, models.values())
  # Lengths hold for every model here; a model that has none is also loaded with them.
  lengths = {"query_length": args.query_length, "document_length": args.document_length}
  protocol = Protocol(args.split, args.exclude_own_id, similarities=tuple(args.similarity),
                      allow_empty_documents=args.allow_empty_documents, **lengths)
  results = evaluate(models, args.collection, args.output, bm25=args.bm25, suite=args.suite, data_root=data_dir(),
                     protocol=protocol, mesh=make_mesh(model=args.model_parallel) if models else None,
                     tokenization=dataclasses.replace(tokenization, **lengths), dtype=args.dtype,
                     attention=args.attention, kept=[Kept(precision, args.dimensions, args.rescore)
                                                     for precision in args.precision or ["float32"]],
                     stores=stores, runs=runs, fuse=list(dict.fromkeys(args.fuse)))
  print_once(json.dumps(without_queries(results), indent=2) if args.json else tables(results))


def _stores(args):
  given = [bool(args.embeddings), args.vectors is not None, args.ids is not None]
  if any(given) and not all(given):
    raise InputError("--embeddings, --vectors and --ids go together: stores of vectors, and vectors of the queries "
                     "with their ids")
  if not args.embeddings:
    return {}
  from gtr_jax.evaluation.dense import StoreOfVectors
  from gtr_jax.retrieval.given_vectors import read_given
  from gtr_jax.retrieval.store import Store
  queries = read_given(args.vectors, args.ids)
  paths = shared_flags.by_name("embeddings", args.embeddings)
  return {name: StoreOfVectors(Store(path), queries) for name, path in paths.items()}
