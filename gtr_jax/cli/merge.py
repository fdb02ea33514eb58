"""`gtr-jax merge`: several models into one, by averaging their weights."""

import argparse
import dataclasses

from gtr_jax.cli import shared_flags
from gtr_jax.io import flags

HELP = "average the weights of several models into one"
DESCRIPTION = """\
The average of the weights of models that began from one start is often better than each of them, and costs no more to
use than one ("model soups", arXiv 2203.05482). Written is a sentence-transformers folder, which every command reads.

  gtr-jax merge runs/a runs/b runs/c --output soup            # other seeds, data or settings
  gtr-jax merge runs/mine/checkpoints/9000 runs/mine/checkpoints/10000 --output mean
  gtr-jax merge sentence-transformers/gtr-t5-base runs/mine --weights 0.3 0.7 --output between
  gtr-jax evaluate --model runs/a --model runs/b --model soup --collection my_collection --output results
  gtr-jax train --pairs my.jsonl --init soup --output runs/on   # and training can go on from it

Models have to have the same sizes, vocabulary, pooling, normalisation and prompts. Models that were trained from
different random weights have nothing in common: their average is no good model."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("models", nargs="+", type=flags.path, metavar="MODEL", help=shared_flags.MODEL_HELP)
  p.add_argument("--output", required=True, type=flags.path, metavar="DST", help="the folder to write")
  p.add_argument("--weights", nargs="+", type=flags.number, metavar="W",
                 help="of each model, in their order, 0 or more; divided by their sum (default: all equal)")
  shared_flags.add_tokenization(
      p, "\nModels that say their vocabulary keep it; the lengths are for all of them, and for what is written.")


def run(args: argparse.Namespace) -> None:
  """Merges. Raises InputError."""
  from gtr_jax.formats.merge import merge
  from gtr_jax.formats.tokenization import Tokenization
  from gtr_jax.inference.load import for_several
  tokenization = for_several(Tokenization(args.vocabulary, args.extra_ids), args.models)
  merge(args.models, args.output, args.weights, tokenization=dataclasses.replace(
      tokenization, query_length=args.query_length, document_length=args.document_length))
  print(args.output)
