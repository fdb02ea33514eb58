"""`gtr-jax search`: answers from an embedding store, as a TREC run or to look at."""

import argparse
import hashlib
import textwrap

from gtr_jax.cli import process_flags, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags
from gtr_jax.io.paths import check_output
from gtr_jax.parallel.processes import check_same, from_first, is_first, print_once

HELP = "exact search in an embedding store"
DESCRIPTION = "With --queries and --output writes a TREC run; with --query answers that; else answers what you type."


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  shared_flags.add_model(p)
  p.add_argument("--embeddings", required=True, type=flags.path, help="an embedding store that `gtr-jax encode` wrote")
  p.add_argument("--query", action="append", metavar="TEXT", help="answer this query and stop; repeatable")
  p.add_argument("--queries", type=flags.path, help="queries.jsonl: {\"_id\", \"text\"} a line")
  p.add_argument("--output", type=flags.path, help="the TREC run to write")
  p.add_argument("--top_k", type=flags.positive, help="documents per query (default: 100 in a run, 5 when you type)")
  shared_flags.add_mesh(p)
  process_flags.add_arguments(p)


def run(args: argparse.Namespace) -> None:
  """Searches. Raises InputError."""
  if bool(args.queries) != bool(args.output):
    raise InputError("--queries and --output go together: the queries of a file into a TREC run")
  if args.queries and args.query:
    raise InputError("give --query to see answers, or --queries to write a run, not both")
  if args.output:
    check_output(args.output, {"--queries": args.queries, "--embeddings": args.embeddings, "--model": args.model,
                               "--vocabulary": args.vocabulary})
  if not all(query.strip() for query in args.query or ()):
    raise InputError("--query is empty")
  from gtr_jax.retrieval.search import Searcher
  from gtr_jax.retrieval.store import Store
  store = Store(args.embeddings)
  model = shared_flags.load_model(args)
  store.check_model(model.weights_hash)
  searcher = Searcher(store, model.mesh)
  if args.queries:
    _write_run(args, searcher, store, model)
    return
  for query in args.query or ():
    print_once(f"query: {query}")
    _answer(args, searcher, store, model, query)
  if args.query:
    return
  print_once(f"{store.shape[0]:,} documents; type a query, an empty line ends.")
  while query := from_first(lambda: _typed("query> ")):
    _answer(args, searcher, store, model, query)


def _write_run(args, searcher, store, model):
  from gtr_jax.collections.queries import read_queries
  from gtr_jax.inference.embed import embed
  from gtr_jax.retrieval.runs import write_run
  from gtr_jax.retrieval.search import search_run
  ids, texts = read_queries(args.queries)
  check_same({"the hash of the queries": hashlib.sha256(repr((ids, texts)).encode()).hexdigest()})
  run = search_run(searcher, store.ids, ids, embed(model, texts, "query"), args.top_k or 100)
  if is_first():
    write_run(args.output, run, "gtr_jax")
  print_once(f"{len(ids):,} queries, {min(args.top_k or 100, store.shape[0])} documents each, in {args.output}")


def _answer(args, searcher, store, model, query):
  from gtr_jax.inference.embed import embed
  scores, rows = searcher.search(embed(model, [query], "query", progress=False), args.top_k or 5)
  for rank, (score, row) in enumerate(zip(scores[0], rows[0], strict=True), 1):
    doc_id, title, text = store.document(int(row))
    shown = textwrap.shorten(f"{title} {text}".strip(), 240, placeholder=" ...")
    print_once(f"{rank:3}  {score:.4f}  {doc_id}")
    print_once(textwrap.fill(shown, 110, initial_indent="     ", subsequent_indent="     "))


def _typed(prompt):
  try:
    return input(prompt).strip()
  except EOFError:
    return ""
