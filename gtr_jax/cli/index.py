"""`gtr-jax index`: an approximate index beside the vectors of a store, for `gtr-jax search --index`."""

import argparse
from typing import Annotated

from gtr_jax.cli import shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags
from gtr_jax.values.ranges import Range

HELP = "index an embedding store, to search it faster and nearly as well"
DESCRIPTION = """\
Makes an approximate index of what `gtr-jax encode` wrote, beside its vectors, and measures against the exact search
what it finds and how long that takes.

  gtr-jax index embeddings --to faiss                  # HNSW: a graph; quick to search, all vectors in it once more
  gtr-jax index embeddings --to faiss --kind ivf-pq    # lists of codes of a few bytes: small; from 9,984 documents
  gtr-jax index embeddings --to usearch                # HNSW by USearch
  gtr-jax index embeddings --to faiss --model runs/mine --queries queries.jsonl    # measured with these queries

  gtr-jax search --model runs/mine --embeddings embeddings --index

searches by it. Needs faiss-cpu or usearch: pip install 'gtr_jax[faiss]' or 'gtr_jax[usearch]'."""
_CONNECTIONS = flags.of(Annotated[int, Range(2, 1024)])
_OF_HNSW, _OF_PQ = ("connections", "effort"), ("lists", "bytes")


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("store", type=flags.path, metavar="STORE", help="an embedding store that `gtr-jax encode` wrote")
  p.add_argument("--to", required=True, choices=["faiss", "usearch"], help="whose index it is")
  p.add_argument("--kind", default="hnsw", choices=["hnsw", "ivf-pq"],
                 help="hnsw: a graph, and all vectors in float32; ivf-pq, of FAISS: lists of vectors in a few bytes "
                 "(default: hnsw)")
  p.add_argument("--connections", type=_CONNECTIONS, metavar="N",
                 help="of hnsw, of a vector to others, twice as many in the lowest layer: more find more and take more "
                 "memory (M; default: 32)")
  p.add_argument("--effort", type=flags.positive, metavar="N",
                 help="of hnsw, vectors that are looked at to place one: more make a better graph, and take longer "
                 "(efConstruction; default: 200)")
  p.add_argument("--lists", type=flags.positive, metavar="N",
                 help="of ivf-pq (nlist; default: 4 times the square root of the number of documents, each of 39 or "
                 "more)")
  p.add_argument("--bytes", type=flags.positive, metavar="N",
                 help="of ivf-pq, of a vector: a divisor of its numbers (default: about an eighth of them, 96 of 768)")
  p.add_argument("--queries", type=flags.path, metavar="FILE",
                 help="queries.jsonl, with --model: what is measured is how these are answered, at most 200 of them "
                 "(default: documents of the store as queries)")
  shared_flags.add_model(p, required=False)
  shared_flags.add_computing(p)


def run(args: argparse.Namespace) -> None:
  """Makes and measures it. Raises InputError."""
  if args.to == "usearch" and args.kind != "hnsw":
    raise InputError(f"--kind {args.kind}: --to usearch has hnsw only; give --to faiss")
  if (args.queries is None) != (args.model is None):
    raise InputError("--queries and --model go together: the queries to measure with, and the model of the store")
  given = {name: getattr(args, name) for name in (*_OF_HNSW, *_OF_PQ) if getattr(args, name) is not None}
  if others := [name for name in given if name not in (_OF_HNSW if args.kind == "hnsw" else _OF_PQ)]:
    raise InputError(f"--{others[0]}: is of --kind {'ivf-pq' if args.kind == 'hnsw' else 'hnsw'}; leave it out")
  from gtr_jax.parallel.partitioning import make_mesh
  from gtr_jax.retrieval.approximate import engine
  from gtr_jax.retrieval.index_file import build_index, write_recall
  from gtr_jax.retrieval.index_search import measure, open_index, own_queries
  from gtr_jax.retrieval.search import Searcher
  from gtr_jax.retrieval.store import Store
  name, store = f"{args.to}-{args.kind}", Store(args.store)
  engine(name)  # Before a model is read.
  queries, what = _embedded(args, store) if args.queries else (own_queries(store), "documents of the store as queries")
  record = build_index(store, name, given)
  settings = ", ".join(f"{value} {setting}" for setting, value in record["settings"].items())
  size = (store.path / f"{name}.index").stat().length
  print(f"{store.shape[0]:,} documents in {store.path / name}.index ({settings}; {size / 1e6:,.1f} MB)", flush=True)
  found = {"by": what, **measure(Searcher(store, make_mesh()), open_index(store, name), queries)}
  write_recall(store, record, found)
  print(f"of what the exact search finds, by {found['queries']} {what}: "
        f"recall@10 {found['recall@10']:.4f}, recall@100 {found['recall@100']:.4f}")
  for searched in ("index", "exact"):
    ms = found["ms"][searched]
    print(f"{searched}: {ms['all at once']:.2f} ms a query, all at once; {ms['alone']:.2f} ms, one at a time")


def _embedded(args, store):
  """Vectors of the queries of a file, and what they are."""
  from gtr_jax.collections.queries import read_queries
  from gtr_jax.retrieval.encode import embed_queries
  from gtr_jax.retrieval.index_search import SAMPLE
  texts = read_queries(args.queries)[1]
  model = shared_flags.load_model(args, args.model, shared_flags.tokenization(args), store.settings.get("dtype"))
  store.check_model(model)
  step = max(1, len(texts) // SAMPLE)
  return embed_queries(model, texts[::step][:SAMPLE], store), f"queries of {args.queries}"
