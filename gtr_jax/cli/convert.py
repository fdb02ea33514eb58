"""`gtr-jax convert`: a model in the form that another program reads."""

import argparse

from gtr_jax.cli import shared_flags
from gtr_jax.io import flags

HELP = "write a model as a sentence-transformers folder, a T5X checkpoint, or programs"
DESCRIPTION = """\
Every command reads all of these forms itself; convert is for other programs.

  gtr-jax convert runs/mine my_model                      # SentenceTransformer("my_model") loads it
  gtr-jax convert runs/mine small_model --dimensions 128  # gives the first 128 numbers of each vector
  gtr-jax convert runs/mine t5x/checkpoint_0 --to t5x     # t5x.train starts from it
  gtr-jax convert runs/mine my_adapter --to peft --base_model sentence-transformers/gtr-t5-base   # of a run with LoRA
  gtr-jax convert gs://…/checkpoint_1000 my_model --vocabulary spiece.model --query_length 64 --document_length 512"""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("source", type=flags.path, metavar="SRC", help=shared_flags.MODEL_HELP)
  p.add_argument("output", type=flags.path, metavar="DST",
                 help="the folder to write; for T5X it ends in checkpoint_<step>")
  p.add_argument("--to", choices=["sentence-transformers", "t5x", "stablehlo", "saved-model", "peft"],
                 default="sentence-transformers", help="(default: sentence-transformers)")
  p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                 help="of the weights (default: float32)")
  p.add_argument("--dimensions", type=flags.positive, metavar="N", help="write a model of the first N numbers of each "
                 "vector, normalised again, of one that was trained for it (Matryoshka)")
  p.add_argument("--results", type=flags.path, metavar="DIR", help="an evaluation's --output, whose table goes into "
                 "the model card of a sentence-transformers folder")
  p.add_argument("--base_model", type=flags.path, metavar="MODEL", help="of --to peft: what the run was trained from "
                 "with LoRA, as transformers is to load it: a folder, or a name on the Hugging Face hub")
  shared_flags.add_tokenization(p)


def run(args: argparse.Namespace) -> None:
  """Converts. Raises InputError."""
  from gtr_jax.formats.convert import convert
  convert(args.source, args.output, args.to, tokenization=shared_flags.tokenization(args), dtype=args.dtype,
          results=args.results, base_model=args.base_model, dimensions=args.dimensions)
  print(args.output)
