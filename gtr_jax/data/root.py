"""Where data lies and which vocabulary a run reads with: both are looked at when a task is used, never before.

No TensorFlow here: the command line imports this module for its flags.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

_data_dir: str | None = None


def set_data_dir(path: str | None) -> None:
  """Sets the data root of this process (a flag or gin binding); None goes back to `GTR_DATA_DIR` or the default."""
  global _data_dir
  _data_dir = path


def data_dir() -> epath.Path:
  """The data root, absolute: what `set_data_dir` was given, else `GTR_DATA_DIR`, else `~/.cache/gtr_jax`."""
  path = epath.Path(_data_dir or os.environ.get("GTR_DATA_DIR") or "~/.cache/gtr_jax").expanduser()
  return path if "://" in os.fspath(path) else epath.Path(os.path.abspath(path))


def resolve(path: str) -> epath.Path:
  """`path` itself if it is absolute (also `gs://…` and `~/…`), else below the data root."""
  path = epath.Path(path).expanduser()
  return path if path.is_absolute() or "://" in os.fspath(path) else data_dir() / path


class VocabularyFile(NamedTuple):
  """A SentencePiece model and the number of sentinel ids after its pieces (100 for the released T5 models)."""

  path: str
  extra_ids: int


_vocabulary: contextvars.ContextVar[VocabularyFile | None] = contextvars.ContextVar("vocabulary", default=None)


@contextlib.contextmanager
def use_vocabulary(path: str | None, extra_ids: int = 0) -> Iterator[None]:
  """Pipelines that are built inside read with this vocabulary instead of their tasks' own; None changes nothing."""
  token = _vocabulary.set(VocabularyFile(path, extra_ids) if path else _vocabulary.get())
  try:
    yield
  finally:
    _vocabulary.reset(token)


def vocabulary_file(default: str, extra_ids: int) -> VocabularyFile:
  """The vocabulary in use: that of `use_vocabulary`, else the task's own (`default`); with its path resolved."""
  file = _vocabulary.get() or VocabularyFile(default, extra_ids)
  return VocabularyFile(os.fspath(resolve(file.path)), file.extra_ids)
