"""Checkpoints of training, on Orbax, which only this module and `steps` import.

A step is saved as one unit, `<directory>/<step>/`, of two items: `state` (arrays, each process writes its shards) and
`progress` (JSON). Orbax writes under a temporary name
and renames when all of it is there (object stores: a marker file is written last), so that a process killed at any
moment leaves whole steps only. What lies there and is not whole is never deleted.
"""

import copy
import dataclasses
import functools
import importlib
import logging
import math
import operator
import os
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gtr_jax.checkpoints.steps import (
    ITEMS,
    WholeSteps,
    best_of,
    exists,
    find_checkpoint,
    list_steps,
    raise_if_refused,
    remove_unfinished,
    say_what_goes,
    score_of,
    set_aside,
    tidy,
    write_progress,
)
from gtr_jax.errors import InputError, first_line
from gtr_jax.io.paths import absolute, is_remote
from gtr_jax.losses import own_params
from gtr_jax.models.parameters import chosen, overlaid


def _is_news(record: logging.LogRecord) -> bool:
  """Not that a save took a second, in the middle of the progress bar, nor a second traceback of what is raised too."""
  raised = record.exc_info and (f"{os.sep}orbax{os.sep}" in record.pathname or "tensorstore" in str(record.exc_info[1]))
  return not raised and "Waiting for previous save to complete" not in record.getMessage()


def _drop_late_answers(before: Callable[[Any], None]) -> Callable[[Any], None]:
  """Where one array cannot be read or written, TensorStore tells of the others when nobody listens any more."""
  def hook(unraisable):
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
      before(unraisable)

  return hook


_AVERAGE = "opt_state/average"  # Where it lies in a state.

for _name in ("absl", "asyncio"):
  logging.getLogger(_name).addFilter(_is_news)
sys.unraisablehook = _drop_late_answers(sys.unraisablehook)


class Checkpoint(NamedTuple):
  """What `Checkpointer.restore` returns: the arguments of `Checkpointer.save`."""

  step: int
  state: Any
  progress: dict[str, Any]


def check_place(directory: epath.PathLike) -> None:
  """Raises InputError where Orbax lacks what it needs to save there: of a bucket it asks Google's own client."""
  try:
    if is_remote(directory):
      importlib.import_module("google.cloud.storage")
  except ImportError as e:
    raise InputError(f"{directory}: to save checkpoints in a bucket, Orbax needs google-cloud-storage: pip install "
                     "'gtr_jax[gcs]'") from e


