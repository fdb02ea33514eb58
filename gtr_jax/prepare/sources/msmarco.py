"""MS MARCO passages: pairs of query and relevant passage, with mined negatives that a cross-encoder has checked.

    gtr-jax prepare msmarco DIR --negatives DIR/msmarco-hard-negatives.jsonl.gz \\
        --scores DIR/cross-encoder-ms-marco-MiniLM-L-6-v2-scores.pkl.gz
"""

import argparse
import os

from gtr_jax.errors import InputError
from gtr_jax.io import flags
from gtr_jax.prepare.passages import COLUMNS, cache_folder
from gtr_jax.prepare.sources.pairs_by_id import JudgedPairs

# As published, and as RocketQA publishes them again, with titles.
_NAMES = {
    "collection": ("collection.tsv", "para.txt", "collection.tsv.gz"),
    "queries": ("queries.train.tsv", "train.query.txt", "queries.train.tsv.gz"),
    "qrels": ("qrels.train.tsv",),
    "titles": ("para.title.txt",),
    "validation_queries": ("queries.dev.small.tsv", "queries.dev.tsv", "dev.query.txt"),
    "validation_qrels": ("qrels.dev.small.tsv", "qrels.dev.tsv"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare msmarco`."""
  parser.epilog = __doc__
  parser.add_argument("folder", type=flags.path, metavar="DIR",
                      help="what collectionandqueries.tar.gz and qrels.train.tsv hold (https://microsoft.github.io/msmarco"
                      "), or RocketQA's corpus/marco, which has titles. Dev small, where it is there, becomes the "
                      "validation split")
  for name, what in (("collection", "passages, id and text"), ("queries", "training queries"),
                     ("qrels", "their judgements"), ("titles", "titles of the passages"),
                     ("validation_queries", "queries of the validation split"),
                     ("validation_qrels", "their judgements; none: no validation split")):
    parser.add_argument(f"--{name}", type=flags.path, metavar="FILE",
                        help=f"{what} (default: {' or '.join(_NAMES[name])} in DIR)")
  parser.add_argument("--passage_columns", default="", choices=COLUMNS, metavar="COLUMNS",
                      help=f"of the collection, where it has three: {' or '.join(COLUMNS[1:])}")
  add_negatives(parser)


def add_negatives(parser: argparse.ArgumentParser) -> None:
  """The flags of hard negatives."""
  parser.add_argument("--negatives", nargs="+", action="extend", default=[], type=flags.path, metavar="FILE",
                      help="hard negatives: msmarco-hard-negatives.jsonl.gz of sentence-transformers (systems, best "
                      "first; taken by turns), or triples of ids (qidpidtriples.train.full.2.tsv.gz; drawn by hash). "
                      "RocketQA's negatives are texts: gtr-jax prepare rocketqa")
  parser.add_argument("--scores", type=flags.path, metavar="FILE",
                      help="a cross-encoder's scores of positives and negatives: cross-encoder-ms-marco-MiniLM-L-6-v2-"
                      'scores.pkl.gz, or JSON lines {"qid": ..., "scores": {"pid": ...}}')
  parser.add_argument("--margin", type=flags.number, default=JudgedPairs.margin, metavar="X",
                      help="with scores, keep only negatives that score X below the worst positive (default: "
                      "%(default)s)")
  parser.add_argument("--systems", nargs="+", action="extend", default=[], metavar="NAME",
                      help="take negatives of these systems only, such as bm25 (default: all)")
  parser.add_argument("--num_negatives", type=flags.non_negative, default=JudgedPairs.num_negatives, metavar="N",
                      help="for each query at most, 0 for all; a run draws from them anew in every epoch (default: "
                      "%(default)s)")


def negatives(args: argparse.Namespace) -> dict:
  """The fields of `JudgedPairs` that `add_negatives` has flags for."""
  return {"negatives": tuple(args.negatives), "scores": args.scores or "", "margin": args.margin,
          "systems": tuple(args.systems), "num_negatives": args.num_negatives}


def source(args: argparse.Namespace) -> JudgedPairs:
  """The source that the flags describe. Raises InputError where a file is missing."""
  if not os.path.isdir(args.folder):
    raise InputError(f"{args.folder}: no such folder; give the one with MS MARCO's files")

  def found(name, required=True):
    given = getattr(args, name)
    paths = [given] if given else [os.path.join(args.folder, file) for file in _NAMES[name]]
    for path in paths:
      if os.path.exists(path):
        return path
    if given or required:
      raise InputError(f"{given or args.folder}: no {'such file' if given else ' or '.join(_NAMES[name])}; fetch and "
                       f"unpack it (https://microsoft.github.io/msmarco), or give --{name} FILE")
    return ""

  queries = [found("queries")]
  if validation_qrels := found("validation_qrels", required=False):
    queries.append(found("validation_queries"))
  return JudgedPairs(name="msmarco", passages=found("collection"), queries=tuple(queries), qrels=found("qrels"),
                     validation_qrels=validation_qrels, titles=found("titles", required=False),
                     columns=args.passage_columns, cache=cache_folder(), **negatives(args))
