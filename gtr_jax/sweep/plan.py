"""What a sweep consists of: from stages and axes to runs, and to the commands that they share."""

import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from gtr_jax.errors import InputError
from gtr_jax.values.check import check, hints
from gtr_jax.values.ranges import Says

MINED = "mined"  # folder below the data root; see tasks/mined.py
BM25 = "BM25"
_STAGES = "stages"  # in an axis value: which stages run
_CHECKPOINT = "INITIAL_CHECKPOINT_PATH"
_NAME = re.compile(r"[\w+][\w.+-]*")  # A folder that is not hidden, and no flag.
_STAGE_NAME = re.compile(r"\w+")  # Part of the name of a seqio task.

Resolve = Callable[[Sequence[str], Sequence[str]], str]
"""(gin files, bindings) -> all that decides that training, as text; raises InputError."""
DataKey = Callable[[Sequence[str]], str]
"""The words of another command -> a hash of the data that it reads; "" where there is nothing yet."""


_Entries = Annotated[Sequence[str], Says("a list of gin files and bindings, in []")]
_Stage = Annotated[Sequence[str] | str, Says("a list of gin files and bindings, in [], or a command that begins with "
                                             "'mine '")]
_Value = Annotated[str | float | bool | None, Says("a string or a number")]
_Adds = Annotated[_Entries | Mapping[str, Sequence[str]], Says("a list of gin files and bindings, in [], or a "
                                                               "dictionary from stages to such lists")]


@dataclass(frozen=True)
class Sweep:
  """A sweep as its gin file says it.

  Attributes:
    stages: name -> what is done, in order: for a training, its gin files ("runs/pretrain.gin") and bindings
      ("TRAIN_STEPS = 100"); for mining, the command, "mine --pairs …", less --model and --output. A training starts
      from the one before it.
    axes: name -> value -> what the value adds: gin files and bindings for every training, or a mapping from stages to
      them (flags, for mining) and from "stages" to the names of those that run.
    runs: name -> axis -> value; default: every combination of the axes' values.
    common: gin files and bindings of every training: what machine and budget they have.
    evaluate: flags of `gtr-jax evaluate`, less --model and --output: "--collection data/scifact". Empty: none.
    bm25: whether BM25 is evaluated too, once.
  """

  stages: Mapping[str, _Stage]
  axes: Mapping[str, Mapping[_Value, _Adds]] = field(default_factory=dict)
  runs: Mapping[str, Mapping[str, _Value]] | None = None
  common: _Entries = ()
  evaluate: str = ""
  bm25: bool = True


@dataclass(frozen=True)
class Job:
  """One command.

  Attributes:
    name: of the job, different for each.
    words: of the command, after "gtr-jax".
    after: names of the jobs that have to be done before.
    makes: what is there once it is done.
    stamp: what it was done for; an evaluation's begins with the training's name.
  """

  name: str
  words: tuple[str, ...]
  after: tuple[str, ...]
  makes: str
  stamp: str


@dataclass(frozen=True)
class Run:
  """One combination: its jobs in order (the last training's name is `model`), and where its results will be."""

  name: str
  axes: Mapping[str, str]
  jobs: tuple[str, ...]
  model: str
  model_dir: str
  results: str | None


@dataclass(frozen=True)
class Plan:
  """Runs, and the jobs of all of them by name, each after those that it needs."""

  runs: tuple[Run, ...]
  jobs: Mapping[str, Job]
  bm25_results: str | None


@dataclass(frozen=True)
class Folders:
  """Where things go: `output` and the data root; flags that every training gets, and every evaluation."""

  output: str
  data_root: str
  train_flags: tuple[str, ...] = ()
  evaluate_flags: tuple[str, ...] = ()