class Checkpointer:
  """Keeps the last `keep` checkpoints of a training run, and the best one by a metric.

  Saving is asynchronous: `save` returns when the arrays are copied to the host; call `wait` (or `close`) before the
  process ends. Every method must be called by all processes.

  Args:
    directory: the folder of the steps, made if it is not there. What lies there as a step and is not whole is set
      aside as `STEP.set-aside-N`, and a line says so.
    keep: how many of the last checkpoints to keep.
    mode: "max" or "min": which metric is the best.

  Raises:
    InputError: what may be checkpoints is there, and none of it is whole; nothing is changed.
  """

  def __init__(self, directory: epath.PathLike, *, keep: int = 2, mode: str = "max"):
    if keep < 1 or mode not in ("max", "min"):
      raise InputError(f"checkpoints: keep is {keep} and mode {mode!r}; keep at least 1, mode is 'max' or 'min'")
    self.directory = absolute(directory)
    self._sign = 1.0 if mode == "max" else -1.0
    self.directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      tidy(self.directory)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("checkpoints: set aside what is not whole")
    self._kept = _LastAndBest(keep, self.best_step, self.directory)
    self._manager = ocp.CheckpointManager(
        self.directory, item_names=ITEMS,
        options=ocp.CheckpointManagerOptions(
            # Orbax would also remove what only has such a name in it, and in a bucket all without its marker.
            cleanup_tmp_directories=False, step_name_format=WholeSteps(),
            preservation_policy=self._kept))
    self._scores = {step: score_of(self.directory / str(step)) for step in self._manager.all_steps()}

  def steps(self) -> list[int]:
    """The steps that are saved or being saved, ascending."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The last step that is saved or being saved, or None."""
    return max(self._manager.all_steps(), default=None)

  def best_step(self) -> int | None:
    """The step with the best metric of those kept (the earlier one of equals), or None if none has a metric."""
    return best_of(self._scores)

  def metric_of(self, step: int) -> float | None:
    """What a step of those kept was evaluated to."""
    score = self._scores.get(step)
    return None if score is None else self._sign * score

  def is_best(self, metric: float) -> bool:
    """Whether `metric` beats the metric of every checkpoint so far."""
    scores = [score for score in self._scores.values() if score is not None]
    return math.isfinite(metric) and self._sign * metric > max(scores, default=-math.inf)

  def save(self, step: int, state: Any, progress: Mapping[str, Any], metric: float | None = None) -> None:
    """Saves a step.

    Args:
      step: its number; must not be saved yet.
      state: pytree of (sharded) arrays.
      progress: what else the loop needs to go on, JSON; the same in all processes.
      metric: the result of the evaluation of this very state, if there was one.

    Raises:
      Exception: of this or the last save, in many types; see `failures.reason`.
    """
    if jax.process_index() == 0 and exists(place := self.directory / str(step)) and step not in self.steps():
      set_aside(place, "it is no whole checkpoint, and lay where this run saves that step")  # Orbax would remove it.
    self._scores[step] = self._score(metric)
    self._manager.save(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        # A copy: it is written while the caller goes on.
        progress=ocp.args.JsonSave(copy.deepcopy({"score": self._scores[step], "loop": dict(progress)}))))
    self._scores = {step: self._scores[step] for step in self._manager.all_steps()}

  def set_progress(self, step: int, progress: Mapping[str, Any], metric: float | None) -> None:
    """Writes anew what was saved with a step, whose state may have been evaluated since."""
    self.wait()
    self._scores[step] = self._score(metric)
    if jax.process_index() == 0:
      write_progress(self.directory / str(step), {"score": self._scores[step], "loop": dict(progress)})
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("checkpoints: progress is written")

  def _score(self, metric):
    return None if metric is None or not math.isfinite(metric) else self._sign * metric

  def restore(self, abstract_state: Any, step: int | None = None) -> Checkpoint:
    """Reads a step (the last one by default) onto the shardings of `abstract_state`, whatever mesh it was saved from.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings.
      step: which one.

    Raises:
      InputError: there is none; another structure or size; damaged.
    """
    self.wait()
    step = self.latest_step() if step is None else step
    if step is None:
      raise InputError(f"{self.directory}: holds no whole checkpoint")
    folder = self.directory / str(step)
    _check_leaves(folder, _saved_leaves(folder), abstract_state)
    try:
      items = self._manager.restore(step, args=ocp.args.Composite(
          state=_restore_args(abstract_state), progress=ocp.args.JsonRestore()))
    except InputError:
      raise
    except Exception as e:
      raise _damaged(folder, e) from e
    return Checkpoint(step, items.state, items.progress["loop"])

  def wait(self) -> None:
    """Returns when what was saved is on disk."""
    self._manager.wait_until_finished()

  def finish(self) -> None:
    """At the end of a run: waits, and removes the step that was the best until `set_progress` said that another is."""
    self.wait()
    for step in self._kept.to_remove(self.steps()):
      self._manager.delete(step)
    self._kept.to_remove(self.steps())  # None any more, which is said on disk too.
    self._scores = {step: self._scores[step] for step in self.steps()}

  def close(self) -> None:
    """Waits, then frees the threads. What a save that has failed leaves is removed."""
    try:
      self._manager.close()
      if jax.process_index() == 0:
        say_what_goes(self.directory, ())
    finally:
      if jax.process_index() == 0:
        remove_unfinished(self.directory)


def restore_params(path: epath.PathLike, abstract_params: Mapping[str, Any],
                   optional: Collection[str] = own_params.NAMES, advice: str = "") -> dict[str, Any]:
  """The parameters of a checkpoint, for inference or fine-tuning, or their average where the optimizer keeps one
  (`training.optimizers.averaged`); the rest of its state is not read.

  Args:
    path: as for `find_checkpoint`.
    abstract_params: nested dict of `jax.ShapeDtypeStruct` (float32, with shardings or without).
    optional: leaves at the root that the checkpoint may have or lack: unasked for, they are not read; where the
      checkpoint has none, the result has none: those of losses.

  Returns:
    Nested dict of arrays.

  Raises:
    InputError: no checkpoint there; another structure or size; damaged.
  """
  folder, averaged, wanted = _find_params(path, abstract_params, optional, advice)
  return _read_params(folder, averaged, wanted)


def param_reader(path: epath.PathLike, abstract_params: Mapping[str, Any]) -> Callable[[str], jax.Array]:
  """What reads one parameter by its name, such as "encoder/layers_0/mlp/wo/kernel", of those that `restore_params`
  reads, whose arguments and errors it has: for whoever wants them one after another, and never all in memory.
  """
  folder, averaged, wanted = _find_params(path, abstract_params, own_params.NAMES, "")

  def read(name: str) -> jax.Array:
    leaf = functools.reduce(operator.getitem, name.split("/"), wanted)
    return _read(folder, f"{_AVERAGE if name in averaged else 'params'}/{name}", leaf)

  return read


