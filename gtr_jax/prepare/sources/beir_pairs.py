"""Training pairs of a collection in BEIR layout that has judgements to train on: nq-train, hotpotqa, fever, fiqa, ...

    gtr-jax prepare beir datasets/fiqa      # writes DATA_DIR/beir_fiqa
"""

import argparse
import os

from gtr_jax.collections.collection import corpus_file, qrels_file, queries_file, splits
from gtr_jax.errors import InputError
from gtr_jax.io import data_root, flags
from gtr_jax.prepare.passages import cache_folder
from gtr_jax.prepare.sources import msmarco
from gtr_jax.prepare.sources.pairs_by_id import JudgedPairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare beir`."""
  parser.epilog = __doc__
  parser.add_argument("folder", type=flags.path, metavar="DIR",
                      help="also below the data folder (beir/scifact): corpus.jsonl, queries.jsonl (each also as .gz) "
                      "and qrels/train.tsv, or tables of these columns, as BEIR publishes nq-train, hotpotqa, fever, "
                      "fiqa, nfcorpus, scifact and msmarco. qrels/dev.tsv, where it is there, becomes the validation "
                      "split. What is judged with grade 0 becomes a negative")
  parser.add_argument("--split", default="train", metavar="NAME", help="train on qrels/NAME.tsv (default: %(default)s)")
  parser.add_argument("--validation_split", metavar="NAME",
                      help="validate on qrels/NAME.tsv; '' for none (default: dev, where it is there)")
  parser.add_argument("--queries", type=flags.path, metavar="FILE",
                      help="the queries, where they are not in DIR/queries.jsonl")
  parser.add_argument("--min_grade", type=flags.positive, default=JudgedPairs.min_grade, metavar="N",
                      help="from which grade on a passage is relevant; nfcorpus and dbpedia have grades up to 2 "
                      "(default: %(default)s)")
  msmarco.add_negatives(parser)


def source(args: argparse.Namespace) -> JudgedPairs:
  """The source that the flags describe. Raises InputError where a file is missing, with the splits that are there."""
  folder = args.folder if os.path.isdir(args.folder) else os.fspath(data_root.resolve(args.folder))
  if not os.path.isdir(folder):
    raise InputError(f"{args.folder}: no such folder, nor below {data_root.data_dir()}; give one in BEIR layout")
  validation = args.validation_split
  if validation is None:
    validation = "dev" if "dev" in splits(folder) else ""
  return JudgedPairs(
      name=f"beir_{os.path.basename(os.path.abspath(folder))}", passages=os.fspath(corpus_file(folder)),
      queries=(args.queries or os.fspath(queries_file(folder, args.split)),), qrels=_qrels(folder, args.split),
      validation_qrels=_qrels(folder, validation) if validation else "", cache=cache_folder(),
      min_grade=args.min_grade, **msmarco.negatives(args))


def _qrels(folder: str, split: str) -> str:
  try:
    return os.fspath(qrels_file(folder, split))
  except InputError as e:
    raise InputError(f"{e}. To train on one that is for testing would spoil the test") from e
