"""A folder that work in progress is kept in, so that an interrupted run goes on; what it is for is in its mark."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import data_root, lock
from gtr_jax.io.json_file import read_json

MARK = "description.json"  # What is made there.


def path_of(name: str) -> pathlib.Path:
  """Of what gets a name in the data root. Raises InputError where a file lies there."""
  work = pathlib.Path(data_root.local_dir()) / f"{name}.tmp"
  if work.exists() and not work.is_dir():
    raise InputError(f"{work}: a file, where work in progress goes; move it, or give another --name")
  return work


@contextlib.contextmanager
def locked(work: pathlib.Path) -> Iterator[None]:
  """For one process at a time; the folder is made. Raises InputError where another has it, or it holds what is not
  ours."""
  work.mkdir(parents=True, exist_ok=True)
  there = sorted(path.name for path in work.iterdir() if path.name != "lock" and not path.name.startswith(f".{MARK}."))
  if there and fingerprint(work) is None:
    raise InputError(f"{work}: gtr-jax prepare works in a folder of this name, and this one is not its own (it holds "
                     f"{there[0]}); move it, or give another --name")
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(lock.locked(work / "lock", wait=False))
    except BlockingIOError:
      raise InputError(f"{work}: another process is preparing it; wait for it, or give another --name") from None
    yield


def fingerprint(work: pathlib.Path) -> str | None:
  """Of what a work folder was begun for; None of one that no preparation has made."""
  try:
    return read_json(work / MARK, dict, "").get("fingerprint")
  except (OSError, InputError):
    return None


def publish(new: pathlib.Path, final: epath.Path) -> None:
  """Gives a whole folder its name."""
  if "://" in os.fspath(final):
    copy(epath.Path(new), final)
  else:
    new.replace(final)


def copy(new: epath.Path, final: epath.Path) -> None:
  """To where no folder can be renamed at once: what has a manifest there is whole."""
  final.mkdir(parents=True, exist_ok=True)
  for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):
    path.copy(final / path.name, overwrite=True)
