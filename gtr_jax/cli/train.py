"""`gtr-jax train`: from gin files to a training run, or to a dry run of it."""

import argparse
import os
import signal
import sys

from gtr_jax.cli import dry_run, process_flags, shared_flags
from gtr_jax.errors import InputError

HELP = "train a dual encoder as gin files say"
DESCRIPTION = """\
Trains as the gin files say, and goes on where a run of the same MODEL_DIR stopped.

  gtr-jax train --gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin \\
      --gin.MIXTURE_OR_TASK_NAME="'my_task'" --gin.MIXTURE_OR_TASK_MODULE="'my_tasks'" \\
      --gin.MODEL_DIR="'runs/a'" --gin.BATCH_SIZE=512

ctrl-C or SIGTERM saves a checkpoint and stops; the same command continues from it."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  shared_flags.add_gin_files(
      p, "a gin file, your own or one that comes with gtr_jax (runs/pretrain.gin); repeatable, later wins",
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
  if not args.gin_file:
    raise InputError("give --gin_file, for instance --gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin; "
                     "--list names those that come with gtr_jax")
  if dry_run.asked(args):
    return dry_run.run(args)
  shared_flags.set_data_dir(args)
  sys.path.append(os.getcwd())  # Where MIXTURE_OR_TASK_MODULE may lie; `python -m gtr_jax` has it already.
  from gtr_jax.training import run
  config_text = config.load(run.TrainingRun, args.gin_file, args.gin_bindings, shared_flags.search_paths(args))
  stopped_by = run.train(config.bound(run.TrainingRun)(), config_text)
  return 128 + stopped_by if stopped_by else 0
