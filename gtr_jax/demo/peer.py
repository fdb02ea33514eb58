"""`gtr-jax demo --peer`: sentence-transformers gets the demo's data, and the time that the demo's training took.

Both start from the same random T5, read the same pairs and are measured on the same collections: what is compared is
how good each is after so many seconds of training. Nothing else in the demo knows of sentence-transformers, and
`peer_training` alone imports it.
"""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from gtr_jax.checkpoints.steps import list_steps, read_progress
from gtr_jax.errors import InputError
from gtr_jax.evaluation import averages, results_file
from gtr_jax.evaluation.tables import aligned
from gtr_jax.io import atomic, jsonl
from gtr_jax.io.config_gin import bindings_of

OURS, THEIRS = "gtr_jax", "sentence-transformers"
FLAGS = ("--gin.CHECKPOINT_PERIOD=50", "--gin.run.TrainingRun.keep_checkpoints=3")
"""Of the two trainings that are compared, so that they keep what they were on their way. Which step is the best is
decided among those that are evaluated, which these do not change."""

_NEEDS = (THEIRS, "torch", "transformers", "datasets", "accelerate")
_OLDEST = (6, 2)  # of sentence-transformers
_INSTALL = "pip install 'sentence-transformers[train]>=6.2'"
_COUNTED = ("steps", "compiling", "waiting_for_data")  # of the seconds that a checkpoint knows of
# In a run's config.gin.
_TEMPERATURE = "gtr_jax.losses.in_batch.InBatchLoss.temperature"
_LEARNING_RATE = "gtr_jax.training.optimizers.linear_decay.peak"


class Stage(NamedTuple):
  """One of the demo's trainings, and what sentence-transformers is given for it.

  Attributes:
    name: in words.
    model_dir: of the demo's own training, in the demo's folder.
    pairs: what both train on, in the data folder.
  """

  name: str
  model_dir: str
  pairs: str


STAGES = (Stage("pretraining", "gtr_pt", "pydoc/pretrain/train.jsonl"),
          Stage("fine-tuning", "gtr", "pydoc/finetune_hard_negatives.jsonl"))


class Point(NamedTuple):
  """A model after some time of training.

  Attributes:
    system: `OURS` or `THEIRS`.
    when: in words, "fine-tuning, 1 of 2".
    path: of the model.
    seconds: of training in this stage.
    pairs: that it was trained on in this stage.
  """

  system: str
  when: str
  path: str
  seconds: float
  pairs: int

  @property
  def name(self) -> str:
    """Of the system in an evaluation."""
    return f"{self.system}, {self.when}"


def check() -> None:
  """Raises InputError where sentence-transformers or what its trainer needs is missing or too old, or jax computes on
  other devices than CPUs."""
  missing = [name for name in _NEEDS if _version(name) is None]
  if missing:
    raise InputError(f"--peer trains with sentence-transformers, and {', '.join(missing)} "
                     f"{'is' if len(missing) == 1 else 'are'} not installed: {_INSTALL}")
  version = _version(THEIRS) or ""
  if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
    raise InputError(f"--peer needs sentence-transformers {'.'.join(map(str, _OLDEST))} or newer, and {version} is "
                     f"installed: {_INSTALL}")
  if (backend := jax.default_backend()) != "cpu":
    raise InputError(f"--peer compares on the CPU, and jax computes on {backend}: set JAX_PLATFORMS=cpu")