def make_plan(sweep: Sweep, folders: Folders, resolve: Resolve, data_key: DataKey = lambda words: "") -> Plan:
  """All runs and jobs. Trainings that the same decides are one job; where data have changed, jobs are other ones.

  Raises:
    InputError: a name is unknown or there twice, or a training's configuration is refused.
  """
  _check(sweep)
  sweep = replace(sweep, axes={axis: {str(value): adds for value, adds in values.items()}
                               for axis, values in sweep.axes.items()})  # They may be numbers.
  jobs: dict[str, Job] = {}
  runs = []
  evaluated: dict[str, str] = {}  # model -> results of the first run that has it
  flags = tuple(_words(sweep.evaluate))
  if wrong := {"--model", "--output", "--bm25"} & _names(flags):
    raise InputError(f"plan.Sweep.evaluate: the sweep gives {' and '.join(sorted(wrong))} itself; leave it out")
  evaluation = f"{sweep.evaluate} {data_key(('evaluate', *flags))}".strip() if flags else ""
  if flags and sweep.bm25:
    folder = _results(folders, BM25)
    jobs[BM25] = Job(BM25, ("evaluate", "--bm25", *flags, *folders.evaluate_flags, "--output", folder), (),
                     os.path.join(folder, "results.json"), f"{BM25} {evaluation}")
  for name, axes in _combinations(sweep).items():
    try:
      stages, last = _stage_jobs(sweep, axes, folders, resolve, data_key, jobs)
    except InputError as e:
      raise InputError(f"run {name}, {e}") from e
    model_dir = jobs[last].makes
    results = None
    if flags:
      results = evaluated.setdefault(last, os.path.join(_results(folders, name), "results.json"))
    if results and results.startswith(_results(folders, name) + os.sep):
      words = ("evaluate", "--model", f"{name}={model_dir}", *flags, *folders.evaluate_flags, "--output",
               _results(folders, name))
      jobs[f"evaluate_{name}"] = Job(f"evaluate_{name}", words, (last,), results, f"{last} {evaluation}")
    evaluations = [job.name for job in jobs.values() if results and job.makes == results]
    runs.append(Run(name, axes, (*stages, *evaluations), last, model_dir, results))
  return Plan(tuple(runs), jobs, jobs[BM25].makes if BM25 in jobs else None)


def _results(folders: Folders, run: str) -> str:
  return os.path.join(folders.output, "results", run)


def _check(sweep: Sweep) -> None:
  for name, hint in hints(Sweep).items():
    check(getattr(sweep, name), hint, f"plan.Sweep.{name}")
  if not sweep.stages:
    raise InputError("plan.Sweep.stages is empty; give each stage its gin files: {'train': ['runs/train.gin']}")
  for stage, begins in sweep.stages.items():
    if not _STAGE_NAME.fullmatch(stage) or stage in (_STAGES, "evaluate", BM25):
      raise InputError(f"plan.Sweep.stages: {stage!r} cannot name a stage; take letters, digits and _")
    if isinstance(begins, str) and not begins.startswith("mine "):
      raise InputError(f"plan.Sweep.stages: {stage} is {begins!r:.40}; give a list of gin files and "
                       "bindings, or a command that begins with 'mine '")
    _check_entries(f"plan.Sweep.stages: {stage}", begins)
  _check_entries("plan.Sweep.common", sweep.common)
  for axis, values in sweep.axes.items():
    if not axis.strip():
      raise InputError(f"plan.Sweep.axes: {axis!r} names no axis; give it a name")
    if not values:
      raise InputError(f"plan.Sweep.axes: {axis} has no values; give {{value: gin files and bindings}}")
    if len(set(map(str, values))) < len(values):
      raise InputError(f"plan.Sweep.axes: {axis} has values that are written alike: {', '.join(map(repr, values))}; "
                       "rename one")
    for value, adds in values.items():
      where = f"plan.Sweep.axes: {axis} {value}"
      for stage in adds if isinstance(adds, Mapping) else ():
        if stage not in (*sweep.stages, _STAGES):
          raise InputError(f"{where}: there is no stage {stage!r}; there are {', '.join(sweep.stages)}")
      for entries in adds.values() if isinstance(adds, Mapping) else [adds]:
        _check_entries(where, entries)
      for stage in adds.get(_STAGES, ()) if isinstance(adds, Mapping) else ():
        if stage not in sweep.stages:
          raise InputError(f"{where}: there is no stage {stage!r} to run; there are {', '.join(sweep.stages)}")


