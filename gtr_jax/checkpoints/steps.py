"""Which steps of a training run lie in a folder: whole ones, as Orbax says itself, parts of some, and none of ours.

Orbax takes each folder that has a number for a name for a step, in a bucket each that has its marker. So one is looked
at here only where it holds something that `checkpointer` saves. Nothing is deleted but what Orbax has begun under a
temporary name, and the rest of a step that was being removed; a step that is not whole, such as a part of a copy, or
one of another version, is given another name.
"""

import contextlib
import errno
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.io import atomic, failures, json_file
from gtr_jax.io.paths import absolute, is_remote

_TRIES = 20
_REMOVING = "removing.json"  # The steps that Orbax has been told to remove.
ITEMS = ("state", "progress")
_NAMES = ocp.path.step.standard_name_format()  # 5, not 005 or 5.backup
_STEP = re.compile(r"0|[1-9]\d*", re.ASCII)
_ASIDE = re.compile(r"\d+\.set-aside-\d+", re.ASCII)
_TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp[-\d]*", re.ASCII)  # As Orbax documents it.


def list_steps(directory: epath.PathLike) -> list[int]:
  """The whole steps in a folder of checkpoints, ascending. Moves nothing."""
  return sorted(int(folder.name) for folder in _step_folders(epath.Path(directory)) if _fault(folder) is None)


def find_checkpoint(path: epath.PathLike) -> epath.Path:
  """The folder of one step: `path` itself, or the best, else the last whole step in `path` or in `path/checkpoints`.

  Raises:
    InputError: there is none.
  """
  path = absolute(path)
  if _STEP.fullmatch(path.name) and _is_ours(path):
    if fault := _fault(path):
      raise InputError(f"{path}: is no whole checkpoint ({fault}); take another step of that run")
    return path
  found = []
  for directory in (path / "checkpoints", path):
    if steps := list_steps(directory):
      best = best_of({step: score_of(directory / str(step)) for step in steps})
      return directory / str(steps[-1] if best is None else best)
    found += _may_be_checkpoints(directory)
  if found:
    raise InputError(_none_is_whole(path, found))
  raise InputError(f"{path}: holds no whole checkpoint; give a training run's MODEL_DIR, or MODEL_DIR/checkpoints/STEP")


def exists(path: epath.Path) -> bool:
  """Also a link that leads nowhere."""
  return path.exists() or os.path.lexists(path)


def _step_folders(directory: epath.Path) -> list[epath.Path]:
  """What has the name of a step and something of ours in it, ascending."""
  if not directory.exists():
    return []
  return sorted((path for path in directory.iterdir() if _STEP.fullmatch(path.name) and _is_ours(path)),
                key=lambda path: int(path.name))


def _is_ours(folder: epath.Path) -> bool:
  """Whether a folder may be a checkpoint, or a part of one: others, such as `2024/` with notes, are not looked at."""
  return any((folder / item).is_dir() for item in ITEMS)


def _fault(folder: epath.Path) -> str | None:
  """Why a folder is no whole checkpoint, or None, by what Orbax itself says of it and can read.

  Raises:
    InputError: it cannot be looked at, for a reason that has nothing to do with it.
  """
  try:
    _NAMES.find_step(folder.parent, int(folder.name))
  except ValueError:
    return "Orbax has not finished it"
  try:
    missing = [item for item in ITEMS if not (folder / item).is_dir()]
    if missing:
      return f"it lacks {', '.join(missing)}"
    score_of(folder)
  except Exception as e:
    raise_if_refused(e, folder)
    return first_line(e)
  try:
    ocp.PyTreeCheckpointHandler().metadata(folder / "state")
  except FileNotFoundError as e:
    return first_line(e)
  except Exception as e:  # All is there; what is damaged in it is found and said when it is read.
    raise_if_refused(e, folder)
  return None


def raise_if_refused(error: Exception, folder: epath.Path) -> None:
  """Raises InputError where a disk, not a checkpoint, is at fault: no rights, a file system that is gone."""
  line = failures.reason(error, folder)
  if line and os.strerror(errno.ENOENT) not in line:
    raise InputError(line) from error


def _may_be_checkpoints(directory: epath.Path) -> list[epath.Path]:
  """Steps that are whole or not, and those that were set aside."""
  aside = [path for path in directory.iterdir() if _ASIDE.fullmatch(path.name)] if directory.exists() else []
  return [*_step_folders(directory), *sorted(filter(_is_ours, aside))]


def say_what_goes(directory: epath.Path, steps: Collection[int]) -> None:
  """Writes down which whole steps Orbax is about to remove, if any; those before are gone.

  Killed then, it leaves parts of them, which `tidy` removes.
  """
  if steps:
    atomic.write_json(directory / _REMOVING, sorted(steps), indent=None)
  else:
    (directory / _REMOVING).unlink(missing_ok=True)


