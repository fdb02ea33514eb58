"""Paths as users give them: local ones, `~` included, and gs://, whose errors come from several libraries."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from etils import epath

from gtr_jax.errors import InputError

_LIBRARIES = ("tensorflow", "tensorstore", "gcsfs", "fsspec", "aiohttp", "google")  # whose own errors are of no base


def location(path: epath.PathLike) -> epath.Path:
  """The place that a path names: the one constructor of paths that come from outside.

  A `~` or `~name` at its beginning is a home folder, as in a shell. What is relative stays relative.

  Raises:
    InputError: it is empty, holds a NUL character, has a scheme other than gs://, or names nobody's home folder.
  """
  text = os.fspath(path)
  if not text.strip():
    raise InputError("the path is empty; give the path of a file or folder")
  if "\0" in text:
    raise InputError(f"{text!r:.80}: a path cannot hold a NUL character; correct it")
  scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)  # pathlib makes one slash of two
  if scheme and not text.startswith("gs://"):
    raise InputError(f"{text}: gtr_jax reads and writes local paths and gs://…; " + (
        "give the path without file://" if scheme[1].lower() == "file" else
        "write gs:// in small letters, with two slashes" if scheme[1].lower() == "gs" else
        "copy it to this machine, and give the path"))
  home = os.path.expanduser(text)
  if home == text and text.startswith("~") and not os.path.lexists(text):
    raise InputError(f"{text}: there is no user {text[1:].partition('/')[0]!r} with a home folder here; for a path "
                     f"that begins with a ~ write ./{text}")
  return epath.Path(home)


def expanded(path: epath.PathLike) -> str:
  """As it was given, but for `~` at its beginning: for what may also be a name, or be written `./name` to be none.

  Raises:
    InputError: as `location`.
  """
  location(path)
  return os.path.expanduser(os.fspath(path))


def check_output(output: epath.PathLike, inputs: Mapping[str, epath.PathLike | None]) -> None:
  """Raises InputError where a file to write is one that is read, or is there already in a folder that is.

  Args:
    output: the file.
    inputs: flag -> file or folder, or what is no path here (a name on a hub), or None.
  """
  place = Path(os.path.realpath(location(output)))
  for flag, given in inputs.items():
    if given is None or is_remote(given) or not os.path.exists(os.path.expanduser(given)):
      continue
    of_input = Path(os.path.realpath(os.path.expanduser(given)))
    if of_input == place:
      raise InputError(f"--output would overwrite {flag}; give another file")
    if place.exists() and of_input in place.parents:
      raise InputError(f"--output {output}: is there, in {flag}, and would be overwritten; give another file, or "
                       "remove it")


def absolute(path: epath.PathLike) -> epath.Path:
  """The same place, whatever the current folder is later."""
  path = location(path)
  return path if is_remote(path) else epath.Path(os.path.abspath(path))


def is_remote(path: epath.PathLike) -> bool:
  """Whether it lies in a bucket."""
  return os.fspath(path).startswith("gs://")


@contextlib.contextmanager
def reached(path: epath.PathLike) -> Iterator[None]:
  """Makes InputError of what goes wrong between here and a bucket; of local paths nothing."""
  try:
    yield
  except InputError:
    raise
  except Exception as e:
    library = type(e).__module__.partition(".")[0] in _LIBRARIES
    if not is_remote(path) or not (library or isinstance(e, OSError | ImportError | ValueError)):
      raise
    reason = " ".join(str(e).split()) or type(e).__name__
    raise InputError(f"{path}: cannot be reached ({reason:.200}); check the name, the network and your rights to the "
                     "bucket, or copy it to this machine") from e


def check_regular(path: epath.Path) -> None:
  """Raises InputError for a named pipe or a device, which may never end."""
  if not is_remote(path) and path.exists() and not os.path.isfile(path) and not os.path.isdir(path):
    raise InputError(f"{path}: is no regular file; put the file itself there")
