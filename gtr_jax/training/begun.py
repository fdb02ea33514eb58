"""A MODEL_DIR in which a run was begun: by which settings, whether it is at its end, and who is training it."""

import ast
import contextlib
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from gtr_jax.checkpoints.steps import best_of, list_steps, read_progress, score_of
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, lock
from gtr_jax.io.config_gin import bindings_of, short_name
from gtr_jax.io.paths import is_remote
from gtr_jax.parallel import processes
from gtr_jax.training.loop import GIVEN_UP

CONFIG = "config.gin"
_SHOWN = 3  # settings in a line
# What neither steps nor their results depend on: where things lie, when and what is measured and kept, how texts are
# encoded afterwards, and what follows from the machine that a run goes on on.
_NOT_DECIDING = ("MODEL_DIR", *(f"TrainingRun.{name}" for name in (
    "model_dir", "train_data", "validation_data", "evaluators", "measure_start", "eval_period", "checkpoint_period",
    "log_period", "keep_checkpoints", "wandb_project", "query_length", "document_length", "query_prompt",
    "document_prompt", "trained_on", "mesh")), *(f"TrainingBatches.{name}" for name in (
        "mixture_or_task_module", "vocabulary", "use_cached", "microbatch_size")),
                 "T5Config.remat", "T5Config.scan_layers", "T5Config.attention")
_NOT_DECIDING_MODULES = ("gtr_jax.evaluation.", "gtr_jax.parallel.", "gtr_jax.data.pipeline.ValidationBatches.")
_MACROS = {"linear_decay.peak": "LEARNING_RATE", "linear_decay.warmup_steps": "WARMUP_STEPS",
           "TrainingRun.train_steps": "TRAIN_STEPS", "TrainingRun.random_seed": "RANDOM_SEED",
           "TrainingRun.initial_checkpoint_path": "INITIAL_CHECKPOINT_PATH", "TrainingRun.loss": "LOSS",
           "TrainingRun.optimizer": "OPTIMIZER", "DualEncoder.lora": "LORA", "TrainingRun.best_metric": "BEST_METRIC",
           "TrainingRun.early_stopping": "EARLY_STOPPING", "InBatchLoss.temperature": "TEMPERATURE",
           "RingLoss.temperature": "TEMPERATURE", "T5Config.dropout_rate": "DROPOUT_RATE",
           "TrainingBatches.batch_size": "BATCH_SIZE", "TrainingBatches.row_lengths": "ROW_LENGTHS",
           "TrainingBatches.feature_lengths": "TASK_FEATURE_LENGTHS", "TrainingBatches.data_fraction": "DATA_FRACTION",
           "TrainingBatches.negatives_per_example": "NEGATIVES_PER_EXAMPLE",
           "TrainingBatches.mixture_or_task_name": "MIXTURE_OR_TASK_NAME"}  # As runs/train.gin calls them.


def earlier_config(directory: epath.Path) -> str | None:
  """The text of config.gin in MODEL_DIR, or None."""
  place = directory / CONFIG
  return place.read_bytes().decode(errors="replace") if place.exists() else None


def changed(before: str, now: str) -> list[str]:
  """What decides the training and differs between two texts: "LEARNING_RATE = 0.001 (now 0.01)"."""
  old, new = bindings_of(before), bindings_of(now)
  found: dict[str, None] = {}  # in their order
  steps = {config.get("gtr_jax.training.run.TrainingRun.train_steps") for config in (old, new)}
  for name in sorted(old.keys() | new.keys(), key=lambda name: (short_name(name) not in _MACROS, name)):
    short, was, now_is = short_name(name), old.get(name), new.get(name)
    if was == now_is or short in _NOT_DECIDING or name.rpartition("/")[2].startswith(_NOT_DECIDING_MODULES):
      continue
    if short == "linear_decay.total_steps" and {was, now_is} == steps:
      continue  # The same macro.
    found[f"{_MACROS.get(short, short)} = {_shown(was)} (now {_shown(now_is)})"] = None
  return list(found)


