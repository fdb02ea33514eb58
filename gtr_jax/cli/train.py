"""`gtr-jax train`: from gin files to a training run, or to a dry run of it."""

import argparse
import os
import signal
import sys

from gtr_jax.cli import dry_run, pairs_flags, process_flags, shared_flags
from gtr_jax.errors import InputError

HELP = "train a dual encoder: on your pairs, or as gin files say"
DESCRIPTION = """\
On your own pairs, from a published model, with settings that fit:

  gtr-jax train --pairs my.jsonl --init sentence-transformers/gtr-t5-base --output runs/mine

--pairs are lines of JSON: {"query": ..., "positive": ..., "negatives": [...]}, ["query", "passage"], or what else
`gtr-jax prepare pairs` reads. A part is held out, and the checkpoint that finds its passages best is kept.

Or as gin files say, for all that has no flag; runs/mine/config.gin is such a file:

  gtr-jax train --gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin \\
      --gin.MIXTURE_OR_TASK_NAME="'my_task'" --gin.MIXTURE_OR_TASK_MODULE="'my_tasks'" \\
      --gin.MODEL_DIR="'runs/a'" --gin.BATCH_SIZE=512

ctrl-C or SIGTERM saves a checkpoint and stops; the same command continues from it."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  pairs_flags.add_arguments(p)
  shared_flags.add_gin_files(
      p, "a gin file, your own or one that comes with gtr_jax (runs/pretrain.gin); repeatable, later wins; it comes "
      "after what the flags of pairs come to",
      "one binding, written --gin.NAME=VALUE; strings keep their quotes: --gin.MODEL_DIR=\"'runs/a'\"",
      _macros)
  p.add_argument("--list", action="store_true", help="list the gin files that come with gtr_jax, and stop")
  dry_run.add_arguments(p)
  shared_flags.add_data_dir(p)
  process_flags.add_arguments(p)


def _macros() -> list[str]:
  from gtr_jax import config
  return config.macro_names()


def run(args: argparse.Namespace) -> int | None:
  """Trains; returns the exit code. Raises InputError."""
  # Until the loop listens, nothing needs saving, and an exception may be dropped where JAX calls back into Python.
  def leave(*_):
    os.write(2, b"\ngtr-jax train: interrupted before the first step\n")
    os._exit(130)

  before = signal.signal(signal.SIGINT, leave)
  try:
    return _run(args)
  finally:
    signal.signal(signal.SIGINT, before)


def _run(args):
  from gtr_jax import config
  if args.list:
    for path in sorted(config.configs_dir().rglob("*.gin")):
      if path.parent.name != "t5x":  # T5X reads those.
        print(path.relative_to(config.configs_dir()))
    return 0
  if not args.gin_file and not pairs_flags.given(args):
    raise InputError("give --pairs, --init and --output to train on your pairs, or --gin_file, for instance "
                     "--gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin; --list names those that come with "
                     "gtr_jax")
  options = pairs_flags.options(args)
  shared_flags.set_data_dir(args)
  sys.path.append(os.getcwd())  # Where MIXTURE_OR_TASK_MODULE may lie; `python -m gtr_jax` has it already.
  if dry_run.asked(args):
    return dry_run.run(args, options)
  from gtr_jax.training import banner
  banner.say(banner.device_line())
  from gtr_jax.training import run
  config_text = config.load(run.TrainingRun, args.gin_file, args.gin_bindings, shared_flags.search_paths(args),
                            first=pairs_flags.gin_text(options, args))
  stopped_by = run.train(config.bound(run.TrainingRun)(), config_text, says_next=args.says_next)
  return 128 + stopped_by if stopped_by else 0