def _check_entries(where: str, entries: Sequence[str] | str) -> None:
  if not all(entry.strip() for entry in ([entries] if isinstance(entries, str) else entries)):
    raise InputError(f"{where}: one of its entries is empty; give a gin file or NAME = VALUE, or leave it out")


def _combinations(sweep: Sweep) -> dict[str, dict[str, str]]:
  """Run name -> axis -> value."""
  choices = {axis: [str(value) for value in values] for axis, values in sweep.axes.items()}
  if sweep.runs is not None:
    runs = [(name, {axis: str(value) for axis, value in axes.items()}) for name, axes in sweep.runs.items()]
    for name, axes in runs:
      for axis, value in axes.items():
        if axis not in choices:
          raise InputError(f"run {name}: there is no axis {axis!r}; there are {', '.join(choices)}")
        if value not in choices[axis]:
          raise InputError(f"run {name}: axis {axis} has no value {value!r}; it has {', '.join(choices[axis])}")
  else:
    combined = itertools.product(*choices.values())
    runs = [("-".join(values) or "run", dict(zip(choices, values, strict=True))) for values in combined]
  if not runs:
    raise InputError("plan.Sweep.runs is empty; leave it out for all combinations of the axes")
  out: dict[str, dict[str, str]] = {}
  for name, axes in runs:
    if not _NAME.fullmatch(name) or name == BM25:
      raise InputError(f"{name!r} cannot name a run (it names a folder); take letters, digits and ._+- in axis values, "
                       "a letter, a digit or + first")
    if name in out:
      raise InputError(f"two runs are called {name}: {out[name]} and {axes}; rename values of the axes")
    out[name] = axes
  return out


def _stage_jobs(sweep: Sweep, axes: Mapping[str, str], folders: Folders, resolve: Resolve, data_key: DataKey,
                jobs: dict[str, Job]) -> tuple[list[str], str]:
  """Adds the jobs of a run's stages to `jobs`; returns their names, and that of the last training."""
  adds = [sweep.axes[axis][value] for axis, value in axes.items()]
  running = [set(of[_STAGES]) for of in adds if isinstance(of, Mapping) and _STAGES in of]
  made: dict[str, str] = {}  # stage -> name of its job
  last = None
  for stage, begins in sweep.stages.items():
    if any(stage not in names for names in running):
      continue
    of_stage = [entry for of in adds for entry in _of_stage(of, stage, isinstance(begins, str))]
    try:
      if isinstance(begins, str):
        job = _mining_job(stage, [begins, *of_stage], made, last, folders, data_key, jobs)
      else:
        job = _training_job(stage, begins, of_stage, sweep.common, made, last, folders, resolve, jobs)
        last = job.name
    except InputError as e:
      raise InputError(f"stage {stage}: {e}") from e
    jobs.setdefault(job.name, job)
    made[stage] = job.name
  if last is None:
    raise InputError("none of its stages is a training")
  return list(made.values()), last


def _of_stage(adds: Sequence[str] | Mapping[str, Sequence[str]], stage: str, for_mining: bool) -> Sequence[str]:
  if isinstance(adds, Mapping):
    return adds.get(stage, ())
  return () if for_mining else adds


