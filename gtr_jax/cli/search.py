"""`gtr-jax search`: answers from an embedding store, as a TREC run or to look at."""

import argparse
import hashlib
import json
import textwrap

from gtr_jax.cli import process_flags, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import bars, flags
from gtr_jax.io.paths import check_output
from gtr_jax.parallel.processes import check_same, from_first, is_first, print_once

_AT_ONCE = 256  # queries of a file
HELP = "search an embedding store, exactly or by an index of it"
DESCRIPTION = """\
With --queries and --output writes a TREC run, with --vectors, --ids and --output of vectors; with --query answers that;
else answers what you type.

With --json prints one JSON object a line and nothing else, for --query, for --queries, or for the lines of stdin:
  {"query": "what is jit", "results": [{"rank": 1, "score": 0.83, "id": "d7", "title": "…", "text": "…"}]}
of --queries with its "query_id".

  gtr-jax search --model runs/mine --embeddings embeddings --hybrid --queries queries.jsonl --output run.trec

searches by BM25 too, whose index is made once, beside the embeddings. --index searches by an approximate index, which
`gtr-jax index` makes; with --hybrid too."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  shared_flags.add_model(p, required=False)
  p.add_argument("--embeddings", required=True, type=flags.path, help="an embedding store that `gtr-jax encode` wrote")
  p.add_argument("--query", action="append", metavar="TEXT", help="answer this query and stop; repeatable")
  p.add_argument("--queries", type=flags.path, help="queries.jsonl: {\"_id\", \"text\"} a line")
  shared_flags.add_vectors(p, "queries", "--model and queries as text")
  p.add_argument("--hybrid", nargs="?", const=True, type=flags.share, metavar="WEIGHT",
                 help="search by BM25 too, and fuse both: WEIGHT, 0 to 1, times the model's score and 1 - WEIGHT times "
                 "BM25's (default: of 20 queries or more by how well the model finds what BM25 ranks first, else 0.2; "
                 "`gtr-jax evaluate --fuse convex` says what is best on judged queries)")
  p.add_argument("--index", nargs="?", const=True, choices=["faiss-hnsw", "faiss-ivf-pq", "usearch-hnsw"],
                 help="search by the index that `gtr-jax index` has made of the store, not all vectors; say which, if "
                 "there are several")
  p.add_argument("--output", type=flags.path, help="the TREC run to write")
  p.add_argument("--json", action="store_true", help="print answers as JSON, whole texts included")
  p.add_argument("--top_k", type=flags.positive, help="documents per query (default: 100 in a run, else 5)")
  shared_flags.add_rescore(p, "; with --index, look at so many times the documents that are asked for")
  shared_flags.add_computing(p)
  process_flags.add_arguments(p)


def run(args: argparse.Namespace) -> None:
  """Searches. Raises InputError."""
  if args.json and args.output:
    raise InputError("--json prints answers, --output is the TREC run to write; give one of them")
  shared_flags.check_vectors(args, ("model",))
  if args.vectors:
    _answer_vectors(args)
    return
  if args.output and not args.queries or args.queries and not (args.output or args.json):
    raise InputError("--queries and --output go together: the queries of a file into a TREC run; or --queries and "
                     "--json")
  if args.queries and args.query:
    raise InputError("give --query to see answers, or --queries to write a run, not both")
  if args.output:
    check_output(args.output, {"--queries": args.queries, "--embeddings": args.embeddings, "--model": args.model,
                               "--vocabulary": args.vocabulary})
  if not all(query.strip() for query in args.query or ()):
    raise InputError("--query is empty")
  from gtr_jax.retrieval.hybrid import Hybrid
  from gtr_jax.retrieval.store import Store
  store = Store(args.embeddings)
  by_index = _index(args, store)
  model = shared_flags.load_model(args, args.model, shared_flags.tokenization(args), store.settings.get("dtype"))
  store.check_model(model)
  dense = by_index or _exact(args, store, model.mesh)
  searcher = dense if args.hybrid is None else Hybrid(dense, store, None if args.hybrid is True else args.hybrid)
  if args.queries:
    _answer_file(args, searcher, store, model)
    return
  answer = _print_json if args.json else _show
  for query in args.query or ():
    answer(args, searcher, store, model, [query])
  if args.query:
    return
  if not args.json and bars.shown():
    print_once(f"{store.shape[0]:,} documents; type a query, an empty line ends.")
  while query := from_first(lambda: _typed("" if args.json else "query> ")):
    answer(args, searcher, store, model, [query])


def _index(args, store):
  """What --index names, if it is given."""
  if args.index is None:
    return None
  from gtr_jax.retrieval.index_search import open_index
  return open_index(store, None if args.index is True else args.index, args.rescore)


def _exact(args, store, mesh):
  from gtr_jax.retrieval.search import Searcher
  return Searcher(store, mesh, rescore=args.rescore)


def _answer_file(args, searcher, store, model):
  """The queries of a file, into a TREC run or as JSON."""
  from gtr_jax.collections.queries import read_queries
  from gtr_jax.retrieval.encode import embed_queries
  from gtr_jax.retrieval.runs import write_run
  ids, texts = read_queries(args.queries)
  check_same({"the hash of the queries": hashlib.sha256(repr((ids, texts)).encode()).hexdigest()})
  if args.json:
    at_once = _AT_ONCE if args.hybrid is None else len(ids)  # A weight is of all queries.
    for i in range(0, len(ids), at_once):
      _print_json(args, searcher, store, model, texts[i:i + at_once], ids[i:i + at_once])
    return
  vectors = embed_queries(model, texts, store)
  if args.hybrid is None:
    _write_run(args, searcher, store, ids, vectors)
    return
  run, weight = searcher.search(ids, texts, vectors, args.top_k or 100)
  if is_first():
    write_run(args.output, run, "gtr_jax")
  print_once(f"{len(ids):,} queries, at most {args.top_k or 100} documents each, in {args.output}; weight of the model "
             f"beside BM25: {weight:.2f}")


def _answer_vectors(args):
  """Vectors of queries, into a TREC run."""
  if args.hybrid is not None:
    raise InputError("--hybrid: BM25 needs the texts of queries and documents, and --vectors have none; give --model, "
                     "or fuse in gtr-jax evaluate (--embeddings, --bm25 and --fuse)")
  if args.queries or args.query or args.json or not args.output:
    raise InputError("of --vectors and --ids only a TREC run is written: give --output, and no --queries, --query or "
                     "--json")
  check_output(args.output, {"--vectors": args.vectors, "--ids": args.ids, "--embeddings": args.embeddings})
  from gtr_jax.parallel.partitioning import make_mesh
  from gtr_jax.retrieval.given_vectors import for_store, read_given
  from gtr_jax.retrieval.store import Store
  store, given = Store(args.embeddings), read_given(args.vectors, args.ids)
  check_same({"the hash of the vectors": given.hash})
  searcher = _index(args, store) or _exact(args, store, make_mesh())
  _write_run(args, searcher, store, given.ids, for_store(given, store))


def _write_run(args, searcher, store, ids, vectors):
  from gtr_jax.retrieval.runs import write_run
  from gtr_jax.retrieval.search import search_run
  run = search_run(searcher, store.ids, ids, vectors, args.top_k or 100)
  if is_first():
    write_run(args.output, run, "gtr_jax")
  most = "at most " * (args.index is not None)
  print_once(f"{len(ids):,} queries, {most}{min(args.top_k or 100, store.shape[0])} documents each, in {args.output}")


def _found(args, searcher, store, model, queries):
  """Of each query, (score, id, title, text) of the best documents, in order."""
  from gtr_jax.retrieval.encode import embed_queries
  vectors = embed_queries(model, queries, store, progress=False)
  if args.hybrid is None:
    scores, rows = searcher.search(vectors, args.top_k or 5)
  else:
    run, _ = searcher.search([str(i) for i in range(len(queries))], queries, vectors, args.top_k or 5)
    scores = [ranking.scores for ranking in run.values()]
    rows = [[searcher.row(doc_id) for doc_id in ranking.doc_ids] for ranking in run.values()]
  for of_scores, of_rows in zip(scores, rows, strict=True):
    yield [(float(score), *store.document(int(row))) for score, row in zip(of_scores, of_rows, strict=True)]


def _show(args, searcher, store, model, queries):
  for query, documents in zip(queries, _found(args, searcher, store, model, queries), strict=True):
    if args.query:
      print_once(f"query: {query}")
    for rank, (score, doc_id, title, text) in enumerate(documents, 1):
      shown = textwrap.shorten(f"{title} {text}".strip(), 240, placeholder=" ...")
      print_once(f"{rank:3}  {score:.4f}  {doc_id}")
      print_once(textwrap.fill(shown, 110, initial_indent="     ", subsequent_indent="     "))


def _print_json(args, searcher, store, model, queries, ids=()):
  for i, documents in enumerate(_found(args, searcher, store, model, queries)):
    results = [{"rank": rank, "score": score, "id": doc_id, "title": title, "text": text}
               for rank, (score, doc_id, title, text) in enumerate(documents, 1)]
    print_once(json.dumps({**({"query_id": ids[i]} if ids else {}), "query": queries[i], "results": results}))


def _typed(prompt):
  try:
    return input(prompt).strip()
  except EOFError:
    return ""
