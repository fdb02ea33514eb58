"""Training pairs of a collection in BEIR layout that has judgements to train on: nq-train, hotpotqa, fever, fiqa, ...

    gtr-jax prepare beir datasets/fiqa      # writes DATA_DIR/beir_fiqa
"""

import argparse
import os

from gtr_jax.data import root
from gtr_jax.data.prepare import msmarco
from gtr_jax.data.prepare.judged import JudgedPairs
from gtr_jax.data.prepare.passages import cache_folder
from gtr_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare beir`."""
  parser.epilog = __doc__
  parser.add_argument("folder", metavar="DIR",
                      help="also below the data folder (beir/scifact): corpus.jsonl, queries.jsonl (each also as .gz) "
                      "and qrels/train.tsv, as BEIR publishes "
                      "nq-train, hotpotqa, fever, fiqa, nfcorpus, scifact and msmarco. qrels/dev.tsv, where it is "
                      "there, becomes the validation split. What is judged with grade 0 becomes a negative")
  parser.add_argument("--split", default="train", metavar="NAME", help="train on qrels/NAME.tsv (default: %(default)s)")
  parser.add_argument("--validation_split", metavar="NAME",
                      help="validate on qrels/NAME.tsv; '' for none (default: dev, where it is there)")
  parser.add_argument("--queries", metavar="FILE", help="the queries, where they are not in DIR/queries.jsonl")
  parser.add_argument("--min_grade", type=int, default=JudgedPairs.min_grade, metavar="N",
                      help="from which grade on a passage is relevant; nfcorpus and dbpedia have grades up to 2 "
                      "(default: %(default)s)")
  msmarco.add_negatives(parser)


def source(args: argparse.Namespace) -> JudgedPairs:
  """The source that the flags describe. Raises InputError where a file is missing, with the splits that are there."""
  folder = args.folder if os.path.isdir(args.folder) else os.fspath(root.resolve(args.folder))
  if not os.path.isdir(folder):
    raise InputError(f"{args.folder}: no such folder, nor below {root.data_dir()}; give one in BEIR layout")
  if args.min_grade < 1:
    raise InputError(f"--min_grade {args.min_grade}: give 1 or more; grade 0 is judged not relevant")
  dev = _qrels(folder, "dev")
  validation = (dev if os.path.exists(dev) else "") if args.validation_split is None else (
      _existing_qrels(folder, args.validation_split) if args.validation_split else "")
  return JudgedPairs(
      name=f"beir_{os.path.basename(os.path.abspath(folder))}", passages=_jsonl(folder, "corpus"),
      queries=(args.queries or _jsonl(folder, "queries"),), qrels=_existing_qrels(folder, args.split),
      validation_qrels=validation, cache=cache_folder(), min_grade=args.min_grade, **msmarco.negatives(args))


def _qrels(folder, split):
  return os.path.join(folder, "qrels", f"{split}.tsv")


def _existing_qrels(folder, split):
  if not os.path.exists(path := _qrels(folder, split)):
    there = sorted(name.removesuffix(".tsv") for name in os.listdir(os.path.dirname(path)) if name.endswith(".tsv")
                   ) if os.path.isdir(os.path.dirname(path)) else []
    raise InputError(f"{path}: no such file; splits here: {', '.join(there) or 'none'}. To train on one that is for "
                     "testing would spoil the test")
  return path


def _jsonl(folder, name):
  for ending in ("jsonl", "jsonl.gz"):
    if os.path.exists(path := os.path.join(folder, f"{name}.{ending}")):
      return path
  raise InputError(f"{folder}: no {name}.jsonl or {name}.jsonl.gz; give a folder in BEIR layout")
