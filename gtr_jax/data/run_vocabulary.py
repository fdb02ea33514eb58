"""Which vocabulary a run reads with: it is looked at when a task is used, never before."""

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import NamedTuple

from gtr_jax.io.data_root import resolve


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
  return VocabularyFile(os.fspath(resolve(file.path)) if file.path else "", file.extra_ids)
