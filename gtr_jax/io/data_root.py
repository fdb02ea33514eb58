"""Where data lies: one folder, looked at when something in it is used, never before."""

import os

from etils import epath

from gtr_jax.io.paths import absolute, is_remote, location

_data_dir: str | None = None


def set_data_dir(path: str | None) -> None:
  """Sets the data root of this process (a flag or gin binding); None goes back to `GTR_DATA_DIR` or the default."""
  global _data_dir
  _data_dir = path


def cache_home() -> str:
  """Where gtr_jax keeps what it makes for itself: `gtr_jax` in `XDG_CACHE_HOME`, else in `~/.cache`."""
  given = os.environ.get("XDG_CACHE_HOME", "")
  return os.path.join(given if os.path.isabs(given) else os.path.expanduser("~/.cache"), "gtr_jax")


def data_dir() -> epath.Path:
  """The data root, absolute: what `set_data_dir` was given, else `GTR_DATA_DIR`, else `cache_home()`."""
  return absolute(_data_dir or os.environ.get("GTR_DATA_DIR") or cache_home())


def local_dir() -> str:
  """Where what needs seeks and renames lies: the data root, or `cache_home()` where that is in a bucket."""
  root = data_dir()
  return cache_home() if is_remote(root) else os.fspath(root)


def resolve(path: epath.PathLike) -> epath.Path:
  """`path` itself if it is absolute (also `gs://…` and `~/…`), else below the data root."""
  path = location(path)
  return path if path.is_absolute() or is_remote(path) else data_dir() / path