def compare(folder: Path, command: Callable[..., None], collections: Sequence[Path]) -> str:
  """Trains with sentence-transformers as long as the demo has trained, and evaluates both at the same seconds.

  Args:
    folder: of a demo that has trained with `FLAGS`. What is made goes into `peer/` there.
    command: runs a command of the command line, given by its words.
    collections: to evaluate on.

  Returns:
    The comparison, in words and as a table.
  """
  from gtr_jax.demo import peer_training
  command("convert", folder / "untrained", folder / "peer" / "start")
  start, points = folder / "peer" / "start", []
  for stage in STAGES:
    ours = points_of(folder / stage.model_dir, stage.name)
    marks = {folder / "peer" / f"{stage.model_dir}_{number}": point.seconds for number, point in enumerate(ours, 1)}
    print(f"{THEIRS} {_version(THEIRS)}, {stage.name} for {ours[-1].seconds:.1f} s, as long as {OURS}", flush=True)
    setting = setting_of(folder / stage.model_dir)
    steps = peer_training.train(start, columns_of(folder / "data" / stage.pairs), setting, marks)
    theirs = [point._replace(system=THEIRS, path=str(path), pairs=step * setting.batch_size)
              for point, path, step in zip(ours, marks, steps, strict=True)]
    points += [*ours, *theirs]
    start = list(marks)[-1]
  results = folder / "peer" / "results"
  command("evaluate", *(f"--model={point.name}={point.path}" for point in points),
          *(f"--collection={path}" for path in collections), "--output", results, "--quiet")
  quality = averages.of_systems(results_file.read(results)["systems"], "nDCG@10")
  atomic.write_json(folder / "peer" / "by_time.json", [
      {**point._asdict(), "nDCG@10": quality[point.name]} for point in points])
  return in_words(points, quality)


def points_of(model_dir: Path, stage: str) -> list[Point]:
  """The checkpoints of a training run, ascending, each with the seconds of its steps, of compiling and of waiting for
  data."""
  checkpoints = epath.Path(model_dir) / "checkpoints"
  steps, found = list_steps(checkpoints), []
  for number, step in enumerate(steps, 1):
    progress = read_progress(checkpoints / str(step))
    found.append(Point(OURS, f"{stage}, {number} of {len(steps)}", str(checkpoints / str(step)),
                       sum(progress["goodput"]["seconds"][kind] for kind in _COUNTED),
                       step * progress["batches"]["batch_size"]))
  return found


def setting_of(model_dir: Path) -> Any:
  """How sentence-transformers is to train, a `peer_training.Setting`: as the run in `model_dir` has been trained."""
  from gtr_jax.demo.peer_training import Setting
  checkpoints = epath.Path(model_dir) / "checkpoints"
  of_data = read_progress(checkpoints / str(list_steps(checkpoints)[-1]))["batches"]
  bindings = bindings_of((model_dir / "config.gin").read_text(encoding="utf-8"))
  return Setting(of_data["batch_size"], of_data["feature_lengths"]["inputs"], of_data["feature_lengths"]["targets"],
                 float(bindings[_TEMPERATURE]), float(bindings[_LEARNING_RATE]))


def columns_of(pairs: Path) -> dict[str, list[str]]:
  """Training pairs as columns for MultipleNegativesRankingLoss: "anchor", "positive" and, where they have negatives,
  "negative", each pair's first."""
  records = [record for _, record, _ in jsonl.read_objects(pairs)]
  columns = {"anchor": [record["query"] for record in records], "positive": [record["positive"] for record in records]}
  if any(record.get("negatives") for record in records):
    with_one = [record for record in records if record.get("negatives")]
    columns = {"anchor": [record["query"] for record in with_one],
               "positive": [record["positive"] for record in with_one],
               "negative": [record["negatives"][0] for record in with_one]}
  return columns


def in_words(points: Sequence[Point], quality: Mapping[str, float]) -> str:
  """The table: a line for each point of ours, with the one of theirs after the same seconds beside it."""
  by_system = {system: [point for point in points if point.system == system] for system in (OURS, THEIRS)}
  rows = [["training", "seconds", f"{OURS}: pairs", "pairs/s", "nDCG@10", f"{THEIRS}: pairs", "pairs/s", "nDCG@10"]]
  for both in zip(*by_system.values(), strict=True):
    rows.append([both[0].when, f"{both[0].seconds:.1f}"])
    for point in both:
      rows[-1] += [f"{point.pairs:,}", f"{point.pairs / point.seconds:,.0f}", f"{quality[point.name]:.4f}"]
  ours, theirs = (quality[of[-1].name] for of in by_system.values())
  return (f"The same seconds of training for both: steps, compilation and waiting for data; average nDCG@10.\n"
          f"{aligned(rows)}\n"
          f"At the end {OURS} has {ours:.3f}, {THEIRS} {theirs:.3f}.\n")


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
