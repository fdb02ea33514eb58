"""`gtr-jax sweep`: from its flags and gin files to runs, commands or Slurm jobs."""

import argparse
import contextlib
import functools
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from gtr_jax.cli import evaluate, mine, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import bars, flags
from gtr_jax.io.atomic import write_json, write_text
from gtr_jax.io.json_file import read_json
from gtr_jax.io.paths import is_remote

PLAN_FILE = "plan.json"
HELP = "train and evaluate every combination of settings"
DESCRIPTION = """\
Trains and evaluates every combination that gin files name, each training once, each in its own process.

  gtr-jax sweep --gin_file=sweeps/pretraining.gin --output sweeps/pretraining --print     # the commands, and stop
  gtr-jax sweep --gin_file=sweeps/pretraining.gin --output sweeps/pretraining             # run them
  gtr-jax sweep --gin_file=sweeps/size.gin --output sweeps/size --slurm                   # scripts for a cluster

The same command goes on where it stopped and tries again what failed; ctrl-C lets the trainings save first. A sweep of
your own:

  from __gin__ import dynamic_registration
  from gtr_jax.sweep import plan
  plan.Sweep.stages = {'pretrain': ['my_pretraining.gin'], 'finetune': ['my_finetuning.gin']}
  plan.Sweep.axes = {
      'size': {'small': ['models/t5_small.gin'], 'base': ['models/t5_base.gin']},
      'stages': {'PT': {'stages': ['pretrain']}, 'FT': {'stages': ['finetune']}, 'PT+FT': {}},
      'temperature': {'0.01': {'finetune': ['TEMPERATURE = 0.01']}, '0.05': {'finetune': ['TEMPERATURE = 0.05']}}}
  plan.Sweep.evaluate = '--collection data/scifact'

docs/sweeps.md explains each; `gtr-jax train --list` names the sweeps that come with gtr_jax."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  shared_flags.add_gin_files(
      p, "a gin file that binds plan.Sweep, your own or one that comes with gtr_jax; repeatable",
      "one binding, written --gin.NAME=VALUE: --gin.plan.Sweep.common=\"['BATCH_SIZE = 64']\"", _fields)
  p.add_argument("--output", required=True, type=flags.path, metavar="DIR", help="the sweep's folder: a MODEL_DIR for "
                 "each training, results, logs, sweep.json, report")
  shared_flags.add_data_dir(p)
  p.add_argument("--workers", type=flags.positive, default=1, metavar="N",
                 help="commands at a time; GPUs that CUDA_VISIBLE_DEVICES lists are divided among them (default: 1)")
  how = p.add_mutually_exclusive_group()
  how.add_argument("--print", action="store_true", dest="print_only",
                   help="print the commands, each after those that it needs, and stop")
  how.add_argument("--slurm", action="store_true", help="write DIR/slurm/submit.sh, which submits all as Slurm arrays "
                   "with dependencies, and stop")
  how.add_argument("--collect", action="store_true", help="run nothing; write sweep.json, table and report of what is "
                   "there")


def _fields() -> list[str]:
  from gtr_jax.sweep import plan
  return [f"plan.Sweep.{name}" for name in plan.Sweep.__dataclass_fields__]


def run(args: argparse.Namespace) -> int:
  """Does what the flags ask; returns the exit code: 1 where something failed."""
  from gtr_jax.evaluation.studies import SWEEP_FILE
  from gtr_jax.io import data_root
  from gtr_jax.sweep import plan as plans
  from gtr_jax.sweep import results, scripts
  from gtr_jax.sweep import run as running
  if not args.gin_file:
    raise InputError("give --gin_file, for instance --gin_file=sweeps/pretraining.gin; `gtr-jax train --list` names "
                     "those that come with gtr_jax")
  if is_remote(args.output):
    raise InputError(f"--output {args.output}: a sweep's folder lies on this machine, or on a disk that all machines "
                     "see; give a local path")
  sys.path.append(os.getcwd())
  data_root.set_data_dir(args.data_dir)
  if not args.data_dir and os.environ.get("GTR_DATA_DIR"):  # The commands are to find it without the variable.
    args = argparse.Namespace(**{**vars(args), "data_dir": os.fspath(data_root.data_dir())})
  search_paths = shared_flags.search_paths(args)
  sweep = _read(args, search_paths)
  whole = plans.make_plan(sweep, _folders(args), _resolver(search_paths), _data_key)
  for job in whole.jobs.values():
    if job.words[0] != "train" and (problem := _problem(job.words)):  # Trainings are resolved.
      raise InputError(f"{job.name}: {problem}")
  _check_folder(args.output, sweep, whole)
  done = running.done_jobs(args.output, whole.jobs)
  if not args.collect:
    _check_mined(whole, done, args.print_only)
    _check_collections(whole, done, data_root.data_dir(), args.print_only)
  text = scripts.commands(whole, done)
  if args.print_only:
    print(text, end="")
    return 0
  with running.locked(args.output) as lock:
    write_json(Path(args.output, PLAN_FILE), _identity(sweep))
    write_text(Path(args.output, "commands.sh"), text)
    if args.slurm:
      running.set_aside(args.output, whole.jobs, print)
      path = scripts.write_slurm({name: job for name, job in whole.jobs.items() if name not in done}, args.output,
                                 [*_own_words(args), "--collect"])
      print(f"{len(whole.jobs) - len(done)} jobs; submit them with: bash {shlex.quote(str(path))} [sbatch's options]")
      return 0
    outcome = running.Outcome({}, None)
    if not args.collect:
      _say(f"{len(whole.runs)} runs, {len(whole.jobs)} commands ({args.output}/commands.sh), {len(done)} of them done")
      outcome = running.run_jobs(whole.jobs, args.output, args.workers, running.starter(lock, args.workers),
                                 say=_say)
    if outcome.stopped_by:
      print("stopped; the same command goes on")
      return 128 + outcome.stopped_by
    collected = results.collect(whole, sweep, args.output, outcome.failed)
  print("\n" + results.table(collected, args.output))
  print(f"\n{args.output}/{SWEEP_FILE}", flush=True)
  _report(args.output)
  return 1 if any(run["failed"] for run in collected["runs"]) else 0


def _say(text: str) -> None:
  """How far the sweep is."""
  if bars.shown():
    print(text, flush=True)


def _read(args: argparse.Namespace, search_paths: list[str]) -> Any:
  from gtr_jax import config
  from gtr_jax.sweep import plan as plans
  config.parse(args.gin_file, args.gin_bindings, search_paths)
  if "stages" not in config.bindings(plans.Sweep):
    raise InputError(f"{', '.join(args.gin_file)}: binds no plan.Sweep.stages; a sweep needs them, after `from "
                     "gtr_jax.sweep import plan`")
  config.resolved(plans.Sweep)
  return plans.Sweep(**config.bindings(plans.Sweep))


def _folders(args: argparse.Namespace) -> Any:
  from gtr_jax.io import data_root
  from gtr_jax.sweep.plan import Folders
  given = ("--data_dir", args.data_dir) if args.data_dir else ()
  train_flags = (*given, *(("--gin_search_paths", args.gin_search_paths) if args.gin_search_paths else ()))
  return Folders(args.output, os.fspath(data_root.data_dir()), train_flags, given)


def _resolver(search_paths: list[str]) -> Callable:
  """Resolves each training once."""
  from gtr_jax import config
  from gtr_jax.sweep import data_keys
  from gtr_jax.training import run

  @functools.cache
  def resolve(files, bindings):
    text = config.load(run.TrainingRun, files, bindings, search_paths)
    return text + data_keys.of_training(text)

  return lambda files, bindings: resolve(tuple(files), tuple(bindings))


def _data_key(words: Sequence[str]) -> str:
  """Of a command that is no training: a hash of the data that it reads."""
  from gtr_jax.sweep import data_keys
  try:
    with contextlib.redirect_stderr(io.StringIO()):
      given = _parsed([*words, "--output", "somewhere"])
  except (SystemExit, InputError):
    return ""  # What is wrong with it is said once all jobs are known.
  if words[0] == "mine":
    return data_keys.of_paths([given.pairs, given.collection, given.vocabulary, *given.decontaminate])
  return data_keys.of_paths([*given.collection, given.vocabulary])


def _parsed(words: Sequence[str]) -> argparse.Namespace:
  """The flags of a command of the plan that is no training."""
  parser = flags.Parser(f"gtr-jax {words[0]}", allow_abbrev=False)
  {"mine": mine, "evaluate": evaluate}[words[0]].add_arguments(parser)
  return parser.parse_args(words[1:])


def _problem(words: Sequence[str]) -> str | None:
  """What is wrong with the flags of a command, if anything is."""
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      args = _parsed(words)
    if words[0] == "mine":
      mine.check(args)
  except SystemExit:
    return said.getvalue().strip().splitlines()[-1]
  except InputError as e:
    return str(e)
  return None


def _check_mined(whole: Any, done: set[str], print_only: bool) -> None:
  """Raises InputError (where commands are printed: says) where mining has nothing to mine from."""
  made = {job.makes for job in whole.jobs.values()}
  for job in whole.jobs.values():
    if job.words[0] != "mine" or job.name in done:
      continue
    given = _parsed(job.words)
    for path in filter(None, (given.pairs, given.collection)):
      if path not in made and "://" not in path and not os.path.exists(path):
        message = f"{job.name}: {path}: no such file or folder; prepare it, or correct the stage's command"
        if not print_only:
          raise InputError(message)
        print(message, file=sys.stderr)


def _check_collections(whole: Any, done: set[str], data_root: Any, print_only: bool) -> None:
  """Says which collections will be downloaded. Raises InputError (where commands are printed: says) what is missing."""
  from gtr_jax.collections.protocol import Protocol
  from gtr_jax.evaluation.evaluate import check_collections
  job = next((job for job in whole.jobs.values() if job.words[0] == "evaluate" and job.name not in done), None)
  if job is None:
    return
  given = _parsed(job.words)  # The same for all.
  try:
    if downloads := check_collections(given.collection, given.suite, data_root, Protocol(given.split)):
      print(f"not there, and downloaded to {data_root} by the first evaluation: {', '.join(downloads)}",
            file=sys.stderr)
  except InputError as e:
    if not print_only:
      raise InputError(f"plan.Sweep.evaluate: {e}") from e
    print(f"plan.Sweep.evaluate: {e}", file=sys.stderr)


class _Identity(TypedDict):
  stages: list[str]
  axes: list[str]


def _identity(sweep: Any) -> dict[str, list[str]]:
  return {"stages": list(sweep.stages), "axes": list(sweep.axes)}


def _check_folder(output: str, sweep: Any, whole: Any) -> None:
  """Raises InputError where the folder holds something else: no sweep, one of other axes, or of other settings."""
  from gtr_jax.sweep.run import marker_of, read_marker
  folder = Path(output)
  if not folder.exists() or not any(path.name != ".lock" and not path.name.startswith(f".{PLAN_FILE}.")
                                    for path in folder.iterdir()):
    return
  if not (folder / PLAN_FILE).exists():
    raise InputError(f"{output}: not empty, and no sweep made it; give another --output")
  there = read_json(folder / PLAN_FILE, _Identity, "put it back, or give another --output")
  if there != _identity(sweep):
    raise InputError(f"{output}: holds a sweep of stages {', '.join(there['stages'])} over {', '.join(there['axes'])}; "
                     "give another --output")
  for run in whole.runs:
    job = whole.jobs.get(f"evaluate_{run.name}")
    if job is None:
      continue
    trained = read_marker(marker := marker_of(output, job.name)).split()
    if trained and trained[0] != run.model:
      raise InputError(f"{output}: run {run.name} was evaluated as {trained[0]} and is {run.model} now, so its "
                       f"configuration or its data are others; give another --output, or remove {marker} and "
                       f"{os.path.dirname(run.results)}")


def _own_words(args: argparse.Namespace) -> list[str]:
  words = ["sweep", *(f"--gin_file={file}" for file in args.gin_file), *(f"--gin.{of}" for of in args.gin_bindings)]
  for name in ("gin_search_paths", "output", "data_dir"):
    if value := getattr(args, name):
      words += [f"--{name}", value]
  return words


def _report(output: str) -> None:
  """Tables and plots, if there are results."""
  words = ["report", "--sweep", output, "--output", os.path.join(output, "report")]
  print(shlex.join(["gtr-jax", *words]), flush=True)
  subprocess.run([sys.executable, "-P", "-m", "gtr_jax", *words], check=False)