def _shown(value: str | None) -> str:
  """Of a reference, without modules."""
  if value is None:
    return "its default"
  return short_name(value[1:]).rpartition(".")[2].removesuffix("()") if value.startswith("@") else value


def changes_line(directory: epath.Path, before: str, now: str, step: int, trains: bool) -> str | None:
  """What a run that goes on after `step` has changed, in one line; None: nothing that decides."""
  found = changed(before, now)
  if not found:
    return None
  more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
  line = f"{directory}: this run was begun with {', '.join(found[:_SHOWN])}{more}"
  if not trains:
    return f"{line}; nothing is trained anew: give another --output (MODEL_DIR) for that"
  of_schedule = ("TRAIN_STEPS ", "WARMUP_STEPS ", "LEARNING_RATE ", "linear_decay.")
  rescheduled = any(text.startswith(of_schedule) for text in found)
  schedule = ", with another schedule of the learning rate" if rescheduled else ""
  return f"{line}; from step {step} on the new ones hold{schedule}; {CONFIG} as it was becomes {_kept(step)}"


def write_config(directory: epath.Path, text: str, step: int | None) -> None:
  """Writes config.gin; that by which the run was trained until `step` is kept as config-STEP.gin where it differs."""
  before = earlier_config(directory)
  if step is not None and before is not None and bindings_of(before) != bindings_of(text):
    kept = directory / _kept(step)
    if not kept.exists():  # What has been started from this step already has trained nothing.
      atomic.write_text(kept, before)
  atomic.write_text(directory / CONFIG, text)


def _kept(step: int) -> str:
  return f"config-{step}.gin"


def at_its_end(directory: epath.Path, train_steps: int, lower_is_better: bool,
               config_text: str) -> dict[str, Any] | None:
  """What `banner.closing` takes of a run with nothing left to train, measure or say about its settings; else None.

  Args:
    directory: MODEL_DIR.
    train_steps: of the run.
    lower_is_better: what decides which step is the best.
    config_text: of the run.
  """
  before = earlier_config(directory)
  if before is None or changed(before, config_text):
    return None
  steps = list_steps(directory / "checkpoints")
  if not steps or steps[-1] < train_steps:
    return None
  if {path.name for path in (directory / "checkpoints").iterdir()} != set(map(str, steps)):
    return None  # There is something to tidy up.
  progress = read_progress(directory / "checkpoints" / str(steps[-1]))
  if "batches" not in progress or progress.get("evaluation") == GIVEN_UP:
    return None
  scores = {step: score_of(directory / "checkpoints" / str(step)) for step in steps}
  best = best_of(scores)
  score = None if best is None else scores[best]
  if score is not None and lower_is_better:
    score = -score
  return {"best_step": best, "score": score, "step": steps[-1], "stopped_early": False, "before": progress.get("start")}


def first_collection(config_text: str) -> str | None:
  """Of the first evaluator in a configuration; None where it has none."""
  bindings = bindings_of(config_text)
  evaluators = bindings.get("gtr_jax.training.run.TrainingRun.evaluators", "[]")
  first = evaluators.strip("[](),").split(",")[0].removeprefix("@").removesuffix("()")
  collection = bindings.get(f"{first}.collection")
  return None if collection is None else ast.literal_eval(collection)


@contextlib.contextmanager
def alone(directory: epath.Path) -> Iterator[None]:
  """Makes MODEL_DIR, and keeps other runs out of it in the block: process 0 holds a lock of the folder itself.

  The lock is the kernel's and ends with the process. A bucket has none.

  Raises:
    InputError: another process is training there.
  """
  if not processes.is_first() or is_remote(directory):
    yield
    return
  directory.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as held:
    try:
      held.enter_context(lock.locked(os.fspath(directory), wait=False))
    except BlockingIOError as e:
      raise InputError(f"{directory}: another process is training there; wait for it, or give another --output "
                       "(MODEL_DIR)") from e
    yield