def _training_job(stage: str, begins: Sequence[str], of_axes: Sequence[str], common: Sequence[str],
                  made: Mapping[str, str], last: str | None, folders: Folders, resolve: Resolve,
                  jobs: Mapping[str, Job]) -> Job:
  """Gin files of the axes (a model), the stage (a recipe), common ones (a mesh); then bindings: common, stage, axes."""
  files = [entry for entry in (*of_axes, *begins, *common) if not _is_binding(entry)]
  bindings = [entry for entry in (*common, *begins, *of_axes) if _is_binding(entry)]
  if last is not None and not any(entry.partition("=")[0].strip() == _CHECKPOINT for entry in bindings):
    bindings.append(f"{_CHECKPOINT} = '{{{_stage_of(made, last)}}}'")

  after = _needed(bindings, made)

  def with_paths(paths):
    return [f"{name.strip()}={value.strip()}" for name, _, value in
            (_filled(entry, made, paths).partition("=") for entry in bindings)]

  # The text must be the same wherever the output is, so names stand there for folders.
  text = resolve(files, [*with_paths({name: name for name in made.values()}), "MODEL_DIR=''"])
  name = f"{stage}_{_hash(text)}"
  model_dir = os.path.join(folders.output, name)
  paths = {of: Path(jobs[of].makes).stem if jobs[of].words[0] == "mine" else jobs[of].makes for of in made.values()}
  words = ["train", *(f"--gin_file={file}" for file in files), *(f"--gin.{entry}" for entry in with_paths(paths)),
           f"--gin.MODEL_DIR={model_dir!r}", *folders.train_flags]
  return Job(name, tuple(words), after, model_dir, name)


def _names(words: Sequence[str]) -> set[str]:
  """The flags among words, as --flag value or --flag=value."""
  return {word.partition("=")[0] for word in words if word.startswith("--")}


def _mining_job(stage: str, commands: Sequence[str], made: Mapping[str, str], last: str | None, folders: Folders,
                data_key: DataKey, jobs: Mapping[str, Job]) -> Job:
  words = [word for command in commands for word in _words(command)]
  if "--output" in _names(words):
    raise InputError("the sweep gives --output itself; leave it out")
  after = _needed(words, made)
  if last is not None and "--model" not in _names(words):
    words += ["--model", f"{{{_stage_of(made, last)}}}"]
    after = _needed(words, made)
  named = [_filled(word, made, {of: of for of in made.values()}) for word in words]
  name = f"{stage}_{_hash(repr(named) + data_key(named))}"
  if "--model" in _names(words) and "--embeddings" not in _names(words):
    words += ["--embeddings", os.path.join(folders.output, "embeddings")]
  words = [_filled(word, made, {of: jobs[of].makes for of in made.values()}) for word in words]
  # Other sweeps mine into the same folder, with the same words maybe, from other files.
  output = os.path.join(folders.data_root, MINED, f"{name}_{_hash(os.path.abspath(folders.output))}.jsonl")
  return Job(name, (*words, "--output", output), after, output, name)


def _needed(entries: Sequence[str], made: Mapping[str, str]) -> tuple[str, ...]:
  """The jobs of the stages that entries name as "{stage}"."""
  stages = {stage for entry in entries for stage in re.findall(r"\{(\w+)\}", entry)}
  for stage in stages - made.keys():
    raise InputError(f"{{{stage}}} stands for what a stage before this one has made; before it run: "
                     f"{', '.join(made) or 'none'}")
  return tuple(job for stage, job in made.items() if stage in stages)


def _stage_of(made: Mapping[str, str], job: str) -> str:
  return next(stage for stage, name in made.items() if name == job)


def _is_binding(entry: str) -> bool:
  """Whether an entry is "NAME = value" rather than a gin file's name."""
  return "=" in entry


def _filled(entry: str, made: Mapping[str, str], paths: Mapping[str, str]) -> str:
  """With "{stage}" replaced by what the stage of this run has made."""
  for stage, name in made.items():
    entry = entry.replace(f"{{{stage}}}", paths[name])
  return entry


def _words(text: str) -> list[str]:
  try:
    return shlex.split(text)
  except ValueError as e:
    raise InputError(f"{text!r:.60} is not a command line ({e})") from e


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]