def _find_params(path: epath.PathLike, abstract_params: Mapping[str, Any], optional: Collection[str],
                 advice: str) -> tuple[epath.Path, set[str], dict[str, Any]]:
  """The folder of a checkpoint, the names of the parameters that it has averages of, and which are to be read."""
  folder = find_checkpoint(path)
  leaves = _saved_leaves(folder)
  saved = {name: shape for name, shape in leaves.items() if name.startswith("params/")}
  averaged = {name.removeprefix(f"{_AVERAGE}/") for name in leaves if name.startswith(f"{_AVERAGE}/")}
  wanted = {name: leaf for name, leaf in abstract_params.items() if name not in optional or f"params/{name}" in saved}
  unread = {f"params/{name}" for name in optional if name not in wanted}
  _check_leaves(folder, {name: shape for name, shape in saved.items() if name not in unread}, _below("params", wanted),
                advice)
  return folder, averaged, wanted


def _read_params(folder: epath.Path, averaged: set[str], wanted: dict[str, Any]) -> dict[str, Any]:
  """Averages where there are some; of what is not trained there may be none."""
  for place, part in (("params", chosen(wanted, lambda name: name not in averaged)),
                      (_AVERAGE, chosen(wanted, lambda name: name in averaged))):
    if part:
      wanted = overlaid(wanted, _read(folder, place, part))
  return wanted


def _below(place: str, tree: Any) -> Any:
  """"a/b", tree -> {"a": {"b": tree}}."""
  for key in reversed(place.split("/")):
    tree = {key: tree}
  return tree


def _read(folder: epath.Path, place: str, wanted: Any) -> Any:
  """What is wanted of the tree that lies at `place` in a checkpoint's state."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    try:
      found = reader.restore(folder / "state", args=_restore_args(_below(place, wanted)))
    except Exception as e:
      raise _damaged(folder, e) from e
  return functools.reduce(operator.getitem, place.split("/"), found)


def _leaf_name(path: tuple[Any, ...]) -> str:
  """Key path -> "params/encoder/...": attributes, keys and positions alike, as Orbax stores them."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _saved_leaves(folder: epath.Path) -> dict[str, tuple[int, ...]]:
  """Name -> shape of every array in the state of a checkpoint."""
  try:
    tree = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
  except Exception as e:
    raise _damaged(folder, e) from e
  return {_leaf_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check_leaves(folder: epath.Path, saved: Mapping[str, tuple[int, ...]], abstract: Any, advice: str = "") -> None:
  """Raises InputError unless the saved arrays are those of `abstract`, in name and shape."""
  wanted = {_leaf_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]}
  advice = advice or "take the model, loss and optimizer that the checkpoint was trained with"
  for name in sorted(wanted.keys() & saved.keys()):
    if wanted[name] != saved[name]:
      raise InputError(f"{folder}: {name} is {list(saved[name])} in the checkpoint and {list(wanted[name])} in the "
                       f"configuration; {advice}")
  for names, fault in ((wanted.keys() - saved.keys(), "lacks"), (saved.keys() - wanted.keys(), "has, unasked for,")):
    if names:
      more = f" and {len(names) - 3} more" if len(names) > 3 else ""
      raise InputError(f"{folder}: the checkpoint {fault} {', '.join(sorted(names)[:3])}{more}; {advice}")


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
  return ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                                partial_restore=True)


def _damaged(folder: epath.Path, error: Exception) -> InputError:
  raise_if_refused(error, folder)
  others = [step for step in list_steps(folder.parent) if str(step) != folder.name]
  instead = (f"move it elsewhere, and step {others[-1]} is taken instead" if others else
             "bring back a whole copy of it; there is no other whole step beside it")
  return InputError(f"{folder}: is damaged and cannot be read ({first_line(error)}); {instead}")


@dataclasses.dataclass
class _LastAndBest:
  """Orbax preservation policy: the last `keep` steps and the best one, and links, behind which Orbax would delete."""

  keep: int
  best_step: Any
  directory: epath.Path

  def should_preserve(self, checkpoints, *, context):
    del context
    others = self.to_remove([info.step for info in checkpoints])
    return [info.step not in others for info in checkpoints]

  def to_remove(self, steps: Collection[int]) -> set[int]:
    """Those of the steps that are to be removed now; which is said on disk before."""
    kept = {*sorted(steps)[-self.keep:], self.best_step()}
    others = {step for step in steps if step not in kept and not os.path.islink(self.directory / str(step))}
    if jax.process_index() == 0:
      say_what_goes(self.directory, others)
    return others
