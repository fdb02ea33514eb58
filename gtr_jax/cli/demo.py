"""`gtr-jax demo`: the whole path, small."""

import argparse
from collections.abc import Callable, Sequence

from gtr_jax.io import flags

HELP = "the whole path on this machine in a few minutes"
DESCRIPTION = """\
Pretrains, mines negatives, fine-tunes, evaluates and searches, on the documentation of the installed
Python packages. Prints every command that it runs, so that each can be run by hand."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("--output", default="demo", type=flags.path,
                 help="folder for everything that it writes; what an earlier demo made moves aside (default: demo)")
  p.add_argument("--peer", action="store_true",
                 help="then give sentence-transformers the same data, model and minutes of training, and show the "
                 "quality of both beside the time (about 5 minutes more; on the CPU; needs pip install "
                 "'sentence-transformers[train]')")


def run(args: argparse.Namespace, run_command: Callable[[Sequence[str]], int]) -> None:
  """Runs the demo, each step by `run_command`. Raises InputError."""
  from gtr_jax.demo import run
  run.run(args.output, run_command, args.peer)