def _finish_removal(directory: epath.Path) -> None:
  """Removes what is left of the steps of which a killed process has removed a part."""
  if not (directory / _REMOVING).exists():
    return
  for step in json_file.read_json(directory / _REMOVING, list[int], "remove this file"):
    folder = directory / str(step)
    if _holds_only(folder, "_", "commit_success", *ITEMS) and _fault(folder):
      folder.rmtree()
  say_what_goes(directory, ())


def tidy(directory: epath.Path) -> None:
  """Sets aside the steps that are not whole, and removes what a killed process of Orbax has left.

  Raises:
    InputError: nothing is whole.
  """
  _finish_removal(directory)
  for path in list(directory.iterdir()):
    if _is_orbax_s(path):
      path.rmtree()
    elif _TEMPORARY.fullmatch(path.name):
      set_aside(path, "it has a name that Orbax gives to what it is saving, and holds something else")
  for path in list(directory.iterdir()):  # Also one in which Orbax has noted when it began, and no more.
    if _STEP.fullmatch(path.name) and _holds_only(path, "_", *ITEMS) and _was_only_begun(path):
      path.rmtree()
  faults = {folder: _fault(folder) for folder in _step_folders(directory)}
  if None not in faults.values() and (found := _may_be_checkpoints(directory)):
    raise InputError(_none_is_whole(directory, found))
  for folder, fault in faults.items():
    if fault is not None:
      set_aside(folder, f"it is no whole checkpoint ({fault})")


def remove_unfinished(directory: epath.Path) -> None:
  """Removes what a save that failed has left, for it may fill the disk; what is still written then, `tidy` does."""
  for _ in range(_TRIES):
    with contextlib.suppress(OSError):
      left = list(filter(_is_orbax_s, directory.iterdir()))
      for path in left:
        shutil.rmtree(path, ignore_errors=True)
      if not left:
        return
    time.sleep(0.1)  # Other threads of Orbax may not have noticed yet.


def _is_orbax_s(path: epath.Path) -> bool:
  """Whether Orbax has begun to save a step there, under a temporary name, and nobody has put anything else there."""
  return bool(_TEMPORARY.fullmatch(path.name)) and _holds_only(path, "_", *ITEMS)


def _holds_only(path: epath.Path, *beginnings: str) -> bool:
  """Whether it is a folder, and all that is in it has a name that begins so."""
  return path.is_dir() and not os.path.islink(path) and all(
      part.name.startswith(beginnings) for part in path.iterdir())


def _was_only_begun(folder: epath.Path) -> bool:
  """In a bucket, where no folder can be renamed: whether a process was killed while it saved this step."""
  if not is_remote(folder):
    return False
  times = ocp.path.step.Metadata(step=0, path=folder)
  return (times.commit_timestamp_nsecs is None if times.init_timestamp_nsecs is not None else
          not any(folder.iterdir()))  # It makes the folder, and then says when it began.


def _none_is_whole(path: epath.Path, found: list[epath.Path]) -> str:
  names = ", ".join(folder.name for folder in found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
  fault = _fault(found[0]) if _STEP.fullmatch(found[0].name) else "set aside"
  return (f"{path}: holds {names}, but no whole checkpoint ({found[0].name}: {fault}); bring back what is "
          "missing, or move these folders elsewhere to begin anew")


def set_aside(path: epath.Path, why: str) -> None:
  """Gives a folder, file or link a name that no reader takes for a step's, and says so."""
  aside = next(new for i in itertools.count(1) if not exists(new := path.parent / f"{path.name}.set-aside-{i}"))
  path.rename(aside)
  print(f"{path}: {why}; it is now {aside.name}", file=sys.stderr, flush=True)


def score_of(folder: epath.Path) -> float | None:
  """How good a whole step is, more is better; None if it was not evaluated."""
  return ocp.JsonCheckpointHandler().restore(folder / "progress")["score"]


def read_progress(folder: epath.Path) -> dict[str, Any]:
  """What the loop has saved with a whole step."""
  return ocp.JsonCheckpointHandler().restore(folder / "progress")["loop"]


def write_progress(folder: epath.Path, progress: Mapping[str, Any]) -> None:
  """Writes the item `progress` of a whole step anew."""
  atomic.write_json(folder / "progress" / "metadata", progress, indent=None)


def best_of(scores: Mapping[int, float | None]) -> int | None:
  scored = [(score, -step) for step, score in scores.items() if score is not None]
  return -max(scored)[1] if scored else None


class WholeSteps(ocp.path.step.NameFormat):
  """The steps of ours in a folder: Orbax's own format takes each folder with a number for a name for one."""

  def build_name(self, step: int) -> str:
    return _NAMES.build_name(step)

  def find_all(self, base_path: epath.PathLike) -> Iterator[Any]:
    whole = set(list_steps(base_path))
    return (found for found in _NAMES.find_all(base_path) if found.step in whole)

  def find_step(self, base_path: epath.PathLike, step: int) -> Any:
    return _NAMES.find_step(base_path, step)
